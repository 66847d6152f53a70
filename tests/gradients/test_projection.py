"""A projection keeps inner products, and its numbers depend on seed and name alone."""

from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradindex import noise
from gradindex.errors import CallError
from gradindex.gradients import projection as projection_module
from gradindex.gradients.capture import Capture
from gradindex.gradients.projection import (
    CountSketch,
    Exact,
    Projection,
    Rademacher,
    make_projection,
    shrunk,
    variance,
)
from gradindex.random_numbers import random_offset, random_signs


def capture_rows(model: nn.Module, x: Tensor, projection: Projection) -> Tensor:
    names = [name for name, _ in model.named_parameters()]
    with Capture(model.requires_grad_(False), names, projection) as capture:
        return capture.gradients(lambda: model(x).flatten(1).square().sum(1))


MADE = {
    "sketch": lambda seed: CountSketch(64, seed),
    "two-sided": lambda seed: CountSketch(64, seed, 2),
    "two-sided, one weight strong": lambda seed: CountSketch(64, seed, 2, ["0.weight"]),
    "rademacher": lambda seed: Rademacher(64, seed),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_inner_products_are_right_on_average_over_seeds(make: Callable[[int], Projection]) -> None:
    """⟨Px, Py⟩ → ⟨x, y⟩: the mean over 400 seeds lies within 4 standard errors of the truth."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Tanh(), nn.Flatten(), nn.Linear(96, 8)
    )
    x = torch.randn(3, 2, 4, 4)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    exact = capture_rows(model, x, Exact(sizes))
    truth = (exact @ exact.T).numpy()
    grams = []
    for seed in range(400):
        rows = capture_rows(model, x, make(seed))
        grams.append((rows @ rows.T).numpy())
    error = np.abs(np.mean(grams, axis=0) - truth)
    assert (error < 4 * np.std(grams, axis=0) / np.sqrt(len(grams))).all()
    assert np.std(grams, axis=0).max() > 0


def test_wide_sides_are_shrunk_to_the_rank_and_those_of_strong_weights_to_four_times() -> None:
    sketch = CountSketch(64, 0, 2, ["strong", "strong, half narrow"])
    like = torch.zeros(1)
    weights = {
        "weak": (20, 20),
        "narrow": (4, 20),
        "strong": (20, 17),
        "strong, half narrow": (16, 20),
    }
    shapes = {}
    for name, (outs, ins) in weights.items():
        sides = sketch.sides(name, outs, ins, outs * ins, like)
        shapes[name] = [None if side is None else tuple(side.shape) for side in sides]
    assert shapes == {
        "weak": [(2, 20), (2, 20)],
        "narrow": [None, (2, 20)],
        "strong": [(8, 20), (8, 17)],
        "strong, half narrow": [None, (8, 20)],
    }
    assert CountSketch(64, 0, 2).sides("of little numbers", 5, 5, 64, like) == (None, None)


def test_the_variance_that_shrinking_adds() -> None:
    """Measured over seeds, for two gradients of rank one, where it is largest: x = y."""
    delta, a = torch.randn(1, 20), torch.randn(1, 30)
    scores = []
    for seed in range(2000):
        sketch = CountSketch(10_000, seed, 4)
        out, into = sketch.sides("w", 20, 30, 600, delta)
        assert out is not None
        assert into is not None
        rows = torch.zeros(1, 10_000)
        sketch.add(rows, "w", torch.outer(out @ delta[0], into @ a[0]).flatten()[None])
        scores.append(float(rows.square().sum()))
    truth = float(delta.square().sum() * a.square().sum())
    bound = variance(shrunk(4, 20, 30, 600, high_rank=False), 20, 30)
    assert np.mean(scores) == pytest.approx(truth, rel=0.1)
    assert 0.5 * bound < np.var(scores) / truth**2 < 1.1 * bound


def test_a_dense_projection_is_a_matrix_of_signs() -> None:
    """The obvious twin: rows = block · S / √D, S made in chunks that no batch changes."""
    block, rows = torch.randn(3, 10), torch.ones(3, 5)
    dense = Rademacher(5, 7)
    dense.CHUNK_SIGNS = 20  # four of the block's numbers at a time
    dense.add(rows, "w", block)
    signs = [
        random_signs(7, "w", "dense", number, size=size * 5)
        for number, size in enumerate((4, 4, 2))
    ]
    matrix = torch.from_numpy(np.concatenate(signs)).view(10, 5)
    torch.testing.assert_close(rows, 1 + block @ matrix.float() / 5**0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_rows_are_the_same_on_cpu_and_cuda(make: Callable[[int], Projection]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Tanh(), nn.Flatten(), nn.Linear(96, 8)
    )
    x = torch.randn(3, 2, 4, 4)
    here = capture_rows(model, x, make(0))
    there = capture_rows(model.cuda(), x.cuda(), make(0)).cpu()
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 50),
    dim=st.integers(1, 20),
    seed=st.integers(0, 5),
    slicewise=st.booleans(),
)
def test_a_sketch_is_the_sum_over_signed_buckets(
    size: int, dim: int, seed: int, slicewise: bool
) -> None:
    """The obvious twin: number j of the block goes, signed, to bucket (start + j) mod D.

    Slice by slice, as on a CPU, and all slices at once, as on a GPU.
    """
    block = torch.randn(2, size)
    rows = torch.ones(2, dim)
    devices = {"cpu"} if slicewise else set[str]()
    with mock.patch.object(projection_module, "SLICEWISE_DEVICES", devices):
        CountSketch(dim, seed).add(rows, "w", block)
    start = random_offset(seed, "w", below=max(1, dim - size + 1))
    expected = torch.ones(2, dim)
    for j, sign in enumerate(random_signs(seed, "w", "fold", size=size)):
        expected[:, (start + j) % dim] += int(sign) * block[:, j]
    torch.testing.assert_close(rows, expected)


def test_every_parameter_has_numbers_of_its_own() -> None:
    one, two = random_signs(0, "a", "fold", size=64), random_signs(0, "b", "fold", size=64)
    assert not np.array_equal(one, two)
    assert not np.array_equal(one, random_signs(1, "a", "fold", size=64))


def test_noise_and_signs_have_not_changed() -> None:
    """Golden numbers: stores that people keep were made with them.

    A change needs a new version in recipe.py.
    """
    np.testing.assert_array_equal(
        random_signs(7, "w", size=12), [1, -1, 1, 1, -1, 1, -1, -1, 1, 1, -1, -1]
    )
    np.testing.assert_allclose(
        noise(7, None, 500, 0, (3,)), [2.2498431, -0.4373114, 1.0236088], rtol=1e-6
    )
    np.testing.assert_allclose(
        noise(7, "a.png", 500, 1, (3,)), [0.470129, -0.5524756, 0.4273117], rtol=1e-6
    )


def test_noise_depends_on_each_part_of_its_key() -> None:
    keys = [
        (0, None, 1, 0),
        (1, None, 1, 0),
        (0, "None", 1, 0),
        (0, None, 2, 0),
        (0, None, 1, 1),
        (0, "null", 1, 0),
    ]
    assert len({noise(*key, (4,)).tobytes() for key in keys}) == len(keys)
    np.testing.assert_array_equal(noise(0, "a", 5, 0, (2, 3)), noise(0, "a", 5.0, 0, (2, 3)))


def test_draws_come_in_antithetic_pairs() -> None:
    draws = [noise(3, "a", 5, m, (2, 4)) for m in range(6)]
    for first, second in zip(draws[::2], draws[1::2], strict=True):
        np.testing.assert_array_equal(second, -first)
    assert len({np.abs(draw).tobytes() for draw in draws}) == 3


def test_an_unknown_projection_is_refused() -> None:
    with pytest.raises(
        CallError, match="projection = 'fjlt': allowed are auto, rademacher, sketch, none"
    ):
        make_projection("fjlt", 8, 0, None, (), {"w": 3})

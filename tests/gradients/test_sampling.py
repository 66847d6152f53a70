"""Choosing the batch and the strong weights, and gradients in half precision."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model

import gradindex
from gradindex.gradients import batch_size, high_rank
from gradindex.gradients.batch_size import fitting_batch
from gradindex.gradients.capture import Capture
from gradindex.gradients.events import grid_events
from gradindex.gradients.graphs import GraphedCapture
from gradindex.gradients.high_rank import choose_high_rank
from gradindex.gradients.parameters import capture_for
from gradindex.gradients.projection import Exact
from gradindex.gradients.sampling import sample_gradients
from gradindex.gradients.self_check import check_capture
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import DTYPES
from gradindex.models.examples import Examples
from gradindex.models.loading import load_denoiser
from gradindex.recipe import Recipe


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path) -> gradindex.Index:
    return gradindex.build(
        tmp_path_factory.mktemp("rows") / "idx", model=model, data=pictures, timesteps=2, dim=64
    )


@pytest.fixture
def denoiser(model: Path) -> Denoiser:
    return load_denoiser(model)


@pytest.fixture
def recipe(store: gradindex.Index) -> Recipe:
    return store.store.recipe


def random_pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, 1, 8, 8)).astype(np.float32)


def test_strong_weights_hold_most_of_the_gradient(
    denoiser: Denoiser, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The obvious twin: exact gradients, the shares of their squared norm at each timestep."""
    pictures, ids = random_pictures(4), list("abcd")
    exact = replace(recipe, projection="none", rank=None, high_rank=(), dim=recipe.parameter_count)
    sizes = {name: parameter.numel() for name, parameter in denoiser.model.named_parameters()}
    with Capture(denoiser.model, list(sizes), Exact(sizes)) as capture:
        gradients = sample_gradients(
            denoiser, capture, exact, Examples(pictures), grid_events(exact, ids), batch_size=8
        )
    parts = np.split(np.square(gradients), np.cumsum(list(sizes.values()))[:-1], axis=2)
    shares = [part.sum(2) for part in parts] / np.square(gradients).sum(2)
    added = {}
    for name, share in zip(sizes, shares, strict=True):
        weight = denoiser.model.get_parameter(name)
        # Rank 2: a side wider than 4 is shrunk to 2, for 2 / 2 more.
        if sizes[name] > 16 * 2**2 and weight.dim() > 1:
            kept = [2.0 if width > 4 else 1.0 for width in weight.shape[:2]]
            added[name] = (np.prod(kept) - 1) * np.square(share).mean(0)  # at each timestep
    gain = {
        name: values.max() * recipe.parameter_count / sizes[name] for name, values in added.items()
    }
    assert len(gain) > 5
    in_order = sorted(gain.values())
    for price in (0.0, in_order[2] * 1.01, in_order[-2] * 0.99, in_order[-1] * 1.01):
        monkeypatch.setattr(high_rank, "VARIANCE_PRICE", price)
        strong = choose_high_rank(denoiser, replace(recipe, rank=2), Examples(pictures), ids, 8)
        assert strong == tuple(sorted(name for name in gain if gain[name] > price))


def test_the_fitting_batch_depends_on_memory_and_model(
    denoiser: Denoiser, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert fitting_batch(denoiser, recipe) == batch_size.LARGEST_BATCH["cpu"]
    monkeypatch.setattr(Denoiser, "memory", 8 * 2**20)
    small = fitting_batch(denoiser, recipe)
    monkeypatch.setattr(Denoiser, "memory", 16 * 2**20)
    assert 1 <= small < batch_size.LARGEST_BATCH["cpu"]
    assert fitting_batch(denoiser, recipe) == 2 * small
    monkeypatch.setattr(Denoiser, "memory", 1)
    assert fitting_batch(denoiser, recipe) == 1


def precisions() -> list[str]:
    """What torch rounds products to: of GPUs, then of CPUs; what no older name can tell is mixed.

    The first three are torch's own names since 2.9, for products and convolutions of a GPU.
    """
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    switches = [cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]
    try:
        older = str((torch.get_float32_matmul_precision(), cudnn.allow_tf32))
    except RuntimeError:
        older = "mixed"
    return [*(switch.fp32_precision for switch in switches), older]


def ask_nothing() -> None:
    """Leave torch as it is."""


def ask_by_one_name() -> None:
    """Allow TF32 in products, forbid it in convolutions."""
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = True, False


def ask_for_bfloat16() -> None:
    """Have CPUs too round."""
    torch.set_float32_matmul_precision("medium")


def ask_by_newer_names() -> None:
    """Leave a state that older names cannot tell."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def ask_by_two_names() -> None:
    """As other libraries do one after the other; then older names cannot tell it either."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture
def plain_precisions() -> Iterator[None]:
    """Put back what a test asks of torch."""
    yield
    for backend in (torch.backends.cuda, torch.backends.mkldnn):
        backend.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    assert precisions()[-1] == "('highest', True)"


@pytest.mark.parametrize("dtype", ["float32", "tf32"])
@pytest.mark.parametrize(
    "ask", [ask_nothing, ask_by_one_name, ask_for_bfloat16, ask_by_newer_names, ask_by_two_names]
)
def test_tf32_is_what_the_recipe_says(
    model: Path,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    plain_precisions: None,
    dtype: str,
    ask: Callable[[], None],
) -> None:
    """In products and convolutions of a GPU, whatever the caller asked of torch, which stays."""
    denoiser, recipe = load_denoiser(model, dtype=dtype), replace(recipe, dtype=dtype)
    assert (denoiser.dtype, denoiser.description.dtype) == (torch.float32, dtype)
    ask()
    before = precisions()
    seen = set()
    losses = Denoiser.losses

    def watched(*arguments: Any) -> torch.Tensor:
        seen.add(tuple(precisions()[:6]))
        return losses(*arguments)

    monkeypatch.setattr(Denoiser, "losses", watched)
    examples, events = Examples(random_pictures(2)), grid_events(recipe, ["a", "b"])
    with capture_for(denoiser, recipe) as capture:
        sample_gradients(denoiser, capture, recipe, examples, events, batch_size=8)
    of_gpu = "tf32" if dtype == "tf32" else "ieee"
    assert seen == {(of_gpu,) * 3 + ("ieee",) * 3}
    assert precisions() == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same_rows(
    model: Path, recipe: Recipe, denoiser: Denoiser, dtype: str
) -> None:
    """Rows are float32, finite, and point where the float32 model's do.

    The hooks are checked in float32.
    """
    pictures, ids = random_pictures(3), list("abc")
    half = load_denoiser(model, dtype=dtype)
    half_recipe = replace(recipe, dtype=dtype)
    check_capture(half, half_recipe)
    assert half.model.dtype == DTYPES[dtype]
    found = []
    for model_in_dtype, its_recipe in ((denoiser, recipe), (half, half_recipe)):
        events = grid_events(its_recipe, ids)
        with capture_for(model_in_dtype, its_recipe) as capture:
            rows = sample_gradients(
                model_in_dtype, capture, its_recipe, Examples(pictures), events, batch_size=8
            )
        found.append(rows)
    assert found[1].dtype == np.float32
    cosine = (
        (found[0] * found[1]).sum(-1)
        / np.linalg.norm(found[0], axis=-1)
        / np.linalg.norm(found[1], axis=-1)
    )
    assert cosine.min() > 0.99
    assert np.linalg.norm(found[1], axis=-1) == pytest.approx(
        np.linalg.norm(found[0], axis=-1), rel=0.05
    )


def test_float16_does_not_underflow(tmp_path: Path, recipe: Recipe) -> None:
    """A model whose gradients are far below float16's smallest number still has all of them."""
    half = load_denoiser(make_model(tmp_path / "model"), dtype="float16")
    half_recipe = replace(recipe, dtype="float16")
    with torch.no_grad():
        half.model.conv_out.weight.mul_(2.0**-6)
    with capture_for(half, half_recipe) as capture:
        found = sample_gradients(
            half,
            capture,
            half_recipe,
            Examples(random_pictures(2)),
            grid_events(half_recipe, list("ab")),
            batch_size=4,
        )
    half.cast(torch.float32)
    full_recipe = replace(recipe, dtype="float32")
    with capture_for(half, full_recipe) as capture:
        truth = sample_gradients(
            half,
            capture,
            full_recipe,
            Examples(random_pictures(2)),
            grid_events(full_recipe, list("ab")),
            batch_size=4,
        )
    cosine = (
        (found * truth).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(truth, axis=-1)
    )
    assert cosine.min() > 0.99


def test_an_index_in_half_precision(
    tmp_path: Path, model: Path, pictures: Path, queries: list[Path]
) -> None:
    index = gradindex.build(
        tmp_path / "idx", model=model, data=pictures, timesteps=2, dim=64, dtype="bfloat16"
    )
    assert index.store.recipe.dtype == "bfloat16"
    assert index.query([queries[0]], k=1)[0].hits[0].score > 0


def test_graphs_make_room_for_a_batch_before_it_is_halved(
    denoiser: Denoiser, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is short once, graphs are given back and the whole batch is tried again."""
    pictures, ids = random_pictures(6), list("abcdef")
    arguments = recipe, Examples(pictures), grid_events(recipe, ids)
    gradients, sizes = Capture.gradients, list[int]()

    def short_once(self: Capture, losses: Any, scale: float = 1) -> torch.Tensor:
        rows = gradients(self, losses, scale)
        sizes.append(len(rows))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError
        return rows

    with capture_for(denoiser, recipe) as capture:
        expected = sample_gradients(denoiser, capture, *arguments, batch_size=6)
        monkeypatch.setattr(Capture, "gradients", short_once)
        given_back = iter([True, False])
        monkeypatch.setattr(GraphedCapture, "forget", lambda self: next(given_back))
        found = sample_gradients(denoiser, capture, *arguments, batch_size=6)
    np.testing.assert_array_equal(found, expected)
    assert sizes == [6, 6, 6]

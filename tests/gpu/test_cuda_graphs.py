"""Gradients that a GPU takes by graphs are those that it takes without."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from on_cuda import DEVICE, STEP, needs_cuda, relative_errors, tf32
from test_cuda import HALF, recipe_of
from torch import Tensor

from gradindex.gradients.batches import losses_of
from gradindex.gradients.graphs import RUNS_BEFORE, GraphedCapture
from gradindex.gradients.parameters import capture_for
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import products_in
from gradindex.models.loading import load_denoiser

pytestmark = needs_cuda
makes_graphs = DEVICE != "cpu"


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    with tf32(False):
        yield


def current_stream() -> object:
    return torch.cuda.current_stream() if makes_graphs else None


def inputs_of(seed: int, count: int, image: tuple[int, ...]) -> dict[str, Tensor]:
    random = np.random.default_rng(seed)
    x, epsilon = random.standard_normal((2, count, *image)).astype(np.float32)
    found = {"x": torch.from_numpy(x), "t": torch.from_numpy(random.integers(1000, size=count))}
    found["epsilon"] = torch.from_numpy(epsilon)
    return {name: values.to(DEVICE) for name, values in found.items()}


def compare(
    denoiser: Denoiser,
    losses: Callable[[Mapping[str, Tensor]], Tensor],
    projection: str = "two-sided",
    sizes: tuple[int, ...] = (5,),
) -> GraphedCapture:
    """Take the gradients of many batches in turns, and compare each with the plain capture's."""
    recipe, stream = recipe_of(denoiser, projection), current_stream()
    step = STEP[recipe.dtype]
    with capture_for(denoiser, recipe) as capture, products_in(recipe.dtype):
        graphed = GraphedCapture(denoiser, capture)
        for number in range(2 * RUNS_BEFORE + 2):
            for size in sizes:
                inputs = inputs_of(number, size, recipe.image)
                found = graphed.gradients(losses, inputs, 2.0).clone()
                expected = capture.gradients(partial(losses, inputs), 2.0)
                assert relative_errors(found, expected).max() <= 16 * step
                assert current_stream() == stream
    return graphed


@pytest.mark.parametrize("dtype", ["float32", "tf32", *HALF])
@pytest.mark.parametrize("sizes", [(5,), (5, 3)])
def test_graphs_give_the_rows_of_a_plain_capture(
    model: Path, dtype: str, sizes: tuple[int, ...]
) -> None:
    """Batches of two sizes take turns: their graphs share memory."""
    denoiser = load_denoiser(model, device=DEVICE, dtype=dtype)
    graphed = compare(denoiser, partial(losses_of, denoiser, "mse"), sizes=sizes)
    assert len(graphed.graphs) == (len(sizes) if makes_graphs else 0)


@pytest.mark.parametrize("projection", ["sketch", "none"])
def test_other_projections(model: Path, projection: str) -> None:
    denoiser = load_denoiser(model, device=DEVICE)
    graphed = compare(denoiser, partial(losses_of, denoiser, "mse"), projection)
    assert len(graphed.graphs) == makes_graphs


@pytest.mark.parametrize("projection", ["two-sided", "rademacher"])
def test_what_waits_for_the_gpu_is_run_without_graphs(model: Path, projection: str) -> None:
    """A loss that asks for a number; signs that come from the host in every pass."""
    denoiser = load_denoiser(model, device=DEVICE)

    def losses(inputs: Mapping[str, Tensor]) -> Tensor:
        if projection == "two-sided" and float(inputs["t"].float().mean()) < 0:
            raise AssertionError
        return losses_of(denoiser, "mse", inputs)

    assert compare(denoiser, losses, projection).graphs == {}
    if makes_graphs:
        torch.cuda.empty_cache()  # the allocator has left the recording, too
    other = load_denoiser(model, device=DEVICE)
    assert len(compare(other, partial(losses_of, other, "mse")).graphs) == makes_graphs


def test_what_a_full_memory_takes_away_is_not_made_again(model: Path) -> None:
    denoiser = load_denoiser(model, device=DEVICE)
    graphed = compare(denoiser, partial(losses_of, denoiser, "mse"))
    assert graphed.forget() == makes_graphs
    assert not graphed.forget()
    assert graphed.graphs == {}

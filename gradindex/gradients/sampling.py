"""Pictures in, rows of the store out: projected gradients, averaged over draws of the noise."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch

from gradindex.errors import ModelError
from gradindex.gradients.batches import Batch, event_batches, losses_of, make_batch
from gradindex.gradients.capture import Capture
from gradindex.gradients.events import Events
from gradindex.gradients.graphs import GraphedCapture
from gradindex.gradients.weighting import timestep_weights
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import LaunchLimit, plain_torch, products_in, to_host
from gradindex.models.examples import Examples, positions_by
from gradindex.random_numbers import noise
from gradindex.recipe import Recipe

MANY = 16  # batches, from which on it is worth while to record graphs of them


def sample_gradients(
    denoiser: Denoiser,
    capture: Capture,
    recipe: Recipe,
    examples: Examples,
    events: Events,
    *,
    batch_size: int,
    progress: Callable[[int], object] = lambda events: None,
) -> np.ndarray:
    """Return the projected gradient of every picture at every timestep, averaged over draws.

    Args:
        capture: the hooks on the denoiser's model, inside their `with` block.
        examples: B pictures as the model takes them. Those of one shape go through the model
            together.
        events: timesteps and noise of each.
        batch_size: how many events (picture, timestep, draw) go through the model at once; changes
            nothing else, and is halved when the device has not the memory.
        progress: called with the number of events that were done.

    Returns:
        [B, T, D] float32.

    Raises:
        ModelError: a loss or gradient is not finite (picture and timestep are named), or one event
            does not fit into memory.
    """
    make = partial(make_batch, examples, events, denoiser.device)
    planned = event_batches(examples, events, batch_size)
    batches = map(make, planned)
    graphed = GraphedCapture(denoiser, capture, many=len(planned) >= MANY)
    return launch_gradients(denoiser, graphed, recipe, events, batches, progress)()


@plain_torch()
def launch_gradients(
    denoiser: Denoiser,
    capture: GraphedCapture,
    recipe: Recipe,
    events: Events,
    batches: Iterable[Batch],
    progress: Callable[[int], object],
) -> Callable[[], np.ndarray]:
    """Return a function that waits for what `sample_gradients` returns, and raises its errors.

    A GPU may still be at work when it is returned; any thread may call it, once.

    Args:
        events: of B pictures.
        batches: all of these events, see `event_batches` and `make_batch`.

    Raises:
        ModelError: one event does not fit into memory.
    """
    device = denoiser.device
    process = denoiser.process  # alone: `wait` must not keep the model in memory
    # Backward passes in float16 run on a loss summed over the picture's numbers: the gradient of
    # its mean would underflow.
    scale = float(np.prod(recipe.image)) if recipe.dtype == "float16" else 1.0
    sums = torch.zeros(events.timesteps.size, capture.capture.projection.dim, device=device)
    most: int | None = None  # events at once, where a whole batch did not fit
    losses = partial(losses_of, denoiser, recipe.differentiated)
    limit = LaunchLimit(device)
    for batch in batches:
        start = 0
        while start < len(batch):
            part = batch if most is None else batch.part(start, start + most)
            try:
                with products_in(recipe.dtype):
                    rows = capture.gradients(losses, part.inputs, scale)
            except torch.OutOfMemoryError as error:
                if capture.forget():
                    continue
                if len(part) == 1:
                    raise ModelError(
                        "one picture at one timestep does not fit into the device's memory"
                    ) from error
                most = -(-len(part) // 2)
                continue
            sums.index_add_(0, part.rows, rows)
            start += len(part)
            limit.launched()
            progress(len(part))
    copied = to_host(sums)

    def wait() -> np.ndarray:
        rows = copied()
        if events.draws > 1:
            rows /= events.draws
        if recipe.weighting is not None:
            weights = timestep_weights(recipe.weighting, process, events.timesteps.ravel())
            rows *= weights.astype(np.float32)[:, None]
        rows = rows.reshape(*events.timesteps.shape, -1)
        _require_finite(rows, events)
        return rows

    return wait


@plain_torch()
@torch.no_grad()
def mean_losses(
    denoiser: Denoiser,
    examples: Examples,
    timesteps: Sequence[float],
    draws: int,
    seed: int,
    loss: str,
) -> np.ndarray:
    """Return the denoising loss of each picture, its mean over timesteps and draws, [Q] float64.

    The noise is the one that all pictures share at that seed.

    Args:
        examples: Q pictures as the model takes them.
        loss: "mse", "l1" or "mean-square".
    """
    total = torch.zeros(len(examples), dtype=torch.float64, device=denoiser.device)
    shapes = map(examples.shapes, range(len(examples)))
    for positions in positions_by(shapes).values():
        x, conditions = examples.batch(positions, denoiser.device)
        for timestep in timesteps:
            t = torch.full((len(x),), timestep, device=x.device)
            for draw in range(draws):
                shared_noise = torch.from_numpy(noise(seed, None, timestep, draw, x.shape[1:]))
                epsilon = shared_noise.to(x).expand_as(x)
                with products_in(denoiser.description.dtype):
                    total[positions] += denoiser.losses(x, t, epsilon, conditions, loss)
    return (total / (len(timesteps) * draws)).cpu().numpy()


def _require_finite(rows: np.ndarray, events: Events) -> None:
    """Raise ModelError if a row [B, T, D] is NaN or infinite; it names the first."""
    finite = np.isfinite(rows).all(2)
    if not finite.all():
        i, j = np.unravel_index(finite.argmin(), finite.shape)
        raise ModelError(
            f"the gradient of {events.names[i]!r} at timestep"
            f" {events.timesteps[i, j]} is not finite"
        )

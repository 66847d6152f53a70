"""Pictures in, rows of the store out: projected gradients, averaged over draws of the noise."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradindex.errors import ModelError
from gradindex.gradients.capture import Capture
from gradindex.gradients.events import Events
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import plain_torch
from gradindex.random_numbers import noise
from gradindex.recipe import Recipe


class Event(NamedTuple):
    """One gradient to take: picture i at its timestep number j, with draw m of the noise."""

    i: int
    j: int
    m: int


@plain_torch()
def sample_gradients(
    denoiser: Denoiser,
    capture: Capture,
    recipe: Recipe,
    pictures: np.ndarray,
    events: Events,
    labels: Sequence[int] | None,
    *,
    batch_size: int,
    progress: Callable[[int], object] = lambda events: None,
) -> np.ndarray:
    """Return the projected gradient of every picture at every timestep, averaged over draws.

    Args:
        capture: the hooks on the denoiser's model, inside their `with` block.
        pictures: [B, channels, height, width] float32 in [−1, 1].
        events: timesteps and noise of each.
        labels: B class labels, or None for an unconditional model.
        batch_size: how many events (picture, timestep, draw) go through the model at once; changes
            nothing else, and is halved when the device has not the memory.
        progress: called with the number of events that were done.

    Returns:
        [B, T, D] float32.

    Raises:
        ModelError: a loss or gradient is not finite (picture and timestep are named), or one event
            does not fit into memory.
    """
    device = denoiser.device
    picture_count, timestep_count = len(pictures), events.timesteps.shape[1]
    queue = [
        Event(i, j, m)
        for i in range(picture_count)
        for j in range(timestep_count)
        for m in range(events.draws)
    ]
    # Backward passes in float16 run on a loss summed over the picture's numbers: the gradient of
    # its mean would underflow.
    scale = float(np.prod(recipe.image)) if recipe.dtype == "float16" else 1.0
    sums = torch.zeros(picture_count * timestep_count, capture.projection.dim, device=device)
    done = 0
    while done < len(queue):
        batch = queue[done : done + batch_size]
        try:
            inputs = _model_inputs(batch, pictures, events, labels, device)
            losses = partial(denoiser.losses, *inputs, recipe.differentiated)
            rows = capture.gradients(losses, scale)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise ModelError(
                    "one picture at one timestep does not fit into the device's memory"
                ) from error
            batch_size = -(-len(batch) // 2)
            continue
        _require_finite(rows, batch, events)
        row_numbers = torch.tensor([event.i * timestep_count + event.j for event in batch])
        sums.index_add_(0, row_numbers.to(device), rows)
        done += len(batch)
        progress(len(batch))
    return (sums / events.draws).view(picture_count, timestep_count, -1).cpu().numpy()


@plain_torch()
@torch.no_grad()
def mean_losses(
    denoiser: Denoiser,
    pictures: np.ndarray,
    labels: Sequence[int] | None,
    timesteps: Sequence[int],
    draws: int,
    seed: int,
    loss: str,
) -> np.ndarray:
    """Return the denoising loss of each picture, its mean over timesteps and draws, [Q] float64.

    The noise is the one that all pictures share at that seed.

    Args:
        pictures: [Q, channels, height, width] float32 in [−1, 1].
        labels: Q class labels, or None for an unconditional model.
        loss: "mse", "l1" or "mean-square".
    """
    x = torch.from_numpy(pictures).to(denoiser.device)
    classes = None if labels is None else torch.tensor(labels, device=denoiser.device)
    total = torch.zeros(len(x), dtype=torch.float64, device=denoiser.device)
    for timestep in timesteps:
        t = torch.full((len(x),), timestep, device=x.device)
        for draw in range(draws):
            shared_noise = torch.from_numpy(noise(seed, None, timestep, draw, x.shape[1:]))
            epsilon = shared_noise.to(x).expand_as(x)
            total += denoiser.losses(x, t, epsilon, classes, loss)
    return (total / (len(timesteps) * draws)).cpu().numpy()


def _model_inputs(
    batch: Sequence[Event],
    pictures: np.ndarray,
    events: Events,
    labels: Sequence[int] | None,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Pictures, timesteps, noise and class labels of n events, [n, …] each."""
    i, j, _ = np.array(batch).T
    x = torch.from_numpy(pictures[i]).to(device)
    t = torch.from_numpy(events.timesteps[i, j]).to(device)
    epsilon = torch.from_numpy(np.stack([events.noise(*event) for event in batch])).to(device)
    classes = None if labels is None else torch.tensor(labels)[i].to(device)
    return x, t, epsilon, classes


def _require_finite(rows: Tensor, batch: Sequence[Event], events: Events) -> None:
    """Raise ModelError if the gradient of an event is NaN or infinite; it names the first."""
    finite = rows.isfinite().all(1)
    if not finite.all():
        event = batch[int(finite.int().argmin())]
        raise ModelError(
            f"the gradient of {events.names[event.i]!r} at timestep"
            f" {events.timesteps[event.i, event.j]} is not finite"
        )

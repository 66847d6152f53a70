"""Pictures in, rows of the store out: projected gradients, averaged over draws of the noise."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradindex.errors import ModelError
from gradindex.gradients.capture import Capture
from gradindex.gradients.events import Events
from gradindex.gradients.weighting import timestep_weights
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import plain_torch
from gradindex.models.examples import INPUT_NOISE, Examples, positions_by
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
    device = denoiser.device
    picture_count, timestep_count = len(examples), events.timesteps.shape[1]
    shape_of = [examples.shapes(i) for i in range(picture_count)]
    # Examples of one shape follow each other, so that they fit into one batch.
    queue = [
        Event(i, j, m)
        for positions in positions_by(shape_of).values()
        for i in positions
        for j in range(timestep_count)
        for m in range(events.draws)
    ]
    # Backward passes in float16 run on a loss summed over the picture's numbers: the gradient of
    # its mean would underflow.
    scale = float(np.prod(recipe.image)) if recipe.dtype == "float16" else 1.0
    sums = torch.zeros(picture_count * timestep_count, capture.projection.dim, device=device)
    done = 0
    while done < len(queue):
        batch = _first_of_one_shape(queue[done : done + batch_size], shape_of)
        try:
            inputs = _model_inputs(batch, examples, events, device)
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
        if recipe.weighting is not None:
            chosen = [events.timesteps[event.i, event.j] for event in batch]
            weights = timestep_weights(recipe.weighting, denoiser.process, chosen)
            rows = rows * torch.from_numpy(weights).to(rows).unsqueeze(1)
        row_numbers = torch.tensor([event.i * timestep_count + event.j for event in batch])
        sums.index_add_(0, row_numbers.to(device), rows)
        done += len(batch)
        progress(len(batch))
    return (sums / events.draws).view(picture_count, timestep_count, -1).cpu().numpy()


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
                total[positions] += denoiser.losses(x, t, epsilon, conditions, loss)
    return (total / (len(timesteps) * draws)).cpu().numpy()


def _first_of_one_shape(events: Sequence[Event], shape_of: Sequence[Any]) -> Sequence[Event]:
    """The events up to the first one whose example has another shape than that of the first."""
    shape = shape_of[events[0].i]
    for position, event in enumerate(events):
        if shape_of[event.i] != shape:
            return events[:position]
    return events


def _model_inputs(
    batch: Sequence[Event],
    examples: Examples,
    events: Events,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Pictures or latents, timesteps, noise and conditions of n events, [n, …] each."""
    i, j, _ = np.array(batch).T
    x, conditions = examples.batch(i, device)
    t = torch.from_numpy(events.timesteps[i, j]).to(device)
    shape = tuple(x.shape[1:])
    epsilon = torch.from_numpy(np.stack([events.noise(*event, shape) for event in batch]))
    if events.input_noise is not None:
        added = np.stack([events.input_noise(*event, shape) for event in batch])
        conditions[INPUT_NOISE] = torch.from_numpy(added).to(device)
    return x, t, epsilon.to(device), conditions


def _require_finite(rows: Tensor, batch: Sequence[Event], events: Events) -> None:
    """Raise ModelError if the gradient of an event is NaN or infinite; it names the first."""
    finite = rows.isfinite().all(1)
    if not finite.all():
        event = batch[int(finite.int().argmin())]
        raise ModelError(
            f"the gradient of {events.names[event.i]!r} at timestep"
            f" {events.timesteps[event.i, event.j]} is not finite"
        )

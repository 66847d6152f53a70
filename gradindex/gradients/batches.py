"""Batches of events, and what the model is called with for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from gradindex.gradients.events import Events
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import to_device
from gradindex.models.examples import INPUT_NOISE, Examples, positions_by


class Event(NamedTuple):
    """One gradient to take: picture i at its timestep number j, with draw m of the noise."""

    i: int
    j: int
    m: int


@dataclass(frozen=True)
class Batch:
    """What n events need, on the model's device: what several of them share is there once.

    Attributes:
        rows: i · T + j of each event, [n] int64.
        t: timestep of each, [n].
        picture: position in `x` of each, [n] int64. noise: likewise in `epsilon`.
        x: pictures or latents, [b, channels, height, width]. conditions: {name: [b, …]} of them.
        epsilon: noise, [e, channels, height, width].
        input_noise: what is added to the noise that x is mixed with, [e, …]; None: nothing.
    """

    rows: Tensor
    t: Tensor
    picture: Tensor
    noise: Tensor
    x: Tensor
    conditions: dict[str, Tensor]
    epsilon: Tensor
    input_noise: Tensor | None

    def __len__(self) -> int:
        """Return n."""
        return self.rows.shape[0]

    def part(self, start: int, stop: int) -> Self:
        """Return the events `start` … `stop` − 1."""
        of_events = ("rows", "t", "picture", "noise")
        some = {name: getattr(self, name)[start:stop] for name in of_events}
        return replace(self, **some)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What `losses_of` takes: "x", "t" and "epsilon" of each event, and its conditions."""
        inputs = {name: values[self.picture] for name, values in self.conditions.items()}
        if self.input_noise is not None:
            inputs[INPUT_NOISE] = self.input_noise[self.noise]
        events = {"x": self.x[self.picture], "t": self.t, "epsilon": self.epsilon[self.noise]}
        return inputs | events


def losses_of(denoiser: Denoiser, loss: str, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of each event, [n] float32, see `Denoiser.losses`.

    Args:
        inputs: of a batch.
    """
    conditions = dict(inputs)
    x, t, epsilon = (conditions.pop(name) for name in ("x", "t", "epsilon"))
    return denoiser.losses(x, t, epsilon, conditions, loss)


def event_batches(examples: Examples, events: Events, batch_size: int) -> list[list[Event]]:
    """Return all events of B pictures, in batches of at most so many and of one shape.

    Examples of one shape follow each other.
    """
    shape_of = [examples.shapes(i) for i in range(len(examples))]
    batches = []
    for positions in positions_by(shape_of).values():
        queue = [
            Event(i, j, m)
            for i in positions
            for j in range(events.timesteps.shape[1])
            for m in range(events.draws)
        ]
        batches += [queue[k : k + batch_size] for k in range(0, len(queue), batch_size)]
    return batches


def make_batch(
    examples: Examples, events: Events, device: torch.device, batch: Sequence[Event]
) -> Batch:
    """Return what some events of one shape need; no GPU is waited for.

    Args:
        examples: B pictures. events: timesteps and noise of each.
    """
    i, j, _ = np.array(batch).T
    pictures, picture = np.unique(i, return_inverse=True)
    x, conditions = examples.batch(pictures, device)
    shape = tuple(x.shape[1:])
    # Noise that pictures share is one array, which `Events` gives again and again.
    drawn = [events.noise(*event, shape) for event in batch]
    first = {id(noise): k for k, noise in reversed(list(enumerate(drawn)))}
    position = {number: k for k, number in enumerate(first)}
    distinct = [batch[k] for k in first.values()]
    input_noise = None
    if events.input_noise is not None:
        added = [events.input_noise(event.i, event.j, event.m, shape) for event in distinct]
        input_noise = to_device(np.stack(added), device)
    return Batch(
        rows=to_device(i * events.timesteps.shape[1] + j, device),
        t=to_device(events.timesteps[i, j], device),
        picture=to_device(picture, device),
        noise=to_device(np.array([position[id(noise)] for noise in drawn]), device),
        x=x,
        conditions=conditions,
        epsilon=to_device(np.stack([drawn[k] for k in first.values()]), device),
        input_noise=input_noise,
    )

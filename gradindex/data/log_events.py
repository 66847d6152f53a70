"""The events of a training run as arrays: which picture was noised to which timestep, and when."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# The timestep and the noise of an event; the noise is noise(noise_seed, id, timestep, draw, shape).
EVENT = np.dtype([("timestep", "<f4"), ("noise_seed", "<i8"), ("draw", "<i8")])

# An event with the number of its picture and the number of steps done before it.
LOGGED_EVENT = np.dtype([("sample", "<i8"), ("step", "<i8"), *EVENT.descr])


class LoggedCheckpoint(NamedTuple):
    """Weights that were saved after `step` steps.

    Attributes:
        step: the number of steps done.
        path: of the weights, absolute, or as a table spells it.
        lr: the learning rate; 1 for a table's.
    """

    step: int
    path: str
    lr: float


@dataclass(frozen=True)
class LoggedRun:
    """What a training log holds, whatever file it was read from.

    Attributes:
        sample_ids: ids of the pictures, which `events["sample"]` numbers.
        events: LOGGED_EVENT [E], in the order of steps.
        checkpoints: those that the log knows, in the order of steps.
        num_train_timesteps: what the recorder was made for; None for a table.
    """

    sample_ids: list[str]
    events: np.ndarray
    checkpoints: list[LoggedCheckpoint]
    num_train_timesteps: int | None


def in_order_of_steps(events: np.ndarray) -> np.ndarray:
    """Return events, LOGGED_EVENT [E], sorted by step; those of one step stay in their order."""
    return events[np.argsort(events["step"], kind="stable")]

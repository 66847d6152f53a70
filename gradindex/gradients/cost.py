"""What a gradient costs, in forward passes of the model: the same on slow and on fast machines."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gradindex.gradients.parameters import capture_for
from gradindex.gradients.random_batch import random_batch
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import plain_torch
from gradindex.recipe import Recipe

LARGEST_BATCH = 16
# Rounds, of a forward pass and a gradient in turns so that a busy machine slows both, at the least
# and the most; the fastest of each counts, for the first pays for what is made once.
ROUNDS = 4, 64
SECONDS = 1.0  # of all rounds, where these are not too many


@plain_torch()
def forward_passes(denoiser: Denoiser, recipe: Recipe, batch_size: int) -> float:
    """Return how many forward passes take as long as a recipe's projected gradient.

    Both are timed on the same random batch. A training step takes about three; less than one there
    cannot be, since a gradient begins with a forward pass.

    Args:
        batch_size: how many events the device has the memory for; at most `LARGEST_BATCH` are run.
    """
    x, t, conditions = random_batch(denoiser, recipe, min(batch_size, LARGEST_BATCH))
    epsilon = torch.zeros_like(x)
    losses = partial(denoiser.losses, x, t, epsilon, conditions, recipe.differentiated)
    capture = capture_for(denoiser, recipe)
    forward: list[float] = []
    gradient: list[float] = []
    fewest, most = ROUNDS
    while len(forward) < fewest or (len(forward) < most and sum(forward) + sum(gradient) < SECONDS):
        with torch.no_grad():
            forward.append(_seconds(losses))
        with capture:
            gradient.append(_seconds(partial(capture.gradients, losses)))
    return max(1.0, min(gradient) / min(forward))


def _seconds(run: Callable[[], Tensor]) -> float:
    """The seconds that something takes; its result counts when it is in the CPU's memory."""
    began = time.perf_counter()
    run().cpu()
    return time.perf_counter() - began

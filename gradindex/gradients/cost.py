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
ROUNDS = 4  # the fastest counts: the first pays for what is made once, others for a busy machine


@plain_torch()
def forward_passes(denoiser: Denoiser, recipe: Recipe, batch_size: int) -> float:
    """Return how many forward passes take as long as a recipe's projected gradient.

    Both are timed on the same random batch. A training step takes about three.

    Args:
        batch_size: how many events the device has the memory for; at most `LARGEST_BATCH` are run.
    """
    x, t, conditions = random_batch(denoiser, recipe, min(batch_size, LARGEST_BATCH))
    epsilon = torch.zeros_like(x)
    losses = partial(denoiser.losses, x, t, epsilon, conditions, recipe.differentiated)
    with torch.no_grad():
        forward = _seconds(losses)
    with capture_for(denoiser, recipe) as capture:
        return _seconds(partial(capture.gradients, losses)) / forward


def _seconds(run: Callable[[], Tensor]) -> float:
    """The seconds of the fastest round; a result counts when it is in the CPU's memory."""
    durations = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run().cpu()
        durations.append(time.perf_counter() - began)
    return min(durations)

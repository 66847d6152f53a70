"""How many events go through the model at once."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from gradindex.gradients.parameters import capture_for
from gradindex.gradients.random_batch import random_batch
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import plain_torch
from gradindex.recipe import Recipe

LARGEST_BATCH = {"cpu": 64, "cuda": 1024}
# Of the device's memory, for what autograd keeps of a batch. On a GPU there may be as much again,
# of a recorded pass beside a plain one.
MEMORY_SHARE = {"cpu": 1 / 8, "cuda": 1 / 4}


def fitting_batch(denoiser: Denoiser, recipe: Recipe, processes: int = 1) -> int:
    """Return how many events, a power of two, go through the model in a share of the memory.

    What is kept of one event for the backward pass is counted, not timed: the same machine always
    finds the same batch.

    Args:
        processes: how many such processes share the device's memory.
    """
    device_type = denoiser.device.type
    event_bytes, takes_single_samples = _try_one(denoiser, recipe)
    if takes_single_samples:  # more at once would take as many passes, each of all of them
        return 1
    memory = denoiser.memory * MEMORY_SHARE[device_type]
    fitting = np.clip(memory / processes / event_bytes, 1, LARGEST_BATCH[device_type])
    return int(2 ** np.floor(np.log2(fitting)))


@plain_torch()
def _try_one(denoiser: Denoiser, recipe: Recipe) -> tuple[int, bool]:
    """Take the gradient of one event.

    Returns:
        Bytes that it keeps between forward and backward pass, the weights not counted; and whether
        the model has parameters whose gradients are best taken one sample at a time.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in denoiser.model.parameters()}
    kept: dict[int, int] = {}  # {address of a storage: bytes}, for views share one

    def count(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()

    x, t, conditions = random_batch(denoiser, recipe, 1)
    epsilon = torch.zeros_like(x)
    losses = partial(denoiser.losses, x, t, epsilon, conditions, recipe.differentiated)
    with capture_for(denoiser, recipe) as capture:
        capture.watch = count
        capture.gradients(losses)
        return sum(kept.values()), capture.takes_single_samples

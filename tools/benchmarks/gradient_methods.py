"""Methods that take the gradient of every sample of a batch, a training step for comparison.

Ours, and what our peers do: one sample at a time, `torch.func`, and dense projections after it.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from trained_models import parameter_names, untrained_model

from gradindex.gradients.capture import Capture
from gradindex.gradients.projection import Projection

PEERS = "peers"  # the folder in the work folder where tools/bench installs their packages
DENSE_DIM = 4096  # numbers that a dense projection gives
BLOCK = 100  # columns of a dense matrix that a peer makes at once, at most

Projector = Callable[[Tensor], Tensor]  # gradients [n, parameters] → [n, columns]


class Batch(NamedTuple):
    """A model, frozen, and the inputs of one batch of its training.

    Attributes:
        x: noisy pictures, [B, channels, height, width] float32.
        t: timesteps, [B].
        epsilon: the noise that the model is to predict, like x.
    """

    model: Any
    x: Tensor
    t: Tensor
    epsilon: Tensor

    def losses(self) -> Tensor:
        """Return the loss of each sample, [B] float32."""
        error = self.model(self.x, self.t).sample - self.epsilon
        return error.square().flatten(1).mean(1)


def make_batch(name: str, size: int, device: str) -> Batch:
    """Return a batch of random pictures for an untrained model of that name.

    What pictures show does not matter to time and memory.
    """
    model = untrained_model(name, device).eval().requires_grad_(False)
    x = torch.randn(size, model.config.in_channels, 32, 32, device=device)
    t = torch.randint(1000, (size,), device=device)
    return Batch(model, x, t, torch.randn_like(x))


def training_step(batch: Batch) -> None:
    """Run forward and backward pass with the gradients of the weights, summed over the batch."""
    batch.model.requires_grad_(True)
    batch.losses().sum().backward()
    batch.model.zero_grad()
    batch.model.requires_grad_(False)


def backward_to_input(batch: Batch) -> None:
    """Run forward and backward pass to the input, the weights frozen.

    Any method with hooks must pay that.
    """
    x = batch.x.clone().requires_grad_()
    batch._replace(x=x).losses().sum().backward()


def one_by_one(batch: Batch) -> None:
    """Take one sample's gradient at a time, as the paper's code does."""
    batch.model.requires_grad_(True)
    for i in range(len(batch.x)):
        sample = slice(i, i + 1)
        single = batch._replace(x=batch.x[sample], t=batch.t[sample], epsilon=batch.epsilon[sample])
        single.losses().sum().backward()
        torch.cat([parameter.grad.flatten() for parameter in batch.model.parameters()])
        batch.model.zero_grad()
    batch.model.requires_grad_(False)


def vmap_gradients(batch: Batch) -> dict[str, Tensor]:
    """Return the gradients that `torch.func` takes, {parameter: [B, *shape]}."""

    def loss(parameters: dict[str, Tensor], x: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        output = torch.func.functional_call(batch.model, parameters, (x[None], t[None])).sample
        return (output - epsilon[None]).square().mean()

    weights = dict(batch.model.named_parameters())
    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0, 0))
    return gradients(weights, batch.x, batch.t, batch.epsilon)


def take_vmap_gradients(batch: Batch) -> None:
    """Take the gradients with `torch.func` and let them go."""
    vmap_gradients(batch)


def captured_gradients(batch: Batch, projection: Projection) -> Callable[[], None]:
    """Return what takes one batch of a build; a build's capture serves many batches."""
    capture = Capture(batch.model, parameter_names(batch.model), projection)

    def take() -> None:
        with capture:
            capture.gradients(batch.losses)

    return take


def trak_projector(dim: int, columns: int, device: str) -> Projector:
    """Return TRAK's projector of gradients [n, dim] to `columns` random signs.

    On a CPU it works in at least two blocks, or it would keep its matrix ready.
    """
    from trak.projectors import BasicProjector, CudaProjector, ProjectionType

    settings = dim, columns, 0, ProjectionType.rademacher, device
    if device == "cuda":
        projector = CudaProjector(*settings, max_batch_size=32)
    else:
        projector = BasicProjector(*settings, block_size=min(BLOCK, columns // 2))
    return partial(projector.project, model_id=0)


def dattri_projector(dim: int, columns: int, device: str) -> Projector:
    """Return dattri's projector of gradients [n, dim], in blocks likewise."""
    from dattri.func.projection import BasicProjector, ProjectionType, random_project

    if device == "cuda":
        like = torch.empty(1, dim)
        return random_project(like, 1, columns, 32, proj_type="rademacher", device=device)
    settings = dim, columns, 0, ProjectionType.rademacher, torch.device(device)
    projector = BasicProjector(*settings, block_size=min(BLOCK, columns // 2))
    return partial(projector.project, ensemble_id=0)


def time_in_turns(
    methods: Mapping[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, list[float]]:
    """Return the seconds of each method in each of `rounds` rounds, the methods taking turns.

    A round before them is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            _wait(device)
            began = time.perf_counter()
            method()
            _wait(device)
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], name: str, unit: str) -> float:
    """Return the median over rounds of one method's time in units of another's.

    >>> median_ratio({"ours": [2.0, 6.0, 3.0], "step": [1.0, 2.0, 2.0]}, "ours", "step")
    2.0
    """
    return float(np.median(np.array(seconds[name]) / np.array(seconds[unit])))


def peak_memory(method: Callable[[], object], device: str) -> int:
    """Return the bytes of tensors that a method makes, at its peak."""
    method()  # makes once what later calls use again
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        method()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        method()
    # Every allocation and release is an event, with the bytes that it adds or takes away.
    events = profiler.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes))


def _wait(device: str) -> None:
    """Wait until the GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


# {name in the published figures: method}
METHODS: dict[str, Callable[[Batch], None]] = {
    "training step": training_step,
    "floor": backward_to_input,
    "loop": one_by_one,
    "vmap": take_vmap_gradients,
}

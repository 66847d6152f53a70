"""Ways to get the gradient of every sample of a batch: a training step for comparison, the peers', ours."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from subjects import names, untrained
from torch import Tensor

from gradindex.gradients.capture import Capture
from gradindex.gradients.projection import Projection

PEERS = "peers"  # the folder in the work folder where tools/bench installs them
DENSE = 4096  # numbers that a dense projection gives


class Batch(NamedTuple):
    """A model, frozen, and the inputs of one batch of its training."""

    model: Any
    x: Tensor
    t: Tensor
    epsilon: Tensor

    def losses(self) -> Tensor:
        return (self.model(self.x, self.t).sample - self.epsilon).square().flatten(1).mean(1)


def make_batch(name: str, size: int, device: str) -> Batch:
    """A batch of random pictures; what they show does not matter to time and memory."""
    model = untrained(name, device).eval().requires_grad_(False)
    x = torch.randn(size, model.config.in_channels, 32, 32, device=device)
    return Batch(model, x, torch.randint(1000, (size,), device=device), torch.randn_like(x))


def training_step(batch: Batch) -> None:
    """Forward and backward with the gradients of the weights, summed over the batch."""
    batch.model.requires_grad_(True)
    batch.losses().sum().backward()
    batch.model.zero_grad()
    batch.model.requires_grad_(False)


def floor(batch: Batch) -> None:
    """Forward and backward to the input, the weights frozen: what any way with hooks must pay."""
    batch._replace(x=batch.x.clone().requires_grad_()).losses().sum().backward()


def loop(batch: Batch) -> None:
    """One sample at a time, as the paper's code does."""
    batch.model.requires_grad_(True)
    for i in range(len(batch.x)):
        one = batch._replace(x=batch.x[i : i + 1], t=batch.t[i : i + 1], epsilon=batch.epsilon[i : i + 1])
        one.losses().sum().backward()
        torch.cat([parameter.grad.flatten() for parameter in batch.model.parameters()])
        batch.model.zero_grad()
    batch.model.requires_grad_(False)


def vmap_gradients(batch: Batch) -> dict[str, Tensor]:
    """`torch.func`: {parameter: [n, *shape]}."""

    def loss(parameters: Mapping[str, Tensor], x: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        output = torch.func.functional_call(batch.model, parameters, (x[None], t[None])).sample
        return (output - epsilon[None]).square().mean()

    weights = dict(batch.model.named_parameters())
    return torch.func.vmap(torch.func.grad(loss), (None, 0, 0, 0))(weights, batch.x, batch.t, batch.epsilon)


def vmap(batch: Batch) -> None:
    vmap_gradients(batch)


def ours(batch: Batch, projection: Projection) -> Callable[[], None]:
    """One batch of a build, whose capture serves many."""
    capture = Capture(batch.model, names(batch.model), projection)

    def run() -> None:
        with capture:
            capture.gradients(batch.losses)

    return run


def trak(dim: int, columns: int, device: str) -> Callable[[Tensor], Tensor]:
    """TRAK's projector of gradients [n, dim]; on a CPU in at least two blocks, or it would keep its matrix ready."""
    from trak.projectors import BasicProjector, CudaProjector, ProjectionType

    settings = dim, columns, 0, ProjectionType.rademacher, device
    if device == "cuda":
        return partial(CudaProjector(*settings, max_batch_size=32).project, model_id=0)
    return partial(BasicProjector(*settings, block_size=min(100, columns // 2)).project, model_id=0)


def dattri(dim: int, columns: int, device: str) -> Callable[[Tensor], Tensor]:
    """dattri's projector of gradients [n, dim], in blocks likewise."""
    from dattri.func.projection import BasicProjector, ProjectionType, random_project

    if device == "cuda":
        return random_project(torch.empty(1, dim), 1, columns, 32, proj_type="rademacher", device=device)
    settings = dim, columns, 0, ProjectionType.rademacher, torch.device(device)
    return partial(BasicProjector(*settings, block_size=min(100, columns // 2)).project, ensemble_id=0)


def seconds(ways: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """The time of each way in each of `rounds` rounds, all ways taking turns; a round before it is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            _wait(device)
            began = time.perf_counter()
            way()
            _wait(device)
            if number:
                times[name].append(time.perf_counter() - began)
    return times


def ratio(times: Mapping[str, list[float]], way: str, to: str) -> float:
    """The median over rounds of `way`'s time in units of the other's."""
    return float(np.median(np.array(times[way]) / np.array(times[to])))


def peak_memory(way: Callable[[], object], device: str) -> int:
    """Bytes of tensors that a way makes, at its peak."""
    way()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        way()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


WAYS = {"training step": training_step, "floor": floor, "loop": loop, "vmap": vmap}

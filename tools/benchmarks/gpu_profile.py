"""What a GPU does in one step: its kernels by time, how busy it is, and parts of the hooks."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from gradindex.gradients import layers
from gradindex.gradients.layers import Copies, Factors
from gradindex.gradients.projection import CountSketch

TOP = 15  # kernels that are listed
PARTS = {
    "inputs": "inputs projected",
    "outputs": "output gradients projected",
    "weight": "weight gradients",
    "bias": "biases",
}


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def profiled(way: Callable[[], object], device: str) -> tuple[str, dict[str, Any]]:
    """One call under the profiler: its kernels as a table, and their number and seconds in all.

    `busy` is the kernels' seconds over those of a call that is not profiled.
    """
    began = time.perf_counter()
    way()
    wait(device)
    seconds = time.perf_counter() - began
    profiler = _profile(way, device)
    kernels: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if _counts(event, device):
            kernels[event.name].append(_time(event, device))
    whole = sum(map(sum, kernels.values()))
    lines = [f"{'seconds':>10} {'share':>6} {'calls':>7}  kernel"]
    for name, times in sorted(kernels.items(), key=lambda pair: -sum(pair[1]))[:TOP]:
        lines.append(f"{sum(times):10.6f} {sum(times) / whole:6.1%} {len(times):7}  {name[:150]}")
    count = sum(map(len, kernels.values()))
    found = {"seconds": seconds, "kernels": count, "kernel_seconds": whole, "busy": whole / seconds}
    return "\n".join(lines), found


def phases(make: Callable[[], Callable[[], object]], device: str) -> dict[str, float]:
    """Kernel seconds of each part of the hooks in a call of what `make` makes, with new hooks."""
    watched = {kind: _watched(rule) for kind, rule in layers.RULES.items()}
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(layers, "RULES", watched))
        patches.enter_context(
            mock.patch.object(CountSketch, "add", _marked(CountSketch.add, "sums into the row")),
        )
        way = make()
        way()
        profiler = _profile(way, device)
    titles, found = (
        {*PARTS.values(), "sums into the row", "other layers", "norms"},
        defaultdict[str, float](float),
    )
    for event in profiler.events():
        if event.name in titles and event.device_type == DeviceType.CPU:
            on_gpu = event.device_time_total if device == "cuda" else event.cpu_time_total
            found[event.name] += on_gpu * 1e-6
    return dict(found)


class Utilization:
    """The GPU's utilization as its driver reports it, sampled in a thread during a `with` block.

    Attributes:
        mean: percent; None where nothing reports it.
    """

    def __init__(self, device: str) -> None:
        self.mean: float | None = None
        self._samples: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, args=(device,), daemon=True)

    def __enter__(self) -> "Utilization":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._samples:
            self.mean = sum(self._samples) / len(self._samples)

    def _sample(self, device: str) -> None:
        with suppress(Exception):  # no driver library, or one that does not answer
            while device == "cuda" and not self._stop.wait(0.05):
                self._samples.append(torch.cuda.utilization())


def _profile(way: Callable[[], object], device: str) -> Any:
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities) as profiler:
        way()
        wait(device)
    return profiler


def _counts(event: Any, device: str) -> bool:
    """Whether a profiler's event is a kernel; on a CPU, an operation."""
    if getattr(event, "is_user_annotation", False):
        return False
    return bool(event.device_type == (DeviceType.CUDA if device == "cuda" else DeviceType.CPU))


def _time(event: Any, device: str) -> float:
    """Its seconds; on a CPU without those of the operations that it calls."""
    if device == "cuda":
        return 1e-6 * float(event.time_range.elapsed_us())
    return 1e-6 * float(event.self_cpu_time_total)


def _watched(rule: Any) -> Any:
    if isinstance(rule, Factors):
        marked = {part: _marked(getattr(rule, part), title) for part, title in PARTS.items()}
        return rule._replace(**marked)
    if isinstance(rule, Copies):
        return rule._replace(forward=_marked(rule.forward, "norms"))
    return _marked(rule, "other layers")


def _marked(function: Callable[..., Any], title: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        with record_function(title):
            return function(*arguments, **options)

    return call

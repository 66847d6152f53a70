"""A device that takes the time of a GPU for gradients, and computes none.

Builds run over it as they are: only `Capture.gradients` is another while `fill` runs, in this
process or in the workers of a Ray cluster.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from gradindex.builder import build as build_module
from gradindex.builder.shards import fill
from gradindex.gradients.capture import Capture

prepare_worker = build_module._prepare_worker  # before anything replaces it


class SimulatedDevice:
    """What a build has in place of captured gradients: it sleeps, and gives rows.

    While it sleeps Python's other threads run, as they do while a GPU works.

    Args:
        speed: gradients a second.
        log: a folder; each process writes a file there, a line for each batch: when it began, in
            seconds of the system's monotonic clock, and how long the device is busy with it.
    """

    def __init__(self, speed: float, log: Path) -> None:
        self._speed = speed
        self._file = log / f"{os.getpid()}.jsonl"
        self._rows = torch.empty(0)

    def gradients(self, capture: Capture, losses: Callable[[], Tensor], scale: float = 1) -> Tensor:
        """Stand in for `Capture.gradients`: [n, D] float32 after n gradients' time."""
        began = time.monotonic()
        inputs = losses.args[-1]  # type: ignore[attr-defined] — of `GraphedCapture`
        count, dim = len(inputs["t"]), capture.projection.dim
        if self._rows.shape[0] < count:
            self._rows = torch.randn(count, dim)
        busy = count / self._speed
        time.sleep(busy)
        with self._file.open("a") as stream:
            stream.write(json.dumps([began, busy]) + "\n")
        return self._rows[:count]


def simulated_fill(speed: float, log: Path, *arguments: Any, **options: Any) -> None:
    """Do what `fill` does, on a simulated device."""
    device = SimulatedDevice(speed, log)
    method = lambda *values: device.gradients(*values)  # noqa: E731 — a function becomes a method
    with mock.patch.object(Capture, "gradients", method):
        fill(*arguments, **options)


def simulated_worker(speed: float, log: Path, *arguments: Any) -> Any:
    """Do what `_prepare_worker` of a build does, for a worker with a simulated device."""
    maker = prepare_worker(*arguments)
    device = SimulatedDevice(speed, log)
    Capture.gradients = lambda *values: device.gradients(*values)  # type: ignore[method-assign]
    return maker


@contextmanager
def simulated(speed: float, log: Path) -> Iterator[None]:
    """Meanwhile, builds take their gradients on simulated devices."""
    log.mkdir(parents=True)
    with (
        mock.patch.object(build_module, "fill", partial(simulated_fill, speed, log)),
        mock.patch.object(build_module, "_prepare_worker", partial(simulated_worker, speed, log)),
    ):
        yield


def batches_of(log: Path) -> list[list[list[float]]]:
    """Return what was logged by each process: [when a batch began, how long it was], in order."""
    return [
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in sorted(log.glob("*.jsonl"))
    ]


def shares(batches: Sequence[Sequence[Sequence[float]]], seconds: float) -> Mapping[str, float]:
    """Return the devices' busy share of their time.

    Args:
        batches: see `batches_of`. seconds: that the making of all rows took.

    >>> shares([[[0.0, 1.0], [2.0, 1.0]]], 4.0)
    {'from the first gradient to the last': 0.6666666666666666, 'of making all rows': 0.5}
    """
    busy = sum(duration for of_process in batches for _, duration in of_process)
    spans = [sum(of_process[-1]) - of_process[0][0] for of_process in batches]
    return {
        "from the first gradient to the last": busy / sum(spans),
        "of making all rows": busy / (len(batches) * seconds),
    }

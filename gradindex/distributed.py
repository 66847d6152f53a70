"""Ray over the same work: an actor for each GPU or CPU makes shard after shard, and the driver hands them out.

Ray restarts nothing here: after a killed node its calls fail whatever restarts they were promised. So the driver
gives a lost shard to the next actor, and takes a new actor for a lost one. Two that make the same shard do no harm.
"""

import logging
import os
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cached_property
from typing import Any

from gradindex.errors import CallError, GradindexError, MissingPackage, first_line
from gradindex.store import Shard
from gradindex.work import Work, progress

LOSSES = 4  # how often the actor that makes a shard may die, or each actor at its start
PLACING = 300  # seconds to wait for a first worker
ANSWER = 10  # seconds that a cluster may take to answer
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),  # glibc's: a batch's memory is kept for the next one
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}

Fill = Callable[[Mapping[Shard, bool]], None]


class Maker:
    """An actor; before its first shard it prepares, in the driver's working directory where there is one.

    Args:
        prepare: given the device, returns what makes shards; picklable.
    """

    def __init__(self, prepare: Callable[[str], Fill], device: str, folder: str) -> None:
        self._prepare, self._device, self._folder = prepare, device, folder

    @cached_property
    def _fill(self) -> Fill:
        with suppress(OSError):
            os.chdir(self._folder)
        return self._prepare(self._device)

    def make(self, shard: Shard, again: bool) -> None:
        self._fill({shard: again})


def require_ray() -> Any:
    """The package; MissingPackage without it."""
    try:
        import ray
    except ImportError as error:
        raise MissingPackage("ray is not installed: pip install 'gradindex[ray]'") from error
    return ray


def fill(address: str, prepare: Callable[[str], Fill], work: Work, missing: Mapping[Shard, bool], device: str) -> None:
    """Make these shards on a cluster; those with True again, whatever is there.

    Args:
        address: "local" for a cluster of this machine's, which ends with the call, or where one runs.
        prepare: see `Maker`.
        device: "auto" (the GPUs where the cluster has any), "cpu" or "cuda".

    Raises:
        GradindexError: what a worker raised; or no cluster answers, no worker starts, or one shard's keep dying.
    """
    ray = require_ray()
    if not missing:
        return
    with _connected(ray, address), progress(work.gradients(missing)) as bar:
        resources = ray.cluster_resources()
        if device == "auto":
            device = "cuda" if resources.get("GPU") else "cpu"
        kind = "CPU" if device == "cpu" else "GPU"
        if kind == "GPU" and not resources.get(kind):
            raise CallError(f"device = {device!r}: the Ray cluster has no GPU")
        needs = {"num_cpus": 1} if kind == "CPU" else {"num_gpus": 1}
        actors = ray.remote(Maker).options(**needs, runtime_env={"env_vars": ENVIRONMENT})
        count = max(1, min(int(resources.get(kind, 0)), len(missing)))
        busy: dict[Any, tuple[Any, Shard | None]] = {}  # an actor without a shard is starting
        idle: list[Any] = []

        def start() -> None:
            actor = actors.remote(prepare, device.partition(":")[0], os.getcwd())
            busy[actor.__ray_ready__.remote()] = actor, None

        for _ in range(count):
            start()
        todo, lost = deque(missing), Counter[Shard | None]()
        try:
            while todo or any(shard for _, shard in busy.values()):
                while todo and idle:
                    actor, shard = idle.pop(), todo.popleft()
                    busy[actor.make.remote(shard, missing[shard])] = actor, shard
                working = any(shard for _, shard in busy.values())
                done, _ = ray.wait(list(busy), timeout=None if working else PLACING)
                if not done:
                    raise GradindexError(f"ray = {address!r}: no {kind} was free for a worker within {PLACING} s")
                actor, task = busy.pop(done[0])
                try:
                    ray.get(done[0])
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, GradindexError):
                        raise error.cause from error
                    raise GradindexError(f"a Ray worker failed ({first_line(error.cause)})") from error
                except ray.exceptions.RayError as error:
                    ray.kill(actor)
                    lost[task] += 1
                    if lost[task] == LOSSES * (1 if task else count):
                        what = f"shard {task.name}" if task else "workers"
                        raise GradindexError(f"{what}: lost {lost[task]} times ({first_line(error)})") from error
                    if task:
                        todo.appendleft(task)
                    start()
                else:
                    idle.append(actor)
                    lost.pop(task, None)
                    if task:
                        bar.update(work.gradients([task]))
        finally:
            for actor in [*idle, *(actor for actor, _ in busy.values())]:
                ray.kill(actor)


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """A connection of ours, unless the process has one; what Ray prints goes to stderr."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local = {"include_dashboard": False} if address == "local" else {}
    with redirect_stdout(sys.stderr):
        try:
            _require_answer(address)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except Exception as error:  # Ray raises a dozen kinds
            raise GradindexError(f"ray = {address!r}: {first_line(error.__cause__ or error)}") from error
        try:
            yield
        finally:
            ray.shutdown()


def _require_answer(address: str) -> None:
    """OSError unless something listens at host:port; Ray itself would try for minutes, and then exit."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), ANSWER).close()

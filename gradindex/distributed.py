"""Ray over the same work. A build: an actor for each GPU or CPU makes shard after shard, which the driver hands out.
A search: an actor for each file of the search index, or for some, and the driver merges what they find.

Ray restarts nothing here: after a killed node its calls fail whatever restarts they were promised. So the driver
gives lost work to the next actor, and takes a new actor for a lost one. Two that make the same shard do no harm.
"""

import logging
import os
import socket
import sys
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from functools import cached_property
from typing import Any

import numpy as np

from gradindex.errors import CallError, GradindexError, MissingPackage, first_line
from gradindex.manifest import Shard

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


def fill(
    address: str, prepare: Callable[[str], Fill], missing: Mapping[Shard, bool], device: str,
    made: Callable[[Shard], Any],
) -> None:  # fmt: skip
    """Make these shards on a cluster; those with True again, whatever is there.

    Args:
        address: "local" for a cluster of this machine's, which ends with the call, or where one runs.
        prepare: see `Maker`.
        device: "auto" (the GPUs where the cluster has any), "cpu" or "cuda".
        made: called with each shard that is made.

    Raises:
        GradindexError: what a worker raised; or no cluster answers, no worker starts, or one shard's keep dying.
    """
    ray = require_ray()
    if not missing:
        return
    with _connected(ray, address):
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
                    _answer(ray, done[0])
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
                        made(task)
        finally:
            for actor in [*idle, *(actor for actor, _ in busy.values())]:
                ray.kill(actor)


class Finder:
    """An actor that searches some files of a search index; it keeps those that it has opened.

    Args:
        opened: gives what searches file number I for queries: `search(I, queries, count)`; picklable.
    """

    def __init__(self, opened: Callable[[], Any], files: Sequence[int]) -> None:
        self._index = opened()
        with suppress(GradindexError):  # which a search raises again
            for number in files:
                self._index.load(number)

    def search(self, number: int, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        return self._index.search_file(number, queries, count)


class Finders:
    """The actors that search an index, an actor for each file as far as there are CPUs.

    Each file is opened by two actors where there are two: the second answers when the first is lost. While an object
    of this class lives, so does its connection.

    Args:
        address: as for `fill`. opened: see `Finder`. files: how many there are.

    Raises:
        GradindexError: no cluster answers, or no actor starts.
    """

    def __init__(self, address: str, opened: Callable[[], Any], files: int) -> None:
        self._ray, self._files = require_ray(), files
        self._stack = ExitStack()
        self._stack.enter_context(_connected(self._ray, address))
        self._end = weakref.finalize(self, self._stack.close)
        count = max(1, min(files, int(self._ray.cluster_resources().get("CPU", 0))))
        self._made = self._ray.remote(Finder).options(
            num_cpus=1, scheduling_strategy="SPREAD", runtime_env={"env_vars": ENVIRONMENT}
        )
        owned = [[file for file in range(files) if number in self._owners(file, count)] for number in range(count)]
        self._opened, self._owned = opened, owned
        self._actors = [self._made.remote(opened, files) for files in owned]

    def search(self, queries: np.ndarray, count: int) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        """What every file has for the queries, as they come: (file number, what `Finder.search` returns)."""
        ray, tries = self._ray, Counter[int]()

        def ask(file: int) -> Any:
            owner = self._owners(file, len(self._actors))[tries[file] % 2]
            running[self._actors[owner].search.remote(file, sent, count)] = file, owner

        running: dict[Any, tuple[int, int]] = {}
        sent = ray.put(queries)
        for file in range(self._files):
            ask(file)
        while running:
            done, _ = ray.wait(list(running), timeout=PLACING)
            if not done:
                raise GradindexError(f"no CPU was free for a searching worker within {PLACING} s")
            file, owner = running.pop(done[0])
            try:
                yield file, _answer(ray, done[0])
            except ray.exceptions.RayError as error:
                tries[file] += 1
                if tries[file] == LOSSES:
                    raise GradindexError(f"file {file}: lost {LOSSES} times ({first_line(error)})") from error
                if tries[file] % 2 == 0 or len(self._actors) == 1:  # both are gone
                    self._actors[owner] = self._made.remote(self._opened, self._owned[owner])
                ask(file)

    def _owners(self, file: int, count: int) -> tuple[int, int]:
        """The actors that have a file open, of so many."""
        return file % count, (file + 1) % count


def _answer(ray: Any, reference: Any) -> Any:
    """What a call of an actor returned.

    Raises:
        GradindexError: what the call raised. RayError: the actor is lost.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, GradindexError):
            raise error.cause from error
        raise GradindexError(f"a Ray worker failed ({first_line(error.cause)})") from error


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

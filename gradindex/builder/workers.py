"""A build on a Ray cluster: an actor for each GPU or CPU, and the driver that hands shards out.

Ray restarts nothing here: after a killed node its calls fail, whatever restarts they were promised.
So the driver gives the shards of a lost actor to the next one, and starts a new actor in place of
it. Two actors that make the same shard do no harm.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

from gradindex.errors import CallError, GradindexError, first_line
from gradindex.ray_connection import (
    ENVIRONMENT,
    MOST_LOSSES,
    PLACING_SECONDS,
    answer,
    connected,
    require_ray,
)
from gradindex.store.manifest import Shard

if TYPE_CHECKING:
    from gradindex.builder.shard_maker import ShardMaker

AHEAD = 4  # shards that an actor has at once: one is read, one on the device, two are written

PrepareMaker = Callable[[str], "ShardMaker"]


class BuildWorker:
    """An actor that makes shards, several at once, each in a thread: see `ShardMaker`.

    Before its first shard it prepares, in the driver's working directory where there is one.

    Args:
        prepare: given the device, returns what makes shards; picklable.
        device: "cpu" or "cuda".
        folder: the driver's working directory.
    """

    def __init__(self, prepare: PrepareMaker, device: str, folder: str) -> None:
        self._prepare = prepare
        self._device = device
        self._folder = folder
        self._maker: ShardMaker | None = None
        self._thread = ThreadPoolExecutor(1)  # the one that uses the device
        self._reading, self._device_use = Lock(), Lock()

    def make(self, shard: Shard, again: bool) -> None:
        """Make a shard, with `again` whatever is there."""
        with self._reading:
            maker = self._maker = self._maker or self._thread.submit(self._prepared).result()
            if maker.encodes:
                with self._device_use:
                    self._thread.submit(maker.encode, {shard: again}).result()
            shard_pictures = maker.read(shard, again)
            if shard_pictures is None:
                return
            # Only then the next shard is read: at most one waits for the device.
            self._device_use.acquire()
        try:
            rows = self._thread.submit(maker.launch, shard_pictures).result()
        finally:
            self._device_use.release()
        maker.write(rows)

    def _prepared(self) -> "ShardMaker":
        with suppress(OSError):
            os.chdir(self._folder)
        return self._prepare(self._device)


def fill_on_cluster(
    address: str,
    prepare: PrepareMaker,
    missing: Mapping[Shard, bool],
    device: str,
    on_made: Callable[[Shard], object],
) -> None:
    """Make shards on a cluster.

    Args:
        address: where a cluster runs, or "local" for one on this machine that ends with the call.
        prepare: see `BuildWorker`.
        missing: {shard: whether it is made again, whatever is there}.
        device: "auto" (the GPUs where the cluster has any), "cpu" or "cuda".
        on_made: called with each shard that is made.

    Raises:
        CallError: the cluster has no GPU, and `device` is "cuda"; or it names a single GPU.
        GradindexError: what a worker raised; or no cluster answers, no worker starts, or the
            workers that make one shard keep dying.
    """
    ray = require_ray()
    if ":" in device:
        raise CallError(
            f"device = {device!r}: Ray gives each worker a GPU of its own; give 'cuda', and keep"
            " others out by CUDA_VISIBLE_DEVICES"
        )
    if not missing:
        return
    with connected(ray, address):
        resources = ray.cluster_resources()
        if device == "auto":
            device = "cuda" if resources.get("GPU") else "cpu"
        resource = "CPU" if device == "cpu" else "GPU"
        if resource == "GPU" and not resources.get("GPU"):
            raise CallError(f"device = {device!r}: the Ray cluster has no GPU")
        count = max(1, min(int(resources.get(resource, 0)), len(missing)))
        workers = BuildWorkers(ray, address, prepare, device, resource)
        workers.make(missing, count, on_made)


@dataclass(eq=False)
class Actor:
    """An actor of a build.

    Attributes:
        handle: Ray's.
        shards: those that it makes.
        is_ready: whether it has started.
        is_alone: whether it makes a shard that another was lost at, and gets none beside it.
    """

    handle: Any
    shards: list[Shard] = field(default_factory=list)
    is_ready: bool = False
    is_alone: bool = False


class BuildWorkers:
    """The actors of a build, each of which makes several shards at a time.

    Args:
        ray: the package, connected to a cluster.
        address: of the cluster, for error texts.
        prepare: see `BuildWorker`.
        device: "cpu" or "cuda".
        resource: what an actor takes one of: "CPU" or "GPU".
    """

    def __init__(
        self,
        ray: Any,
        address: str,
        prepare: PrepareMaker,
        device: str,
        resource: str,
    ) -> None:
        self._ray = ray
        self._address = address
        self._resource = resource
        self._arguments = prepare, device, os.getcwd()
        one = {"num_cpus": 1} if resource == "CPU" else {"num_gpus": 1}
        self._actor_class = ray.remote(BuildWorker).options(
            **one, max_concurrency=AHEAD, runtime_env={"env_vars": ENVIRONMENT}
        )
        self._actors: list[Actor] = []
        # {reference of a call: actor and its shard}; an actor without a shard is starting.
        self._busy: dict[Any, tuple[Actor, Shard | None]] = {}
        self._waiting = deque[Shard]()
        self._lost = deque[Shard]()  # those that wait again, since their actor was lost

    def make(
        self, missing: Mapping[Shard, bool], count: int, on_made: Callable[[Shard], object]
    ) -> None:
        """Make shards with so many actors; the arguments and errors are `fill_on_cluster`'s."""
        self._waiting.extend(missing)
        losses = Counter[Shard | None]()  # of the actor that makes a shard, or that starts
        for _ in range(count):
            self._start()
        try:
            while self._waiting or self._lost or self._is_making():
                while chosen := self._next_shard():
                    actor, shard = chosen
                    self._hand_out(actor, shard, missing[shard])
                reference = self._next_answered()
                actor, answered = self._busy.pop(reference)
                try:
                    answer(self._ray, reference)
                except self._ray.exceptions.RayError as error:
                    lost: list[Shard | None] = [*actor.shards] or [None]
                    for made in lost:
                        losses[made] += 1
                        _check_losses(made, losses[made], count, error)
                    self._replace(actor)
                else:
                    actor.is_ready = True
                    losses.pop(answered, None)
                    if answered:
                        actor.shards.remove(answered)
                        on_made(answered)
        finally:
            for actor in self._actors:
                self._ray.kill(actor.handle)

    def _start(self) -> None:
        """Start an actor."""
        actor = Actor(self._actor_class.remote(*self._arguments))
        self._actors.append(actor)
        self._busy[actor.handle.__ray_ready__.remote()] = actor, None

    def _replace(self, actor: Actor) -> None:
        """Start another actor in place of one that is lost, whose shards all wait again."""
        self._busy = {call: made for call, made in self._busy.items() if made[0] is not actor}
        self._lost.extend(actor.shards)
        self._actors.remove(actor)
        self._ray.kill(actor.handle)
        self._start()

    def _next_shard(self) -> tuple[Actor, Shard] | None:
        """The next shard that is handed out, and to whom: the one that has least to do.

        A shard at which an actor was lost goes to one that has nothing else to do, so that it is
        known which one it is that kills.
        """
        ready = [actor for actor in self._actors if actor.is_ready]
        for actor in ready:
            actor.is_alone = actor.is_alone and bool(actor.shards)
        takers = [actor for actor in ready if not actor.is_alone]
        if not takers:
            return None
        actor = min(takers, key=lambda actor: len(actor.shards))
        if self._lost and not actor.shards:
            actor.is_alone = True
            return actor, self._lost.popleft()
        # The last shards are spread over all actors.
        most = min(AHEAD, 1 + len(self._waiting) // len(self._actors))
        if self._waiting and len(actor.shards) < most:
            return actor, self._waiting.popleft()
        return None

    def _hand_out(self, actor: Actor, shard: Shard, again: bool) -> None:
        """Have an actor make a shard."""
        actor.shards.append(shard)
        self._busy[actor.handle.make.remote(shard, again)] = actor, shard

    def _is_making(self) -> bool:
        """Whether an actor is making a shard."""
        return any(shard for _, shard in self._busy.values())

    def _next_answered(self) -> Any:
        """Wait until a call of an actor is answered and return its reference.

        Raises:
            GradindexError: no actor has found a place on the cluster in time.
        """
        timeout = None if self._is_making() else PLACING_SECONDS
        answered, _ = self._ray.wait(list(self._busy), timeout=timeout)
        if not answered:
            raise GradindexError(
                f"ray = {self._address!r}: no {self._resource} was free for a worker"
                f" within {PLACING_SECONDS} s"
            )
        return answered[0]


def _check_losses(shard: Shard | None, losses: int, actors: int, error: Exception) -> None:
    """Raise GradindexError when a shard, or the start, has cost too many actors.

    Args:
        shard: what the last one was making; None: it was starting.
        losses: how many were lost at it, one after the other.
        actors: how many there are at a time.
    """
    most = MOST_LOSSES if shard else MOST_LOSSES * actors
    if losses == most:
        what = f"shard {shard.name}" if shard else "workers"
        raise GradindexError(f"{what}: lost {losses} times ({first_line(error)})") from error

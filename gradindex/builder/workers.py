"""A build on a Ray cluster: an actor for each GPU or CPU, and the driver that hands shards out.

Ray restarts nothing here: after a killed node its calls fail, whatever restarts they were promised.
So the driver gives the shard of a lost actor to the next one, and starts a new actor in place of
it. Two actors that make the same shard do no harm.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

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

FillShards = Callable[[Mapping[Shard, bool]], None]


class BuildWorker:
    """An actor that makes shards.

    Before its first shard it prepares, in the driver's working directory where there is one.

    Args:
        prepare: given the device, returns what makes shards; picklable.
        device: "cpu" or "cuda".
        folder: the driver's working directory.
    """

    def __init__(self, prepare: Callable[[str], FillShards], device: str, folder: str) -> None:
        self._prepare = prepare
        self._device = device
        self._folder = folder

    @cached_property
    def _fill(self) -> FillShards:
        with suppress(OSError):
            os.chdir(self._folder)
        return self._prepare(self._device)

    def make(self, shard: Shard, again: bool) -> None:
        """Make a shard, with `again` whatever is there."""
        self._fill({shard: again})


def fill_on_cluster(
    address: str,
    prepare: Callable[[str], FillShards],
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


class BuildWorkers:
    """The actors of a build, each of which makes one shard at a time.

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
        prepare: Callable[[str], FillShards],
        device: str,
        resource: str,
    ) -> None:
        self._ray = ray
        self._address = address
        self._resource = resource
        self._arguments = prepare, device, os.getcwd()
        one = {"num_cpus": 1} if resource == "CPU" else {"num_gpus": 1}
        self._actor_class = ray.remote(BuildWorker).options(
            **one, runtime_env={"env_vars": ENVIRONMENT}
        )
        self._idle: list[Any] = []
        # {reference of a call: actor and its shard}; an actor without a shard is starting.
        self._busy: dict[Any, tuple[Any, Shard | None]] = {}

    def make(
        self, missing: Mapping[Shard, bool], count: int, on_made: Callable[[Shard], object]
    ) -> None:
        """Make shards with so many actors; the arguments and errors are `fill_on_cluster`'s."""
        waiting = deque(missing)
        losses = Counter[Shard | None]()  # of the actor that makes a shard, or that starts
        for _ in range(count):
            self._start()
        try:
            while waiting or self._is_making():
                while waiting and self._idle:
                    shard = waiting.popleft()
                    self._hand_out(shard, missing[shard])
                reference = self._next_answered()
                actor, answered = self._busy.pop(reference)
                try:
                    answer(self._ray, reference)
                except self._ray.exceptions.RayError as error:
                    self._ray.kill(actor)
                    losses[answered] += 1
                    _check_losses(answered, losses[answered], count, error)
                    if answered:
                        waiting.appendleft(answered)
                    self._start()
                else:
                    self._idle.append(actor)
                    losses.pop(answered, None)
                    if answered:
                        on_made(answered)
        finally:
            for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
                self._ray.kill(actor)

    def _start(self) -> None:
        """Start an actor."""
        actor = self._actor_class.remote(*self._arguments)
        self._busy[actor.__ray_ready__.remote()] = actor, None

    def _hand_out(self, shard: Shard, again: bool) -> None:
        """Have an idle actor make a shard."""
        actor = self._idle.pop()
        self._busy[actor.make.remote(shard, again)] = actor, shard

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

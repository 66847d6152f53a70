"""The connection to a Ray cluster, and what is asked of its actors."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from gradindex.errors import GradindexError, MissingPackage, first_line

MOST_LOSSES = 4  # how often the actor that makes a shard may die, or each actor at its start
PLACING_SECONDS = 300  # to wait for a first worker
ANSWER_SECONDS = 10  # that a cluster may take to answer

# The environment variables of an actor.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # Of glibc's malloc, in bytes: the memory of a batch is kept for the next one.
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}


def require_ray() -> Any:
    """Return the ray package.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingPackage("ray is not installed: pip install 'gradindex[ray]'") from error
    return ray


def answer(ray: Any, reference: Any) -> Any:
    """Return what a call of an actor returned.

    Raises:
        GradindexError: what the call raised.
        ray.exceptions.RayError: the actor is lost.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, GradindexError):
            raise error.cause from error
        raise GradindexError(f"a Ray worker failed ({first_line(error.cause)})") from error


@contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """Connect to a cluster for the length of a `with` block, unless the process is connected.

    What Ray prints goes to stderr.

    Args:
        address: as `ray.init` takes it, such as "local", "auto", "host:port" or "ray://…".

    Raises:
        GradindexError: no cluster answers.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local_options = {"include_dashboard": False} if address == "local" else {}
    with redirect_stdout(sys.stderr):
        try:
            _require_answer(address)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local_options)
        except Exception as error:  # Ray raises a dozen kinds
            reason = first_line(error.__cause__ or error)
            raise GradindexError(f"ray = {address!r}: {reason}") from error
        try:
            yield
        finally:
            ray.shutdown()


def _require_answer(address: str) -> None:
    """Raise OSError unless something listens at an address with a host and a port.

    Ray itself would try for minutes, and then end the process.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()

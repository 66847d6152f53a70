"""What an input may lead to: the true answer, or one clear error, in bounded time and memory."""

import re
import resource
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from gradindex.errors import GradindexError

SECONDS = 20.0  # for one input: only what hangs takes so long
MEGABYTES = 256  # that one input may take, beyond what the process had before
LONGEST_MESSAGE = 1500  # letters of an error: paths, and what came, shortened
# What libraries say, and a caught error repeats, where memory was asked for that is not there.
OUT_OF_MEMORY = re.compile(r"MemoryError|bad_alloc|alloc|out of memory|TooLong", re.IGNORECASE)

# Judges one input that it draws: True for the true answer, False for a clear error.
Case = Callable[[Random], bool]


class Wrong(AssertionError):
    """An input led to a wrong answer, or to an error that says it badly."""


class TooLong(BaseException):
    """An input takes longer than any answer does; no `except Exception` catches it."""


@contextmanager
def bounded(seconds: float = SECONDS, megabytes: int = MEGABYTES) -> Iterator[None]:
    """Bound the time, and the memory beyond what the process has, of what is done inside.

    More memory is refused by the kernel: it raises MemoryError, or what a library makes of it. A
    warning of NumPy's becomes an error: users would see it, and it says nothing of their input.
    """
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_bytes() + megabytes * 2**20
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    in_main_thread = threading.current_thread() is threading.main_thread()

    def stop(*_: Any) -> None:
        raise TooLong(f"more than {seconds:g} seconds")

    if in_main_thread:
        handler = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))
        if in_main_thread:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)


def _data_bytes() -> int:
    """Return the bytes of this process's data, as RLIMIT_DATA counts them."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmData:")[2].split()[0]) * 1024


def is_answered(ask: Callable[[], Any], is_true: Callable[[Any], bool]) -> bool:
    """Return whether something answers; False where it raises one clear error.

    Raises:
        Wrong: it answers wrongly, or its error is not one line that a person can read.
    """
    try:
        answer = ask()
    except GradindexError as error:
        require_clear(error)
        return False
    if not is_true(answer):
        raise Wrong(f"another answer: {str(answer)[:500]}")
    return True


def require_clear(error: GradindexError) -> None:
    """Raise Wrong unless an error is one line, not too long, and not of a lack of memory."""
    text = str(error)
    if not text or len(text.splitlines()) != 1:
        raise Wrong(f"an error that is not one line: {text[:300]!r}") from error
    if len(text) > LONGEST_MESSAGE:
        raise Wrong(f"an error of {len(text)} letters: {text[:300]!r}") from error
    if OUT_OF_MEMORY.search(text):
        raise Wrong(f"out of memory or time: {text[:300]!r}") from error

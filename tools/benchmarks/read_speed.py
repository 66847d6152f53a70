"""How fast memory and disk give bytes: what a search of all rows can at best reach."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradindex.search.scoring import THREADS
from gradindex.store.prefetch import prefetch

MOST_BYTES = 4 << 30  # of memory that are read; more take their share longer
ROUNDS = 5


def median_seconds(search: Callable[[int], Any], count: int) -> float:
    """Return the seconds of one call, the median of `count`; one before them is not counted.

    Args:
        search: called with the numbers 0 … count.
    """
    seconds = []
    for number in range(count + 1):
        began = time.perf_counter()
        search(number)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:]))


def seconds_of(read: Callable[[], None], uncached: Sequence[Path] = ()) -> float:
    """Return the seconds of one call, after the system has forgotten the content of files."""
    for file in uncached:
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    read()
    return time.perf_counter() - began


def read_files(files: Sequence[Path]) -> None:
    """Read every byte of files, in order, in as many threads as a scan has."""
    size = files[0].stat().st_size
    buffers = threading.local()

    def read(file: Path) -> None:
        if not hasattr(buffers, "content"):
            buffers.content = bytearray(size)
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffers.content):
                pass

    for _ in prefetch(read, files, THREADS):
        pass


def seconds_to_read_memory(size: int) -> float:
    """Return the least seconds that reading so many bytes of memory takes, with all threads.

    It is a sum over numbers of 4 bytes.
    """
    numbers = torch.ones(min(size, MOST_BYTES) // 4)
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds)) * size / (numbers.numel() * 4)

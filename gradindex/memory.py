"""How much memory there is, and what becomes of freed memory."""

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path


def free_memory() -> int:
    """Bytes that can still be had: what the kernel calls available, or half of a container's limit."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")]
    with suppress(OSError, ValueError):  # "max" where there is no limit
        free.append(int(Path("/sys/fs/cgroup/memory.max").read_text()) // 2)
    return min(free)


def keep_freed_memory() -> None:
    """Have this process keep the memory that a batch frees, instead of having the next one's pages made anew."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # of glibc
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: smaller blocks come from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap's end is not given back

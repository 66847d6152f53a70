"""How much memory there is, and what becomes of freed memory."""

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def free_memory() -> int:
    """Bytes that can still be had.

    The least of what the kernel calls available and half of a container's limit; half of the
    machine's memory where neither is known.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        limits = [count << 10 for count in kibibytes]
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()) // 2)
    return min(limits)


def keep_freed_memory() -> None:
    """Have this process keep the memory that a batch frees.

    Otherwise the pages of the next batch are made anew, which takes time.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # of glibc
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)  # smaller blocks come from the heap
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # the heap's end is not given back

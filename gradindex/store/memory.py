"""How much memory there is, and what becomes of freed memory."""

import ctypes

from gradindex.machine_memory import free_memory as free_memory

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Have this process keep the memory that a batch frees.

    Otherwise the pages of the next batch are made anew, which takes time. Only glibc can be told.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl; Windows has no library None
        return
    mallopt(M_MMAP_THRESHOLD, 2**30)  # smaller blocks come from the heap
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # the heap's end is not given back


def give_back_freed_memory() -> None:
    """Give freed memory back to the system all the same: what comes next is of another kind.

    Only glibc can be told.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # as above
        return

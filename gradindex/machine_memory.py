"""How much memory the machine has and this process took, on each system that Python runs on."""

import ctypes
import os
import sys
from contextlib import suppress
from importlib import import_module

ASSUMED_MEMORY = 4 << 30  # bytes, where the system does not tell
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of getrusage's ru_maxrss


class MemoryStatus(ctypes.Structure):
    """Windows' MEMORYSTATUSEX; amounts in bytes."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load_percent", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("total_page_file", ctypes.c_uint64),
        ("available_page_file", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended_virtual", ctypes.c_uint64),
    )


def machine_memory() -> int:
    """Bytes of memory that the machine has; 4 GiB where the system does not tell."""
    sysconf = getattr(os, "sysconf", None)
    if sysconf is not None:
        with suppress(OSError, ValueError):  # a system that does not know these names
            return sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES")
    status = windows_memory()
    return status.total if status else ASSUMED_MEMORY


def windows_memory() -> MemoryStatus | None:
    """What Windows says of the machine's memory; None on other systems."""
    libraries = getattr(ctypes, "windll", None)
    if libraries is None:
        return None
    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    succeeded = libraries.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return status if succeeded else None


def peak_memory() -> int | None:
    """Bytes that this process held at most so far; None where the system does not tell."""
    try:
        resource = import_module("resource")
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES

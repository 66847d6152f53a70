"""How much memory the machine has and this process took, on each system that Python runs on."""

import ctypes
import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

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


def free_memory() -> int:
    """Bytes that can still be had.

    The least of what the kernel calls available and half of a container's limit; half of the
    machine's memory where neither is known.
    """
    limits = [machine_memory() // 2]
    if status := windows_memory():
        limits = [status.available]
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        limits = [count << 10 for count in kibibytes]
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()) // 2)
    return min(limits)


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

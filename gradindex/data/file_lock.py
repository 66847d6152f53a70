"""Lock an open file for one process, where the operating system and the file system can."""

import errno
import os
from types import ModuleType

# On Windows a lock hides the locked bytes from readers: this one lies beyond what a log holds. It
# is the last position that its C library can lock.
LOCKED_BYTE = 2**31 - 2

# What locking a file raises that another process, or another opening of this one, has locked.
HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


def lock(descriptor: int) -> bool:
    """Lock a file until its descriptor is closed, or the process ends.

    Returns:
        False where the system or the file system has no locks: the file is open, but not locked.

    Raises:
        BlockingIOError: another has locked it.
    """
    system = _lock_module()
    if system is None:
        return False
    try:
        if system.__name__ == "fcntl":
            system.flock(descriptor, system.LOCK_EX | system.LOCK_NB)
        else:
            os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
            system.locking(descriptor, system.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in HELD:
            raise BlockingIOError(*error.args) from error
        return False
    return True


def _lock_module() -> ModuleType | None:
    """The module of the standard library that locks files: fcntl, or msvcrt on Windows."""
    try:
        import fcntl
    except ImportError:
        pass
    else:
        return fcntl
    try:
        import msvcrt
    except ImportError:
        return None
    return msvcrt

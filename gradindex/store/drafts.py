"""Drafts: files that are written under another name before they get their own.

File systems without hard links, permissions or syncs of folders (exFAT, SMB, FUSE) do too: what
they refuse is done in another way, or left out where it only guards against a power cut.
"""

import ctypes
import errno
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from gradindex.store.digests import sha256

AT_FDCWD = -100  # of Linux's renameat2, as these flags
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2

OLD_SECONDS = 86400.0  # after which a draft belongs to nobody, whoever wrote it
CLAIM_SECONDS = 60.0  # after which an empty file is no longer about to get its content
# What file systems answer that have not the ability asked for.
UNSUPPORTED = {
    errno.EPERM,
    errno.EACCES,
    errno.EINVAL,
    errno.EBADF,
    errno.EISDIR,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.EMLINK,
}
# `.NAME-HOST-PID-XXXXXXXX`, and `.NAME-XXXXXXXX` of earlier versions.
DRAFT = re.compile(r"\..+?-(?:([0-9a-f]{8})-(\d+)-)?[a-z0-9_]{8}")


def write_draft(file: Path, content: bytes) -> Path:
    """Write a content beside a file, synced to the disk, and return where."""
    prefix = f".{file.name}-{_host()}-{os.getpid()}-"
    handle, name = tempfile.mkstemp(prefix=prefix, dir=file.parent)
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            with where_supported():
                os.fsync(stream.fileno())
        with where_supported():
            os.chmod(draft, 0o644)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return draft


def give_new_name(draft: Path, file: Path) -> None:
    """Rename a draft to a file that is not there yet.

    A hard link does it in one step, or else Linux's renameat2. Where there is neither, an empty
    file claims the name first; one that a kill has left is taken over after a minute.

    Raises:
        FileExistsError: the file is there.
    """
    try:
        os.link(draft, file)
    except AttributeError:  # a Python without it, as on Android
        pass
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    else:
        os.unlink(draft)
        return
    if rename_in_kernel(draft, file, RENAME_NOREPLACE):
        return
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        status = file.stat()
        if status.st_size or time.time() - status.st_mtime < CLAIM_SECONDS:
            raise
    os.replace(draft, file)


def rename_in_kernel(old: Path, new: Path, flags: int) -> bool:
    """Call renameat2; False where the system, its C library or the file system has no such flags.

    Raises:
        FileExistsError: with RENAME_NOREPLACE, the new name is taken.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # macOS, musl; Windows has no library None
        return False
    names = os.fsencode(old), os.fsencode(new)
    status = renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], flags)
    if status and ctypes.get_errno() == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
    return status == 0


def sync_folder(path: Path) -> None:
    """Make a folder's entries survive a power cut, where the file system can."""
    with where_supported():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def where_supported() -> Iterator[None]:
    """Go on where the file system has not the ability asked for; other errors are raised."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def delete_left_drafts(folder: Path) -> None:
    """Delete the drafts under a folder that kills have left.

    These are the drafts of this machine's processes that are gone, and those older than a day.
    """
    for parent, _, names in os.walk(folder):
        for name in names:
            file = Path(parent, name)
            match = DRAFT.fullmatch(name)
            # Another process may be deleting them too.
            with suppress(OSError):
                if match and _is_left(file, *match.groups()):
                    file.unlink()


def _is_left(draft: Path, host: str | None, process: str | None) -> bool:
    """Whether no process is going to give a draft its name."""
    if time.time() - draft.stat().st_mtime > OLD_SECONDS:
        return True
    return host == _host() and process is not None and not _is_alive(int(process))


def _is_alive(process: int) -> bool:
    """Whether a process of this machine runs; True where the system has no harmless way to ask."""
    if sys.platform == "win32":  # where os.kill ends it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


@cache
def _host() -> str:
    """Eight hex digits for this machine; a container with processes of its own counts as one."""
    processes = ""
    with suppress(OSError):
        processes = os.readlink("/proc/self/ns/pid")
    return sha256(f"{socket.gethostname()} {processes}".encode())[:8]

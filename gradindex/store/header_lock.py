"""One process at a time changes the header of an index, or what the header answers for.

A lock is held on a file of the index, where its file system has locks; an object store has none.
Two builds that add pictures at the same time would otherwise each undo what the other has written.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gradindex.data.file_lock import lock
from gradindex.store.disk import Disk
from gradindex.store.location import Location

FILE = "manifest/lock"  # empty; there while it is held, and after a kill until it is held again
PATIENCE = 60  # seconds: then another process hangs, and is not waited for any longer
PAUSE = 0.02  # seconds

_held = threading.local()  # paths: whose lock this thread has


@contextmanager
def header_lock(location: Location) -> Iterator[None]:
    """Keep other processes and threads from changing a header meanwhile; a thread may nest it."""
    paths: set[Path] = vars(_held).setdefault("paths", set())
    if not isinstance(location, Disk) or location.path in paths:
        yield
        return
    file = location.path / FILE
    stream = _locked(file)
    paths.add(location.path)
    try:
        yield
    finally:
        paths.remove(location.path)
        if stream is not None:
            is_deleted = _delete(file)
            stream.close()
            if not is_deleted:  # Windows deletes no open file, so that no other has it open then
                _delete(file)


def _delete(file: Path) -> bool:
    """Delete a file and return True; False where that is not possible."""
    try:
        file.unlink()
    except OSError:
        return False
    return True


def _locked(file: Path) -> BinaryIO | None:
    """The file, made and locked; None where it cannot be, or another holds it for too long."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            stream = file.open("ab")
        except OSError:  # a disk that cannot be written to is not changed either
            return None
        try:
            lock(stream.fileno())
            if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                return stream
        except OSError:  # another holds it, or had it and has deleted it
            pass
        stream.close()
        time.sleep(PAUSE)
    return None

"""Append records to a file of a training log, which one process at a time may write."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradindex.data.file_lock import lock
from gradindex.data.log_file import pack_record
from gradindex.errors import CallError, StoreError

# Windows would write two bytes for each line feed.
OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)

# What processes have open, {process and file: writer}. A forked process has a number of its own: it
# must not let go of what its parent writes.
_open_writers: dict[tuple[int, Path], "LogWriter"] = {}


def open_writer(file: Path) -> "LogWriter | None":
    """Return what appends to a file in this very process, or None where nothing does."""
    return _open_writers.get((os.getpid(), file.resolve()))


class LogWriter:
    """Opens or creates a file of a training log, locks it, and appends records to it.

    Args:
        file: in the log's folder, which is made where it is not there.
        settings: of the recorder that appends, as `open_writer` finds them.

    Raises:
        BlockingIOError: another recorder has locked the file. OSError: it cannot be opened.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self._key = os.getpid(), file.resolve()
        self._folder = file.parent
        self._folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(file, OPEN_FLAGS, 0o644)
        try:
            is_locked = lock(self._descriptor)
        except BaseException:
            self.close()
            raise
        if not is_locked:
            warnings.warn(
                f"{file}: files cannot be locked there; see to it that one process alone writes it",
                stacklevel=4,
            )
        _open_writers[self._key] = self

    @property
    def closed(self) -> bool:
        """Whether the file was let go."""
        return self._descriptor < 0

    def truncate(self, size: int) -> None:
        """Cut the file after `size` bytes."""
        os.ftruncate(self._descriptor, size)

    def append(self, kind: bytes, content: bytes) -> None:
        """Write one record at the end, in one piece: a crash of the process tears no other.

        Raises:
            CallError: the file was let go.
            StoreError: the disk is full or fails; the file is as it was before.
        """
        if self.closed:
            raise CallError(f"{self._folder}: this recorder is closed")
        record = pack_record(kind, content)
        start = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, record)
        except OSError as error:
            raise StoreError(
                f"{self._folder}: {error.strerror}; the log so far stays readable"
            ) from error
        if written < len(record):
            os.ftruncate(self._descriptor, start)
            raise StoreError(f"{self._folder}: the disk is full; the log so far stays readable")

    def sync(self) -> None:
        """Wait until what was appended is safe from a power failure.

        Raises:
            StoreError: the disk fails.
        """
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise StoreError(
                f"{self._folder}: {error.strerror}; the log may lack its end"
            ) from error

    def close(self) -> None:
        """Let go of the file and its lock; once more does nothing."""
        if not self.closed:
            os.close(self._descriptor)
            self._descriptor = -1
            if _open_writers.get(self._key) is self:
                del _open_writers[self._key]

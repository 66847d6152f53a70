"""Append records to a file of a training log, which one process at a time may write."""

import fcntl
import os
from pathlib import Path

from gradindex.data.log_file import pack_record
from gradindex.errors import CallError, StoreError


class LogWriter:
    """Opens or creates a file of a training log, locks it, and appends records to it.

    Args:
        file: in the log's folder, which is made where it is not there.

    Raises:
        BlockingIOError: another recorder has locked the file. OSError: it cannot be opened.
    """

    def __init__(self, file: Path) -> None:
        self._folder = file.parent
        self._folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self.close()
            raise

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
        """Wait until what was appended is safe from a power failure."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Let go of the file and its lock; once more does nothing."""
        if not self.closed:
            os.close(self._descriptor)
            self._descriptor = -1

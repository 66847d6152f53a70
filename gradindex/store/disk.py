"""An index in a folder on a disk."""

import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from gradindex.store.digests import require_digest

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


class Disk:
    """A folder. What is published in it is there whole or not at all, and survives a power cut."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        """The path, as zarr opens it."""
        return str(self.path)

    def exists(self) -> bool:
        """Whether anything is there, be it an empty folder."""
        return self.path.exists()

    def names(self) -> set[str]:
        """What lies in it, folders too, or the file itself that is there."""
        if self.path.is_dir():
            return set(os.listdir(self.path))
        return {self.path.name} if self.path.exists() else set()

    def set_aside(self) -> None:
        """Rename it to NAME.replaced, until `drop_aside`.

        Where something was set aside before, that stays and this folder is deleted.
        """
        if self._aside.exists():
            shutil.rmtree(self.path)
        else:
            self.path.rename(self._aside)

    def drop_aside(self) -> None:
        """Delete what was set aside."""
        shutil.rmtree(self._aside, ignore_errors=True)

    @property
    def _aside(self) -> Path:
        return self.beside("replaced").path

    def beside(self, suffix: str) -> "Disk":
        """The folder NAME.suffix next to it."""
        return Disk(self.path.with_name(f"{self.path.name}.{suffix}"))

    def exchange(self, other: "Disk") -> None:
        """Have the two folders change names.

        Where the kernel can, there is no instant without one of them.
        """
        if not _exchange_in_kernel(other.path, self.path):
            between = self.beside("exchanged").path
            self.path.rename(between)
            other.path.rename(self.path)
            between.rename(other.path)
        _fsync(self.path.parent)

    def delete(self) -> None:
        """Delete the folder and all that is in it."""
        shutil.rmtree(self.path)

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError when there is none."""
        return (self.path / name).read_bytes()

    def fetch(self, name: str, digest: str) -> bytes:
        """The content of a file; ValueError unless it has this SHA-256."""
        return require_digest(self.read(name), digest)

    def read_many(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """The contents of files, one by one; None where there is none."""
        for name in names:
            try:
                yield self.read(name)
            except (FileNotFoundError, NotADirectoryError):
                yield None

    def read_ranges(self, ranges: Iterable[tuple[str, int, int]]) -> Iterator[bytes]:
        """The bytes of each range (file, start, stop), fewer where the file ends.

        Raises:
            FileNotFoundError: a file is absent.
        """
        for name, ranges_of_file in groupby(ranges, key=itemgetter(0)):
            handle = os.open(f"{self.path}/{name}", os.O_RDONLY)
            try:
                for _, start, stop in ranges_of_file:
                    yield os.pread(handle, stop - start, start)
            finally:
                os.close(handle)

    def publish(self, name: str, content: bytes, *, only_new: bool = False) -> None:
        """Write a file: a draft under another name, synced, then renamed.

        Raises:
            FileExistsError: it has to be new and is not.
        """
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(draft, 0o644)
            if only_new:
                os.link(draft, file)
                os.unlink(draft)
            else:
                os.replace(draft, file)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
        _fsync(file.parent)

    def discard(self, name: str) -> None:
        """Delete a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """The bytes of those files that are there, by name."""
        sizes = {}
        for name in names:
            with suppress(FileNotFoundError, NotADirectoryError):
                sizes[name] = (self.path / name).stat().st_size
        return sizes

    def digest(self, name: str) -> str:
        """SHA-256 hex of a file; FileNotFoundError when there is none."""
        with (self.path / name).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def _exchange_in_kernel(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False where the kernel or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = os.fsencode(first), os.fsencode(second)
    status = libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)
    return status == 0


def _fsync(path: Path) -> None:
    """Make a folder's entries survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

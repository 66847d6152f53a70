"""An index in a folder on a disk."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from gradindex.errors import CallError
from gradindex.store.digests import require_digest
from gradindex.store.drafts import (
    RENAME_EXCHANGE,
    delete_left_drafts,
    give_new_name,
    rename_in_kernel,
    sync_folder,
    write_draft,
)

MARK = "set-aside"  # the file that marks a folder which may be deleted


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

    def identity(self) -> int | None:
        """What tells this folder from another that takes its place; None where it is gone."""
        try:
            return self.path.stat().st_ino
        except OSError:
            return None

    def names(self, folder: str = "") -> set[str]:
        """What lies in it or in a folder of it, folders too, or the file itself that is there."""
        path = self.path / folder
        if path.is_dir():
            return set(os.listdir(path))
        return {path.name} if path.exists() else set()

    def set_aside(self) -> None:
        """Rename it to NAME.replaced, until `drop_aside`.

        Where something was set aside before, that stays and this folder is deleted.

        Raises:
            CallError: something that was not set aside lies at NAME.replaced.
        """
        aside = self.beside("replaced")
        if aside.is_marked():
            shutil.rmtree(self.path)
            return
        aside.require_free()
        self.mark()
        self.path.rename(aside.path)

    def drop_aside(self) -> None:
        """Delete what was set aside; a folder of that name that was not set aside stays."""
        aside = self.beside("replaced")
        if aside.is_marked():
            shutil.rmtree(aside.path, ignore_errors=True)

    def mark(self) -> None:
        """Mark this very folder, made if need be, as one that may be deleted.

        A copy of it is not marked.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.publish(MARK, self._mark())

    def unmark(self) -> None:
        """Take the mark away, if there is one."""
        self.discard(MARK)

    def is_marked(self) -> bool:
        """Whether `mark` has marked this very folder."""
        try:
            return self.read(MARK) == self._mark()
        except OSError:
            return False

    def require_free(self) -> None:
        """Raise CallError when anything lies there that `mark` has not marked."""
        if self.is_marked() or not os.path.lexists(self.path):
            return
        # A kill, or a full disk, can leave an empty folder with a draft of its mark.
        is_folder = self.path.is_dir() and not self.path.is_symlink()
        if is_folder and all(name.startswith(f".{MARK}-") for name in self.names()):
            shutil.rmtree(self.path)
        else:
            raise CallError(
                f"{self.path}: exists and was not made by this index's builds; move it away, its"
                " name is needed"
            )

    def _mark(self) -> bytes:
        """What marks the folder: its number on its file system, which no copy shares."""
        status = self.path.stat()
        return f"{status.st_dev} {status.st_ino}\n".encode()

    def beside(self, suffix: str) -> "Disk":
        """The folder NAME.suffix next to it."""
        return Disk(self.path.with_name(f"{self.path.name}.{suffix}"))

    def exchange(self, other: "Disk") -> None:
        """Have the two folders change names.

        Where the kernel can, there is no instant without one of them.
        """
        if not rename_in_kernel(other.path, self.path, RENAME_EXCHANGE):
            between = self.beside("exchanged").path
            self.path.rename(between)
            other.path.rename(self.path)
            between.rename(other.path)
        sync_folder(self.path.parent)

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
            # Unbuffered: a buffer would read on after each range.
            with open(f"{self.path}/{name}", "rb", buffering=0) as stream:
                size = os.fstat(stream.fileno()).st_size
                for _, start, stop in ranges_of_file:
                    # A read takes memory for all that is asked for, be it there or not.
                    stream.seek(min(start, size))
                    yield stream.read(max(0, min(stop, size) - start))

    def publish(self, name: str, content: bytes, *, only_new: bool = False) -> None:
        """Write a file: a draft under another name, synced, then renamed.

        Raises:
            FileExistsError: it has to be new and is not.
        """
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = write_draft(file, content)
        try:
            if only_new:
                give_new_name(draft, file)
            else:
                os.replace(draft, file)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(file.parent)

    def delete_drafts(self) -> None:
        """Delete the drafts that kills have left, see `delete_left_drafts`."""
        delete_left_drafts(self.path)

    def discard(self, name: str) -> None:
        """Delete a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def discard_folder(self, folder: str) -> None:
        """Delete a folder and the files in it, if it is there."""
        shutil.rmtree(self.path / folder, ignore_errors=True)

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """The bytes of those files that are there, by name."""
        sizes = {}
        for name in names:
            with suppress(FileNotFoundError, NotADirectoryError):
                sizes[name] = (self.path / name).stat().st_size
        return sizes

    def files(self) -> Iterator[tuple[str, int, float]]:
        """All files in it: name, bytes, and when it was written, in seconds since 1970."""
        for folder, _, names in os.walk(self.path):
            for name in names:
                file = Path(folder, name)
                with suppress(FileNotFoundError):  # a draft that was renamed since
                    status = file.stat()
                    name_inside = file.relative_to(self.path).as_posix()
                    yield name_inside, status.st_size, status.st_mtime

    def digest(self, name: str) -> str:
        """SHA-256 hex of a file; FileNotFoundError when there is none."""
        with (self.path / name).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

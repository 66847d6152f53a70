"""Where an index lies: a folder on a disk, or a URL of an object store. Names in it are relative, with slashes."""

import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from gradindex.errors import CallError, MissingPackage, StoreError, first_line

AT_ONCE = 256  # small objects that are fetched side by side
FEW = 8  # objects that are asked for one by one; of more, their folders are listed
RANGES = 32  # parts of objects that are fetched side by side

Item = TypeVar("Item")


class Disk:
    """A folder; what is published in it is there whole or not at all, and survives a power failure."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        """As zarr opens it."""
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
        """Rename it to NAME.replaced, until `drop_aside`; what is aside already stays, and this goes."""
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
        """Have the two folders change names; where the kernel can, there is no instant without one of them."""
        names = [os.fsencode(each.path) for each in (other, self)]
        libc = ctypes.CDLL(None, use_errno=True)
        here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        if not (hasattr(libc, "renameat2") and libc.renameat2(here, names[0], here, names[1], both) == 0):
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
        return _require_digest(self.read(name), digest)

    def read_many(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """The contents of files, one by one; None where there is none."""
        for name in names:
            try:
                yield self.read(name)
            except (FileNotFoundError, NotADirectoryError):
                yield None

    def read_ranges(self, ranges: Iterable[tuple[str, int, int]]) -> Iterator[bytes]:
        """The bytes from start to before stop of files, fewer where one ends; FileNotFoundError when it is absent."""
        for name, group in groupby(ranges, key=itemgetter(0)):
            handle = os.open(f"{self.path}/{name}", os.O_RDONLY)
            try:
                for _, start, stop in group:
                    yield os.pread(handle, stop - start, start)
            finally:
                os.close(handle)

    def publish(self, name: str, content: bytes, *, only_new: bool = False) -> None:
        """Write a file; FileExistsError when it has to be new and is not."""
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
        found = {}
        for name in names:
            with suppress(FileNotFoundError, NotADirectoryError):
                found[name] = (self.path / name).stat().st_size
        return found

    def digest(self, name: str) -> str:
        """SHA-256 hex of a file; FileNotFoundError when there is none."""
        with (self.path / name).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


class Bucket:
    """A folder of an object store, or of anything else that fsspec knows: `s3://bucket/index`."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise MissingPackage(f"{url}: {first_line(error)}; for s3, pip install 'gradindex[s3]'") from error
        except ValueError as error:
            raise CallError(f"{url}: {first_line(error)}") from error

    def __str__(self) -> str:
        return self.url

    def exists(self) -> bool:
        return bool(self.names())

    def names(self) -> set[str]:
        with suppress(FileNotFoundError):
            return {name.rstrip("/").rpartition("/")[2] for name in self._call("ls", self._root, detail=False)}
        return set()

    def set_aside(self) -> None:
        raise CallError(f"{self.url}: an object store overwrites nothing; delete it yourself, or give another URL")

    def drop_aside(self) -> None:
        """Nothing was set aside."""

    def delete(self) -> None:
        self._call("rm", self._root, recursive=True)

    def read(self, name: str) -> bytes:
        return self._call("cat_file", self._key(name))

    def fetch(self, name: str, digest: str) -> bytes:
        """As on a disk; a copy stays in the user's cache folder, and serves while its SHA-256 is the wanted one."""
        cache = Disk(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradindex")
        copy = sha256(f"{self.url}/{name}".encode())
        with suppress(OSError, ValueError):
            return cache.fetch(copy, digest)
        content = _require_digest(self.read(name), digest)
        with suppress(OSError):
            cache.publish(copy, content)
        return content

    def read_many(self, names: Iterable[str]) -> Iterator[bytes | None]:
        for some in _batched(names, AT_ONCE):
            keys = [self._key(name) for name in some]
            found = self._call("cat", keys, on_error="return")
            for key in keys:
                try:
                    yield self._content(found[key])
                except FileNotFoundError:
                    yield None

    def read_ranges(self, ranges: Iterable[tuple[str, int, int]]) -> Iterator[bytes]:
        for some in _batched(ranges, RANGES):
            names, starts, stops = zip(*some, strict=True)
            found = self._call(
                "cat_ranges", [self._key(name) for name in names], list(starts), list(stops), on_error="return"
            )
            for content in found:
                yield self._content(content)

    def publish(self, name: str, content: bytes, *, only_new: bool = False) -> None:
        self._call("pipe_file", self._key(name), content, mode="create" if only_new else "overwrite")

    def discard(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._call("rm_file", self._key(name))

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        if len(names) <= FEW:
            found = {}
            for name in names:
                with suppress(FileNotFoundError):
                    found[name] = self._call("size", self._key(name))
            return found
        folders = {name.partition("/")[0] for name in names}
        listed = [self._call("find", self._key(folder), detail=True) for folder in folders]
        return {key[len(self._root) + 1 :]: facts["size"] for some in listed for key, facts in some.items()}

    def digest(self, name: str) -> str:
        with self._one_line_errors(), self._fs.open(self._key(name), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _call(self, verb: str, *args: Any, **options: Any) -> Any:
        with self._one_line_errors():
            return getattr(self._fs, verb)(*args, **options)

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """For calls of the file system, whose libraries raise whatever they like."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            raise self._failed(error) from error

    def _content(self, answer: bytes | Exception) -> bytes:
        """One of many answers that come together."""
        if isinstance(answer, FileNotFoundError):
            raise answer
        if isinstance(answer, Exception):
            raise self._failed(answer)
        return answer

    def _failed(self, error: Exception) -> StoreError:
        return StoreError(f"{self.url}: {first_line(error)}; what was committed stays, run it again")


Place = Disk | Bucket


def sha256(content: bytes) -> str:
    """SHA-256 hex."""
    return hashlib.sha256(content).hexdigest()


def at(path: str | Path | Place) -> Place:
    """The place at a path or URL."""
    if isinstance(path, Disk | Bucket):
        return path
    return Bucket(path) if isinstance(path, str) and "://" in path else Disk(Path(path))


def _require_digest(content: bytes, digest: str) -> bytes:
    if sha256(content) != digest:
        raise ValueError("was changed")
    return content


def _batched(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    """Lists of up to `count` items."""
    rest = iter(items)
    while some := list(islice(rest, count)):
        yield some


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""An index in an object store."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from gradindex.errors import CallError, MissingPackage, StoreError, first_line
from gradindex.store.digests import require_digest, sha256
from gradindex.store.disk import Disk

AT_ONCE = 256  # small objects that are fetched side by side
FEW = 8  # objects that are asked for one by one; of more, their folders are listed
RANGES = 32  # parts of objects that are fetched side by side

Item = TypeVar("Item")


class Bucket:
    """A folder of an object store, or of anything else that fsspec knows: `s3://bucket/index`.

    Its methods are those of `Disk`. An object store puts an object whole by itself.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        if is_chained(url):
            raise CallError(
                f"{url}: an address within an address (::) is not taken, a cache in between may be"
                " stale; give the store's own, such as s3://bucket/index"
            )
        self.url = url.rstrip("/")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            message = f"{url}: {first_line(error)}; for s3, pip install 'gradindex[s3]'"
            raise MissingPackage(message) from error
        except ValueError as error:
            way_out = "give a folder, or an address such as s3://bucket/index"
            raise CallError(f"{url}: {first_line(error)}; {way_out}") from error

    def __str__(self) -> str:
        """The URL, as zarr opens it."""
        return self.url

    def exists(self) -> bool:
        return bool(self.names())

    def identity(self) -> int | None:
        """None: nothing tells it from another that takes its place."""
        return None

    def names(self, folder: str = "") -> set[str]:
        with suppress(FileNotFoundError):
            keys = self._call("ls", self._key(folder).rstrip("/"), detail=False)
            return {key.rstrip("/").rpartition("/")[2] for key in keys}
        return set()

    def set_aside(self) -> None:
        raise CallError(
            f"{self.url}: an object store overwrites nothing; delete it yourself, or give another"
            " URL"
        )

    def drop_aside(self) -> None:
        """Do nothing: nothing was set aside."""

    def delete_drafts(self) -> None:
        """Do nothing: an object store puts an object whole by itself."""

    def read(self, name: str) -> bytes:
        return self._call("cat_file", self._key(name))

    def fetch(self, name: str, digest: str) -> bytes:
        """The content of an object; ValueError unless it has this SHA-256.

        A copy stays in the user's cache folder, and serves while its SHA-256 is the expected one.
        """
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        cache = Disk(folder / "gradindex")
        copy = sha256(f"{self.url}/{name}".encode())
        with suppress(OSError, ValueError):
            return cache.fetch(copy, digest)
        content = require_digest(self.read(name), digest)
        with suppress(OSError):
            cache.publish(copy, content)
        return content

    def read_many(self, names: Iterable[str]) -> Iterator[bytes | None]:
        for batch in _batched(names, AT_ONCE):
            keys = [self._key(name) for name in batch]
            ends = [None] * len(keys)  # whole objects; `cat` would take `[ ] ? *` for patterns
            for answer in self._call("cat_ranges", keys, ends, ends, on_error="return"):
                try:
                    yield self._content(answer)
                except FileNotFoundError:
                    yield None

    def read_ranges(self, ranges: Iterable[tuple[str, int, int]]) -> Iterator[bytes]:
        for batch in _batched(ranges, RANGES):
            names, starts, stops = zip(*batch, strict=True)
            keys = [self._key(name) for name in names]
            answers = self._call("cat_ranges", keys, list(starts), list(stops), on_error="return")
            for answer in answers:
                yield self._content(answer)

    def publish(self, name: str, content: bytes, *, only_new: bool = False) -> None:
        mode = "create" if only_new else "overwrite"
        self._call("pipe_file", self._key(name), content, mode=mode)

    def discard(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._call("rm_file", self._key(name))

    def discard_folder(self, folder: str) -> None:
        for name in self.names(folder):
            self.discard(f"{folder}/{name}")

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        if len(names) <= FEW:
            return self._sizes_one_by_one(names)
        sizes = {}
        for folder in {name.partition("/")[0] for name in names}:
            objects = self._call("find", self._key(folder), detail=True)
            for key, details in objects.items():
                sizes[key[len(self._root) + 1 :]] = details["size"]
        return sizes

    def _sizes_one_by_one(self, names: Sequence[str]) -> dict[str, int]:
        sizes = {}
        for name in names:
            with suppress(FileNotFoundError):
                sizes[name] = self._call("size", self._key(name))
        return sizes

    def files(self) -> Iterator[tuple[str, int, float]]:
        for key, details in self._call("find", self._root, detail=True).items():
            yield key[len(self._root) + 1 :], details["size"], _written(details)

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
            raise self._failure(error) from error

    def _content(self, answer: bytes | Exception) -> bytes:
        """One of many answers that come together."""
        if isinstance(answer, FileNotFoundError):
            raise answer
        if isinstance(answer, Exception):
            raise self._failure(answer)
        return answer

    def _failure(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self.url}: {first_line(error)}; what was committed stays, run it again"
        )


def is_chained(address: str) -> bool:
    """Whether fsspec reads a text as an address within an address.

    >>> is_chained("simplecache::s3://bucket/index"), is_chained("zip::index.zip")
    (True, True)
    >>> is_chained("s3://bucket/index"), is_chained("runs/run::1")
    (False, False)
    """
    if "::" not in address:
        return False
    from fsspec import available_protocols

    return "://" in address or address.partition("::")[0] in available_protocols()


def _written(details: Mapping[str, Any]) -> float:
    """When an object was written, in seconds since 1970, however its file system says it."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        value = details.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0


def _batched(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    """Lists of up to `count` items."""
    rest = iter(items)
    while batch := list(islice(rest, count)):
        yield batch

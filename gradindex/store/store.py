"""The gradient store: format v1, specified in docs/format.md.

The unit of work is a shard: up to `shard_rows` pictures of one checkpoint. A shard counts once its
manifest entry is there, and the entry is published last:
files written → fsync → read back → manifest entry.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from gradindex.errors import RecipeMismatch, StoreError
from gradindex.recipe import COMPACT, Recipe
from gradindex.store.array_names import (
    COMPACT_ARRAYS,
    ROW_ARRAYS,
    WIDE,
    array_dtype,
    row_arrays,
)
from gradindex.store.arrays import SampleIds, open_array, skeleton
from gradindex.store.digests import sha256
from gradindex.store.header_lock import header_lock
from gradindex.store.location import Location, locate
from gradindex.store.manifest import (
    COPIES,
    FORMAT,
    HEADER,
    SUMMARY,
    Shard,
    mend_file,
    publish_header,
    read_header,
    read_header_fields,
    read_record,
    seal,
    seal_header,
)
from gradindex.store.records import Header, ShardEntry, Summary, to_json
from gradindex.store.removals import header_with_removals, mend_removals
from gradindex.store.shard_files import (
    make_shard_entry,
    make_shard_files,
    row_values,
)
from gradindex.store.stored_rows import StoredRows

SHARD_ROWS = 256  # pictures in a shard: what an interruption can cost
CHUNK_BYTES = 128 << 10  # of the widest array in a chunk: the least that a read fetches


def _array(name: str) -> Any:
    """A property: the zarr array of that name, opened, after a check, when it is first used."""
    return property(lambda store: store._zarr_array(name))


class Store(StoredRows):
    """A gradient store: rows of shape [C, N, T, D] and what made them.

    Attributes:
        location: where it lies.
        unnormalized, normalized: zarr arrays [C, N, T, D]. norm, timestep: zarr arrays [C, N, T].
        codes, scale: zarr arrays [C, N, T, D] and [C, N, T], in place of the first two where rows
            are compact.
        recipe: the Recipe of every row.
        header: what else made it, such as the checkpoints' weights and the source of the pictures.
        shape: [C, N, T, D].
    """

    def __init__(self, path: str | Path | Location) -> None:
        self.location = locate(path)
        self._identity = self.location.identity()
        self.header = header_with_removals(self.location)
        self.recipe = Recipe.from_json(self.header.recipe)
        self.shape = self.recipe.shape(self.header.pictures)
        self.shard_rows = self.header.shard_rows

    @classmethod
    def create(
        cls, path: str | Path | Location, recipe: Recipe, sample_ids: Sequence[str], **origin: Any
    ) -> Self:
        """Make an empty store.

        It is one once its header is there; where another process was faster, it is that one.

        Args:
            sample_ids: N distinct strings.
            origin: further fields of the `Header`, such as `weights` and `data`.
        """
        location = locate(path)
        chunk_rows = _chunk_rows(recipe)
        shape = recipe.shape(len(sample_ids))
        arrays = row_arrays(recipe)
        files = skeleton(arrays, shape, sample_ids, shard_rows=SHARD_ROWS, chunk_rows=chunk_rows)
        for name, content in files.items():
            location.publish(COPIES + name, content)
            location.publish(name, content)
        fields = {
            "format": FORMAT,
            "recipe": recipe.to_json(),
            "digest": recipe.digest,
            "pictures": len(sample_ids),
            "shard_rows": SHARD_ROWS,
            "chunk_rows": chunk_rows,
            "files": {name: sha256(content) for name, content in files.items()},
            "removed": {},
        }
        with suppress(FileExistsError):
            header = Header(**{**fields, **origin})
            location.publish(HEADER, seal_header(header), only_new=True)
        return cls.mended(location)

    @classmethod
    def mended(cls, path: str | Path | Location) -> Self:
        """The store at a path, its header, ids, removals and array metadata made whole from copies.

        Raises:
            StoreError: a file is damaged and so is its copy.
        """
        location = locate(path)
        read_header(location)  # or an error, before a lock is made where no index is
        with header_lock(location):
            header = read_header(location)
            publish_header(location, read_header_fields(location))
            mend_removals(location)
            for name, digest in header.files.items():
                mend_file(location, name, digest)
        return cls(location)

    @classmethod
    def finished(cls, path: str | Path | Location) -> Self:
        """The store with the pictures of its last finished build, whatever is being added to it.

        Raises:
            StoreError: no build has finished.
        """
        store = cls(path)
        store.shape = (store.shape[0], store.summary.pictures, *store.shape[2:])
        store.require_large_rows()
        return store

    def require_in_place(self) -> None:
        """Raise StoreError where another index has taken its place, with rows of its own."""
        if self.location.identity() != self._identity:
            raise StoreError(
                f"{self.location}: was exchanged since it was opened, as `compact` does; open it"
                " again"
            )

    normalized, unnormalized, norm, timestep = map(_array, ROW_ARRAYS)
    codes, scale = map(_array, COMPACT_ARRAYS[:2])

    def _zarr_array(self, name: str) -> Any:
        if name not in self.arrays:
            raise StoreError(
                f"{self.location}: has no array {name!r}, but {', '.join(self.arrays)}; rows come"
                f" by read({name!r}, …)"
            )
        return self._zarr_arrays[name]

    @cached_property
    def _zarr_arrays(self) -> dict[str, Any]:
        for name in self.arrays:
            self.fetch(f"{name}/zarr.json")
        # It may have grown since it was opened.
        pictures = max(self.header.pictures, read_header(self.location).pictures)
        shape = self.recipe.shape(pictures)
        layout = self.shard_rows, self.header.chunk_rows
        try:
            return {name: open_array(self.location, name, shape, *layout) for name in self.arrays}
        except ValueError as error:
            raise self.damage(f"metadata of arrays are damaged ({error})") from error

    @cached_property
    def sample_ids(self) -> SampleIds:
        """N distinct strings; StoreError, when one is looked at, where they are damaged."""
        return SampleIds(self.shape[1], self.fetch, self.damage)

    @cached_property
    def summary(self) -> Summary:
        """What the last finished build left.

        Raises:
            StoreError: no build has finished.
        """
        (content,) = self.location.read_many([SUMMARY])
        with suppress(ValueError):
            summary = read_record(content, Summary)
            if self._is_of_store(summary):
                return summary
        return self.summarize()

    def _is_of_store(self, summary: Summary) -> bool:
        """Whether a summary is one of this store's rows, as far as can be seen."""
        is_within = max(summary.skipped, default=-1) < summary.pictures <= self.shape[1]
        return summary.recipe == self.recipe.digest and is_within

    def finish(self) -> None:
        """Publish the summary: from now on readers see all pictures."""
        self.summary = self.summarize()
        content = seal(self.summary)
        (before,) = self.location.read_many([SUMMARY])
        if before != content:
            self.location.publish(SUMMARY, content)

    @cached_property
    def excluded(self) -> list[int]:
        """Rows that no query returns: skipped by the build at some checkpoint, or removed."""
        removed = {row for row in self.header.removed.values() if row is not None}
        excluded = removed.union(self.summary.skipped)
        return sorted(row for row in excluded if row < self.shape[1])

    @cached_property
    def kept(self) -> np.ndarray:
        """The rows that queries can return, ascending [n] int64."""
        return np.setdiff1d(np.arange(self.shape[1]), self.excluded)

    def require_recipe(self, recipe: Recipe, message: str) -> None:
        """Raise RecipeMismatch, naming the fields, unless `recipe` is the store's."""
        if differing := self.recipe.differences(recipe):
            raise RecipeMismatch(f"{self.location}: {message}", differing)

    def update_header(self, **changes: Any) -> None:
        """Change fields of the header; what another process has changed of the others stays."""
        fields = {name: to_json(value) for name, value in changes.items()}
        with header_lock(self.location):
            publish_header(self.location, {**read_header_fields(self.location), **fields})
        self.header = header_with_removals(self.location)

    def write(
        self,
        shard: Shard,
        rows: np.ndarray,
        timestep: np.ndarray,
        skipped: Sequence[int] = (),
        pictures: str = "",
        units: np.ndarray | None = None,
        contents: str = "",
        stats: str = "",
    ) -> None:
        """Write and commit one shard.

        Args:
            rows: unnormalized gradients, [stop − start, T, D] float32.
            timestep: [stop − start, T] float32.
            skipped: row numbers without a picture; their gradients are zero and no query returns
                them.
            pictures: the pictures' `Dataset.fingerprint`s one after the other, for the manifest.
            units: the normalized rows, where these are not `rows` divided by their norms.
            contents, stats: what tells that pictures have changed, see `ShardEntry`.

        Raises:
            StoreError: a row is not finite, or the disk gives back something else than was written.
        """
        if not np.isfinite(rows).all():
            bad = int(np.isfinite(rows).all((1, 2)).argmin())
            name = self.sample_ids[shard.start + bad]
            raise StoreError(f"gradient of {name!r} is not finite: nothing written")
        layout = self.shard_rows, self.header.chunk_rows
        values = row_values(rows, units, is_compact=self.recipe.rows == COMPACT)
        files = make_shard_files(shard, {**values, "timestep": timestep}, *layout)
        zeros = int((values["norm"] == 0).sum()) - len(skipped) * self.shape[2]
        facts = pictures, contents, stats
        entry = make_shard_entry(shard, files, self.recipe.digest, zeros, skipped, *facts)
        for name, content in files.items():
            self.location.publish(name, content)
        if wrong := self.damaged(entry):
            message = f"the disk gave back other bytes than were written ({wrong[0]})"
            raise StoreError(f"{self.location}: {message}")
        self.location.publish(shard.entry, seal(entry))

    def entry_of(self, row: int) -> ShardEntry | None:
        """The manifest entry of the shard that a picture's first row is in; None if not made."""
        number = row // self.shard_rows
        start = number * self.shard_rows
        shard = Shard(0, number, start, min(start + self.shard_rows, self.shape[1]))
        for _, entry in self.committed([shard]):
            return entry
        return None

    def update_stats(self, shard: Shard, entry: ShardEntry, stats: str) -> None:
        """Publish a shard's manifest entry with other `stats`; its pictures are the same."""
        self.location.publish(shard.entry, seal(msgspec.structs.replace(entry, stats=stats)))

    def fetch(self, name: str) -> bytes:
        """The content of one of the header's files.

        Raises:
            StoreError: it is not as it was made; while pictures are being added it may also be as
                it was before.
        """
        newest = self.header.files.get(name)
        with suppress(ValueError, FileNotFoundError):
            return self.location.fetch(name, newest or "")  # on a bucket from a cache
        header, seen = self.header, None
        while True:
            (content,) = self.location.read_many([name])
            found = None if content is None else sha256(content)
            digests = (header.files.get(name), (header.before or {}).get(name))
            if content is not None and found in digests:
                if found != newest:
                    # While pictures are being added, the copy is the header's before the file is.
                    with suppress(ValueError, FileNotFoundError):
                        return self.location.fetch(COPIES + name, newest or "")
                return content
            # The store may have grown since it was opened: as long as header or file change.
            if seen == (digests, found):
                break
            seen = (digests, found)
            header = read_header(self.location)
        raise self.damage(f"{name} {'is missing' if content is None else 'was changed'}")


def _chunk_rows(recipe: Recipe) -> int:
    """The most pictures that divide a shard and fit a chunk."""
    largest = max(array_dtype(name).itemsize for name in row_arrays(recipe) if name in WIDE)
    picture_bytes = math.prod(recipe.shape(1)[2:]) * largest
    for count in range(SHARD_ROWS, 1, -1):
        if SHARD_ROWS % count == 0 and count * picture_bytes <= CHUNK_BYTES:
            return count
    return 1

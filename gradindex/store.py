"""The gradient store: format v1, specified in docs/format.md.

The unit of work is a shard: up to `shard_rows` pictures of one checkpoint. A shard counts once its manifest entry
is there, and the entry is published last: files written → fsync → read back → manifest entry.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from gradindex.arrays import ROW_ARRAYS, WIDE, SampleIds, open_array, read_pieces, shard_file, shard_key, skeleton
from gradindex.dataset import MARK
from gradindex.errors import RecipeMismatch, StoreError
from gradindex.manifest import (
    COPIES,
    FORMAT,
    HEADER,
    SUMMARY,
    SUMMED,
    Shard,
    differences,
    publish_header,
    read_header,
    seal,
    seal_header,
    unseal,
)
from gradindex.place import Place, at, sha256
from gradindex.recipe import Recipe

SHARD_ROWS = 256  # pictures in a shard: what an interruption can cost
CHUNK_BYTES = 128 << 10  # unnormalized bytes in a chunk: the least that a read fetches
BLOCK_BYTES = 8 << 20  # that are read for one piece of work, about


def _array(name: str) -> Any:
    """A property: the zarr array of that name, which is opened, after a check, when it is first wanted."""
    return property(lambda store: store._arrays[name])


class Store:
    """A gradient store: rows of shape [C, N, T, D] and what made them.

    Attributes:
        place: where it lies.
        unnormalized, normalized: zarr arrays [C, N, T, D]. norm, timestep: zarr arrays [C, N, T].
        recipe: the Recipe of every row. attributes: what else `create` was given.
    """

    def __init__(self, path: str | Path | Place) -> None:
        self.place = at(path)
        self.attributes: dict[str, Any] = read_header(self.place)
        self.recipe = Recipe.from_json(self.attributes["recipe"])
        self.shape = self.recipe.shape(self.attributes["pictures"])
        self.shard_rows: int = self.attributes["shard_rows"]

    @classmethod
    def create(cls, path: str | Path | Place, recipe: Recipe, sample_ids: Sequence[str], **attributes: Any) -> Self:
        """Make an empty store. It is one once its header is there; where another process was faster, it is that one."""
        place, layout = at(path), {"shard_rows": SHARD_ROWS, "chunk_rows": _chunk_rows(recipe)}
        files = skeleton(recipe.shape(len(sample_ids)), sample_ids, **layout)
        for name, content in files.items():
            place.publish(COPIES + name, content)
            place.publish(name, content)
        header = {
            "format": FORMAT,
            "recipe": recipe.to_json(),
            "digest": recipe.digest,
            "pictures": len(sample_ids),
            **layout,
            "files": {name: sha256(content) for name, content in files.items()},
            "removed": {},
            **attributes,
        }
        with suppress(FileExistsError):
            place.publish(HEADER, seal_header(header), only_new=True)
        return cls.mended(place)

    @classmethod
    def mended(cls, path: str | Path | Place) -> Self:
        """The store at a path; what is damaged of its header, ids and the arrays' metadata is made whole from the copy.

        Raises:
            StoreError: a file is damaged and so is its copy.
        """
        place = at(path)
        header = read_header(place)
        publish_header(place, header)
        for name, digest in header["files"].items():
            copy = COPIES + name
            for damaged, twin in ((name, copy), (copy, name)):
                if found := differences(place, {damaged: digest}):
                    try:
                        place.publish(damaged, place.fetch(twin, digest))
                    except (ValueError, FileNotFoundError) as error:
                        message = f"{place}: {found[0]}, and so was {twin}; build it again with overwrite"
                        raise StoreError(message) from error
        return cls(place)

    @classmethod
    def finished(cls, path: str | Path | Place) -> Self:
        """The store with the pictures of its last finished build, whatever is being added to it.

        Raises:
            StoreError: no build has finished.
        """
        store = cls(path)
        store.shape = (store.shape[0], store.summary["pictures"], *store.shape[2:])
        return store

    normalized, unnormalized, norm, timestep = map(_array, ROW_ARRAYS)

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        for name in ROW_ARRAYS:
            self.fetch(f"{name}/zarr.json")
        return {name: open_array(self.place, name) for name in ROW_ARRAYS}

    @cached_property
    def sample_ids(self) -> SampleIds:
        """N distinct strings; StoreError, when one is looked at, where they are damaged."""
        return SampleIds(self.shape[1], self.fetch)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What the last finished build left: `pictures`, `state`, `skipped`, `zero_gradients`.

        Raises:
            StoreError: no build has finished.
        """
        with suppress(ValueError):
            facts = unseal(next(self.place.read_many([SUMMARY])), *SUMMED)
            if facts["recipe"] == self.recipe.digest and facts["pictures"] <= self.shape[1]:
                return facts
        return self.summarize()

    def finish(self) -> None:
        """Publish the summary: from now on readers see all pictures."""
        self.summary = self.summarize()
        content = seal(self.summary)
        if next(self.place.read_many([SUMMARY])) != content:
            self.place.publish(SUMMARY, content)

    def summarize(self) -> dict[str, Any]:
        """What `finish` publishes; StoreError while shards are missing."""
        state, skipped, zero = hashlib.sha256(self.recipe.digest.encode()), set(), 0
        for entry in self.entries():
            state.update(repr(sorted((name, facts["sha256"]) for name, facts in entry["files"].items())).encode())
            skipped.update(entry["skipped"])
            zero += entry["zero_gradients"]
        facts = {"recipe": self.recipe.digest, "pictures": self.shape[1], "state": state.hexdigest()}
        return {**facts, "skipped": sorted(skipped), "zero_gradients": zero}

    @cached_property
    def left_out(self) -> list[int]:
        """Row numbers that no query returns: skipped by the build at some checkpoint, or removed."""
        removed = {row for row in self.attributes["removed"].values() if row is not None}
        return sorted(row for row in removed.union(self.summary["skipped"]) if row < self.shape[1])

    def require_recipe(self, recipe: Recipe, message: str) -> None:
        """Raise RecipeMismatch, naming the fields, unless `recipe` is the store's."""
        if differing := self.recipe.differences(recipe):
            raise RecipeMismatch(f"{self.place}: {message}", differing)

    def set_attributes(self, **attributes: Any) -> None:
        """Change attributes that are not part of the recipe; what another process has changed since stays."""
        self.attributes = {**read_header(self.place), **attributes}
        publish_header(self.place, self.attributes)

    def shards(self) -> list[Shard]:
        """All units of work, checkpoint by checkpoint."""
        checkpoints, rows = self.shape[:2]
        starts = range(0, rows, self.shard_rows)
        return [
            Shard(c, number, start, min(start + self.shard_rows, rows))
            for c in range(checkpoints)
            for number, start in enumerate(starts)
        ]

    def missing(self) -> list[Shard]:
        """The shards that are not committed, or whose files are not of the sizes that were committed."""
        committed = {shard for shard, _ in self.committed()}
        return [shard for shard in self.shards() if shard not in committed]

    def write(
        self, shard: Shard, rows: np.ndarray, timestep: np.ndarray, skipped: Sequence[int] = (), pictures: str = "",
        units: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Write and commit one shard.

        Args:
            rows: unnormalized gradients, [stop − start, T, D] float32.
            timestep: [stop − start, T] float32.
            skipped: row numbers without a picture; their gradients are zero and no query returns them.
            pictures: the pictures' `Dataset.mark`s one after the other, kept in the manifest.
            units: the normalized rows, where these are not `rows` divided by their norms.

        Raises:
            StoreError: a row is not finite, or the disk gives back something else than was written.
        """
        if not np.isfinite(rows).all():
            bad = int(np.isfinite(rows).all((1, 2)).argmin())
            raise StoreError(f"gradient of {self.sample_ids[shard.start + bad]!r} is not finite: nothing written")
        norm = np.linalg.norm(rows.astype(np.float64), axis=2)
        units = rows / np.where(norm == 0, 1, norm)[:, :, None] if units is None else units
        blocks = {"normalized": units.astype(np.float16), "unnormalized": rows}
        blocks |= {"norm": norm.astype(np.float32), "timestep": timestep}
        layout = self.shard_rows, self.attributes["chunk_rows"]
        files = {file: shard_file(name, blocks[name], *layout) for file, name in self.files(shard).items()}
        digests = {name: sha256(content) for name, content in files.items()}
        for name, content in files.items():
            self.place.publish(name, content)
        if found := differences(self.place, digests):
            raise StoreError(f"{self.place}: the disk gave back other bytes than were written ({found[0]})")
        entry = {
            "checkpoint": shard.checkpoint,
            "rows": [shard.start, shard.stop],
            "recipe": self.recipe.digest,
            "zero_gradients": int((norm == 0).sum()) - len(skipped) * self.shape[2],
            "skipped": list(skipped),
            "pictures": pictures,
            "files": {name: {"bytes": len(content), "sha256": digests[name]} for name, content in files.items()},
        }
        self.place.publish(shard.entry, seal(entry))

    def entries(self) -> Iterator[dict[str, Any]]:
        """The manifest entry of every shard, in order.

        Raises:
            StoreError: a shard is missing or damaged.
        """
        missing = dict.fromkeys(self.shards())
        for shard, entry in self.committed():
            del missing[shard]
            yield entry
        if missing:
            raise StoreError(
                f"{self.place}: {len(missing)} of {len(self.shards())} shards are missing or damaged"
                f" ({next(iter(missing)).name} first); run the same build again, it makes only those"
            )

    def committed(self, shards: Sequence[Shard] | None = None) -> Iterator[tuple[Shard, dict[str, Any]]]:
        """The finished ones of all or some shards, with their manifest entries.

        Those count whose files have the sizes that the entry says.
        """
        shards = self.shards() if shards is None else shards
        sizes = self.place.sizes([name for shard in shards for name in self.files(shard)])
        for shard, content in zip(shards, self.place.read_many(shard.entry for shard in shards), strict=True):
            with suppress(ValueError):
                entry = self.entry(shard, content)
                if all(sizes.get(name) == facts["bytes"] for name, facts in entry["files"].items()):
                    yield shard, entry

    def entry(self, shard: Shard, content: bytes | None) -> dict[str, Any]:
        """A shard's manifest entry, from what its file holds; ValueError, saying what is wrong, unless it is whole."""
        entry = unseal(content, "checkpoint")
        (start, stop), mine = entry["rows"], (shard.checkpoint, self.recipe.digest)
        if (entry["checkpoint"], entry["recipe"]) != mine or start != shard.start:
            raise ValueError("belongs elsewhere")
        if stop < shard.stop:
            raise ValueError(f"ends at picture {stop - 1}")
        return entry

    def damaged(self, entry: Mapping[str, Any]) -> list[str]:
        """Which files of a committed shard are not as they were; every byte is read."""
        return differences(self.place, {name: facts["sha256"] for name, facts in entry["files"].items()})

    def read(self, name: str, checkpoint: int, rows: slice | np.ndarray) -> np.ndarray:
        """Rows of one array at one checkpoint; `rows` is a slice or ascending row numbers.

        Raises:
            StoreError: a checksum does not match.
        """
        return np.concatenate(list(self.pieces(name, checkpoint, rows)))

    def pieces(self, name: str, checkpoint: int, rows: slice | np.ndarray, dtype: Any = None) -> Iterator[np.ndarray]:
        """The same rows, a few MB at a time."""
        chosen = np.arange(*rows.indices(self.shape[1])) if isinstance(rows, slice) else rows
        picture = self.shape[2:] if name in WIDE else self.shape[2:3]
        try:
            yield from read_pieces(
                self.place, name, checkpoint, chosen, picture, self.shard_rows, self.attributes["chunk_rows"], dtype
            )
        except (ValueError, OSError) as error:
            raise self.damage(f"{name} is damaged ({error})") from error

    def mark(self, row: int) -> str | None:
        """The `Dataset.mark` of the picture that a row was made from; None where that is not known."""
        number, place = divmod(row, self.shard_rows)
        for _, entry in self.committed([self.shards()[number]]):
            return entry["pictures"][place * MARK : (place + 1) * MARK] or None
        return None

    def blocks(self, first: int = 0, stop: int | None = None) -> Iterator[slice]:
        """Slices of rows that are read best together: whole shards, as many as come to a few MB."""
        shard = self.shard_rows * math.prod(self.shape[2:]) * 4
        step = self.shard_rows * max(1, BLOCK_BYTES // shard)
        stop = self.shape[1] if stop is None else stop
        for start in range(first, stop, step):
            yield slice(start, min(start + step, stop))

    def files(self, shard: Shard) -> dict[str, str]:
        """The file of a shard's rows in each array, {file: array}."""
        return {f"{name}/{shard_key(name, shard.checkpoint, shard.number)}": name for name in ROW_ARRAYS}

    def fetch(self, name: str) -> bytes:
        """The content of one of the header's files.

        Raises:
            StoreError: it is not as it was made; while pictures are being added it may also be as it was before.
        """
        digests = [
            files[name] for files in (self.attributes["files"], self.attributes.get("before", {})) if name in files
        ]
        what = "is missing"
        for digest in digests:
            try:
                return self.place.fetch(name, digest)
            except ValueError as error:
                what = str(error)
            except FileNotFoundError:
                pass
        raise self.damage(f"{name} {what}")

    def damage(self, what: str) -> StoreError:
        """An error that says what to do about it."""
        return StoreError(f"{self.place}: {what}; run the same build again, it mends that")


def _chunk_rows(recipe: Recipe) -> int:
    """The most pictures that divide a shard and fit a chunk."""
    picture = math.prod(recipe.shape(1)[2:]) * 4
    return next(n for n in range(SHARD_ROWS, 0, -1) if n == 1 or (SHARD_ROWS % n == 0 and n * picture <= CHUNK_BYTES))

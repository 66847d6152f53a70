"""The gradient store: format v1, specified in docs/format.md.

The unit of work is a shard: up to `shard_rows` pictures of one checkpoint. A shard counts once its manifest entry
is there, and the entry is published last: files written → fsync → read back → manifest entry.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from gradindex.arrays import IDS, ROW_ARRAYS, open_array, shard_file, shard_key, skeleton
from gradindex.errors import RecipeMismatch, StoreError
from gradindex.manifest import (
    FORMAT,
    HEADER,
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
CHUNK_BYTES = 2 << 20  # unnormalized bytes in a chunk: the least that a read fetches
RUN = 16  # chunks that scattered rows are read from at once, at most


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
        self.shape = _shape(self.recipe, self.attributes["pictures"])
        self.shard_rows: int = self.attributes["shard_rows"]

    @classmethod
    def create(cls, path: str | Path | Place, recipe: Recipe, sample_ids: Sequence[str], **attributes: Any) -> Self:
        """Make an empty store. It is one once its header is there; where another process was faster, it is that one."""
        place, layout = at(path), {"shard_rows": SHARD_ROWS, "chunk_rows": _chunk_rows(recipe)}
        empty = skeleton(_shape(recipe, len(sample_ids)), sample_ids, **layout)
        for name, content in empty.items():
            place.publish(name, content)
        header = {
            "format": FORMAT,
            "recipe": recipe.to_json(),
            "digest": recipe.digest,
            "pictures": len(sample_ids),
            **layout,
            "files": {name: sha256(content) for name, content in empty.items()},
            **attributes,
        }
        with suppress(FileExistsError):
            place.publish(HEADER, seal_header(header), only_new=True)
        return cls.mended(place, sample_ids)

    @classmethod
    def mended(cls, path: str | Path | Place, sample_ids: Sequence[str]) -> Self:
        """The store at a path; what is damaged of its header, its ids and the arrays' metadata is made again."""
        place = at(path)
        header = read_header(place)
        publish_header(place, header)
        if found := differences(place, header["files"]):
            shape = _shape(Recipe.from_json(header["recipe"]), len(sample_ids))
            empty = skeleton(shape, sample_ids, header["shard_rows"], header["chunk_rows"])
            for name, digest in header["files"].items():
                if sha256(empty.get(name, b"")) != digest:
                    raise StoreError(f"{place}: {found[0]}; only a build over the same data set mends that")
                place.publish(name, empty[name])
        return cls(place)

    normalized, unnormalized, norm, timestep = map(_array, ROW_ARRAYS)

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        self._require_unchanged("/zarr.json")
        return {name: open_array(self.place, name) for name in ROW_ARRAYS}

    @cached_property
    def sample_ids(self) -> list[str]:
        """N distinct strings.

        Raises:
            StoreError: they are damaged.
        """
        self._require_unchanged(f"{IDS}/")
        return open_array(self.place, IDS)[:].tolist()

    def require_recipe(self, recipe: Recipe, message: str) -> None:
        """Raise RecipeMismatch, naming the fields, unless `recipe` is the store's."""
        if differing := self.recipe.differences(recipe):
            raise RecipeMismatch(f"{self.place}: {message}", differing)

    def set_attributes(self, **attributes: Any) -> None:
        """Change attributes that are not part of the recipe."""
        if all(self.attributes.get(name) == value for name, value in attributes.items()):
            return
        self.attributes.update(attributes)
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
        self, shard: Shard, rows: np.ndarray, timestep: np.ndarray, skipped: Sequence[int] = (), pictures: str = ""
    ) -> None:
        """Write and commit one shard.

        Args:
            rows: unnormalized gradients, [stop − start, T, D] float32.
            timestep: [stop − start, T] float32.
            skipped: row numbers without a picture; their gradients are zero and no query returns them.
            pictures: a digest of the pictures, kept in the manifest.

        Raises:
            StoreError: a row is not finite, or the disk gives back something else than was written.
        """
        if not np.isfinite(rows).all():
            bad = int(np.isfinite(rows).all((1, 2)).argmin())
            raise StoreError(f"gradient of {self.sample_ids[shard.start + bad]!r} is not finite: nothing written")
        norm = np.linalg.norm(rows.astype(np.float64), axis=2)
        normalized = (rows / np.where(norm == 0, 1, norm)[:, :, None]).astype(np.float16)
        blocks = {"normalized": normalized, "unnormalized": rows, "norm": norm.astype(np.float32), "timestep": timestep}
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

    def entries(self) -> list[dict[str, Any]]:
        """The manifest entry of every shard.

        Raises:
            StoreError: a shard is missing or damaged.
        """
        shards, committed = self.shards(), list(self.committed())
        if len(committed) < len(shards):
            done = {shard for shard, _ in committed}
            first = next(shard for shard in shards if shard not in done)
            raise StoreError(
                f"{self.place}: {len(shards) - len(done)} of {len(shards)} shards are missing or damaged"
                f" ({first.name} first); run the same build again, it makes only those"
            )
        return [entry for _, entry in committed]

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
        entry = unseal(content)
        mine = {"checkpoint": shard.checkpoint, "rows": [shard.start, shard.stop], "recipe": self.recipe.digest}
        if {name: entry.get(name) for name in mine} != mine:
            raise ValueError("belongs elsewhere")
        return entry

    def damaged(self, entry: Mapping[str, Any], array: str = "") -> list[str]:
        """Which files of a committed shard, or those of one array, are not as they were; every byte is read."""
        files = {
            name: facts["sha256"] for name, facts in entry["files"].items() if array in ("", name.partition("/")[0])
        }
        return differences(self.place, files)

    def require_whole(self, array: str) -> None:
        """Raise StoreError unless every byte of an array's rows is as it was committed."""
        for entry in self.entries():
            if found := self.damaged(entry, array):
                raise self._damage(found[0])

    def skipped(self) -> list[int]:
        """Row numbers without a picture, at any checkpoint."""
        return sorted({row for entry in self.entries() for row in entry["skipped"]})

    def state(self) -> str:
        """SHA-256 over the recipe and every file of rows; a FAISS file made from other rows does not carry it."""
        files = sorted((name, facts["sha256"]) for entry in self.entries() for name, facts in entry["files"].items())
        return sha256(repr((self.recipe.digest, files)).encode())

    def read(self, name: str, checkpoint: int, rows: slice | np.ndarray) -> np.ndarray:
        """Rows of one array at one checkpoint; `rows` is a slice or ascending row numbers.

        Raises:
            StoreError: a checksum does not match.
        """
        array = self._arrays[name]
        try:
            if isinstance(rows, slice):
                return array[checkpoint, rows]
            runs = _runs(rows, array.chunks[1])
            return np.concatenate([array[checkpoint, run[0] : run[-1] + 1][run - run[0]] for run in runs])
        except (ValueError, OSError) as error:
            raise self._damage(f"{name} is damaged ({error})") from error

    def read_rows(self, checkpoint: int, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unnormalized rows [B, T, D] float64 and their norms [B, T], as `read` reads them.

        Raises:
            StoreError: also when rows and norms disagree, as where a file is missing or another lies in its place.
        """
        u = self.read("unnormalized", checkpoint, rows).astype(np.float64)
        norm = self.read("norm", checkpoint, rows).astype(np.float64)
        if not np.allclose(np.linalg.norm(u, axis=2), norm, rtol=1e-5, atol=0):
            raise self._damage("rows and their norms disagree")
        return u, norm

    def blocks(self) -> Iterator[slice]:
        """Slices of rows that are read best together: one shard each."""
        for shard in self.shards():
            if shard.checkpoint == 0:
                yield slice(shard.start, shard.stop)

    def files(self, shard: Shard) -> dict[str, str]:
        """The file of a shard's rows in each array, {file: array}."""
        return {f"{name}/{shard_key(name, shard.checkpoint, shard.number)}": name for name in ROW_ARRAYS}

    def _require_unchanged(self, part: str) -> None:
        """Raise StoreError when a file of the header's list with this in its name is not as it was made."""
        files = {name: digest for name, digest in self.attributes["files"].items() if part in name}
        if found := differences(self.place, files):
            raise self._damage(found[0])

    def _damage(self, what: str) -> StoreError:
        return StoreError(f"{self.place}: {what}; run the same build again, it mends that")


def _runs(rows: np.ndarray, chunk: int) -> list[np.ndarray]:
    """Ascending row numbers, cut where a chunk is not needed: zarr reads a slice ten times faster than a list."""
    chunks = rows // chunk
    gaps = (np.diff(chunks) > 1) | (np.diff(chunks // RUN) > 0)
    return np.split(rows, np.flatnonzero(gaps) + 1)


def _chunk_rows(recipe: Recipe) -> int:
    """The most pictures that divide a shard and fit a chunk."""
    picture = recipe.per_picture * recipe.dim * 4
    return next(n for n in range(SHARD_ROWS, 0, -1) if n == 1 or (SHARD_ROWS % n == 0 and n * picture <= CHUNK_BYTES))


def _shape(recipe: Recipe, pictures: int) -> tuple[int, int, int, int]:
    return len(recipe.checkpoints), pictures, recipe.per_picture, recipe.dim

"""The gradient store on disk: format v1, specified in docs/format.md.

The unit of work is a shard: up to `shard_rows` pictures of one checkpoint. A shard counts once its manifest entry
is there, and the entry is published last: chunks written → fsync → read back → manifest entry renamed into place.
"""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from gradindex.errors import CallError, RecipeMismatch, StoreError
from gradindex.recipe import Recipe

FORMAT = 1
ROW_ARRAYS = ("normalized", "unnormalized", "norm", "timestep")
SHARD_ROWS = 256  # pictures in a shard: what an interruption can cost
CHUNK_BYTES = 2 << 20  # unnormalized bytes in a chunk: the least that a read fetches
RUN = 16  # chunks that scattered rows are read from at once, at most


@dataclass(frozen=True)
class Shard:
    """One unit of work: pictures `start` … `stop` − 1 at checkpoint number `checkpoint`."""

    checkpoint: int
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"c{self.checkpoint:03d}-s{self.number:06d}"


class Store:
    """A gradient store: rows of shape [C, N, T, D] and what made them.

    Attributes:
        unnormalized, normalized: zarr arrays [C, N, T, D]. norm, timestep: zarr arrays [C, N, T].
        sample_ids: N strings. recipe: the Recipe of every row. attributes: what else `create` was given.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header = _read_header(path)
        self.attributes: dict[str, Any] = header
        self.recipe = Recipe.from_json(header["recipe"])
        if self.recipe.digest != header["digest"]:
            raise StoreError(f"{path}: the recipe in zarr.json was changed by hand (its digest does not match)")
        try:
            ids = path / "sample_ids" / "c"
            if not ids.is_dir():
                raise KeyError("sample_ids")  # zarr would read empty names
            self._group = zarr.open_group(path, mode="r+")
            self.normalized, self.unnormalized, self.norm, self.timestep = (self._group[name] for name in ROW_ARRAYS)
            self.sample_ids: list[str] = self._group["sample_ids"][:].tolist()
        except (KeyError, ValueError, OSError) as error:
            raise StoreError(f"{path}: damaged ({error}); build it again with overwrite") from error
        self.shape: tuple[int, int, int, int] = self.unnormalized.shape
        self.shard_rows: int = self.norm.shards[1]

    @classmethod
    def create(cls, path: Path, recipe: Recipe, sample_ids: Sequence[str], **attributes: Any) -> Self:
        """Make an empty store, all of it or nothing: it is filled in a folder beside `path` and renamed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            _create_arrays(draft, recipe, sample_ids, attributes)
            (draft / "manifest").mkdir()
            draft.chmod(0o755)
            for place in draft.rglob("*"):
                _fsync(place)
            _fsync(draft)
            draft.rename(path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        _fsync(path.parent)
        return cls(path)

    def require_recipe(self, recipe: Recipe, message: str) -> None:
        """Raise RecipeMismatch, naming the fields, unless `recipe` is the store's."""
        if differences := self.recipe.differences(recipe):
            raise RecipeMismatch(f"{self.path}: {message}", differences)

    def set_attributes(self, **attributes: Any) -> None:
        """Change attributes that are not part of the recipe."""
        if all(self.attributes.get(name) == value for name, value in attributes.items()):
            return
        self.attributes.update(attributes)
        whole = json.loads((self.path / "zarr.json").read_text())
        whole["attributes"]["gradindex"] = self.attributes
        publish(self.path / "zarr.json", json.dumps(whole, indent=2).encode())

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
        """The shards that are not committed, or whose files are not as they were committed."""
        return [shard for shard in self.shards() if self._entry(shard) is None]

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
        where = (shard.checkpoint, slice(shard.start, shard.stop))
        blocks = {"normalized": normalized, "unnormalized": rows, "norm": norm.astype(np.float32), "timestep": timestep}
        files = [self._file(name, shard) for name in ROW_ARRAYS]
        for file in (self._entry_file(shard), *files):
            file.unlink(missing_ok=True)  # zarr would read a damaged file before writing over it
        for name, block in blocks.items():
            self._group[name][where] = block
        for file in files:
            _fsync(file)
            _fsync(file.parent)
        for name, block in blocks.items():
            if not np.array_equal(self._group[name][where], block):
                raise StoreError(f"{self.path}: the disk gave back other numbers than were written to {name}")
        entry = {
            "checkpoint": shard.checkpoint,
            "rows": [shard.start, shard.stop],
            "sample_ids": self._ids_digest(shard),
            "recipe": self.recipe.digest,
            "zero_gradients": int((norm == 0).sum()) - len(skipped) * self.shape[2],
            "skipped": list(skipped),
            "pictures": pictures,
            "files": {
                file.relative_to(self.path).as_posix(): {"bytes": file.stat().st_size, "sha256": file_digest(file)}
                for file in files
            },
        }
        publish(self._entry_file(shard), json.dumps(entry, indent=1).encode())

    def entries(self) -> list[dict[str, Any]]:
        """The manifest entry of every shard.

        Raises:
            StoreError: a shard is missing or damaged.
        """
        shards, committed = self.shards(), self.committed()
        if len(committed) < len(shards):
            done = {shard for shard, _ in committed}
            first = next(shard for shard in shards if shard not in done)
            raise StoreError(
                f"{self.path}: {len(shards) - len(done)} of {len(shards)} shards are missing or damaged"
                f" ({first.name} first); run the same build again, it makes only those"
            )
        return [entry for _, entry in committed]

    def committed(self) -> list[tuple[Shard, dict[str, Any]]]:
        """The finished shards with their manifest entries."""
        return [(shard, entry) for shard in self.shards() if (entry := self._entry(shard)) is not None]

    def skipped(self) -> list[int]:
        """Row numbers without a picture, at any checkpoint."""
        return sorted({row for entry in self.entries() for row in entry["skipped"]})

    def state(self) -> str:
        """SHA-256 over the recipe and every file of rows; a FAISS file made from other rows does not carry it."""
        files = sorted((name, facts["sha256"]) for entry in self.entries() for name, facts in entry["files"].items())
        return hashlib.sha256(repr((self.recipe.digest, files)).encode()).hexdigest()

    def read(self, name: str, checkpoint: int, rows: slice | np.ndarray) -> np.ndarray:
        """Rows of one array at one checkpoint; `rows` is a slice or ascending row numbers.

        Raises:
            StoreError: a checksum does not match.
        """
        array = self._group[name]
        try:
            if isinstance(rows, slice):
                return array[checkpoint, rows]
            runs = _runs(rows, array.chunks[1])
            return np.concatenate([array[checkpoint, run[0] : run[-1] + 1][run - run[0]] for run in runs])
        except (ValueError, OSError) as error:
            files = ", ".join(self._changed_files(name)) or "its metadata"
            raise StoreError(f"{self.path}: {name} is damaged: delete {files} and run the same build again") from error

    def blocks(self) -> Iterator[slice]:
        """Slices of rows that are read best together: one shard each."""
        for shard in self.shards():
            if shard.checkpoint == 0:
                yield slice(shard.start, shard.stop)

    def _changed_files(self, name: str) -> list[str]:
        """The files of an array that are not as they were committed."""
        return [
            file
            for entry in self.entries()
            for file, facts in entry["files"].items()
            if file.startswith(f"{name}/") and file_digest(self.path / file) != facts["sha256"]
        ]

    def _file(self, name: str, shard: Shard) -> Path:
        trailing = "/0" * (self._group[name].ndim - 2)
        return self.path / name / f"c/{shard.checkpoint}/{shard.number}{trailing}"

    def _entry_file(self, shard: Shard) -> Path:
        return self.path / "manifest" / f"{shard.name}.json"

    def _ids_digest(self, shard: Shard) -> str:
        return hashlib.sha256("\n".join(self.sample_ids[shard.start : shard.stop]).encode()).hexdigest()

    def _entry(self, shard: Shard) -> dict[str, Any] | None:
        """A shard's manifest entry; None unless it is there and its files have the sizes that it says."""
        try:
            entry = json.loads(self._entry_file(shard).read_text())
            sizes = all((self.path / name).stat().st_size == facts["bytes"] for name, facts in entry["files"].items())
            same = entry["recipe"] == self.recipe.digest and entry["sample_ids"] == self._ids_digest(shard)
        except (OSError, ValueError, KeyError):
            return None
        return entry if sizes and same else None


def _runs(rows: np.ndarray, chunk: int) -> list[np.ndarray]:
    """Ascending row numbers, cut where a chunk is not needed: zarr reads a slice ten times faster than a list."""
    chunks = rows // chunk
    gaps = (np.diff(chunks) > 1) | (np.diff(chunks // RUN) > 0)
    return np.split(rows, np.flatnonzero(gaps) + 1)


def is_store(path: Path) -> bool:
    """Whether a folder holds a gradient store of any version."""
    try:
        return "gradindex" in json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def publish(file: Path, content: bytes) -> None:
    """Write a file so that after a crash it is there whole or not at all."""
    file.parent.mkdir(exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, file)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    _fsync(file.parent)


def file_digest(file: Path) -> str:
    """SHA-256 hex of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_header(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CallError(f"{path}: no such index; make it with `gradindex build`")
    if not is_store(path):
        raise CallError(f"{path}: not a gradindex index (no zarr.json of one)")
    header = json.loads((path / "zarr.json").read_text())["attributes"]["gradindex"]
    if header.get("format") != FORMAT:
        raise StoreError(
            f"{path}: format version {header.get('format')}, this gradindex reads {FORMAT}: update gradindex"
        )
    if absent := {"recipe", "digest"} - header.keys():
        raise StoreError(f"{path}: zarr.json lacks {', '.join(sorted(absent))}; build it again with overwrite")
    return header


def _create_arrays(path: Path, recipe: Recipe, sample_ids: Sequence[str], attributes: dict[str, Any]) -> None:
    header = {"format": FORMAT, "recipe": recipe.to_json(), "digest": recipe.digest, **attributes}
    group = zarr.create_group(path, attributes={"gradindex": header})
    shape = (len(recipe.checkpoints), len(sample_ids), recipe.per_picture, recipe.dim)
    shard_rows = min(SHARD_ROWS, len(sample_ids))
    chunk_rows = next(n for n in range(shard_rows, 0, -1) if (shard_rows % n == 0 and _fits(n, shape)) or n == 1)
    types = {"normalized": "float16", "unnormalized": "float32", "norm": "float32", "timestep": "float32"}
    for name in ROW_ARRAYS:
        full = shape if name in ("normalized", "unnormalized") else shape[:3]
        group.create_array(
            name,
            shape=full,
            dtype=types[name],
            shards=(1, shard_rows, *full[2:]),
            chunks=(1, chunk_rows, *full[2:]),
            compressors=[Crc32cCodec()],
            filters=None,
            fill_value=float("nan"),
            dimension_names=("checkpoint", "picture", "timestep", "dim")[: len(full)],
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a user's zarr may call variable-length strings unstable
        count = len(sample_ids)
        ids = group.create_array(
            "sample_ids", shape=(count,), dtype="string", chunks=(min(count, 65536),), compressors=[Crc32cCodec()]
        )
    ids[:] = np.array(sample_ids, dtype=object)


def _fits(rows: int, shape: tuple[int, ...]) -> bool:
    return rows * shape[2] * shape[3] * 4 <= CHUNK_BYTES


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

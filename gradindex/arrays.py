"""The arrays of a store: their metadata and the file of a shard, made by zarr, and a fast way to read rows back.

Chunks lie in a shard's file one after the other, each followed by its crc32c; zarr's index is at the end.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from operator import eq
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs.vlen import VLenUTF8
from zarr.codecs import Crc32cCodec

from gradindex.manifest import HEADER
from gradindex.place import Place

ROW_ARRAYS = ("normalized", "unnormalized", "norm", "timestep")
WIDE = ROW_ARRAYS[:2]  # [C, N, T, D]; the others are [C, N, T]
IDS = "sample_ids"
CHUNK_IDS = 4096
READ_BYTES = 1 << 20  # of a file at once: what stays in a core's cache
CHECKSUM = 4  # bytes after each chunk


def skeleton(
    shape: tuple[int, int, int, int], sample_ids: Sequence[str], shard_rows: int, chunk_rows: int
) -> dict[str, bytes]:
    """The files of an empty store but its header: ids, and the arrays' metadata. They depend on the arguments alone."""
    memory: dict[str, Any] = {}
    group = zarr.create_group(memory)
    for name in ROW_ARRAYS:
        _create(group, name, shape if name in WIDE else shape[:3], shard_rows, chunk_rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a user's zarr may call variable-length strings unstable
        ids = group.create_array(
            IDS, shape=(len(sample_ids),), dtype="string", chunks=(CHUNK_IDS,), compressors=[Crc32cCodec()]
        )
    for start in range(0, len(sample_ids), CHUNK_IDS):
        ids[start : start + CHUNK_IDS] = np.array(sample_ids[start : start + CHUNK_IDS], dtype=object)
    return {name: content.to_bytes() for name, content in memory.items() if name != HEADER}


def shard_file(name: str, rows: np.ndarray, shard_rows: int, chunk_rows: int) -> bytes:
    """The file of one shard of an array, from its rows [B, T, D] or [B, T], B ≤ shard_rows."""
    memory: dict[str, Any] = {}
    array = _create(zarr.create_group(memory), name, (1, shard_rows, *rows.shape[1:]), shard_rows, chunk_rows)
    array[0, : len(rows)] = rows
    return memory[f"{name}/{shard_key(name, 0, 0)}"].to_bytes()


def shard_key(name: str, checkpoint: int, number: int) -> str:
    """Where an array has the file of a shard."""
    return f"c/{checkpoint}/{number}/0" + "/0" * (name in WIDE)


def open_array(place: Place, name: str) -> Any:
    """An array of a store, for reading."""
    return zarr.open_array(str(place), path=name, mode="r")


class SampleIds(Sequence[str]):
    """The ids of a store, some chunks of them in memory at a time.

    Args:
        fetch: gives the content of a file, checked.
    """

    def __init__(self, count: int, fetch: Callable[[str], bytes]) -> None:
        self._count, self._fetch = count, fetch
        self._chunk = lru_cache(32)(self._read_chunk)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[each] for each in range(self._count)[row]]
        row = range(self._count)[row]
        return self._chunk(row // CHUNK_IDS)[row % CHUNK_IDS]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def _read_chunk(self, number: int) -> list[str]:
        return VLenUTF8().decode(self._fetch(f"{IDS}/c/{number}")[:-CHECKSUM]).tolist()


def read_pieces(
    place: Place, name: str, checkpoint: int, rows: np.ndarray, picture: tuple[int, ...], shard_rows: int,
    chunk_rows: int, dtype: Any = None,
) -> Iterator[np.ndarray]:  # fmt: skip
    """The given rows of an array, ascending numbers, in consecutive pieces [b, *picture], as numbers of `dtype`.

    Raises:
        FileNotFoundError: of a shard. ValueError: a checksum does not match.
    """
    stored, chunk = _dtype(name), _chunk_rows(name, shard_rows, chunk_rows)
    size = chunk * math.prod(picture) * stored.itemsize + CHECKSUM
    per_shard = shard_rows // chunk
    chunks = np.unique(rows // chunk)
    at_once = max(1, min(per_shard, READ_BYTES // size))
    gaps = (np.diff(chunks) > 1) | (np.diff(chunks // at_once) > 0) | (np.diff(chunks // per_shard) > 0)
    runs = np.split(chunks, np.flatnonzero(gaps) + 1)
    files = [f"{name}/{shard_key(name, checkpoint, int(run[0]) // per_shard)}" for run in runs]
    spans = [(int(run[0]) % per_shard * size, (int(run[-1]) % per_shard + 1) * size) for run in runs]
    bounds = np.searchsorted(rows, [int(run[-1] + 1) * chunk for run in runs]).tolist()
    ranges = [(file, *span) for file, span in zip(files, spans, strict=True)]
    waiting: list[np.ndarray] = []  # rows that lie apart, handed on together
    for run, file, content, first, last in zip(
        runs, files, place.read_ranges(ranges), [0, *bounds], bounds, strict=False
    ):
        if len(content) != len(run) * size:
            raise ValueError(f"{file} is cut off")
        block = np.frombuffer(content, np.uint8).reshape(len(run), size)
        for each in block:
            if google_crc32c.value(each[:-CHECKSUM]) != int.from_bytes(each[-CHECKSUM:].tobytes(), "little"):
                raise ValueError(f"{file} was changed")
        values = block[:, :-CHECKSUM].view(stored).reshape(len(run), chunk, *picture)
        if last - first == len(run) * chunk:  # all of them
            waiting.append(values.astype(dtype or stored).reshape(-1, *picture))
        else:
            mine = rows[first:last] - int(run[0]) * chunk
            waiting.append(values[mine // chunk, mine % chunk].astype(dtype or stored, copy=False))
        if last == len(rows) or len(waiting) * waiting[-1].nbytes >= READ_BYTES // 2:
            yield np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
            waiting = []


def _create(group: Any, name: str, shape: tuple[int, ...], shard_rows: int, chunk_rows: int) -> Any:
    return group.create_array(
        name,
        shape=shape,
        dtype=_dtype(name),
        shards=(1, shard_rows, *shape[2:]),
        chunks=(1, _chunk_rows(name, shard_rows, chunk_rows), *shape[2:]),
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=float("nan"),
        dimension_names=("checkpoint", "picture", "timestep", "dim")[: len(shape)],
    )


def _dtype(name: str) -> np.dtype:
    return np.dtype("float16" if name == "normalized" else "float32")


def _chunk_rows(name: str, shard_rows: int, chunk_rows: int) -> int:
    return chunk_rows if name in WIDE else shard_rows

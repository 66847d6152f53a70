"""The zarr side of a store: the metadata of its arrays, the file of a shard, and arrays open for reading."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from gradindex.manifest import HEADER
from gradindex.place import Place

ROW_ARRAYS = ("normalized", "unnormalized", "norm", "timestep")
WIDE = ROW_ARRAYS[:2]  # [C, N, T, D]; the others are [C, N, T]
IDS = "sample_ids"
CHUNK_IDS = 65536


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
        chunks = (min(len(sample_ids), CHUNK_IDS),)
        ids = group.create_array(
            IDS, shape=(len(sample_ids),), dtype="string", chunks=chunks, compressors=[Crc32cCodec()]
        )
    ids[:] = np.array(sample_ids, dtype=object)
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


def _create(group: Any, name: str, shape: tuple[int, ...], shard_rows: int, chunk_rows: int) -> Any:
    return group.create_array(
        name,
        shape=shape,
        dtype="float16" if name == "normalized" else "float32",
        shards=(1, shard_rows, *shape[2:]),
        chunks=(1, chunk_rows, *shape[2:]),
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=float("nan"),
        dimension_names=("checkpoint", "picture", "timestep", "dim")[: len(shape)],
    )

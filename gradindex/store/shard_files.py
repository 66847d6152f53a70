"""The files of one shard and its manifest entry, from its rows."""

from collections.abc import Mapping, Sequence

import numpy as np

from gradindex.store.arrays import ROW_ARRAYS, shard_file, shard_key
from gradindex.store.digests import sha256
from gradindex.store.manifest import Shard
from gradindex.store.records import ShardEntry, ShardFile


def shard_file_names(shard: Shard) -> dict[str, str]:
    """The file of a shard's rows in each array, {file: array}."""
    return {
        f"{name}/{shard_key(name, shard.checkpoint, shard.number)}": name for name in ROW_ARRAYS
    }


def row_norms(rows: np.ndarray) -> np.ndarray:
    """The norm of each row [B, T, D], [B, T] float64."""
    return np.linalg.norm(rows.astype(np.float64), axis=2)


def make_shard_files(
    shard: Shard,
    rows: np.ndarray,
    norm: np.ndarray,
    units: np.ndarray | None,
    timestep: np.ndarray,
    shard_rows: int,
    chunk_rows: int,
) -> dict[str, bytes]:
    """The contents of a shard's files, {name: content}.

    Args:
        rows: unnormalized gradients, [B, T, D] float32.
        norm: of each row, [B, T] float64.
        units: normalized rows [B, T, D]; None: `rows` divided by their norms, zero where they are.
        timestep: [B, T] float32.
    """
    if units is None:
        units = rows / np.where(norm == 0, 1, norm)[:, :, None]
    arrays = {
        "normalized": units.astype(np.float16),
        "unnormalized": rows,
        "norm": norm.astype(np.float32),
        "timestep": timestep,
    }
    return {
        file: shard_file(name, arrays[name], shard_rows, chunk_rows)
        for file, name in shard_file_names(shard).items()
    }


def make_shard_entry(
    shard: Shard,
    files: Mapping[str, bytes],
    recipe_digest: str,
    zero_gradients: int,
    skipped: Sequence[int],
    pictures: str,
    contents: str,
    stats: str,
) -> ShardEntry:
    """The manifest entry of a shard with these files, {name: content}."""
    return ShardEntry(
        checkpoint=shard.checkpoint,
        rows=(shard.start, shard.stop),
        recipe=recipe_digest,
        zero_gradients=zero_gradients,
        skipped=list(skipped),
        pictures=pictures,
        files={
            name: ShardFile(bytes=len(content), sha256=sha256(content))
            for name, content in files.items()
        },
        contents=contents,
        stats=stats,
    )

"""The files of one shard and its manifest entry, from its rows."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gradindex.store.arrays import shard_file, shard_key
from gradindex.store.codes import decode, encode
from gradindex.store.digests import sha256
from gradindex.store.manifest import Shard
from gradindex.store.records import ShardEntry, ShardFile

Values = Mapping[str, np.ndarray]


def shard_file_names(shard: Shard, arrays: Iterable[str]) -> dict[str, str]:
    """The file of a shard's rows in each of some arrays, {file: array}."""
    return {f"{name}/{shard_key(name, shard.checkpoint, shard.number)}": name for name in arrays}


def row_norms(rows: np.ndarray) -> np.ndarray:
    """The norm of each row [B, T, D], [B, T] float64."""
    norms = np.empty(rows.shape[:2])
    # Picture by picture: what is made of one stays in a core's cache.
    for number, picture in enumerate(rows):
        norms[number] = np.linalg.norm(picture.astype(np.float64), axis=1)
    return norms


def row_values(rows: np.ndarray, units: np.ndarray | None, is_compact: bool) -> Values:
    """The values of the arrays that rows are kept in, but `timestep`, {name: [B, T, …]}.

    The norm is that of the rows that are read back.

    Args:
        rows: unnormalized gradients, [B, T, D] float32.
        units: normalized rows [B, T, D]; None: `rows` divided by their norms, zero where they are.
    """
    if is_compact:
        codes, scale = encode(rows)
        norm = row_norms(decode(codes, scale))
        return {"codes": codes, "scale": scale, "norm": norm.astype(np.float32)}
    norm = row_norms(rows)
    if units is None:
        normalized = np.empty(rows.shape, np.float16)
        for number, picture in enumerate(rows):
            normalized[number] = unit_rows(picture, norm[number])
    else:
        normalized = units.astype(np.float16)
    return {"normalized": normalized, "unnormalized": rows, "norm": norm.astype(np.float32)}


def unit_rows(rows: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """Rows [..., D] divided by their norms [...]; zero where they are."""
    return rows / np.where(norm == 0, 1, norm)[..., None]


def make_shard_files(
    shard: Shard, values: Values, shard_rows: int, chunk_rows: int
) -> dict[str, bytes]:
    """The contents of a shard's files, {name: content}, from the values of each array."""
    return {
        file: shard_file(name, values[name], shard_rows, chunk_rows)
        for file, name in shard_file_names(shard, values).items()
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

"""The arrays of a store: their metadata and the files of a shard, made by zarr.

`read_pieces` reads rows back without zarr, which a query then need not import: chunks lie in a
shard's file one after the other, each followed by its crc32c; zarr's index of them is at the end.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from operator import eq
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from gradindex.errors import first_line
from gradindex.store.array_names import CHUNK_IDS, IDS, WIDE, array_dtype
from gradindex.store.disk import Disk
from gradindex.store.location import Location
from gradindex.store.manifest import HEADER

READ_BYTES = 1 << 20  # of a file at once: what stays in a core's cache
CHECKSUM = 4  # bytes after each chunk
INDEX_ITEM = 16  # bytes of the place of a chunk, in the index
ABSENT = 2**64 - 1  # in place of offset and bytes of a chunk that is left out
ITEM = 4  # bytes of the number of ids in a chunk, and before each of them of its length


def skeleton(
    names: Sequence[str],
    shape: tuple[int, int, int, int],
    sample_ids: Sequence[str],
    shard_rows: int,
    chunk_rows: int,
) -> dict[str, bytes]:
    """The files of an empty store but its header: ids, and the arrays' metadata, {name: content}.

    They depend on the arguments alone.

    Args:
        names: of the arrays.
    """
    import zarr
    from zarr.codecs import Crc32cCodec

    memory: dict[str, Any] = {}
    group = zarr.create_group(memory)
    for name in names:
        array_shape = shape if name in WIDE else shape[:3]
        _create(group, name, array_shape, shard_rows, chunk_rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a user's zarr may call variable-length strings unstable
        ids = group.create_array(
            IDS,
            shape=(len(sample_ids),),
            dtype="string",
            chunks=(CHUNK_IDS,),
            compressors=[Crc32cCodec()],
        )
    for start in range(0, len(sample_ids), CHUNK_IDS):
        chunk = slice(start, start + CHUNK_IDS)
        ids[chunk] = np.array(sample_ids[chunk], dtype=object)
    return {name: content.to_bytes() for name, content in memory.items() if name != HEADER}


def shard_file(name: str, rows: np.ndarray, shard_rows: int, chunk_rows: int) -> bytes:
    """The file of one shard of an array, from its rows [B, T, D] or [B, T], B ≤ shard_rows.

    It is what zarr makes (zarr v3, sharding codec 1.0): the chunks one after the other, each with
    its crc32c, those without a row left out; then where each lies, offset and bytes, with a crc32c.
    """
    chunk = _chunk_rows(name, shard_rows, chunk_rows)
    rows = np.ascontiguousarray(rows, array_dtype(name))
    count = -(-len(rows) // chunk)
    size = chunk * math.prod(rows.shape[1:]) * rows.itemsize + CHECKSUM
    file = np.empty(count * size + shard_rows // chunk * INDEX_ITEM + CHECKSUM, np.uint8)
    for number, block in enumerate(file[: count * size].reshape(count, size)):
        values = rows[number * chunk : (number + 1) * chunk]
        if len(values) < chunk:
            padding = np.full((chunk - len(values), *rows.shape[1:]), _fill(name), rows.dtype)
            values = np.concatenate([values, padding])
        block[:-CHECKSUM] = values.reshape(-1).view(np.uint8)
        block[-CHECKSUM:] = _checksum(block[:-CHECKSUM])
    index = np.full((shard_rows // chunk, 2), ABSENT, "<u8")
    index[:count, 0] = np.arange(count) * size
    index[:count, 1] = size
    file[count * size : -CHECKSUM] = index.reshape(-1).view(np.uint8)
    file[-CHECKSUM:] = _checksum(file[count * size : -CHECKSUM])
    return file.tobytes()


def _checksum(content: np.ndarray) -> np.ndarray:
    """The crc32c of bytes, [4] uint8."""
    return np.array([google_crc32c.value(content)], "<u4").view(np.uint8)


def _fill(name: str) -> float:
    """What zarr takes for a number that is not there: NaN, or −128 in an array of int8."""
    dtype = array_dtype(name)
    return float("nan") if dtype.kind == "f" else int(np.iinfo(dtype).min)


def shard_key(name: str, checkpoint: int, number: int) -> str:
    """Where an array has the file of a shard.

    >>> shard_key("unnormalized", 1, 20), shard_key("norm", 1, 20)
    ('c/1/20/0/0', 'c/1/20/0')
    """
    return f"c/{checkpoint}/{number}/0" + "/0" * (name in WIDE)


def open_array(
    location: Location,
    name: str,
    shape: tuple[int, int, int, int],
    shard_rows: int,
    chunk_rows: int,
) -> Any:
    """An array of a store, for reading.

    Args:
        shape: [C, N, T, D] of the store; an array may have fewer pictures while some are added.

    Raises:
        ValueError: its metadata are not those of a store of that shape.
    """
    import zarr

    # Of a path as text zarr would take `::` for a mark of addresses.
    store = location.path if isinstance(location, Disk) else str(location)
    try:
        array = zarr.open_array(store, path=name, mode="r")
        layout = array.shape[:1], array.shape[2:], array.dtype, array.shards, array.chunks
        pictures = array.shape[1]
    except Exception as error:  # whatever metadata of any kind lead zarr to
        raise ValueError(f"zarr does not read them: {first_line(error)}") from error
    rest = shape[2:] if name in WIDE else shape[2:3]
    shards = (1, shard_rows, *rest)
    chunks = (1, _chunk_rows(name, shard_rows, chunk_rows), *rest)
    if layout != (shape[:1], rest, array_dtype(name), shards, chunks) or pictures > shape[1]:
        raise ValueError("they are of another store")
    return array


class SampleIds(Sequence[str]):
    """The ids of a store, some chunks of them in memory at a time.

    Args:
        fetch: gives the content of a file, checked.
        damage: makes the error that is raised where that content holds no ids.
    """

    def __init__(
        self,
        count: int,
        fetch: Callable[[str], bytes],
        damage: Callable[[str], Exception] = ValueError,
    ) -> None:
        self._count, self._fetch, self._damage = count, fetch, damage
        self._chunk = lru_cache(32)(self._read_chunk)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[number] for number in range(self._count)[row]]
        row = range(self._count)[row]
        return self._chunk(row // CHUNK_IDS)[row % CHUNK_IDS]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def _read_chunk(self, number: int) -> list[str]:
        from numcodecs.vlen import VLenUTF8

        name = f"{IDS}/c/{number}"
        content = self._fetch(name)[:-CHECKSUM]
        # The decoder makes a list of as many texts as the first number says.
        declared = int.from_bytes(content[:ITEM], "little")
        needed = min(self._count - number * CHUNK_IDS, CHUNK_IDS)
        if not needed <= declared <= min(CHUNK_IDS, len(content) // ITEM):
            raise self._damage(f"{name} holds {declared} ids, not {needed}")
        try:
            ids: list[str] = VLenUTF8().decode(content).tolist()
        except ValueError as error:
            raise self._damage(f"{name} holds no ids ({first_line(error)})") from error
        return ids


class _Run(NamedTuple):
    """Neighbouring chunks of one file, read together.

    Attributes:
        chunks: their numbers, counted over all shards.
        file: where they lie. start, stop: their bytes in it.
        first, last: which of the rows asked for are in them: from `first` to before `last`.
    """

    chunks: np.ndarray
    file: str
    start: int
    stop: int
    first: int
    last: int


def read_pieces(
    location: Location,
    name: str,
    checkpoint: int,
    rows: np.ndarray,
    picture: tuple[int, ...],
    shard_rows: int,
    chunk_rows: int,
    dtype: Any = None,
) -> Iterator[np.ndarray]:
    """The given rows of an array in consecutive pieces [b, *picture].

    Args:
        rows: ascending numbers of pictures.
        picture: shape of one picture's rows: [T, D] or [T].
        dtype: of the pieces; by default that of the array.

    Raises:
        FileNotFoundError: a shard's file is absent. ValueError: a checksum does not match.
    """
    stored = array_dtype(name)
    dtype = dtype or stored
    chunk = _chunk_rows(name, shard_rows, chunk_rows)
    size = chunk * math.prod(picture) * stored.itemsize + CHECKSUM
    runs = _runs(name, checkpoint, rows, chunk, size, shard_rows // chunk)
    contents = location.read_ranges((run.file, run.start, run.stop) for run in runs)
    waiting: list[np.ndarray] = []  # rows that lie apart, handed on together
    for run, content in zip(runs, contents, strict=False):
        block = _checked_block(run, content, size)
        values = block[:, :-CHECKSUM].view(stored).reshape(len(run.chunks), chunk, *picture)
        if run.last - run.first == len(run.chunks) * chunk:  # all rows of these chunks
            waiting.append(values.astype(dtype).reshape(-1, *picture))
        else:
            positions = rows[run.first : run.last] - int(run.chunks[0]) * chunk
            kept = values[positions // chunk, positions % chunk]
            waiting.append(kept.astype(dtype, copy=False))
        enough = len(waiting) * waiting[-1].nbytes >= READ_BYTES // 2
        if run.last == len(rows) or enough:
            yield np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
            waiting = []


def _runs(
    name: str, checkpoint: int, rows: np.ndarray, chunk: int, size: int, per_shard: int
) -> list[_Run]:
    """The runs of chunks that hold these rows, each of at most READ_BYTES.

    Args:
        chunk: rows in a chunk. size: its bytes, checksum included. per_shard: chunks in a file.
    """
    chunks = np.unique(rows // chunk)
    at_once = max(1, min(per_shard, READ_BYTES // size))
    apart = np.diff(chunks) > 1
    next_read = np.diff(chunks // at_once) > 0
    next_file = np.diff(chunks // per_shard) > 0
    parts = np.split(chunks, np.flatnonzero(apart | next_read | next_file) + 1)
    bounds = np.searchsorted(rows, [int(part[-1] + 1) * chunk for part in parts]).tolist()
    runs = []
    for part, first, last in zip(parts, [0, *bounds], bounds, strict=False):
        shard, position = divmod(int(part[0]), per_shard)
        file = f"{name}/{shard_key(name, checkpoint, shard)}"
        stop = (position + len(part)) * size
        runs.append(_Run(part, file, position * size, stop, first, last))
    return runs


def _checked_block(run: _Run, content: bytes, size: int) -> np.ndarray:
    """The bytes of a run's chunks, [chunks, size] uint8; ValueError where a checksum differs."""
    if len(content) != len(run.chunks) * size:
        raise ValueError(f"{run.file} is cut off")
    block = np.frombuffer(content, np.uint8).reshape(len(run.chunks), size)
    for chunk in block:
        checksum = int.from_bytes(chunk[-CHECKSUM:].tobytes(), "little")
        if google_crc32c.value(chunk[:-CHECKSUM]) != checksum:
            raise ValueError(f"{run.file} was changed")
    return block


def _create(group: Any, name: str, shape: tuple[int, ...], shard_rows: int, chunk_rows: int) -> Any:
    """Create a zarr array: a shard is a file, no compression; NaN or −128 where nothing is."""
    from zarr.codecs import Crc32cCodec

    dtype = array_dtype(name)
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        shards=(1, shard_rows, *shape[2:]),
        chunks=(1, _chunk_rows(name, shard_rows, chunk_rows), *shape[2:]),
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=_fill(name),
        dimension_names=("checkpoint", "picture", "timestep", "dim")[: len(shape)],
    )


def _chunk_rows(name: str, shard_rows: int, chunk_rows: int) -> int:
    return chunk_rows if name in WIDE else shard_rows

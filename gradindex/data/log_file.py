"""The format of a training log's file: a row of records, each with checksums.

docs/format.md specifies it. Numbers are little-endian.
"""

import json
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from gradindex.errors import DataError, first_line

FORMAT = 1
SESSION, IDS, EVENTS, CHECKPOINT = b"sess", b"pics", b"draw", b"ckpt"  # kinds of records
UNKNOWN = -1  # noise seed of events whose noise nobody can make again
HEAD = struct.Struct("<4sII")  # kind, bytes of the content, CRC-32 of the content
HEAD_CHECK = struct.Struct("<I")  # CRC-32 of the head
BATCH = struct.Struct("<dqqI")  # time in seconds since 1970, step, noise seed, number of events
EVENT_BYTES = 8  # of an event after that: the number of its picture, and its timestep

JsonRecord = TypeVar("JsonRecord", bound=msgspec.Struct)
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]  # of anything: a JSON number has no bounds


class Record(NamedTuple):
    """A whole record of a file: its kind, its content, and the position of the byte after it."""

    kind: bytes
    content: bytes
    end: int


class FormatRecord(msgspec.Struct, frozen=True):
    """The format alone of a session, which every version of the format has."""

    format: int


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a recorder notes when it opens a file.

    Attributes:
        format: version of the file's format.
        noise_version: of `gradindex.noise`; None in the oldest logs, whose noise is version 1.
        seed: of timesteps and noise.
        num_train_timesteps: of the noise scheduler.
        grid: SHA-256 of the scheduler's timesteps where they are of flow matching, no whole
            numbers; None where they are 0 … `num_train_timesteps` − 1.
        world: number of ranks, or None where it is not known.
        time: seconds since 1970.
    """

    format: Count
    noise_version: Count | None = None
    seed: int
    num_train_timesteps: Count
    grid: str | None = None
    world: Count | None
    time: float


class CheckpointRecord(msgspec.Struct, frozen=True):
    """A checkpoint that was saved.

    Attributes:
        step: the number of steps done.
        path: of the weights, relative to the log's folder.
        lr: the learning rate.
    """

    step: Count
    path: str
    lr: float


class EventBatch(NamedTuple):
    """The events of one training step: which picture was noised to which timestep.

    Attributes:
        time: seconds since 1970.
        step: the number of steps done before this one.
        noise_seed: seed of `gradindex.noise`, or `UNKNOWN`.
        pictures: numbers of the pictures in the file, [B] uint32.
        timesteps: [B] float32.
    """

    time: float
    step: int
    noise_seed: int
    pictures: np.ndarray
    timesteps: np.ndarray


def records(file: Path) -> Iterator[Record]:
    """Yield the whole records of a file, in their order.

    A last record that a crash tore is left out, with a warning that says how many bytes it has.

    Raises:
        DataError: damage before the last record.
    """
    data = file.read_bytes()
    position = 0
    while position < len(data):
        record = _record_at(data, position)
        if record is None:
            if not _is_torn(data, position):
                raise DataError(
                    f"{file}: damaged at byte {position}; cut it off there, or take a copy of it"
                )
            warnings.warn(
                f"{file}: the last record was torn by a crash and is left out"
                f" ({len(data) - position} bytes)",
                stacklevel=2,
            )
            return
        position = record.end
        yield record


def pack_record(kind: bytes, content: bytes) -> bytes:
    """Return the bytes of a record: head, CRC-32 of the head, content.

    >>> data = pack_record(IDS, b'["a.png"]')
    >>> len(data)
    25
    >>> _record_at(data, 0)
    Record(kind=b'pics', content=b'["a.png"]', end=25)
    """
    head = HEAD.pack(kind, len(content), zlib.crc32(content))
    return head + HEAD_CHECK.pack(zlib.crc32(head)) + content


def pack_json(record: msgspec.Struct) -> bytes:
    """Return a session or checkpoint as the content of a record."""
    return json.dumps(msgspec.to_builtins(record)).encode()


def unpack_json(file: Path, content: bytes, kind: type[JsonRecord]) -> JsonRecord:
    """Return the session or checkpoint that the content of a record stands for.

    Raises:
        DataError: it is no JSON, or a field is absent or of another type.

    >>> content = pack_json(CheckpointRecord(step=1, path="../checkpoint-1", lr=0.1))
    >>> unpack_json(Path("log"), content, CheckpointRecord)
    CheckpointRecord(step=1, path='../checkpoint-1', lr=0.1)
    """
    try:
        return msgspec.convert(unpack_object(file, content), kind)
    except ValueError as error:  # msgspec's, or of a text that is no UTF-8
        raise _unreadable(file, error) from error


def unpack_object(file: Path, content: bytes) -> dict[str, Any]:
    """Return the JSON object in the content of a session, of any format, or of a checkpoint.

    Raises:
        DataError: it is none.
    """
    # Not msgspec.json.decode, which refuses NaN: a learning rate may be one.
    try:
        return msgspec.convert(json.loads(content), dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise _unreadable(file, error) from error


def unpack_ids(file: Path, content: bytes) -> list[str]:
    """Return the ids in the content of a record.

    Raises:
        DataError: it is no list of texts.

    >>> unpack_ids(Path("log"), b'["a.png"]')
    ['a.png']
    """
    try:
        return msgspec.convert(json.loads(content), list[str])
    except (ValueError, RecursionError) as error:
        raise _unreadable(file, error) from error


def pack_events(batch: EventBatch) -> bytes:
    """Return the events of one step as the content of a record."""
    head = BATCH.pack(batch.time, batch.step, batch.noise_seed, len(batch.pictures))
    pictures = np.asarray(batch.pictures, "<u4")
    timesteps = np.asarray(batch.timesteps, "<f4")
    return head + pictures.tobytes() + timesteps.tobytes()


def unpack_events(file: Path, content: bytes) -> EventBatch:
    """Return the events of one step that the content of a record stands for.

    Raises:
        DataError: it is longer or shorter than its number of events, or its step is negative.

    >>> batch = EventBatch(0.0, 7, UNKNOWN, np.array([0, 2]), np.array([500, 20]))
    >>> unpack_events(Path("log"), pack_events(batch)).timesteps
    array([500.,  20.], dtype=float32)
    """
    size = len(content) - BATCH.size
    time, step, noise_seed, count = BATCH.unpack_from(content) if size >= 0 else (0.0, -1, -1, 0)
    if size != EVENT_BYTES * count or step < 0:
        raise _unreadable(file, ValueError("its size or its step cannot be"))
    pictures = np.frombuffer(content, "<u4", count, BATCH.size)
    timesteps = np.frombuffer(content, "<f4", count, BATCH.size + pictures.nbytes)
    return EventBatch(time, step, noise_seed, pictures, timesteps)


def _unreadable(file: Path, error: Exception) -> DataError:
    """The error of a record that is whole by its checksums and still none of a log."""
    return DataError(f"{file}: a record that cannot be read ({first_line(error)})")


def _record_at(data: bytes, start: int) -> Record | None:
    """Return the record that starts at a byte, or None where there is no whole one."""
    body = start + HEAD.size + HEAD_CHECK.size
    if body > len(data) or not _is_head_sound(data, start):
        return None
    kind, size, checksum = HEAD.unpack_from(data, start)
    content = data[body : body + size]
    if len(content) < size or zlib.crc32(content) != checksum:
        return None
    return Record(kind, content, body + size)


def _is_torn(data: bytes, start: int) -> bool:
    """Whether the bytes from `start` on, which are no whole record, can be what a crash left.

    A crash tears the last record only: what its head announces reaches the end of the file. A power
    failure can leave zeros in place of what was written last.
    """
    body = start + HEAD.size + HEAD_CHECK.size
    if body > len(data) or not any(data[start:]):
        return True
    _, size, _ = HEAD.unpack_from(data, start)
    return _is_head_sound(data, start) and body + size >= len(data)


def _is_head_sound(data: bytes, start: int) -> bool:
    """Whether a head at a byte is what its own checksum says."""
    head = data[start : start + HEAD.size]
    (checksum,) = HEAD_CHECK.unpack_from(data, start + HEAD.size)
    return checksum == zlib.crc32(head)

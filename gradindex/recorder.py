"""What a training run draws, recorded as it goes: `TrainingRecorder`, and the files that it writes.

Each rank appends to a file of its own in the log's folder. A file is a row of records, each with checksums; a crash
can tear only the last one, which the next recorder cuts off. docs/format.md specifies them.
"""

import fcntl
import json
import operator
import os
import struct
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from gradindex.errors import CallError, DataError, StoreError
from gradindex.gradients.noise import noise, random_timestep
from gradindex.recipe import NOISE_VERSION, require_positive

FORMAT = 1
SESSION, IDS, EVENTS, CHECKPOINT = b"sess", b"pics", b"draw", b"ckpt"
UNKNOWN = -1  # noise seed of events whose noise nobody can make again
_HEAD = struct.Struct("<4sII")  # kind, bytes and CRC-32 of the content
_CHECK = struct.Struct("<I")  # CRC-32 of the head
_BATCH = struct.Struct("<dqqI")  # time, step, noise seed, number of events


class TrainingRecorder:
    """Draws a training run's timesteps and noise, and logs them; two lines in any training loop.

    The timestep of a picture at a step depends on (seed, id, step) alone, and its noise is
    `gradindex.noise(seed, id, timestep, step, shape)`: both can be made again, so no noise is stored. Steps count from
    0, and a checkpoint's step is the number of steps done. When a run is resumed from a checkpoint, what an earlier
    session logged from the resumed step on no longer counts.

    Args:
        path: the log's folder; each rank of a data-parallel run appends to a file of its own.
        seed: of timesteps and noise. num_train_timesteps: of the noise scheduler.
        rank: of this process; by default torch.distributed's, or the environment's RANK, or 0.

    Raises:
        CallError: another recorder writes to the same file, or the log there has another seed.

    Example:
        >>> recorder = gradindex.TrainingRecorder("run/log", seed=0)
        >>> t, noise = recorder.draw(batch["id"], images.shape, step, device)
        >>> recorder.checkpoint(step + 1, "run/checkpoint-500", lr)
    """

    def __init__(
        self, path: str | Path, *, seed: int = 0, num_train_timesteps: int = 1000, rank: int | None = None
    ) -> None:
        require_positive(num_train_timesteps=num_train_timesteps)
        self.path, self.seed = Path(path), _seed(seed)
        self.num_train_timesteps = num_train_timesteps
        self.rank, self.world = _rank_and_world() if rank is None else (rank, None)
        self._numbers: dict[str, int] = {}
        self._step, self._file = -1, -1
        self._before = self._open(self.path / f"rank-{self.rank:05d}.log")

    def draw(
        self, sample_ids: Sequence[Any], shape: Sequence[int], step: int, device: Any = "cpu"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Timesteps and noise of one batch, logged.

        Args:
            sample_ids: B ids, those of the data set that will be indexed: relative paths, an id column, or row numbers.
            shape: of the batch [B, channels, height, width], or of one picture [channels, height, width].
            step: the number of steps done before this one.

        Returns:
            Timesteps [B] int64, uniform below `num_train_timesteps`, and Gaussian noise
            [B, channels, height, width] float32, on `device`.

        Raises:
            CallError: steps go backwards, or the shape does not fit. StoreError: the disk does not take the log.
        """
        ids, step = _strings(sample_ids), _whole(step)
        one = tuple(shape)[-3:]
        if len(one) != 3 or tuple(shape) not in (one, (len(ids), *one)):
            raise CallError(f"shape = {tuple(shape)}: give {len(ids)}, channels, height, width of the batch")
        if not ids:
            raise CallError("sample_ids: give at least one")
        self._require_step(step)
        timesteps = [random_timestep(self.seed, name, step, below=self.num_train_timesteps) for name in ids]
        epsilon = np.stack([noise(self.seed, name, t, step, one) for name, t in zip(ids, timesteps, strict=True)])
        self._log(ids, np.array(timesteps, "<f4"), step, self.seed)
        return torch.tensor(timesteps, device=device), torch.from_numpy(epsilon).to(device)

    def log(self, sample_ids: Sequence[Any], timesteps: Any, step: int, noise_seed: int | None = None) -> None:
        """Log timesteps that another sampler drew.

        Args:
            sample_ids: B ids. timesteps: B numbers. step: as for `draw`.
            noise_seed: when the noise is `gradindex.noise(noise_seed, id, timestep, step, shape)`, so that it can be
                made again; None for noise that cannot.
        """
        ids, drawn, step = _strings(sample_ids), np.array(_plain(timesteps), "<f4"), _whole(step)
        if drawn.shape != (len(ids),):
            raise CallError(f"timesteps of shape {drawn.shape}: give one for each of {len(ids)} ids")
        outside = drawn[~((drawn >= 0) & (drawn < self.num_train_timesteps))]
        if outside.size:
            raise CallError(f"timestep {outside[0]:g}: the recorder was made for 0 to {self.num_train_timesteps - 1}")
        if not ids:
            return
        self._require_step(step)
        self._log(ids, drawn, step, UNKNOWN if noise_seed is None else _seed(noise_seed))

    def checkpoint(self, step: int, path: str | Path, lr: float) -> None:
        """Note that the weights after `step` steps were saved, and the learning rate.

        What this process logged so far is then safe from a power failure; with several, call it on every rank.

        Args:
            step: the number of steps done, above every step drawn so far.
        """
        step = _whole(step)
        if step <= max(self._step, 0):
            raise CallError(
                f"checkpoint step {step}: step {max(self._step, 0)} was drawn already, or nothing was trained;"
                " give the number of steps done, one more than the last"
            )
        if not isinstance(lr, float | int):
            raise CallError(f"lr = {lr!r}: give one number")
        place = os.path.relpath(Path(path).resolve(), self.path.resolve())
        self._append(CHECKPOINT, _json({"step": step, "path": place, "lr": float(lr)}))
        os.fsync(self._file)

    def close(self) -> None:
        """Make the log durable and let go of its file; `with` does it too."""
        if self._file >= 0:
            os.fsync(self._file)
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self, place: Path) -> int:
        """Open the file, lock it and cut it after its last whole record; the last step in it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._file = os.open(place, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            before, end = self._read(place)
            os.ftruncate(self._file, end)
            self._append(SESSION, _json({**self._facts(), "world": self.world, "time": time.time()}))
        except BaseException as error:
            self._let_go()
            if isinstance(error, BlockingIOError):
                raise CallError(
                    f"{place}: another recorder writes there; give this one its own folder or rank"
                ) from None
            if isinstance(error, OSError):
                raise StoreError(f"{place}: {error.strerror or error}") from error
            raise
        return before

    def _read(self, place: Path) -> tuple[int, int]:
        """The last step in the file, and the end of its last whole record."""
        before, end = -1, 0
        for kind, content, end in records(place):  # noqa: B007
            if kind == IDS:
                self._number(json.loads(content))
            elif kind == EVENTS:
                before = max(before, _BATCH.unpack_from(content)[1])
            elif kind == SESSION and (odd := self._differences(json.loads(content))):
                raise CallError(f"{place}: made with other settings ({odd}); give this run another folder")
        return before, end

    def _let_go(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _facts(self) -> dict[str, int]:
        return {
            "format": FORMAT,
            "noise_version": NOISE_VERSION,
            "seed": self.seed,
            "num_train_timesteps": self.num_train_timesteps,
        }

    def _differences(self, earlier: dict[str, Any]) -> str:
        return "; ".join(
            f"{name}: {earlier.get(name)}, now {value}"
            for name, value in self._facts().items()
            if earlier.get(name) != value
        )

    def _require_step(self, step: int) -> None:
        if step < max(self._step, 0):
            raise CallError(f"step {step} after step {self._step}: steps go forwards")
        if self._step < 0 and step <= self._before:
            warnings.warn(
                f"{self.path}: steps {step} to {self._before} were logged before and are drawn again (a resumed run?);"
                " the earlier ones no longer count",
                stacklevel=3,
            )

    def _log(self, ids: Sequence[str], timesteps: np.ndarray, step: int, noise_seed: int) -> None:
        if new := [name for name in dict.fromkeys(ids) if name not in self._numbers]:
            self._append(IDS, _json(new))
            self._number(new)
        numbers = np.array([self._numbers[name] for name in ids], "<u4")
        head = _BATCH.pack(time.time(), step, noise_seed, len(ids))
        self._append(EVENTS, head + numbers.tobytes() + timesteps.tobytes())
        self._step = step

    def _number(self, names: Sequence[str]) -> None:
        for name in names:
            self._numbers.setdefault(name, len(self._numbers))

    def _append(self, kind: bytes, content: bytes) -> None:
        if self._file < 0:
            raise CallError(f"{self.path}: this recorder is closed")
        head = _HEAD.pack(kind, len(content), zlib.crc32(content))
        record = head + _CHECK.pack(zlib.crc32(head)) + content
        start = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, record)
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}; the log so far stays readable") from error
        if written < len(record):
            os.ftruncate(self._file, start)
            raise StoreError(f"{self.path}: the disk is full; the log so far stays readable")


def records(file: Path) -> Iterator[tuple[bytes, bytes, int]]:
    """The whole records of a log's file: kind, content, position of the end. A torn last one is reported and left out.

    Raises:
        DataError: damage before the last record.
    """
    data, position = file.read_bytes(), 0
    while position < len(data):
        body = position + _HEAD.size + _CHECK.size
        head = data[position : position + _HEAD.size]
        if body <= len(data):
            kind, size, checksum = _HEAD.unpack(head)
            sound = _CHECK.unpack_from(data, position + _HEAD.size)[0] == zlib.crc32(head)
            content = data[body : body + size]
            if sound and zlib.crc32(content) == checksum and len(content) == size:
                position = body + size
                yield kind, content, position
                continue
            if any(data[position:]) and (not sound or body + size < len(data)):  # zeros: a power failure's tail
                raise DataError(f"{file}: damaged at byte {position}; cut it off there, or take a copy of it")
        warnings.warn(
            f"{file}: the last record was torn by a crash and is left out ({len(data) - position} bytes)", stacklevel=2
        )
        return


def unpack_events(content: bytes) -> tuple[float, int, int, np.ndarray, np.ndarray]:
    """An events record: time, step, noise seed, numbers of the pictures, timesteps."""
    moment, step, seed, count = _BATCH.unpack_from(content)
    numbers = np.frombuffer(content, "<u4", count, _BATCH.size)
    return moment, step, seed, numbers, np.frombuffer(content, "<f4", count, _BATCH.size + 4 * count)


def _rank_and_world() -> tuple[int, int | None]:
    """This process's rank, and the number of ranks where that is known."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None:
        return 0, 1
    return int(rank), None if world is None else int(world)


def _whole(step: Any) -> int:
    try:
        return operator.index(step)
    except TypeError as error:
        raise CallError(f"step = {step!r}: give a whole number") from error


def _seed(seed: int) -> int:
    if not 0 <= seed < 2**63:
        raise CallError(f"seed {seed}: give 0 to 2⁶³ − 1")
    return int(seed)


def _plain(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values


def _strings(sample_ids: Sequence[Any]) -> list[str]:
    if isinstance(sample_ids, str):
        raise CallError(f"sample_ids = {sample_ids!r}: give a sequence of ids, not text")
    plain = [_plain(name) for name in _plain(sample_ids)]
    if odd := [name for name in plain if not isinstance(name, str | int | os.PathLike)]:
        raise CallError(f"sample_ids: {odd[0]!r} is not an id; give text, paths or whole numbers")
    return [os.fspath(name) if isinstance(name, os.PathLike) else str(name) for name in plain]


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()

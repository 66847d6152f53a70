"""Draw the timesteps and noise of a training run, and log them as it goes.

Each rank appends to a file of its own in the log's folder. A file is a row of records, each with
checksums; a crash can tear only the last one, which the next recorder cuts off. docs/format.md
specifies them, `log_file.py` holds their format.
"""

import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from gradindex.data.log_file import (
    CHECKPOINT,
    EVENTS,
    FORMAT,
    IDS,
    SESSION,
    UNKNOWN,
    CheckpointRecord,
    EventBatch,
    SessionRecord,
    pack_events,
    pack_json,
    records,
    unpack_events,
    unpack_ids,
    unpack_object,
)
from gradindex.data.log_values import (
    checked_ids,
    checked_seed,
    checked_timesteps,
    flow_grid,
    relative_path,
    whole_number,
)
from gradindex.data.log_writer import LogWriter, open_writer
from gradindex.errors import CallError, StoreError
from gradindex.random_numbers import noise, random_timestep
from gradindex.recipe import NOISE_VERSION, require_positive


class TrainingRecorder:
    """Draws a training run's timesteps and noise, and logs them; two lines in any training loop.

    The timestep of a picture at a step depends on (seed, id, step) alone, and its noise is
    `gradindex.noise(seed, id, timestep, step, shape)`: both can be made again, so no noise is
    stored. Steps count from 0, and a checkpoint's step is the number of steps done. When a run is
    resumed from a checkpoint, what an earlier session logged from the resumed step on no longer
    counts. Where the same process makes a recorder again, as a notebook does whose cell runs twice,
    the one before is closed.

    Args:
        path: the log's folder; each rank of a data-parallel run appends to a file of its own.
        seed: of timesteps and noise.
        num_train_timesteps: of the noise scheduler.
        timesteps: of a flow matching scheduler, `scheduler.timesteps` before any `set_timesteps`;
            None for a scheduler with the whole timesteps 0 … `num_train_timesteps` − 1.
        rank: of this process; by default torch.distributed's, or the environment's RANK, or 0.

    Raises:
        CallError: another process writes to the same file, or the log there has another seed.
        DataError: the log there is damaged.
        StoreError: the disk does not take the log, or NumPy draws other noise, see
            `gradindex.noise`.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as run, TrainingRecorder(f"{run}/log", seed=0) as recorder:
        ...     t, noise = recorder.draw(["a.png", "b.png"], (2, 3, 8, 8), step=0)
        ...     recorder.checkpoint(1, f"{run}/checkpoint-1", lr=1e-4)
        >>> t.shape, noise.shape
        (torch.Size([2]), torch.Size([2, 3, 8, 8]))
    """

    def __init__(
        self,
        path: str | Path,
        *,
        seed: int = 0,
        num_train_timesteps: int = 1000,
        timesteps: Any = None,
        rank: int | None = None,
    ) -> None:
        require_positive(num_train_timesteps=num_train_timesteps)
        self.path = Path(path)
        self.seed = checked_seed(seed)
        self.num_train_timesteps = num_train_timesteps
        self._grid = None if timesteps is None else flow_grid(timesteps, num_train_timesteps)
        self.rank: int
        self.world: int | None
        self.rank, self.world = _rank_and_world() if rank is None else (rank, None)
        self._numbers: dict[str, int] = {}  # of the ids that the file has named
        self._last_step = -1  # of this session; −1: none yet
        file = self.path / f"rank-{self.rank:05d}.log"
        self._close_earlier(file)
        self._writer, self._earlier_step = self._open(file)

    def draw(
        self, sample_ids: Sequence[Any], shape: Sequence[int], step: int, device: Any = "cpu"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the timesteps and the noise of one batch, and log them.

        Args:
            sample_ids: B ids, those of the data set that will be indexed: relative paths, an id
                column, or row numbers.
            shape: of the batch [B, channels, height, width], or of one picture [channels, height,
                width].
            step: the number of steps done before this one.

        Returns:
            Timesteps [B], and Gaussian noise [B, channels, height, width] float32, on `device`.
            Timesteps are int64, uniform below `num_train_timesteps`; of flow matching float32,
            uniform among those of the scheduler.

        Raises:
            CallError: steps go backwards, or the shape does not fit.
            StoreError: the disk does not take the log.
        """
        ids = checked_ids(sample_ids)
        step = whole_number(step)
        picture_shape = tuple(shape)[-3:]
        batch_shape = (len(ids), *picture_shape)
        if len(picture_shape) != 3 or tuple(shape) not in (picture_shape, batch_shape):
            raise CallError(
                f"shape = {tuple(shape)}: give {len(ids)}, channels, height, width of the batch"
            )
        if not ids:
            raise CallError("sample_ids: give at least one")
        self._require_step(step)
        below = self.num_train_timesteps
        drawn = [random_timestep(self.seed, name, step, below=below) for name in ids]
        timesteps = np.array(drawn, np.int64)
        if self._grid is not None:
            timesteps = self._grid[timesteps]
        pairs = zip(ids, timesteps.tolist(), strict=True)
        epsilon = np.stack([noise(self.seed, name, t, step, picture_shape) for name, t in pairs])
        self._log(ids, timesteps.astype("<f4"), step, self.seed)
        return torch.from_numpy(timesteps).to(device), torch.from_numpy(epsilon).to(device)

    def log(
        self, sample_ids: Sequence[Any], timesteps: Any, step: int, noise_seed: int | None = None
    ) -> None:
        """Log timesteps that another sampler drew.

        Args:
            sample_ids: B ids, as for `draw`.
            timesteps: B whole numbers, 0 to `num_train_timesteps` − 1; of flow matching any
                numbers above 0, up to `num_train_timesteps`.
            step: the number of steps done before this one.
            noise_seed: when the noise is `gradindex.noise(noise_seed, id, timestep, step, shape)`,
                so that it can be made again; None for noise that cannot.

        Raises:
            CallError: steps go backwards, or a timestep or an id is none.
            StoreError: the disk does not take the log.
        """
        ids = checked_ids(sample_ids)
        is_flow = self._grid is not None
        drawn = checked_timesteps(timesteps, self.num_train_timesteps, is_flow=is_flow)
        step = whole_number(step)
        if drawn.shape != (len(ids),):
            raise CallError(
                f"timesteps of shape {drawn.shape}: give one for each of {len(ids)} ids"
            )
        if not ids:
            return
        self._require_step(step)
        self._log(ids, drawn, step, UNKNOWN if noise_seed is None else checked_seed(noise_seed))

    def checkpoint(self, step: int, path: str | Path, lr: float) -> None:
        """Note that the weights after `step` steps were saved, and the learning rate.

        What this process logged so far is then safe from a power failure; with several, call it on
        every rank.

        Args:
            step: the number of steps done, above every step drawn so far.
            path: of the checkpoint.
            lr: the learning rate.

        Raises:
            CallError: the step was drawn already, or `lr` is no number.
            StoreError: the disk does not take the log.
        """
        step = whole_number(step)
        last_step = max(self._last_step, 0)
        if step <= last_step:
            raise CallError(
                f"checkpoint step {step}: step {last_step} was drawn already,"
                " or nothing was trained; give the number of steps done, one more than the last"
            )
        if not isinstance(lr, float | int):
            raise CallError(f"lr = {lr!r}: give one number")
        saved = relative_path(Path(path).resolve(), self.path.resolve())
        record = CheckpointRecord(step, saved, float(lr))
        self._writer.append(CHECKPOINT, pack_json(record))
        self._writer.sync()

    def close(self) -> None:
        """Make the log durable and let go of its file; `with` does it too."""
        if not self._writer.closed:
            self._writer.sync()
            self._writer.close()

    def __enter__(self) -> Self:
        """Return the recorder itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the recorder."""
        self.close()

    def _close_earlier(self, file: Path) -> None:
        """Close the recorder of this process that writes to the same file, and say so.

        Raises:
            CallError: it has other settings, with which the file cannot go on.
        """
        earlier = open_writer(file)
        if earlier is None:
            return
        if file.exists():
            self._require_settings(file, earlier.settings)
        earlier.sync()
        earlier.close()
        warnings.warn(
            f"{file}: a recorder that this process made before is closed; this one goes on there",
            stacklevel=3,
        )

    def _open(self, file: Path) -> tuple[LogWriter, int]:
        """Lock the file, cut it after its last whole record, and begin a session in it.

        Returns:
            What appends to the file, and the last step that earlier sessions logged; −1 for none.
        """
        try:
            writer = LogWriter(file, self._settings())
            try:
                earlier_step, end = self._read(file)
                writer.truncate(end)
                session = SessionRecord(**self._settings(), world=self.world, time=time.time())
                writer.append(SESSION, pack_json(session))
            except BaseException:
                writer.close()
                raise
        except BlockingIOError:
            raise CallError(
                f"{file}: another recorder writes there, in another process; end that process, or"
                " give this one its own folder or rank"
            ) from None
        except OSError as error:
            raise StoreError(f"{file}: {error.strerror or error}") from error
        return writer, earlier_step

    def _read(self, file: Path) -> tuple[int, int]:
        """Learn the ids that the file has named, and check the settings of its sessions.

        Returns:
            The last step in the file, −1 for none, and the end of its last whole record in bytes.

        Raises:
            CallError: an earlier session had other settings. DataError: the file is damaged.
        """
        last_step = -1
        end = 0
        for record in records(file):
            end = record.end
            if record.kind == IDS:
                self._number(unpack_ids(file, record.content))
            elif record.kind == EVENTS:
                last_step = max(last_step, unpack_events(file, record.content).step)
            elif record.kind == SESSION:
                self._require_settings(file, unpack_object(file, record.content))
        return last_step, end

    def _settings(self) -> dict[str, Any]:
        """Return the fields of a session that are the same in all sessions of a log."""
        return {
            "format": FORMAT,
            "noise_version": NOISE_VERSION,
            "seed": self.seed,
            "num_train_timesteps": self.num_train_timesteps,
            "grid": None if self._grid is None else sha256(self._grid.tobytes()).hexdigest(),
        }

    def _require_settings(self, file: Path, earlier: Mapping[str, Any]) -> None:
        """Raise CallError when an earlier session of the file, of any format, had others."""
        differences = []
        for name, value in self._settings().items():
            before = earlier.get(name)
            if before != value:
                differences.append(f"{name}: {json.dumps(before)[:40]}, now {value}")
        if differences:
            raise CallError(
                f"{file}: made with other settings ({'; '.join(differences)});"
                " give this run another folder"
            )

    def _require_step(self, step: int) -> None:
        """Raise CallError when steps go backwards; warn when a resumed run draws steps again."""
        if step < max(self._last_step, 0):
            raise CallError(f"step {step} after step {self._last_step}: steps go forwards")
        if self._last_step < 0 and step <= self._earlier_step:
            warnings.warn(
                f"{self.path}: steps {step} to {self._earlier_step} were logged before"
                " and are drawn again (a resumed run?); the earlier ones no longer count",
                stacklevel=3,
            )

    def _log(self, ids: Sequence[str], timesteps: np.ndarray, step: int, noise_seed: int) -> None:
        """Append the events of one step, and before them the ids that are new to the file.

        Args:
            timesteps: [B] float32, one for each id.
        """
        new_ids = [name for name in dict.fromkeys(ids) if name not in self._numbers]
        if new_ids:
            self._writer.append(IDS, json.dumps(new_ids).encode())
            self._number(new_ids)
        pictures = np.array([self._numbers[name] for name in ids], "<u4")
        batch = EventBatch(time.time(), step, noise_seed, pictures, timesteps)
        self._writer.append(EVENTS, pack_events(batch))
        self._last_step = step

    def _number(self, ids: Sequence[str]) -> None:
        """Give each id the next number, as readers of the file do."""
        for name in ids:
            self._numbers.setdefault(name, len(self._numbers))


def _rank_and_world() -> tuple[int, int | None]:
    """Return this process's rank, and the number of ranks where that is known."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    rank = os.environ.get("RANK")
    world = os.environ.get("WORLD_SIZE")
    if rank is None:
        return 0, 1
    return int(rank), None if world is None else int(world)

"""Read the folder that `TrainingRecorder` writes: a file for each rank, in it one session or more.

A run that is resumed draws some steps again, in a new session. What the earlier sessions had drawn
from there on is left out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gradindex.data.log_events import (
    LOGGED_EVENT,
    LoggedCheckpoint,
    LoggedRun,
    in_order_of_steps,
)
from gradindex.data.log_file import (
    CHECKPOINT,
    EVENTS,
    FORMAT,
    IDS,
    SESSION,
    CheckpointRecord,
    EventBatch,
    FormatRecord,
    SessionRecord,
    records,
    unpack_events,
    unpack_json,
)
from gradindex.errors import CallError, DataError
from gradindex.recipe import NOISE_VERSION


@dataclass
class _Session:
    """What one recorder wrote between its opening and its end.

    Attributes:
        rank: of the process, as the file's name spells it.
        number: of the session in its file, from 0.
        record: what the recorder noted when it opened the file.
        end: when its last events were logged, in seconds since 1970; 0 where it logged none.
        first_step: of its first events; None where it logged none.
        events: of each of its steps, LOGGED_EVENT [B].
        checkpoints: that it saved.
    """

    rank: str
    number: int
    record: SessionRecord
    end: float = 0.0
    first_step: int | None = None
    events: list[np.ndarray] = field(default_factory=list)
    checkpoints: list[LoggedCheckpoint] = field(default_factory=list)

    def add(self, batch: EventBatch) -> None:
        """Add the events of one step; their pictures have the numbers of the file for now."""
        events = np.zeros(len(batch.pictures), LOGGED_EVENT)
        events["sample"] = batch.pictures
        events["step"] = batch.step
        events["timestep"] = batch.timesteps
        events["noise_seed"] = batch.noise_seed
        events["draw"] = batch.step
        self.events.append(events)
        self.end = batch.time
        if self.first_step is None:
            self.first_step = batch.step

    def replaces(self, other: "_Session") -> bool:
        """Whether what the other session drew from this one's first step on no longer counts.

        This one is later in the same file. Or it began after the other's end, in a run of so few
        ranks that the other's rank is not among them.
        """
        if self.rank == other.rank:
            return self.number > other.number
        world = self.record.world
        return self.record.time > other.end and world is not None and int(other.rank) >= world


def read_folder(folder: Path) -> LoggedRun:
    """Return what the files of a recorder's folder hold, without what a resumed run drew again.

    Raises:
        CallError: there is no file, or no session in them.
        DataError: a file is damaged, of another format, or of another noise.
    """
    files = sorted(folder.glob("rank-*.log"))
    if not files:
        raise CallError(f"log {folder}: no training log (it has no rank-*.log)")
    number_of: dict[str, int] = {}  # the number of each id in all files together
    sessions: list[_Session] = []
    for file in files:
        sessions += _read_file(file, number_of)
    if not sessions:
        raise CallError(f"log {folder}: holds no event")

    events = [np.empty(0, LOGGED_EVENT)]
    checkpoints: dict[str, LoggedCheckpoint] = {}  # by path: the last one of a path counts
    for session in sessions:
        stop = _stop_step(session, sessions)
        for batch in session.events:
            if stop is None or batch["step"][0] < stop:
                events.append(batch)
        for checkpoint in session.checkpoints:
            if stop is None or checkpoint.step <= stop:
                checkpoints[checkpoint.path] = checkpoint
    return LoggedRun(
        list(number_of),
        in_order_of_steps(np.concatenate(events)),
        sorted(checkpoints.values(), key=lambda checkpoint: checkpoint.step),
        sessions[-1].record.num_train_timesteps,
    )


def _read_file(file: Path, number_of: dict[str, int]) -> list[_Session]:
    """Return the sessions of one rank's file.

    Args:
        number_of: the number of each id in all files together; new ids are added.
    """
    rank = file.stem.partition("-")[2]
    sessions: list[_Session] = []
    numbers: list[int] = []  # the number in all files together, for each of this file's numbers
    for record in records(file):
        if record.kind == SESSION:
            sessions.append(_Session(rank, len(sessions), _read_session(file, record.content)))
        elif record.kind == IDS:
            new_ids = json.loads(record.content)
            numbers += [number_of.setdefault(name, len(number_of)) for name in new_ids]
        elif record.kind == EVENTS:
            sessions[-1].add(unpack_events(record.content))
        elif record.kind == CHECKPOINT:
            sessions[-1].checkpoints.append(_read_checkpoint(file, record.content))

    # Ids are named throughout the file, so their numbers are translated once all of it was read.
    translation = np.array(numbers, np.int64)
    for session in sessions:
        for events in session.events:
            events["sample"] = translation[events["sample"]]
    return sessions


def _read_session(file: Path, content: bytes) -> SessionRecord:
    """Return the record of a session.

    Raises:
        DataError: it is of another format, or of a noise that this version does not make.
    """
    # First the format alone: the fields of another one may be others.
    file_format = unpack_json(file, content, FormatRecord).format
    if file_format != FORMAT:
        raise DataError(f"{file}: format {file_format}, this gradindex reads {FORMAT}: update it")
    session = unpack_json(file, content, SessionRecord)
    version = 1 if session.noise_version is None else session.noise_version
    if version != NOISE_VERSION:
        raise DataError(
            f"{file}: recorded with noise of version {version},"
            f" and this gradindex makes {NOISE_VERSION}: install the version that recorded it"
        )
    return session


def _read_checkpoint(file: Path, content: bytes) -> LoggedCheckpoint:
    """Return a checkpoint with its absolute path; the file's is relative to the log's folder."""
    checkpoint = unpack_json(file, content, CheckpointRecord)
    path = (file.parent.resolve() / checkpoint.path).resolve()
    return LoggedCheckpoint(checkpoint.step, str(path), checkpoint.lr)


def _stop_step(session: _Session, sessions: Sequence[_Session]) -> int | None:
    """Return the step from which on a session no longer counts; None where all of it counts."""
    first_steps = [
        other.first_step
        for other in sessions
        if other.first_step is not None and other.replaces(session)
    ]
    return min(first_steps, default=None)

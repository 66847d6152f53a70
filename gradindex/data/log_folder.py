"""Read the folder that `TrainingRecorder` writes: a file for each rank, in it one session or more.

A run that is resumed draws some steps again, in a new session. What the earlier sessions had drawn
from there on is left out.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
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
    unpack_ids,
    unpack_json,
)
from gradindex.errors import CallError, DataError, first_line
from gradindex.recipe import NOISE_VERSION

RANK = re.compile(r"rank-(\d+)")  # stem of a file's name


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
        if not len(batch.pictures):
            return
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
    for session, stop in zip(sessions, _stop_steps(sessions), strict=True):
        for batch in session.events:
            if batch["step"][0] < stop:
                events.append(batch)
        for checkpoint in session.checkpoints:
            if checkpoint.step <= stop:
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
    rank = RANK.fullmatch(file.stem)
    if not rank:
        raise DataError(
            f"{file}: a name that no recorder gives, which is rank-RRRRR.log; rename it"
        )
    sessions: list[_Session] = []
    numbers: list[int] = []  # the number in all files together, for each of this file's numbers
    for record in records(file):
        if record.kind == SESSION:
            sessions.append(_Session(rank[1], len(sessions), _read_session(file, record.content)))
        elif record.kind == IDS:
            new_ids = unpack_ids(file, record.content)
            numbers += [number_of.setdefault(name, len(number_of)) for name in new_ids]
        elif record.kind in (EVENTS, CHECKPOINT) and not sessions:
            raise DataError(f"{file}: begins with a record of no session; take a copy of it")
        elif record.kind == EVENTS:
            sessions[-1].add(unpack_events(file, record.content))
        elif record.kind == CHECKPOINT:
            sessions[-1].checkpoints.append(_read_checkpoint(file, record.content))

    # Ids are named throughout the file, so their numbers are translated once all of it was read.
    translation = np.array(numbers, np.int64)
    for session in sessions:
        for events in session.events:
            if events["sample"].max() >= len(numbers):
                raise DataError(f"{file}: events of pictures that it does not name")
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
    try:
        path = (file.parent.resolve() / checkpoint.path).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a NUL byte, too long, links in a circle
        raise DataError(
            f"{file}: a checkpoint at no path ({first_line(error)}); take a copy of the log"
        ) from error
    return LoggedCheckpoint(checkpoint.step, str(path), checkpoint.lr)


def _stop_steps(sessions: Sequence[_Session]) -> list[float]:
    """Return for each session the step from which on it no longer counts; infinity for none.

    It is the least first step of those that replace it: later ones in the same file, and those that
    began after its end in a run of so few ranks that its own is not among them.
    """
    stops = [math.inf] * len(sessions)
    least: dict[str, float] = {}  # first step of those after in the same file, by rank
    for number, session in reversed(list(enumerate(sessions))):
        stops[number] = least.get(session.rank, math.inf)
        if session.first_step is not None:
            least[session.rank] = min(stops[number], session.first_step)
    by_rank = {rank: _replacing(rank, sessions) for rank in {s.rank for s in sessions}}
    for number, session in enumerate(sessions):
        times, least_after = by_rank[session.rank]
        place = bisect_right(times, session.end)
        if place < len(times):
            stops[number] = min(stops[number], least_after[place])
    return stops


def _replacing(rank: str, sessions: Sequence[_Session]) -> tuple[list[float], list[int]]:
    """What replaces sessions of a rank because its run has no such rank, in the order of time.

    Returns:
        When each began, and the least first step of it and all that began after it.
    """
    begun = []
    for session in sessions:
        world, time = session.record.world, session.record.time
        is_without = session.rank != rank and world is not None and int(rank) >= world
        if is_without and session.first_step is not None and not math.isnan(time):
            begun.append((time, session.first_step))
    begun.sort()
    first_steps = [step for _, step in begun]
    least_after = list(accumulate(reversed(first_steps), min))[::-1]
    return [time for time, _ in begun], least_after

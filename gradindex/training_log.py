"""What a training run drew, read: a `TrainingRecorder`'s folder, or a table, and each picture's last events in it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gradindex.errors import CallError, DataError, first_line
from gradindex.recipe import NOISE_VERSION, grid
from gradindex.recorder import CHECKPOINT, EVENTS, FORMAT, IDS, SESSION, UNKNOWN, records, unpack_events

MISSING = ("error", "skip", "grid")
EVENT = np.dtype([("timestep", "<f4"), ("noise_seed", "<i8"), ("draw", "<i8")])  # noise(noise_seed, id, timestep, draw)
_ROW = np.dtype([("sample", "<i8"), ("step", "<i8"), *EVENT.descr])
_COLUMNS = ("sample_id", "timestep", "noise_seed", "step", "checkpoint")


class LoggedCheckpoint(NamedTuple):
    """Weights that were saved after `step` steps; the path is absolute, or as a table spells it."""

    step: int
    path: str
    lr: float


@dataclass(frozen=True)
class TrainingLog:
    """The events of a training run, in the order of steps.

    Attributes:
        source: where it was read from. sample_ids: of the pictures, which `events["sample"]` numbers.
        events: one row per (step, picture): sample, step, timestep, noise_seed, draw.
        checkpoints: those that the log knows, by step.
        num_train_timesteps: what the recorder was made for; None for a table.
    """

    source: Path
    sample_ids: list[str]
    events: np.ndarray
    checkpoints: list[LoggedCheckpoint]
    num_train_timesteps: int | None

    def find(self, paths: Sequence[Path]) -> list[LoggedCheckpoint]:
        """The checkpoints at these paths; all that the log knows when none are given.

        Where a table knows only steps, a checkpoint's step is the number at the end of its name, `checkpoint-500`.

        Raises:
            CallError: the log does not know one of them.
        """
        if not paths:
            return self.checkpoints
        known = {Path(each.path).resolve(): each for each in self.checkpoints}
        if not known:
            known = {
                path.resolve(): LoggedCheckpoint(int(number[0]), str(path), 1.0)
                for path in paths
                if (number := re.search(r"\d+$", path.name))
            }
        if odd := [path for path in paths if path.resolve() not in known or not known[path.resolve()].step]:
            names = ", ".join(each.path for each in self.checkpoints) or "none; name them like checkpoint-500"
            raise CallError(f"log {self.source}: knows no training before checkpoint {odd[0]}; it knows {names}")
        return [known[path.resolve()] for path in paths]

    def last_events(self, sample_ids: Sequence[str], step: int, count: int) -> np.ndarray:
        """The last `count` events of each picture before `step`, oldest first: EVENT [N, count].

        A picture that has fewer has NaN as its first timesteps.
        """
        number = {name: row for row, name in enumerate(sample_ids)}
        rows = np.array([number.get(name, -1) for name in self.sample_ids], np.int64)
        before = self.events[self.events["step"] < step]
        owner = rows[before["sample"]]
        before, owner = before[owner >= 0], owner[owner >= 0]
        order = np.argsort(owner, kind="stable")  # steps stay in order
        before, owner = before[order], owner[order]
        from_end = np.searchsorted(owner, owner, side="right") - np.arange(len(owner))  # 1: a picture's last event
        kept = from_end <= count
        found = np.zeros((len(sample_ids), count), EVENT)
        found["timestep"] = np.nan
        for name in EVENT.names or ():
            found[name][owner[kept], count - from_end[kept]] = before[name][kept]
        return found

    def require_pictures(self, sample_ids: Sequence[str], missing: str) -> None:
        """Raise CallError when the log is of other pictures than these; with "skip" it may be of more."""
        unknown = sorted(set(self.sample_ids) - set(sample_ids))
        if len(unknown) == len(self.sample_ids):
            raise CallError(
                f"log {self.source}: of another data set; it has ids like {unknown[0]!r}, the data {sample_ids[0]!r}"
            )
        if unknown and missing != "skip":
            raise CallError(
                f"log {self.source}: {len(unknown)} of its pictures are not in the data, such as {unknown[0]!r};"
                " missing = 'skip' leaves them out"
            )

    def replay(
        self, sample_ids: Sequence[str], steps: Sequence[int], count: int, missing: str, num_train_timesteps: int
    ) -> np.ndarray:
        """The events at which every picture's rows are taken, EVENT [C, N, count]; NaN where a picture is left out.

        Args:
            steps: of the checkpoints. count: how many of the last events.
            missing: what a picture with fewer events gets: "error", "skip" (it is left out), or "grid" (evenly spaced
                timesteps in place of those it lacks, with noise of its own).

        Raises:
            CallError: events are missing, the log is of other pictures, or of another scheduler.
        """
        self.require_pictures(sample_ids, missing)
        timesteps = self.events["timestep"]
        odd = timesteps[~((timesteps >= 0) & (timesteps < num_train_timesteps) & (timesteps % 1 == 0))]
        if odd.size or self.num_train_timesteps not in (None, num_train_timesteps):
            raise CallError(
                f"log {self.source}: of another scheduler: "
                + (f"timestep {odd[0]:g}" if odd.size else f"{self.num_train_timesteps} timesteps")
                + f", the model's has 0 to {num_train_timesteps - 1}"
            )
        table = np.stack([self.last_events(sample_ids, step, count) for step in steps])
        lacking = np.isnan(table["timestep"])
        few = np.flatnonzero(lacking.any((0, 2)))
        if few.size and (missing == "error" or (missing == "skip" and len(few) == len(sample_ids))):
            names = ", ".join(sample_ids[row] for row in few[:10])
            more = f" and {len(few) - 10} more" if len(few) > 10 else ""
            raise CallError(
                f"log {self.source}: {len(few)} pictures have fewer than {count} events before a checkpoint:"
                f" {names}{more}; missing = 'skip' leaves them out, 'grid' gives them evenly spaced timesteps"
            )
        if missing == "grid":
            for c, row in zip(*np.nonzero(lacking.any(2)), strict=True):
                absent = np.flatnonzero(lacking[c, row])
                table[c, row, absent] = [(t, UNKNOWN, 0) for t in grid(len(absent), num_train_timesteps)]
        else:
            table[:, few] = (np.nan, UNKNOWN, 0)
        return table


def training_weights(checkpoints: Sequence[LoggedCheckpoint]) -> list[float]:
    """Of each checkpoint: learning rate × the share of training since the one before it."""
    steps = sorted({0, *(each.step for each in checkpoints)})
    before = dict(zip(steps[1:], steps, strict=False))
    return [each.lr * (each.step - before.get(each.step, 0)) / steps[-1] for each in checkpoints]


def open_log(source: str | Path) -> TrainingLog:
    """Read a recorder's folder, or a CSV or Parquet table.

    A table has columns sample_id, timestep, and step (how many were done before, so from 0; the last before
    checkpoint-500 is 499) or checkpoint (a path, in the order of training), and, where the noise is
    `gradindex.noise(noise_seed, sample_id, timestep, step or 0, shape)`, noise_seed.

    Raises:
        CallError: nothing is there, or a column is missing. DataError: it is damaged.
    """
    source = Path(source)
    if not source.exists():
        raise CallError(f"log {source}: no such file or folder")
    log = _read_folder(source) if source.is_dir() else _read_table(source)
    if not len(log.events):
        raise CallError(f"log {source}: holds no event")
    return log


@dataclass
class _Session:
    """What one recorder wrote between its opening and its end; `world` is the number of ranks, if known."""

    rank: str
    number: int
    world: int | None
    start: float
    end: float = 0.0
    first: int | None = None
    events: list[np.ndarray] = field(default_factory=list)
    checkpoints: list[LoggedCheckpoint] = field(default_factory=list)

    def replaces(self, other: "_Session") -> bool:
        """Whether what the other drew from this one's first step on no longer counts.

        This one is later in the same file, or it began when the other had ended and has too few ranks for the other's.
        """
        if self.rank == other.rank:
            return self.number > other.number
        return self.start > other.end and self.world is not None and int(other.rank) >= self.world


def _read_folder(folder: Path) -> TrainingLog:
    files = sorted(folder.glob("rank-*.log"))
    if not files:
        raise CallError(f"log {folder}: no training log (it has no rank-*.log)")
    numbers: dict[str, int] = {}
    sessions: list[_Session] = []
    facts: dict[str, Any] = {}
    for file in files:
        rank = file.stem.partition("-")[2]
        mine: list[int] = []  # the picture that each of the file's numbers stands for
        before = len(sessions)
        for kind, content, _ in records(file):
            if kind == SESSION:
                facts = json.loads(content)
                if facts["format"] != FORMAT:
                    raise DataError(f"{file}: format {facts['format']}, this gradindex reads {FORMAT}: update it")
                if (version := facts.get("noise_version", 1)) != NOISE_VERSION:
                    raise DataError(
                        f"{file}: recorded with noise of version {version}, and this gradindex makes {NOISE_VERSION}:"
                        " install the version that recorded it"
                    )
                sessions.append(_Session(rank, len(sessions), facts["world"], facts["time"]))
            elif kind == IDS:
                mine += [numbers.setdefault(name, len(numbers)) for name in json.loads(content)]
            elif kind == EVENTS:
                moment, step, seed, pictures, timesteps = unpack_events(content)
                rows = np.zeros(len(pictures), _ROW)
                rows["sample"], rows["step"], rows["timestep"] = pictures, step, timesteps
                rows["noise_seed"], rows["draw"] = seed, step
                session = sessions[-1]
                session.events.append(rows)
                session.end, session.first = moment, step if session.first is None else session.first
            elif kind == CHECKPOINT:
                each = json.loads(content)
                path = (folder.resolve() / each["path"]).resolve()
                sessions[-1].checkpoints.append(LoggedCheckpoint(each["step"], str(path), each["lr"]))
        translate = np.array(mine, np.int64)
        for session in sessions[before:]:
            for rows in session.events:
                rows["sample"] = translate[rows["sample"]]
    if not sessions:
        raise CallError(f"log {folder}: holds no event")
    events, checkpoints = [np.empty(0, _ROW)], {}
    for session in sessions:
        stop = min((o.first for o in sessions if o.first is not None and o.replaces(session)), default=None)
        events += [rows for rows in session.events if stop is None or rows["step"][0] < stop]
        for each in session.checkpoints:
            if stop is None or each.step <= stop:
                checkpoints[each.path] = each
    whole = np.concatenate(events)
    whole = whole[np.argsort(whole["step"], kind="stable")]
    in_order = sorted(checkpoints.values(), key=lambda each: each.step)
    return TrainingLog(folder, list(numbers), whole, in_order, facts["num_train_timesteps"])


def _read_table(file: Path) -> TrainingLog:
    columns = _columns(file)
    if absent := {"sample_id", "timestep"} - columns.keys():
        raise CallError(f"log {file}: no column {', '.join(sorted(absent))}; it has {', '.join(columns)}")
    if ("step" in columns) == ("checkpoint" in columns):
        raise CallError(f"log {file}: give one of the columns step and checkpoint; it has {', '.join(columns)}")
    names = [str(name) for name in columns["sample_id"]]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    rows = np.zeros(len(names), _ROW)
    rows["sample"] = [numbers[name] for name in names]
    checkpoints = []
    if "checkpoint" in columns:
        order = {str(path): number for number, path in enumerate(dict.fromkeys(columns["checkpoint"]))}
        rows["step"] = [order[str(path)] for path in columns["checkpoint"]]
        checkpoints = [LoggedCheckpoint(number + 1, path, 1.0) for path, number in order.items()]
    try:
        rows["timestep"] = columns["timestep"]
        if "step" in columns:
            rows["step"] = rows["draw"] = columns["step"]
        rows["noise_seed"] = [UNKNOWN if s is None else s for s in columns.get("noise_seed", [UNKNOWN] * len(names))]
        if "step" in columns and (rows["step"] != columns["step"]).any():
            raise ValueError("a step is no whole number")
    except (ValueError, TypeError, OverflowError) as error:
        raise CallError(f"log {file}: a column does not hold numbers ({first_line(error)})") from error
    return TrainingLog(file, list(numbers), rows[np.argsort(rows["step"], kind="stable")], checkpoints, None)


def _columns(file: Path) -> dict[str, list[Any]]:
    """The columns of a table that concern us."""
    from pyarrow import ArrowException, csv, parquet

    try:
        if file.suffix == ".parquet":
            table = parquet.read_table(file)
        elif file.suffix == ".csv":
            types = {"sample_id": "string", "checkpoint": "string"}
            table = csv.read_csv(file, convert_options=csv.ConvertOptions(column_types=types))
        else:
            raise CallError(f"log {file}: give a TrainingRecorder's folder, a .csv or a .parquet file")
    except (ArrowException, OSError) as error:
        raise DataError(f"log {file}: cannot be read ({first_line(error)})") from error
    if twice := [name for name in table.column_names if table.column_names.count(name) > 1]:
        raise CallError(f"log {file}: two columns are named {twice[0]}")
    return {name: table[name].to_pylist() for name in table.column_names if name in _COLUMNS}

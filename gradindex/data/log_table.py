"""Read what a training run drew from a CSV or Parquet table, one row for each event."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradindex.data.log_events import (
    LOGGED_EVENT,
    LoggedCheckpoint,
    LoggedRun,
    in_order_of_steps,
)
from gradindex.data.log_file import UNKNOWN
from gradindex.errors import CallError, DataError, first_line

COLUMNS = ("sample_id", "timestep", "noise_seed", "step", "checkpoint")


def read_table(file: Path) -> LoggedRun:
    """Return the events of a table, in the order of steps.

    A table with the column `checkpoint` in place of `step` says between which checkpoints an event
    was: those before the first checkpoint are of step 0, those before the second of step 1.

    Raises:
        CallError: a column is missing, there twice, or does not hold numbers.
        DataError: the file cannot be read.
    """
    columns = _read_columns(file)
    for name in ("sample_id", "checkpoint"):
        if None in columns.get(name, ()):
            row = columns[name].index(None)
            raise CallError(f"log {file}: column {name} is empty in row {row}; give every row one")
    sample_ids, samples = _number_distinct(columns["sample_id"])
    events = np.zeros(len(samples), LOGGED_EVENT)
    events["sample"] = samples
    checkpoints = []
    if "checkpoint" in columns:
        paths, events["step"] = _number_distinct(columns["checkpoint"])
        for number, path in enumerate(paths):
            checkpoints.append(LoggedCheckpoint(number + 1, path, 1.0))
    try:
        _fill_numbers(events, columns)
    except (ValueError, TypeError, OverflowError) as error:
        raise CallError(
            f"log {file}: a column does not hold numbers ({first_line(error)})"
        ) from error
    return LoggedRun(sample_ids, in_order_of_steps(events), checkpoints, None)


def _read_columns(file: Path) -> dict[str, list[Any]]:
    """Return {name: values} of those columns of a table that a log has.

    Raises:
        CallError: a column is missing, or there twice.
        DataError: the file cannot be read.
    """
    from pyarrow import ArrowException, csv, parquet

    if file.suffix not in (".parquet", ".csv"):
        raise CallError(f"log {file}: give a TrainingRecorder's folder, a .csv or a .parquet file")
    try:
        if file.suffix == ".parquet":
            table = parquet.read_table(file)
        else:
            types = {"sample_id": "string", "checkpoint": "string"}
            table = csv.read_csv(file, convert_options=csv.ConvertOptions(column_types=types))
        names = table.column_names
        columns = {name: table[name].to_pylist() for name in COLUMNS if names.count(name) == 1}
    except (ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise DataError(f"log {file}: cannot be read ({first_line(error)})") from error
    for name in COLUMNS:
        if names.count(name) > 1:
            raise CallError(f"log {file}: two columns are named {name}")
    _require_columns(file, names)
    return columns


def _require_columns(file: Path, columns: Sequence[str]) -> None:
    """Raise CallError unless there are ids, timesteps, and either steps or checkpoints."""
    absent = {"sample_id", "timestep"} - set(columns)
    if absent:
        raise CallError(
            f"log {file}: no column {', '.join(sorted(absent))}; it has {_shortened(columns)}"
        )
    if ("step" in columns) == ("checkpoint" in columns):
        raise CallError(
            f"log {file}: give one of the columns step and checkpoint; it has {_shortened(columns)}"
        )


def _shortened(columns: Sequence[str]) -> str:
    """The names of columns, at most 200 letters of them in one line."""
    return ", ".join(repr(name)[1:-1] for name in columns)[:200]


def _number_distinct(values: list[Any]) -> tuple[list[str], np.ndarray]:
    """Return the distinct values as text, in the order in which they come, and each one's number.

    >>> _number_distinct(["b", "a", "b"])
    (['b', 'a'], array([0, 1, 0]))
    """
    names = [str(value) for value in values]
    number_of = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return list(number_of), np.array([number_of[name] for name in names], np.int64)


def _fill_numbers(events: np.ndarray, columns: dict[str, list[Any]]) -> None:
    """Write timesteps, steps and noise seeds into events, LOGGED_EVENT [E].

    Raises:
        ValueError, TypeError, OverflowError: a value is not a number, or does not fit.
    """
    columns = {
        name: columns[name] for name in ("timestep", "step", "noise_seed") if name in columns
    }
    for name, values in columns.items():
        if any(isinstance(value, bool) for value in values):
            raise ValueError(f"{name} is true or false")
    columns["noise_seed"] = [
        UNKNOWN if seed is None else seed
        for seed in columns.get("noise_seed", [UNKNOWN] * len(events))
    ]
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is refused below
        for name, values in columns.items():
            events[name] = values
    # NumPy takes the whole part of a number without a word.
    for name in ("step", "noise_seed"):
        if name in columns and (events[name] != columns[name]).any():
            raise ValueError(f"a {name} is no whole number of eight bytes")
    if (events["step"] < 0).any():
        raise ValueError("a step is negative")
    if "step" in columns:
        events["draw"] = events["step"]

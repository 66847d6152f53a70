"""Hostile training logs: the files of a recorder, and tables."""

import csv
import io
import json
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hostile import mutate_bytes, mutate_csv, mutate_json, spell_json
from judging import Case, bounded, is_answered

from gradindex.data.log_file import CHECKPOINT, EVENTS, IDS, SESSION, pack_record
from gradindex.data.recorder import TrainingRecorder
from gradindex.data.training_log import TrainingLog, open_log, training_weights

STEPS, BATCH, PICTURES = 6, 3, 5
TIMESTEPS = 1000
NAMES = [f"p{number:03d}.png" for number in range(PICTURES)]
NULLS = ("", "NA", "N/A", "null", "NULL", "nan", "NaN", "n/a")  # to Arrow, in a column of numbers
Event = tuple[float, str, float, float]  # step, id, timestep, noise seed


def recorded(folder: Path) -> Case:
    """Return the case of a recorder's file that is another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # steps are drawn again
        whole = _recorded_file(folder / "whole")
    log = folder / "log"
    log.mkdir()
    file = log / "rank-00000.log"
    record_list = list(plain_records(whole))

    def case(random: Random) -> bool:
        kind = random.randrange(4)
        if kind == 0:
            content = mutate_bytes(whole, random)
        else:
            content = b"".join(pack_record(*record) for record in _mutated(record_list, random))
        file.write_bytes(content)
        with bounded():
            answered = [
                is_answered(lambda: _used(open_log(log)), lambda log: _is_as_read(log, content)),
                is_answered(lambda: _resumed(log), bool),
            ]
        return all(answered)

    return case


def _recorded_file(folder: Path) -> bytes:
    """The content of a recorder's file of two sessions, of which the second draws steps again."""
    random = np.random.default_rng(0)
    for first in (0, STEPS // 2):
        with TrainingRecorder(folder, seed=1, num_train_timesteps=TIMESTEPS, rank=0) as recorder:
            for step in range(first, first + STEPS):
                ids = random.choice(NAMES, BATCH, replace=False).tolist()
                timesteps = random.integers(0, TIMESTEPS, BATCH).tolist()
                recorder.log(ids, timesteps, step, noise_seed=random.integers(2**62))
            recorder.checkpoint(first + STEPS, folder / f"checkpoint-{first + STEPS}", 1e-4)
    return (folder / "rank-00000.log").read_bytes()


def plain_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The whole records at the start of a file, (kind, content), by docs/format.md."""
    position = 0
    while position + 16 <= len(content):
        head = content[position : position + 12]
        kind, size, checksum = struct.unpack("<4sII", head)
        (head_checksum,) = struct.unpack_from("<I", content, position + 12)
        body = content[position + 16 : position + 16 + size]
        is_whole = len(body) == size and zlib.crc32(body) == checksum
        if head_checksum != zlib.crc32(head) or not is_whole:
            return
        yield kind, body
        position += 16 + size


def _mutated(records: list[tuple[bytes, bytes]], random: Random) -> list[tuple[bytes, bytes]]:
    """Records of which one to three have another content or place; checksums are made of these."""
    changed = list(records)
    for _ in range(random.choice((1, 1, 2, 3))):
        number = random.randrange(len(changed))
        kind, content = changed[number]
        action = random.randrange(6)
        if action == 0:
            del changed[number]
        elif action == 1:
            changed.insert(random.randrange(len(changed) + 1), changed[number])
        elif action == 2:
            other = random.choice((SESSION, IDS, EVENTS, CHECKPOINT, b"ne\xffw"))
            changed[number] = other, content
        elif action == 3 or kind == EVENTS or changed[number] not in records:
            changed[number] = kind, mutate_bytes(content, random)
        else:
            changed[number] = kind, spell_json(mutate_json(json.loads(content), random), random)
        if not changed:
            return [records[0]]
    return changed


def _used(log: TrainingLog) -> TrainingLog:
    """A log after all that a build asks of it."""
    log.last_events(NAMES, STEPS, 2)
    if log.checkpoints:
        training_weights(log.checkpoints)
        log.find([])
    log.replay(NAMES, [checkpoint.step for checkpoint in log.checkpoints] or [3], 1, "skip", 1000)
    return log


def _is_as_read(log: TrainingLog, content: bytes) -> bool:
    """Whether a log has the events that a plain reader of the format finds in its one file."""
    sessions: list[list[tuple[int, int, list[int], list[float]]]] = []
    names: list[str] = []
    for kind, body in plain_records(content):
        if kind == b"sess":
            sessions.append([])
        elif kind == b"pics":
            names += json.loads(body)
        elif kind == b"draw":
            _, step, seed, count = struct.unpack_from("<dqqI", body)
            pictures = list(struct.unpack_from(f"<{count}I", body, 28))
            timesteps = list(struct.unpack_from(f"<{count}f", body, 28 + 4 * count))
            sessions[-1].append((step, seed, pictures, timesteps))
    events: list[Event] = []
    for number, steps in enumerate(sessions):
        # What a later session begins again with counts no longer in the earlier ones.
        first_steps = [later[0][0] for later in sessions[number + 1 :] if later]
        stop = min(first_steps, default=math.inf)
        for step, seed, pictures, timesteps in steps:
            if step < stop:
                for picture, timestep in zip(pictures, timesteps, strict=True):
                    events.append((step, names[picture], timestep, seed))
    return _events(log) == sorted(events, key=lambda event: event[0])


def _events(log: TrainingLog) -> list[Event]:
    """The events of a log, in its order."""
    return [
        (
            int(event["step"]),
            log.sample_ids[event["sample"]],
            float(event["timestep"]),
            int(event["noise_seed"]),
        )
        for event in log.events
    ]


def _resumed(folder: Path) -> bool:
    """Whether a recorder goes on in a folder."""
    with TrainingRecorder(folder, seed=1, num_train_timesteps=TIMESTEPS, rank=0) as recorder:
        recorder.log(NAMES[:1], [1], 10**6)
    return True


# --- tables ------------------------------------------------------------------------------------

HEADINGS = {"step": ["sample_id", "timestep", "step", "noise_seed"]}
HEADINGS["checkpoint"] = ["sample_id", "timestep", "checkpoint"]


def _table(kind: str) -> list[list[str]]:
    """The rows of a table with steps, or with checkpoints, headings first."""
    rows = [HEADINGS[kind]]
    for step in range(STEPS):
        cells = [NAMES[step % PICTURES], str(100 * step + 7)]
        if kind == "step":
            cells += [str(step), str(2**40 + step)]
        else:
            cells.append(f"out/checkpoint-{1 + step // 3}")
        rows.append(cells)
    return rows


def csv_table(folder: Path) -> Case:
    """Return the case of a log in a CSV file that is another."""
    folder.mkdir(exist_ok=True)
    file = folder / "log.csv"

    def case(random: Random) -> bool:
        rows = _table(random.choice(tuple(HEADINGS)))
        content = mutate_csv(rows, random)
        if random.random() < 0.3:
            content = mutate_bytes(content, random)
        file.write_bytes(content)
        with bounded():
            return is_answered(lambda: _used(open_log(file)), lambda log: _is_as_csv(log, content))

    return case


def _is_as_csv(log: TrainingLog, content: bytes) -> bool:
    """Whether a log has the events that Python's csv module reads."""
    # Columns that a log has not may hold anything.
    lines = io.StringIO(content.decode("utf-8-sig", "surrogateescape"), newline="")
    rows = [row for row in csv.reader(lines) if row]
    headings, *rows = rows
    events = []
    checkpoints: dict[str, int] = {}
    for row in rows:
        cells = dict(zip(headings, row, strict=True))
        if "checkpoint" in cells:
            step = checkpoints.setdefault(cells["checkpoint"], len(checkpoints))
        else:
            step = _number(cells["step"])
        seed = _number(cells.get("noise_seed", "-1"))
        timestep = float(np.float32(_number(cells["timestep"])))
        events.append((step, cells["sample_id"], timestep, seed))
    return _events(log) == sorted(events, key=lambda event: event[0])


def _number(text: str) -> float:
    """A number, also in hex, as Arrow reads it; −1 for a null, which no seed is."""
    if text in NULLS:
        return -1
    try:
        return int(text, 0) if "x" in text.lower() else int(text)
    except ValueError:
        return float(text)


def parquet_table(folder: Path) -> Case:
    """Return the case of a log in a Parquet file that is another."""
    folder.mkdir(exist_ok=True)
    file = folder / "log.parquet"
    headings, *rows = _table("step")
    columns: dict[str, Any] = {"sample_id": [row[0] for row in rows]}
    for number, name in enumerate(headings[1:], 1):
        columns[name] = [int(row[number]) for row in rows]
    pq.write_table(pa.table(columns), file)
    whole = file.read_bytes()
    truth = _events(open_log(file))

    def case(random: Random) -> bool:
        if random.random() < 0.3:
            return _judge_types(random)
        file.write_bytes(mutate_bytes(whole, random))
        with bounded():
            # Parquet has no checksum of its own: a bit of a number may be another unseen.
            return is_answered(lambda: _used(open_log(file)), lambda log: len(log.events) > 0)

    def _judge_types(random: Random) -> bool:
        changed = dict(columns)
        name = random.choice(headings)
        changed[name] = pa.array(_strange_column(random))
        pq.write_table(pa.table(changed), file)
        with bounded():
            return is_answered(
                lambda: _used(open_log(file)),
                lambda log: _is_like(_events(log), truth, name, changed[name].to_pylist()),
            )

    return case


def _strange_column(random: Random) -> list[Any]:
    """Values of a column, of one type."""
    values: list[list[Any]] = [
        [None] * STEPS,
        [*range(STEPS - 1), None],
        [float(step) for step in range(STEPS)],
        [step + 0.5 for step in range(STEPS)],
        [True] * STEPS,
        [str(step) for step in range(STEPS)],
        [b"\xff"] * STEPS,
        [2**63 - 1 - step for step in range(STEPS)],
        [-1 - step for step in range(STEPS)],
        [float("nan")] * STEPS,
        [float("inf")] * STEPS,
        [[1]] * STEPS,
        [{"a": 1}] * STEPS,
        [1e300] * STEPS,
    ]
    return random.choice(values)


def _is_like(events: list[Event], truth: list[Event], name: str, values: list[Any]) -> bool:
    """Whether events are the true ones but for a column, whose values they have to the number."""
    place = {"step": 0, "sample_id": 1, "timestep": 2, "noise_seed": 3}[name]
    order = np.argsort(values, kind="stable") if name == "step" else range(len(values))
    for event, row in zip(events, order, strict=True):
        value = values[row]
        if name == "noise_seed" and value is None:
            value = -1
        if name != "sample_id" and isinstance(value, bool):
            return False  # what is no number was taken for one
        is_text = name == "sample_id"
        expected = str(value) if is_text else float(value) if isinstance(value, str) else value
        if value is None or event[place] != expected:
            return False
        others = [
            (a, b) for at, (a, b) in enumerate(zip(event, truth[row], strict=True)) if at != place
        ]
        if any(a != b for a, b in others):
            return False
    return True


KINDS: dict[str, Callable[[Path], Case]] = {
    "training logs": recorded,
    "training logs, CSV": csv_table,
    "training logs, Parquet": parquet_table,
}

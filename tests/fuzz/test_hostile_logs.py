"""Hostile training logs: the true answer or one clear error."""

import json
import math
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
import log_inputs
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import nested
from hypothesis import strategies
from judging import Case, bounded
from refusals import budget, refusal

from gradindex.data import log_folder
from gradindex.data.log_file import (
    CHECKPOINT,
    EVENTS,
    IDS,
    SESSION,
    EventBatch,
    SessionRecord,
    pack_events,
    pack_json,
    pack_record,
)
from gradindex.data.recorder import TrainingRecorder
from gradindex.data.training_log import open_log, training_weights
from gradindex.errors import CallError, DataError
from gradindex.recipe import NOISE_VERSION

KINDS = log_inputs.KINDS


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return KINDS[request.param](tmp_path_factory.mktemp("hostile"))


@pytest.mark.slow
@budget(150)
@hypothesis.given(seed=strategies.integers(0, 2**32 - 1))
def test_hostile_logs_are_read_truly_or_refused(case: Case, seed: int) -> None:
    assert case(Random(seed)) in (True, False)  # it raises where anything else comes of it


def batch(step: int, pictures: list[int]) -> bytes:
    """The content of a record of events, all at timestep 5."""
    numbers = np.array(pictures)
    return pack_events(EventBatch(0.0, step, 7, numbers, np.full(len(numbers), 5.0)))


SESSION_RECORD = SessionRecord(
    format=1, noise_version=NOISE_VERSION, seed=0, num_train_timesteps=1000, world=None, time=0.0
)
OPENED = (SESSION, pack_json(SESSION_RECORD))
NAMED = (IDS, b'["a.png", "b.png"]')
DRAWN = (EVENTS, batch(0, [0, 1]))


def saved(**fields: Any) -> tuple[bytes, bytes]:
    """A record of a checkpoint."""
    return CHECKPOINT, json.dumps({"step": 1, "path": "m", "lr": 0.1, **fields}).encode()


UNREADABLE = "a record that cannot be read"
DEEP = b"[" * 10_000 + b"]" * 10_000
# {name: (records of a file, whose checksums are right; what is wrong with them)}
LOGS: dict[str, tuple[list[tuple[bytes, bytes]], str]] = {
    "no JSON": ([(SESSION, b"\xff")], UNREADABLE),
    "a list": ([(SESSION, b"[1]")], UNREADABLE),
    "nested": ([(SESSION, DEEP)], UNREADABLE),
    "a huge number": ([(SESSION, b'{"format": ' + b"1" * 5000 + b"}")], UNREADABLE),
    "ids that are numbers": ([OPENED, (IDS, b"[1, 2]"), DRAWN], UNREADABLE),
    "ids that are lists": ([OPENED, (IDS, b"[[]]"), DRAWN], UNREADABLE),
    "ids of no UTF-8": ([OPENED, (IDS, b'["\xff"]'), DRAWN], UNREADABLE),
    "nested ids": ([OPENED, (IDS, DEEP), DRAWN], UNREADABLE),
    "a short batch": ([OPENED, NAMED, (EVENTS, b"1234567")], UNREADABLE),
    "a batch cut off": ([OPENED, NAMED, (EVENTS, batch(0, [0, 1])[:-4])], UNREADABLE),
    "a batch of 2³² events": (
        [OPENED, NAMED, (EVENTS, struct.pack("<dqqI", 0, 0, 7, 2**32 - 1))],
        UNREADABLE,
    ),
    "a step below 0": ([OPENED, NAMED, (EVENTS, batch(-3, [0]))], UNREADABLE),
    "a picture without a name": (
        [OPENED, NAMED, (EVENTS, batch(0, [0, 2]))],
        "events of pictures that it does not name",
    ),
    "events without a session": ([NAMED, DRAWN], "begins with a record of no session"),
    "a checkpoint without a session": ([saved()], "begins with a record of no session"),
    "a step that is no number": ([OPENED, NAMED, DRAWN, saved(step="1")], UNREADABLE),
    "a step of 30 digits": ([OPENED, NAMED, DRAWN, saved(step=10**30)], UNREADABLE),
    "a path with a NUL": ([OPENED, NAMED, DRAWN, saved(path="a\0")], "a checkpoint at no path"),
    "a path of no UTF-8": (
        [OPENED, NAMED, DRAWN, saved(path="\ud800")],
        "a checkpoint at no path",
    ),
}


def write_log(folder: Path, records: list[tuple[bytes, bytes]]) -> Path:
    """A recorder's file of these records, and its path."""
    folder.mkdir()
    file = folder / "rank-00000.log"
    file.write_bytes(b"".join(pack_record(*record) for record in records))
    return file


@pytest.mark.parametrize("name", LOGS)
def test_a_log_that_is_whole_by_its_checksums_and_none_is_refused(
    tmp_path: Path, name: str
) -> None:
    records, problem = LOGS[name]
    file = write_log(tmp_path / "log", records)
    line = refusal(lambda: open_log(tmp_path / "log"), DataError)
    assert line.startswith(f"{file}: {problem}")


@pytest.mark.parametrize("name", ["no JSON", "a list", "nested ids", "a short batch"])
def test_a_recorder_does_not_go_on_in_such_a_log(tmp_path: Path, name: str) -> None:
    file = write_log(tmp_path / "log", LOGS[name][0])
    before = file.read_bytes()
    line = refusal(lambda: TrainingRecorder(tmp_path / "log", rank=0), DataError)
    assert line.startswith(f"{file}: {UNREADABLE}")
    assert file.read_bytes() == before


def test_a_log_of_those_records_alone_is_read(tmp_path: Path) -> None:
    """So what is refused above is refused for what is wrong with it."""
    write_log(tmp_path / "log", [OPENED, NAMED, (EVENTS, batch(0, [])), DRAWN, saved()])
    log = open_log(tmp_path / "log")
    assert log.last_events(["b.png", "a.png"], 1, 1)["timestep"].tolist() == [[5.0], [5.0]]
    assert [checkpoint.step for checkpoint in log.checkpoints] == [1]


def test_a_checkpoint_before_the_first_step_counts_for_nothing(tmp_path: Path) -> None:
    write_log(tmp_path / "log", [OPENED, NAMED, DRAWN, saved(step=0)])
    assert training_weights(open_log(tmp_path / "log").checkpoints) == [0.0]


def test_a_signalling_nan_is_no_timestep(tmp_path: Path) -> None:
    """NumPy warns where it calculates with one."""
    content = DRAWN[1][:-4] + b"\x01\x00\xa0\x7f"
    write_log(tmp_path / "log", [OPENED, NAMED, (EVENTS, content)])
    log = open_log(tmp_path / "log")
    line = refusal(lambda: log.replay(["a.png", "b.png"], [1], 1, "error", 1000), CallError)
    assert line.endswith("timestep nan, the model's has whole ones, 0 to 999")


def test_a_file_of_another_name_is_no_rank(tmp_path: Path) -> None:
    file = write_log(tmp_path / "log", [OPENED, NAMED, DRAWN])
    other = file.rename(file.with_name("rank-0 (copy).log"))
    assert refusal(lambda: open_log(tmp_path / "log"), DataError) == (
        f"{other}: a name that no recorder gives, which is rank-RRRRR.log; rename it"
    )


def test_settings_of_any_kind_are_shown_in_short(tmp_path: Path) -> None:
    content = json.dumps({"format": 1, "seed": nested(400)}).encode()
    write_log(tmp_path / "log", [(SESSION, content)])
    line = refusal(lambda: TrainingRecorder(tmp_path / "log", rank=0), CallError)
    assert "made with other settings" in line
    assert len(line) < 400


# {what is wrong: (columns, the end of the message)}
TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "a null id": (
        {"sample_id": ["a", None]},
        "column sample_id is empty in row 1; give every row one",
    ),
    "true and false": (
        {"timestep": [True, False]},
        "a column does not hold numbers (timestep is true or false)",
    ),
    "a seed of 1.5": (
        {"noise_seed": [1.0, 1.5]},
        "a column does not hold numbers (a noise_seed is no whole number of eight bytes)",
    ),
    "a step of 10³⁰": (
        {"step": [0.0, 1e30]},
        "a column does not hold numbers (Python int too large to convert to C long)",
    ),
    "a step below 0": (
        {"step": [0, -1]},
        "a column does not hold numbers (a step is negative)",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_no_whole_numbers_is_refused(tmp_path: Path, name: str) -> None:
    changes, problem = TABLES[name]
    file = tmp_path / "log.parquet"
    columns = {"sample_id": ["a", "b"], "timestep": [1, 2], "step": [0, 1], "noise_seed": [3, 4]}
    pq.write_table(pa.table({**columns, **changes}), file)
    assert refusal(lambda: open_log(file), CallError) == f"log {file}: {problem}"


def test_a_table_of_no_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_bytes(b"sample_id,timest\xffp,step\na,1,2\n")
    line = refusal(lambda: open_log(file), DataError)
    assert line.startswith(f"log {file}: cannot be read (")


def test_timesteps_that_are_infinite_are_refused_without_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text("sample_id,timestep,step\na,inf,0\n")
    with pytest.raises(CallError, match="of another scheduler: timestep inf,"):
        open_log(file).replay(["a"], [1], 1, "error", 1000)


def test_ids_in_an_error_are_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text('sample_id,timestep,step\n"a\nb",1,0\n')
    log = open_log(file)
    line = refusal(lambda: log.replay(["a\nb"], [1], 2, "error", 1000), CallError)
    assert "1 picture has fewer than 2 events before a checkpoint: a\\nb;" in line


def test_checksums_of_the_plain_reader_are_those_of_the_format() -> None:
    """The plain reader that judges logs reads what the product writes."""
    content = pack_record(*NAMED)
    assert list(log_inputs.plain_records(content)) == [NAMED]
    assert zlib.crc32(NAMED[1]) == struct.unpack_from("<I", content, 8)[0]


def twin_stop(session: Any, sessions: list[Any]) -> float:
    """The slow twin of `_stop_steps`, for one session."""
    first_steps = [
        other.first_step
        for other in sessions
        if other.first_step is not None
        and (
            other.number > session.number
            if other.rank == session.rank
            else other.record.world is not None
            and int(session.rank) >= other.record.world
            and other.record.time > session.end
        )
    ]
    return min(first_steps, default=math.inf)


def test_sessions_are_replaced_as_the_slow_twin_says() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        sessions: list[Any] = []
        for rank in range(random.integers(1, 4)):
            for number in range(random.integers(1, 5)):
                time = float(random.choice([1, 2, 3, 4, math.nan]))
                world = random.choice([None, 1, 2, 3])
                record = msgspec.structs.replace(SESSION_RECORD, world=world, time=time)
                session = log_folder._Session(f"{rank:05d}", number, record)
                session.end = float(random.choice([0, 1, 2, 3, math.nan]))
                session.first_step = random.choice([None, 0, 3, 5, 9])
                sessions.append(session)
        expected = [twin_stop(session, sessions) for session in sessions]
        assert log_folder._stop_steps(sessions) == expected


def test_a_log_of_many_sessions_is_read_at_once(tmp_path: Path) -> None:
    """Not in the square of their number: these took more than a minute."""
    drawn = (EVENTS, batch(0, [0]))
    write_log(tmp_path / "log", [OPENED, NAMED, *[OPENED, drawn] * 20_000])
    with bounded(seconds=20):
        assert len(open_log(tmp_path / "log").events) == 1

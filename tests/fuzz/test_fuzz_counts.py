"""`tools/bench chaos` counts what hostile inputs come to, crashes and hangs among it."""

import os
import signal
import sys
import time
from pathlib import Path
from random import Random

import pytest
from hostile import BYTE_MUTATIONS, mutate_bytes, mutate_csv, mutate_json, spell_json
from judging import Case, TooLong, Wrong, bounded, is_answered

sys.path.append(str(Path(__file__).parents[2] / "tools" / "benchmarks"))
import fuzz

from gradindex.errors import StoreError

FIRST_NUMBERS = [Random(seed).random() for seed in range(7)]


def made_up(folder: Path) -> Case:
    """Return a case that is wrong for seed 1, refuses seed 2 and crashes for seed 3."""

    def case(random: Random) -> bool:
        seed = FIRST_NUMBERS.index(random.random())
        if seed == 1:
            raise Wrong("another answer")
        if seed == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        return seed != 2

    return case


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_crash_is_counted_and_the_other_inputs_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "KINDS", {"made up": made_up})
    (row,) = fuzz.fuzz(tmp_path, 7)
    assert row == {
        "input": "made up",
        "inputs": 7,
        "true answers": 4,
        "refusals": 1,
        "failures": 2,
        "what": [
            "seed 1: Wrong: another answer",
            f"seed 3: ended the process with status {-signal.SIGSEGV}",
        ],
    }


def hanging(folder: Path) -> Case:
    """Return a case that never ends, and that nothing but SIGKILL stops."""

    def case(random: Random) -> bool:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        signal.pause()
        return True

    return case


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_input_that_hangs_is_killed_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "KINDS", {"hanging": hanging})
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    monkeypatch.setattr(fuzz, "GRACE_SECONDS", 0.0)
    (row,) = fuzz.fuzz(tmp_path, 2)
    assert row["what"] == [f"seed {seed}: no answer for 20 seconds" for seed in range(2)]


def late_once(folder: Path) -> Case:
    """Return a case that gives no answer in time the first time that it is asked."""
    asked = folder.parent / "asked"

    def case(random: Random) -> bool:
        if not asked.exists():
            asked.touch()
            raise TooLong("as on a machine that stood still")
        return True

    return case


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_input_that_is_late_once_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "KINDS", {"late once": late_once})
    (row,) = fuzz.fuzz(tmp_path, 2)
    assert (row["true answers"], row["failures"]) == (2, 0)


def test_too_much_memory_and_time_are_found() -> None:
    # More than a process may have kept of what it has freed.
    with pytest.raises(MemoryError), bounded(megabytes=64):
        bytes(2**34)
    with pytest.raises(TooLong), bounded(seconds=0.1):
        time.sleep(60)
    with bounded(megabytes=64):
        assert len(bytes(2**20)) == 2**20


@pytest.mark.parametrize(
    "text", ["", "a\nb", "a\u2028b", "x" * 2000, "cannot read it (MemoryError)", "std::bad_alloc"]
)
def test_an_error_that_says_it_badly_is_wrong(text: str) -> None:
    def ask() -> None:
        raise StoreError(text)

    with pytest.raises(Wrong):
        is_answered(ask, lambda _: True)


def test_another_answer_is_wrong_and_another_error_is_let_through() -> None:
    assert is_answered(lambda: 1, lambda answer: answer == 1)
    with pytest.raises(Wrong, match="another answer: 2"):
        is_answered(lambda: 2, lambda answer: answer == 1)
    with pytest.raises(ZeroDivisionError):
        is_answered(lambda: 1 / 0, lambda _: True)


def test_mutations_change_what_they_are_given_and_are_the_same_again() -> None:
    data = bytes(range(64)) * 4
    assert all(mutation(data, Random(3)) != data for mutation in BYTE_MUTATIONS)
    value = {"a": [1, 2.5, "x"], "b": {"c": None}}
    changed = [mutate_json(value, Random(seed)) for seed in range(100)]
    assert sum(one == value for one in changed) < 20
    assert value == {"a": [1, 2.5, "x"], "b": {"c": None}}
    for seed in range(20):
        assert mutate_bytes(data, Random(seed)) == mutate_bytes(data, Random(seed))
        assert spell_json(value, Random(seed)) == spell_json(value, Random(seed))
        table = [["a", "b"], ["1", "2"]]
        assert mutate_csv(table, Random(seed)) == mutate_csv(table, Random(seed))

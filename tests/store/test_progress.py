"""Progress: bars where somebody looks, a line now and then in a log, nothing for short work."""

import contextlib
import io
import sys
import types

import pytest

from gradindex.store import progress as module
from gradindex.store.progress import LoggedProgress, progress


class Clock:
    """A clock that a test moves on."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


def test_a_log_has_a_line_every_half_minute(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress(title="gradients", total=5000, unit="gradient") as bar:
        for _ in range(10):
            clock.seconds += 10
            bar.update(500)
    assert capsys.readouterr().err.splitlines() == [
        "gradients: 1,500 of 5,000 gradients, 0:30 so far, about 70 seconds left",
        "gradients: 3,000 of 5,000 gradients, 1:00 so far, about 40 seconds left",
        "gradients: 4,500 of 5,000 gradients, 1:30 so far, about 10 seconds left",
        "gradients: 5,000 of 5,000 gradients, done in 1:40",
    ]


def test_short_work_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(range(3), "shards", unit="shard"):
        clock.seconds += 9
    assert capsys.readouterr().err == ""


def test_work_that_fails_is_not_done(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(RuntimeError), progress(title="shards", unit="shard") as bar:
        clock.seconds += 31
        bar.update()
        raise RuntimeError
    assert capsys.readouterr().err == "shards: 1 shard, 0:31 so far\n"


def test_items_are_counted_one_by_one(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    for item in progress(iter("abc"), "blocks", 3, unit="block"):
        seen.append(item)
        clock.seconds += 3600
    assert seen == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "blocks: 1 of 3 blocks, 1:00:00 so far, about 2 hours left"
    assert lines[-1] == "blocks: 3 of 3 blocks, done in 3:00:00"


def test_it_can_be_turned_off(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    for _ in progress(range(3), "shards"):
        clock.seconds += 100
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_and_a_notebook_have_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress([1]), LoggedProgress)
    monkeypatch.setattr(module, "DELAY", 0)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress([1, 2], "counting")) == [1, 2]
    assert "counting: 100%" in terminal.getvalue()
    notebook = io.StringIO()  # its stderr is no terminal
    monkeypatch.setattr(sys, "stderr", notebook)
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    bar = progress([1, 2], "counting")
    assert "tqdm" in type(bar).__name__
    assert list(bar) == [1, 2]
    assert "counting: 100%" in notebook.getvalue()


def test_a_process_without_stderr_works(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as Windows' pythonw."""
    monkeypatch.setattr(sys, "stderr", None)
    for _ in progress(range(2)):
        clock.seconds += 100

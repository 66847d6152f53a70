"""`gradindex serve`: what it refuses before it listens, in one line."""

import socket
import sys
from pathlib import Path

import pytest
from conftest import required
from helpers import run

required("fastapi")
required("uvicorn")
pytest_plugins = ["served_fixtures"]


def test_a_port_that_is_taken_is_refused(built: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = run("serve", built, "--port", other.getsockname()[1], "--device", "cpu")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "cannot listen there" in done.stderr
    assert "give another port" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--port", "70000"], "70000 is not in the range"),
        (["--token", " "], "give some letters, or leave it out"),
        (["--host", "256.1.1.1"], "cannot listen there"),
    ],
)
def test_wrong_options_are_refused(built: Path, options: list[str], text: str) -> None:
    done = run("serve", built, "--device", "cpu", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_where_things_are_is_said_of_one_index(built: Path, plain: Path, training: Path) -> None:
    done = run("serve", built, plain, "--data", training)
    assert done.returncode == 2
    assert "are of one INDEX" in done.stderr


def test_what_is_no_index_or_has_no_model_is_refused(
    built: Path, pictures: Path, tmp_path: Path
) -> None:
    """Before a port is opened."""
    done = run("serve", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    done = run("serve", built, "--model", tmp_path, "--device", "cpu")
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_the_missing_extra_is_named(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gradindex.serve.listening", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = run("serve", built)
    assert done.returncode == 1
    assert done.stderr == "Error: uvicorn is not installed: pip install 'gradindex[serve]'\n"

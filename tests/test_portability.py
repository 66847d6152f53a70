"""Systems other than Linux: no module needs what only POSIX has; memory is asked of each system."""

import ast
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bare_system import MODULES, NAMES
from helpers import RECIPE
from msgspec import UNSET

import gradindex
from gradindex import machine_memory as memory_module
from gradindex.builder.estimate import Estimate
from gradindex.report.info import describe_plan
from gradindex.store import drafts

PACKAGE = Path(gradindex.__file__).parent
BARE_SYSTEM = Path(__file__).with_name("bare_system.py")


def test_all_is_done_without_what_only_posix_has(
    tmp_path: Path, model: Path, pictures: Path
) -> None:
    """Import, record, build, ask, verify, remove, overwrite: with the same results and files."""
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "pictures").symlink_to(pictures)
    command = [sys.executable, "-W", "error::UserWarning:gradindex", BARE_SYSTEM, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bare"] == found["complete"]
    assert {"gradindex.data.recorder", "gradindex.cli.main"} < {*found["bare"]["modules"]}
    assert found["bare"]["damages"] == []
    assert found["bare"]["read"] == found["bare"]["timesteps"]
    (line,) = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert line.endswith("files cannot be locked there; see to it that one process alone writes it")


# --- in the source --------------------------------------------------------------------------


def unguarded(source: str) -> list[str]:
    """What of MODULES, NAMES and ctypes.CDLL(None) a source uses where nothing catches its absence.

    A module may be imported in the body of a `try` that catches ImportError; a name of os may be
    used in one that catches AttributeError, or by `getattr`; CDLL(None) where TypeError is caught.
    """
    return [*_unguarded(ast.parse(source), frozenset())]


def _unguarded(node: ast.AST, caught: frozenset[str]) -> Iterator[str]:
    """What `unguarded` says of a part of a source, in which some exceptions are caught."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            from_os = [f"os.{name}" for name in names if node.module == "os" and name in NAMES]
            yield from from_os
            names = [node.module or ""]
        if not caught & {"ImportError", "ModuleNotFoundError"}:
            yield from (name for name in names if name.partition(".")[0] in MODULES)
    text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Call) else ""
    if text in {f"os.{name}" for name in NAMES} and "AttributeError" not in caught:
        yield text
    if text.startswith("ctypes.CDLL(None") and text.endswith(")") and "TypeError" not in caught:
        yield text
    for name, value in ast.iter_fields(node):
        inside = caught
        if isinstance(node, ast.Try) and name == "body":
            handled = {ast.unparse(handler.type) for handler in node.handlers if handler.type}
            inside |= {kind.strip("() ") for kinds in handled for kind in kinds.split(",")}
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _unguarded(child, inside)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import resource", ["resource"]),
        ("def f():\n    from fcntl import flock", ["fcntl"]),
        ("from os import fork", ["os.fork"]),
        ("os.pread(1, 2, 3)", ["os.pread"]),
        ("try:\n    os.link(a, b)\nexcept OSError:\n    pass", ["os.link"]),
        ("try:\n    os.link(a, b)\nexcept (AttributeError, OSError):\n    pass", []),
        ("try:\n    import pwd\nexcept ImportError:\n    pwd = None", []),
        ("try:\n    pass\nexcept ImportError:\n    import pwd", ["pwd"]),
        ("ctypes.CDLL(None, use_errno=True)", ["ctypes.CDLL(None, use_errno=True)"]),
        ("getattr(os, 'sysconf', None)", []),
    ],
)
def test_unguarded_uses_are_found(source: str, expected: list[str]) -> None:
    assert unguarded(source) == expected


def test_no_module_uses_unguarded_what_only_posix_has() -> None:
    found = {
        str(file.relative_to(PACKAGE)): unguarded(file.read_text(encoding="utf-8"))
        for file in PACKAGE.rglob("*.py")
    }
    assert {name: uses for name, uses in found.items() if uses} == {}
    assert len(found) > 100


# --- memory ---------------------------------------------------------------------------------


def fake_windows(total: int, available: int) -> SimpleNamespace:
    """What `ctypes.windll` does of GlobalMemoryStatusEx, as Windows specifies it."""

    def fill(pointer: Any) -> int:
        status = pointer._obj
        assert status.length == ctypes.sizeof(status) == 64
        status.total, status.available = total, available
        return 1

    return SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=fill))


def without_sysconf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")


def test_the_memory_of_a_posix_machine() -> None:
    expected = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_module.machine_memory() == expected
    assert memory_module.windows_memory() is None
    peak = memory_module.peak_memory()
    assert peak is not None
    assert 10 << 20 < peak < expected


def test_the_memory_of_a_windows_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    without_sysconf(monkeypatch)
    monkeypatch.setattr(ctypes, "windll", fake_windows(16 << 30, 5 << 20), raising=False)
    assert memory_module.machine_memory() == 16 << 30
    # Linux's own files are there, too: the least of all counts.
    monkeypatch.setattr(memory_module, "Path", lambda name: Path(f"none{name}"))
    assert memory_module.free_memory() == 5 << 20


def test_the_memory_of_a_machine_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    without_sysconf(monkeypatch)
    assert memory_module.machine_memory() == memory_module.ASSUMED_MEMORY
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory_module.peak_memory() is None


@pytest.mark.parametrize("error", [OSError, ValueError])
def test_a_system_without_these_names(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def unknown(name: str) -> int:
        raise error(name)

    monkeypatch.setattr(os, "sysconf", unknown)
    assert memory_module.machine_memory() == memory_module.ASSUMED_MEMORY


def test_a_plan_says_nothing_of_memory_that_the_system_does_not_tell() -> None:
    facts: dict[str, Any] = {
        "pictures": 9,
        "rows": (1, 9, 2, 16),
        "shards": 1,
        "bytes": {"norm": 72},
        "gradients": 18,
        "batch_size": 4,
        "seconds": 3.0,
        "forward_passes": 2.0,
        "buckets": "",
        "prepared": 0,
        "recipe": RECIPE,
        "parameters": UNSET,
    }
    known, unknown = (describe_plan(Estimate(**facts, memory=size)) for size in (3 << 20, None))
    assert known.splitlines()[-1].endswith(" 3 MiB of this process so far")
    assert unknown.splitlines() == known.splitlines()[:-1]


# --- processes --------------------------------------------------------------------------------


def test_no_process_is_asked_on_windows_where_that_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There `os.kill(process, 0)` sends Ctrl+C. A draft then waits for its day to be over."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    draft = tmp_path / f".file-{drafts._host()}-{gone.pid}-abcdefgh"
    draft.write_bytes(b"")

    def kill(process: int, signal: int) -> None:
        raise AssertionError("a process was sent a signal")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        patch.setattr(os, "kill", kill)
        drafts.delete_left_drafts(tmp_path)
    assert draft.exists()
    drafts.delete_left_drafts(tmp_path)
    assert not draft.exists()

"""A little of `tools/bench chaos`: kills, damages and all that fails harm no index."""

import builtins
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import required

sys.path.append(str(Path(__file__).parents[2] / "tools" / "benchmarks"))
from chaos_kills import SIGNALS, kill
from command_processes import FORKS
from digit_indexes import COMMANDS, Setting
from failing_buckets import AT_TIMES, OUTAGE, fail_in_bucket
from failing_disks import FAILURES, LIMITED, MOUNTED, VANISHED, fail, may_mount
from file_damages import damage
from refusing_file_systems import FILE_SYSTEMS, OFTEN_BUSY, imitate, refuse
from removals_in_builds import KINDS, remove_during_builds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*the store is scanned"),
]
GROWTH = "build, more pictures"


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("chaos") / "setting")


def what(rows: list[dict[str, Any]]) -> list[str]:
    """What rows say was wrong."""
    return [line for row in rows for line in row["what"]]


@pytest.mark.parametrize("signal_name", SIGNALS)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_kill_costs_what_was_committed(setting: Setting, name: str, signal_name: str) -> None:
    rows = kill(setting, name, signal_name, 1)
    assert what(rows) == []
    assert [row["kills"] for row in rows] == [1]


def test_no_damage_is_believed_or_stays(setting: Setting) -> None:
    rows = damage(setting, 15)
    assert what(rows) == []
    assert sum(row["damages"] for row in rows) == 15


def test_no_failing_disk_costs_what_was_committed(setting: Setting) -> None:
    mounts = may_mount(setting.folder / "disk")
    kinds = [kind for kind in FAILURES if mounts or kind not in MOUNTED]
    rows = fail(setting, kinds, (GROWTH, "remove"), 1)
    assert what(rows) == []
    assert [row["failed commands"] for row in rows] == [
        1 if row["disk"] in (VANISHED, LIMITED) else 2 for row in rows
    ]


def test_no_refusal_of_a_file_system_costs_what_was_committed(setting: Setting) -> None:
    rows = refuse(setting, list(FILE_SYSTEMS), (GROWTH, "remove"), 1)
    assert what(rows) == []
    assert [row["commands"] for row in rows] == [2] * len(FILE_SYSTEMS)
    refused = {row["file system"]: row["refused"] for row in rows}
    assert (refused["exFAT"], refused["SMB"]) == (0, 0)


def replace_open(folder: Path) -> None:
    """Rename a file over one that is open."""
    with open(folder / "file"):
        os.replace(folder / "another", folder / "file")


def sync_folder(folder: Path) -> None:
    """Sync a folder itself."""
    os.fsync(os.open(folder, os.O_RDONLY))


def write_often(folder: Path) -> None:
    """Open a file a thousand times."""
    for _ in range(1000):
        builtins.open(folder / "new", "w").close()


# {name: (what a command may try in a folder, errors of file systems; 0: none)}
CALLS: dict[str, tuple[Callable[[Path], Any], dict[str, tuple[int, ...]]]] = {
    "hard link": (
        lambda folder: os.link(folder / "file", folder / "new"),
        {"exFAT": (errno.EPERM,), "SMB": (errno.EOPNOTSUPP,)},
    ),
    "symbolic link": (
        lambda folder: os.symlink(folder / "file", folder / "new"),
        {"exFAT": (errno.EPERM,), "SMB": (errno.EOPNOTSUPP,)},
    ),
    "permissions": (
        lambda folder: (folder / "file").chmod(0o600),
        {"exFAT": (errno.EPERM,), "SMB": (errno.EACCES,)},
    ),
    "sync": (sync_folder, {"exFAT": (errno.EINVAL,), "SMB": (errno.EBADF,)}),
    "name": (
        lambda folder: (folder / "a:b").write_text("x"),
        {"exFAT": (errno.EINVAL,), "SMB": (errno.EINVAL,)},
    ),
    "rename over an open file": (replace_open, {"exFAT": (0,), "SMB": (errno.EACCES,)}),
    "write": (write_often, {"SMB": (0,), OFTEN_BUSY: (errno.EBUSY, errno.EACCES)}),
}


def error_number(kind: str, folder: Path, call: str) -> None:
    """In a process of its own: exit with the number of the error that a call gives, or 0."""
    imitate(kind, folder, 0)
    try:
        CALLS[call][0](folder)
    except OSError as error:
        sys.exit(error.errno)


@pytest.mark.parametrize("call", CALLS)
def test_an_imitated_file_system_refuses(tmp_path: Path, call: str) -> None:
    """Else the test above would test nothing."""
    for kind, numbers in CALLS[call][1].items():
        for name in ("file", "another"):
            (tmp_path / name).write_text("x")
        process = FORKS.Process(target=error_number, args=(kind, tmp_path, call))
        process.start()
        process.join()
        assert process.exitcode in numbers


def test_no_removal_is_lost_while_builds_run(setting: Setting) -> None:
    rows = remove_during_builds(setting, KINDS, 2)
    assert what(rows) == []
    assert [row["removals"] for row in rows] == [4, 4]


@pytest.mark.parametrize(
    ("fault", "name"),
    [("500", GROWTH), ("503", "remove"), ("lost connection", "remove"), ("no answer", "remove")],
)
def test_no_failing_bucket_costs_what_was_committed(
    setting: Setting, fault: str, name: str
) -> None:
    required("s3fs")
    required("moto.server")
    rows = fail_in_bucket(setting, [fault], [name], 1)
    assert what(rows) == []
    assert [row["when"] for row in rows] == [AT_TIMES, OUTAGE]
    assert [row["commands"] for row in rows] == [1, 1]

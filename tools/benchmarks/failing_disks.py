"""Commands on disks that fail: full, read-only, with a quota, or without a picture."""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from command_processes import (
    Command,
    exit_status,
    limit_file_size,
    measure_duration,
    start,
    stop_at_random,
    tells_reason,
)
from digit_indexes import SEED, Setting
from index_files import file_names, finish_and_compare

from gradindex.errors import CallError
from gradindex.store.store import Store

PAGE_BYTES = 4096  # of a small disk
POLL_SECONDS = 0.001

Random = np.random.Generator
Rows = list[dict[str, Any]]


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A disk in memory, mounted on a folder meanwhile; only root may have one."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def may_mount(folder: Path) -> bool:
    """Return whether this process may have small disks."""
    try:
        with small_disk(folder, "size=64k"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def remount(folder: Path, options: str) -> None:
    """Change the options of a small disk."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


Failed = tuple[int, list[str]]  # exit status, what is wrong with the index afterwards


def full_disk(setting: Setting, command: Command, random: Random) -> Failed:
    """Run a command on a disk that has no space for all that it adds."""
    with small_disk(setting.folder / "disk", "size=64m") as disk:
        folder = disk / "place"
        command.lay_out(folder)
        used = bytes_on_disk(disk)
        growth = bytes_on_disk(command.after)
        if command.before:
            growth -= bytes_on_disk(command.before)
        space = int(random.uniform(0, max(growth, PAGE_BYTES))) // PAGE_BYTES * PAGE_BYTES
        remount(disk, f"size={max(used + space, PAGE_BYTES)}")  # 0 would be no limit
        status = exit_status(command.words(folder), setting.folder / "failed")
        wrong = setting.check_stopped(folder, command)
        remount(disk, "size=64m")
        return status, wrong + finish_and_compare(command, folder, setting.folder / "stderr")


def read_only_disk(setting: Setting, command: Command, random: Random) -> Failed:
    """Run a command on a read-only disk, after it was killed there."""
    stderr = setting.folder / "stderr"
    with small_disk(setting.folder / "disk", "size=64m") as disk:
        folder = disk / "place"
        seconds = measure_duration(command, folder, stderr)
        command.lay_out(folder)
        stop_at_random(command, folder, seconds, random, stderr)
        remount(disk, "ro")
        status = exit_status(command.words(folder), setting.folder / "failed")
        wrong = setting.check_stopped(folder, command)
        remount(disk, "rw")
        return status, wrong + finish_and_compare(command, folder, stderr)


def small_files(setting: Setting, command: Command, random: Random) -> Failed:
    """Run a command that may write no file larger than a random limit, as with a quota."""
    folder = setting.folder / "place"
    command.lay_out(folder)
    sizes = [(command.after / name).stat().st_size for name in file_names(command.after)]
    limit = int(random.integers(1024, max(sizes)))
    status = exit_status(
        command.words(folder), setting.folder / "failed", partial(limit_file_size, limit)
    )
    wrong = setting.check_stopped(folder, command)
    return status, wrong + finish_and_compare(command, folder, setting.folder / "stderr")


def vanished_picture(setting: Setting, command: Command, random: Random) -> Failed:
    """Run a build; a picture of the last shard is gone when its turn comes."""
    folder, away = setting.folder / "place", setting.folder / "away"
    command.lay_out(folder)
    ids = Store(command.after).sample_ids
    picture = command.data / ids[len(ids) - 2]
    process = start(command.words(folder), setting.folder / "failed")
    while process.is_alive() and _pictures_in(folder) < len(ids):
        time.sleep(POLL_SECONDS)
    picture.rename(away)
    process.join()
    wrong = setting.check_stopped(folder, command)
    away.rename(picture)
    wrong += finish_and_compare(command, folder, setting.folder / "stderr")
    return process.exitcode or 0, wrong


def _pictures_in(folder: Path) -> int:
    """How many pictures an index has or is getting; 0 where none is."""
    try:
        return Store(folder).shape[1]
    except CallError:
        return 0


def bytes_on_disk(folder: Path) -> int:
    """Return the bytes of the pages that a folder's files take on a small disk."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return sum(-(-size // PAGE_BYTES) * PAGE_BYTES for size in sizes)


VANISHED = "a picture vanishes"
LIMITED = "limited file size"
# {kind of disk: (function that runs a command so that it fails, reason in its message)}
FAILURES: dict[str, tuple[Callable[[Setting, Command, Random], Failed], str]] = {
    LIMITED: (small_files, "File too large"),
    VANISHED: (vanished_picture, "No such file or directory"),
    "full disk": (full_disk, "No space left on device"),
    "read-only disk": (read_only_disk, "Read-only file system"),
}
MOUNTED = ("full disk", "read-only disk")


def fail(setting: Setting, disks: Sequence[str], names: Sequence[str], count: int) -> Rows:
    """Let each kind of disk fail each of some commands so often.

    A failed command says why in one line, and nothing is lost.

    Args:
        disks: keys of FAILURES. names: of commands.

    Returns:
        A row for each kind of disk, which counts, and says what was wrong.
    """
    random = np.random.default_rng(SEED)
    rows = []
    for disk in disks:
        failures = 0
        wrong: list[str] = []
        for name in names:
            command = setting.commands[name]
            # Only a build reads pictures, and what a removal writes is smaller than any limit.
            if disk == VANISHED and command.verb != "build":
                continue
            if disk == LIMITED and command.verb == "remove":
                continue
            lines = _fail_often(setting, disk, command, count, random)
            wrong += [f"{name}: {line}" for line in lines]
            failures += count
        rows.append(
            {"disk": disk, "failed commands": failures, "failures": len(wrong), "what": wrong}
        )
    return rows


def _fail_often(
    setting: Setting, disk: str, command: Command, count: int, random: Random
) -> list[str]:
    """Run a command until it has failed so often; what was wrong."""
    function, reason = FAILURES[disk]
    wrong = []
    failures = 0
    while failures < count:
        status, lines = function(setting, command, random)
        wrong += lines
        if status:  # else there was enough space, or it was done before the kill
            failures += 1
            message = (setting.folder / "failed").read_text().splitlines()
            if not tells_reason(status, message, reason):
                wrong.append(f"status {status}: {message}")
    return wrong

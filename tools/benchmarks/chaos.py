"""What an index makes of kills, damaged files and failing disks, at random: `tools/bench chaos`."""

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
from command_processes import (
    SHARD_ROWS,
    Command,
    exit_status,
    kill_at_random,
    measure_duration,
    start,
)
from digit_indexes import PICTURES, SEED, Setting
from file_damages import damage
from index_files import committed_shards, count_drafts, file_names, finish_and_compare

from gradindex.errors import CallError
from gradindex.store.store import Store

KILLS = {"build": 60, "build, more pictures": 60, "index": 40, "remove": 40}
DAMAGES, DISKS = 400, 5  # files damaged; times that each disk fails each command
PAGE_BYTES = 4096  # of a small disk
POLL_SECONDS = 0.001

COUNTED = {"kills": "kills", "damages": "damages", "disks": "failed commands"}
KILL_COUNTS = (
    "kills",
    "in the middle of a file",
    "shards found committed",
    "indexes compared",
)
Random = np.random.Generator
Rows = list[dict[str, Any]]


def run(work: Path, device: str, only: list[str]) -> None:
    """Try, print, and write docs/benchmarks/chaos.json and .md.

    Args:
        only: some of the parts "kills", "damages" and "disks".
    """
    folder = work / "chaos"
    parts: dict[str, Callable[[], Rows]] = {
        "damages": partial(_in_new_setting, folder / "damages", damage, DAMAGES)
    }
    for name, count in KILLS.items():
        parts[f"kills {name}"] = partial(_in_new_setting, folder / name, kill, name, count)
    parts["disks"] = partial(
        _in_new_setting, folder / "disks", fail, tuple(FAILURES), tuple(KILLS), DISKS
    )
    if only:
        parts = {name: part for name, part in parts.items() if name.split()[0] in only}
    rows_of_parts = record.measure(folder / "done", parts, device)
    results: dict[str, Any] = {"seed": SEED, "kills": [], "damages": [], "disks": []}
    for name, rows in rows_of_parts.items():
        results[name.split()[0]].extend(rows)
    text = page(results)
    print(text)
    if not only:
        record.save("chaos", device, "tools/bench chaos", results, text)


def _in_new_setting(folder: Path, trial: Callable[..., Rows], *arguments: Any) -> Rows:
    """What a trial gives in a setting of its own."""
    return trial(Setting(folder), *arguments)


def kill(setting: Setting, name: str, count: int) -> Rows:
    """Kill a command so often, each time at a random instant.

    Every other index is killed again before it is whole.

    Returns:
        One row that counts, and says what was wrong.
    """
    random = np.random.default_rng(SEED)
    command = setting.commands[name]
    folder, stderr = setting.folder / "place", setting.folder / "stderr"
    counts = Counter[str](dict.fromkeys(KILL_COUNTS, 0))
    wrong: list[str] = []
    seconds = measure_duration(command, folder, stderr)
    while counts["kills"] < count:
        command.lay_out(folder)
        while counts["kills"] < count:
            drafts = count_drafts(folder)
            if not kill_at_random(command, folder, seconds, random, stderr):
                break
            counts["kills"] += 1
            counts["in the middle of a file"] += count_drafts(folder) > drafts
            counts["shards found committed"] += len(committed_shards(folder))
            wrong += setting.check_stopped(folder, command)
            if random.random() < 0.5:
                break
        counts["indexes compared"] += 1
        wrong += finish_and_compare(command, folder, stderr)
    return [{"command": name, **counts, "failures": len(wrong), "what": wrong}]


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
        remount(disk, f"size={used + space}")
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
        kill_at_random(command, folder, seconds, random, stderr)
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
    status = exit_status(command.words(folder), setting.folder / "failed", limit)
    wrong = setting.check_stopped(folder, command)
    return status, wrong + finish_and_compare(command, folder, setting.folder / "stderr")


def vanished_picture(setting: Setting, command: Command, random: Random) -> Failed:
    """Run a build; a picture of the last shard is gone when its turn comes."""
    folder, away = setting.folder / "place", setting.folder / "away"
    data = Path(command.options[command.options.index("--data") + 1])
    command.lay_out(folder)
    ids = Store(command.after).sample_ids
    picture = data / ids[len(ids) - 2]
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
            if not _tells_reason(status, message, reason):
                wrong.append(f"status {status}: {message}")
    return wrong


def _tells_reason(status: int, message: Sequence[str], reason: str) -> bool:
    """Whether a command failed with status 1 and one line, its last, that says why."""
    errors = [line for line in message if line.startswith("Error: ")]
    return status == 1 and errors == message[-1:] and reason in message[-1]


def page(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    rows = [row for part in COUNTED for row in results[part]]
    counts = {}
    for part, column in COUNTED.items():
        counts[part] = sum(row[column] for row in results[part])
    introduction = record.fill_page(
        "chaos",
        pictures=PICTURES,
        shard_rows=SHARD_ROWS,
        seed=results["seed"],
        failures=sum(row["failures"] for row in rows),
        **counts,
    )
    sections = [introduction]
    for part in COUNTED:
        if results[part]:
            sections.append(record.fill_page(f"chaos-{part}", rows=_table(results[part])))
    wrong = [f"- {line}" for row in rows for line in row["what"]]
    if wrong:
        sections.append("\n".join(wrong))
    return "\n\n".join(sections).rstrip()


def _table(rows: Rows) -> str:
    """Rows without what was wrong."""
    counts = []
    for row in rows:
        counts.append({name: value for name, value in row.items() if name != "what"})
    return record.table(counts)

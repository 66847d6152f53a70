"""File systems that refuse what POSIX allows, imitated in the process of a command."""

import builtins
import errno
import io
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from command_processes import (
    Command,
    exit_status,
    measure_duration,
    stop_at_random,
    tells_reason,
)
from digit_indexes import SEED, Setting
from index_files import finish_and_compare

from gradindex.store import drafts

CHANGING = ("replace", "rename", "unlink", "mkdir", "rmdir")  # of os, beside opening a file
COUNTS = ("commands", "killed first", "refused")
KILLED_SHARE = 0.3  # of the commands that are killed on the file system and run again
NOT_IN_NAMES = set('"*:<>?\\|')  # characters that exFAT and SMB refuse in a name

Random = np.random.Generator


@dataclass(frozen=True)
class FileSystem:
    """What a file system refuses.

    Attributes:
        without: {function of os that it has not: error number}; "fsync" is meant of a folder, and
            "renameat2" with flags.
        keeps_open_files: whether a file that is open can be neither renamed over nor deleted.
        busy_share: of the calls that change something or open a file, how many fail at random.
    """

    without: dict[str, int] = field(default_factory=dict)
    keeps_open_files: bool = False
    busy_share: float = 0.0


EXFAT = {
    "link": errno.EPERM,
    "symlink": errno.EPERM,
    "chmod": errno.EPERM,
    "fsync": errno.EINVAL,
    "renameat2": errno.EINVAL,
}
SMB = {
    "link": errno.EOPNOTSUPP,
    "symlink": errno.EOPNOTSUPP,
    "chmod": errno.EACCES,
    "fsync": errno.EBADF,
    "renameat2": errno.EINVAL,
}
SELDOM_BUSY, OFTEN_BUSY = "SMB, busy at times", "SMB, busy often"
FILE_SYSTEMS = {
    "exFAT": FileSystem(EXFAT),
    "SMB": FileSystem(SMB, keeps_open_files=True),
    SELDOM_BUSY: FileSystem(SMB, keeps_open_files=True, busy_share=0.002),
    OFTEN_BUSY: FileSystem(SMB, keeps_open_files=True, busy_share=0.05),
}
BUSY = (errno.EBUSY, errno.EACCES)  # what it answers then


def imitate(kind: str, folder: Path, seed: int) -> None:
    """From now on, have this process's calls in a folder refused as on a file system.

    Args:
        kind: a key of FILE_SYSTEMS. seed: of the calls that fail at random.
    """
    file_system = FILE_SYSTEMS[kind]
    random = np.random.default_rng(seed)
    for name, number in file_system.without.items():
        if name not in ("fsync", "renameat2"):
            _check_before(os, name, partial(_refuse, folder, number))
    _check_before(os, "fsync", partial(_refuse_folder, file_system.without["fsync"]))
    # The store calls renameat2 by ctypes.
    library = SimpleNamespace(renameat2=lambda *arguments: -1)
    number = file_system.without["renameat2"]
    kernel = SimpleNamespace(CDLL=lambda *args, **options: library, get_errno=lambda: number)
    drafts.ctypes = kernel  # type: ignore[assignment]
    if file_system.keeps_open_files:
        for name in ("replace", "rename", "unlink"):
            _check_before(os, name, partial(_refuse_open, folder))
    openings = ((os, "open"), (io, "open"), (builtins, "open"))
    for module, name in openings:
        _check_before(module, name, partial(_refuse_name, folder))
    for module, name in (*openings, *((os, name) for name in CHANGING)):
        _check_before(module, name, partial(_refuse_at_times, folder, file_system, random))


def _check_before(module: ModuleType, name: str, check: Callable[..., None]) -> None:
    """Let a function of a module first call another one, with its arguments."""
    original = getattr(module, name)

    def checked(*arguments: Any, **options: Any) -> Any:
        check(*arguments, **options)
        return original(*arguments, **options)

    setattr(module, name, checked)


def _paths_in(folder: Path, arguments: Sequence[Any], options: dict[str, Any]) -> list[str]:
    """Those of a call's paths that lie in a folder, absolute."""
    parent = options.get("dir_fd")
    base = os.getcwd() if parent is None else os.readlink(f"/proc/self/fd/{parent}")
    paths = [
        os.path.join(base, os.fsdecode(argument))
        for argument in arguments[:2]
        if isinstance(argument, str | bytes | os.PathLike)
    ]
    return [path for path in paths if Path(path).is_relative_to(folder)]


def _failure(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def _refuse(folder: Path, number: int, *arguments: Any, **options: Any) -> None:
    """Raise OSError where a call is about something in the folder."""
    for path in _paths_in(folder, arguments, options):
        raise _failure(number, path)


def _refuse_folder(number: int, descriptor: int) -> None:
    """Raise OSError where a folder is to be synced."""
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise _failure(number, os.readlink(f"/proc/self/fd/{descriptor}"))


def _refuse_open(folder: Path, *arguments: Any, **options: Any) -> None:
    """Raise OSError where the file that would go, the last argument, is open in this process."""
    paths = _paths_in(folder, arguments, options)
    if paths and os.path.realpath(paths[-1]) in _open_files():
        raise _failure(errno.EACCES, paths[-1])


def _open_files() -> set[str]:
    """The files that this process has open, or mapped to memory."""
    files = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            files.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:  # that of listing them
            continue
    with open("/proc/self/maps") as maps:
        files.update(line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/" in line)
    return files


def _refuse_name(folder: Path, *arguments: Any, **options: Any) -> None:
    """Raise OSError where a file is opened whose name has a character that is not allowed."""
    for path in _paths_in(folder, arguments, options):
        if NOT_IN_NAMES & set(os.path.relpath(path, folder)):
            raise _failure(errno.EINVAL, path)


def _refuse_at_times(
    folder: Path, file_system: FileSystem, random: Random, *arguments: Any, **options: Any
) -> None:
    """Raise OSError for some of the calls in the folder, at random."""
    paths = _paths_in(folder, arguments, options)
    if paths and random.random() < file_system.busy_share:
        raise _failure(int(random.choice(BUSY)), paths[-1])


def refuse(
    setting: Setting, kinds: Sequence[str], names: Sequence[str], count: int
) -> list[dict[str, Any]]:
    """Run each of some commands so often on each kind of file system, some after a kill there.

    Where nothing fails at random, the command has to succeed, and the index to be, byte for byte,
    that of an undisturbed run. Elsewhere it may also fail with one line that says why; nothing is
    lost then, and run again where nothing is refused it makes that index.

    Args:
        kinds: keys of FILE_SYSTEMS. names: of commands.

    Returns:
        A row for each kind, which counts, and says what was wrong.
    """
    random = np.random.default_rng(SEED)
    rows = []
    for kind in kinds:
        counts = dict.fromkeys(COUNTS, 0)
        wrong: list[str] = []
        for name in names:
            command = setting.commands[name]
            for _ in range(count):
                lines = _run_once(setting, kind, command, counts, random)
                wrong += [f"{name}: {line}" for line in lines]
        rows.append({"file system": kind, **counts, "failures": len(wrong), "what": wrong})
    return rows


def _run_once(
    setting: Setting, kind: str, command: Command, counts: dict[str, int], random: Random
) -> list[str]:
    """Run a command on a kind of file system; what was wrong. What happened is counted."""
    folder, stderr = setting.folder / "place", setting.folder / "stderr"
    prepare = partial(imitate, kind, folder, int(random.integers(2**32)))
    wrong = []
    counts["commands"] += 1
    killed = random.random() < KILLED_SHARE
    seconds = measure_duration(command, folder, stderr) if killed else 0.0
    command.lay_out(folder)
    if killed:
        stop_at_random(command, folder, seconds, random, stderr, prepare=prepare)
        counts["killed first"] += 1
        wrong += setting.check_stopped(folder, command)
    if not FILE_SYSTEMS[kind].busy_share:
        return wrong + finish_and_compare(command, folder, stderr, prepare)
    failed = setting.folder / "failed"
    status = exit_status(command.words(folder), failed, prepare)
    if status:
        counts["refused"] += 1
        message = failed.read_text().splitlines()
        if not any(tells_reason(status, message, os.strerror(number)) for number in BUSY):
            wrong.append(f"status {status}: {message}")
        wrong += setting.check_stopped(folder, command)
    return wrong + finish_and_compare(command, folder, stderr)

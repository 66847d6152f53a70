"""Use gradindex on a Python that has nothing of what only POSIX systems have.

`python tests/bare_system.py FOLDER` imports every module of gradindex, records a training log,
builds indexes from FOLDER/model and FOLDER/pictures and asks them, as it is; then it takes these
modules and names away and does all of it again. It prints both findings as JSON. So other packages
were imported before: on systems that lack these names they have ways of their own.
"""

import ctypes
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1] / "gradindex"

# Modules of the standard library that Windows has not.
MODULES = {"fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}

# Names of `os` that Windows has not; and `link`, which Android has not.
NAMES = " ".join(
    [
        "chown chroot confstr copy_file_range ctermid eventfd fchdir fchmod fchown fdatasync",
        "fork forkpty fpathconf fstatvfs getegid geteuid getgid getgrouplist getgroups",
        "getloadavg getpgid getpgrp getpriority getrandom getresgid getresuid getsid getuid",
        "getxattr initgroups killpg lchown link listxattr lockf major makedev memfd_create",
        "minor mkfifo mknod nice openpty pathconf pidfd_open pipe2 posix_fadvise",
        "posix_fallocate posix_spawn posix_spawnp pread preadv pwrite pwritev readv",
        "register_at_fork removexattr sched_getaffinity sched_setaffinity sched_yield",
        "sendfile setegid seteuid setgid setgroups setpgid setpgrp setpriority setregid",
        "setresgid setresuid setreuid setsid setuid setxattr splice statvfs sync sysconf",
        "tcgetpgrp tcsetpgrp ttyname uname wait wait3 wait4 waitid writev O_ACCMODE O_ASYNC",
        "O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC O_NDELAY O_NOATIME O_NOCTTY O_NOFOLLOW",
        "O_NONBLOCK O_PATH O_RSYNC O_SYNC O_TMPFILE",
    ]
).split()


class Absent:
    """Finds none of MODULES, and leaves other modules to others."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def strip() -> None:
    """Take MODULES and NAMES away, and the C library of this process."""
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Absent())  # type: ignore[arg-type]
    for name in NAMES:
        if hasattr(os, name):
            delattr(os, name)
    load_library = ctypes.CDLL.__init__

    def load_named_library(self: Any, name: str | None, *more: Any, **options: Any) -> None:
        if name is None:
            raise TypeError("bad argument type for built-in operation")  # as Windows says
        load_library(self, name, *more, **options)

    ctypes.CDLL.__init__ = load_named_library  # type: ignore[method-assign]


def import_all() -> list[str]:
    """Import every module of gradindex but `__main__`, which runs; return their names."""
    names = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        names.append(".".join(parts).removesuffix(".__init__"))
    names.remove("gradindex.__main__")
    for name in names:
        importlib.import_module(name)
    return names


def forget_all() -> None:
    """Have the modules of gradindex imported anew, but not those of other packages."""
    for name in [*sys.modules]:
        if name.partition(".")[0] == "gradindex":
            del sys.modules[name]


def record_log(path: Path, ids: list[str]) -> list[int]:
    """Record two steps of a training over all pictures; return the timesteps that were drawn."""
    from gradindex import TrainingRecorder

    with TrainingRecorder(path, seed=3) as recorder:
        drawn = [recorder.draw(ids, (1, 8, 8), step)[0] for step in range(2)]
        recorder.checkpoint(2, path.parents[1] / "model", lr=1e-3)
    return [int(t) for timesteps in drawn for t in timesteps]


def use(folder: Path, name: str) -> dict[str, Any]:
    """Record, build, ask, verify and remove in `folder/name`; return what came of it."""
    import gradindex
    from gradindex.builder.upkeep import remove
    from gradindex.builder.verify import damages
    from gradindex.data.training_log import open_log

    pictures = sorted((folder / "pictures").iterdir())
    ids = [file.name for file in pictures]
    out = folder / name
    timesteps = record_log(out / "log", ids)
    options: dict[str, Any] = {
        "model": folder / "model",
        "data": folder / "pictures",
        "dim": 16,
        "device": "cpu",
    }
    log = out / "log"
    recorded = gradindex.build(out / "recorded", timesteps="recorded", log=log, **options)
    index = gradindex.build(out / "grid", timesteps=2, **options)
    scores = index.scores(pictures[:2])
    answers = [result.ids for result in index.query(pictures[:2], k=3)]
    broken = [*damages(out / "grid")]
    remove(out / "grid", ids[:1])
    # Read anew, and overwritten by a build of another recipe.
    left = gradindex.open(out / "grid").query(pictures[:1], k=3)[0].ids
    gradindex.build(out / "grid", timesteps=1, overwrite=True, **options)
    return {
        "timesteps": timesteps,
        "read": open_log(log).events["timestep"].tolist(),
        "recorded": recorded.scores(pictures[:1]).tolist(),
        "scores": scores.tolist(),
        "answers": answers,
        "damages": broken,
        "files": sorted(str(file.relative_to(out)) for file in out.rglob("*")),
        "after_removal": left,
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    findings = {"complete": {"modules": import_all(), **use(place, "complete")}}
    forget_all()
    strip()
    findings["bare"] = {"modules": import_all(), **use(place, "bare")}
    print(json.dumps(findings))

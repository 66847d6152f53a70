"""Kills, damaged files and failing disks, at random, and what an index makes of them: `tools/bench chaos`."""

import shutil
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
from trials import (
    PICTURES,
    SHARD_ROWS,
    Command,
    Setting,
    committed,
    differences,
    drafts_in,
    duration,
    files_of,
    kill_at_random,
    start,
    status,
    unlike,
)

from gradindex.errors import CallError, StoreError
from gradindex.search_index import METHODS
from gradindex.store import Store
from gradindex.verify import damages

SEED = 0
KILLS = {"build": 60, "build, more pictures": 60, "index": 40, "remove": 40}
DAMAGES, DISKS = 400, 5  # files damaged; times that each disk fails each command

COUNTED = {"kills": "kills", "damages": "damages", "disks": "failed commands"}
FACTS = ("kills", "in the middle of a file", "shards found committed", "indexes compared")
Random = np.random.Generator


def run(work: Path, device: str, only: list[str]) -> None:
    """Try, print, and write docs/benchmarks/chaos.json and .md; `only` names parts: kills, damages, disks."""
    folder = work / "chaos"
    parts: dict[str, Callable[[], Any]] = {
        "damages": partial(tried, folder / "damages", damage, DAMAGES),
        **{f"kills {name}": partial(tried, folder / name, kill, name, count) for name, count in KILLS.items()},
        "disks": partial(tried, folder / "disks", fail, tuple(FAILURES), tuple(KILLS), DISKS),
    }
    chosen = {name: part for name, part in parts.items() if not only or name.split()[0] in only}
    found = record.measure(folder / "done", chosen, device)
    results: dict[str, Any] = {"seed": SEED, "kills": [], "damages": [], "disks": []}
    for name, rows in found.items():
        results[name.split()[0]].extend(rows)
    text = page(results)
    print(text)
    if not only:
        record.save("chaos", device, "tools/bench chaos", results, text)


def tried(folder: Path, trial: Callable[..., list[dict[str, Any]]], *arguments: Any) -> list[dict[str, Any]]:
    """What a trial finds in a setting of its own."""
    return trial(Setting(folder), *arguments)


def kill(setting: Setting, name: str, count: int) -> list[dict[str, Any]]:
    """Kill a command so often, each time at a random instant; every other index is killed again before it is whole."""
    random, place, stderr = np.random.default_rng(SEED), setting.folder / "place", setting.folder / "stderr"
    command, facts = setting.commands[name], Counter[str](dict.fromkeys(FACTS, 0))
    wrong: list[str] = []
    seconds = duration(command, place, stderr)
    while facts["kills"] < count:
        command.begin(place)
        while facts["kills"] < count:
            drafts = drafts_in(place)
            if not kill_at_random(command, place, seconds, random, stderr):
                break
            facts["kills"] += 1
            facts["in the middle of a file"] += drafts_in(place) > drafts
            facts["shards found committed"] += len(committed(place))
            wrong += setting.wrong(place, command)
            if random.random() < 0.5:
                break
        facts["indexes compared"] += 1
        wrong += unlike(command, place, stderr)
    return [{"command": name, **facts, "failures": len(wrong), "what": wrong}]


def flip(file: Path, random: Random) -> None:
    content = bytearray(file.read_bytes())
    content[random.integers(len(content))] ^= 1 << random.integers(8)
    file.write_bytes(content)


def cut(file: Path, random: Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: random.integers(1, len(content))])


def empty(file: Path, random: Random) -> None:
    file.write_bytes(b"")


def delete(file: Path, random: Random) -> None:
    file.unlink()


HARMS: dict[str, Callable[[Path, Random], None]] = {"flip a bit": flip, "cut": cut, "empty": empty, "delete": delete}
EXCHANGE, COPY_OVER = "exchange with a sibling", "copy a sibling over it"


def harm(place: Path, name: str, kind: str, random: Random) -> list[str]:
    """Damage a file of an index; which files are no longer as they were."""
    if kind in HARMS:
        HARMS[kind](place / name, random)
        return [name]
    other = sibling(place, name, random)
    mine, theirs = ((place / each).read_bytes() for each in (name, other))
    (place / name).write_bytes(theirs)
    if kind == COPY_OVER:
        return [name]
    (place / other).write_bytes(mine)
    return sorted([name, other])


def sibling(place: Path, name: str, random: Random) -> str:
    """A file of the same kind with other content: of the same folder where there is one, else of the same ending."""
    content, suffix = (place / name).read_bytes(), Path(name).suffix
    others = [other for other in files_of(place) if Path(other).suffix == suffix]
    others = [other for other in others if (place / other).read_bytes() != content]
    near = [other for other in others if other.partition("/")[0] == name.partition("/")[0]]
    return str(random.choice(near or others))


def damage(setting: Setting, count: int) -> list[dict[str, Any]]:
    """Damage so many files, one after the other, each of a fresh copy: it is named, never believed, and mended."""
    random, folder, place = np.random.default_rng(SEED), setting.folder, setting.folder / "place"
    kinds = (*HARMS, COPY_OVER, EXCHANGE)
    rows = {kind: Counter(dict.fromkeys(("damages", "true answers", "refusals"), 0)) for kind in kinds}
    wrong: dict[str, list[str]] = {kind: [] for kind in kinds}
    names, files = files_of(setting.whole), list[str]()
    for _ in range(count):
        files = files or random.permutation(names).tolist()
        name, kind = files.pop(), str(random.choice(kinds))
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(setting.whole, place)
        harmed = harm(place, name, kind, random)
        rows[kind]["damages"] += 1
        found = []
        if (named := sorted(line.split()[0] for line in damages(place))) != harmed:
            found.append(f"verify names {named}")
        for method in METHODS:
            shutil.rmtree(folder / "copy", ignore_errors=True)
            shutil.copytree(place, folder / "copy")  # a query may mend search files
            try:
                right = setting.answer(folder / "copy", method) == setting.truth[setting.whole][method]
                rows[kind]["true answers"] += right
                found += [] if right else [f"another answer of {method}"]
            except StoreError:
                rows[kind]["refusals"] += 1
        if status(setting.again.words(place), folder / "stderr"):
            found.append(f"the build fails: {(folder / 'stderr').read_text()}")
        found += [*damages(place), *differences(place, setting.whole)]
        wrong[kind] += [f"{' and '.join(harmed)}: {what}" for what in found]
    return [{"damage": kind, **facts, "failures": len(wrong[kind]), "what": wrong[kind]}
            for kind, facts in rows.items()]  # fmt: skip


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A small disk of its own; only root may have one."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def may_mount(folder: Path) -> bool:
    """Whether this process may have small disks."""
    try:
        with disk(folder, "size=64k"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


Failed = tuple[int, list[str]]  # exit status, what is wrong with the index afterwards


def full_disk(setting: Setting, command: Command, random: Random) -> Failed:
    """It has not the room for what the command adds."""
    with disk(setting.folder / "disk", "size=64m") as root:
        command.begin(root / "place")
        used, growth = size(root), size(command.after) - size(command.before)
        remount(root, f"size={used + int(random.uniform(0, max(growth, 4096))) // 4096 * 4096}")
        failed = status(command.words(root / "place"), setting.folder / "failed")
        wrong = setting.wrong(root / "place", command)
        remount(root, "size=64m")
        return failed, wrong + unlike(command, root / "place", setting.folder / "stderr")


def read_only_disk(setting: Setting, command: Command, random: Random) -> Failed:
    """The command was killed on it, and is run again."""
    with disk(setting.folder / "disk", "size=64m") as root:
        seconds = duration(command, root / "place", setting.folder / "stderr")
        command.begin(root / "place")
        kill_at_random(command, root / "place", seconds, random, setting.folder / "stderr")
        remount(root, "ro")
        failed = status(command.words(root / "place"), setting.folder / "failed")
        wrong = setting.wrong(root / "place", command)
        remount(root, "rw")
        return failed, wrong + unlike(command, root / "place", setting.folder / "stderr")


def small_files(setting: Setting, command: Command, random: Random) -> Failed:
    """No file may be larger than a random limit, as with a quota."""
    place = setting.folder / "place"
    command.begin(place)
    largest = max((command.after / name).stat().st_size for name in files_of(command.after))
    failed = status(command.words(place), setting.folder / "failed", int(random.integers(1024, largest)))
    wrong = setting.wrong(place, command)
    return failed, wrong + unlike(command, place, setting.folder / "stderr")


def vanished_picture(setting: Setting, command: Command, random: Random) -> Failed:
    """A picture of the last shard is gone when its turn comes."""
    place, data = setting.folder / "place", Path(command.options[command.options.index("--data") + 1])
    command.begin(place)
    ids = Store(command.after).sample_ids
    file = data / ids[len(ids) - 2]
    process = start(command.words(place), setting.folder / "failed")
    while process.is_alive() and pictures_in(place) < len(ids):
        time.sleep(0.001)
    file.rename(setting.folder / "away")
    process.join()
    wrong = setting.wrong(place, command)
    (setting.folder / "away").rename(file)
    return process.exitcode or 0, wrong + unlike(command, place, setting.folder / "stderr")


def pictures_in(place: Path) -> int:
    try:
        return Store(place).shape[1]
    except CallError:
        return 0


def size(place: Path | None) -> int:
    """Bytes of the pages that its files take on a small disk."""
    if place is None:
        return 0
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in place.rglob("*") if file.is_file())


VANISHED = "a picture vanishes"
FAILURES: dict[str, tuple[Callable[[Setting, Command, Random], Failed], str]] = {
    "limited file size": (small_files, "File too large"),
    VANISHED: (vanished_picture, "No such file or directory"),
    "full disk": (full_disk, "No space left on device"),
    "read-only disk": (read_only_disk, "Read-only file system"),
}
MOUNTED = ("full disk", "read-only disk")


def fail(setting: Setting, kinds: Sequence[str], names: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Let each kind of disk fail each of these commands so often: one line that says why, and nothing is lost."""
    random, rows = np.random.default_rng(SEED), []
    for kind in kinds:
        function, reason = FAILURES[kind]
        failures, wrong = 0, list[str]()
        for name in names:
            command = setting.commands[name]
            if kind == VANISHED and command.verb != "build":
                continue
            done = 0
            while done < count:
                failed, found = function(setting, command, random)
                if failed:  # else there was enough room, or it was done before the kill
                    done += 1
                    lines = (setting.folder / "failed").read_text().splitlines()
                    if failed != 1 or len(lines) != 1 or not lines[0].startswith("Error: ") or reason not in lines[0]:
                        found.append(f"status {failed}: {lines}")
                wrong += [f"{name}: {what}" for what in found]
            failures += done
        rows.append({"disk": kind, "failed commands": failures, "failures": len(wrong), "what": wrong})
    return rows


INTRODUCTION = """# What kills, damaged files and failing disks do to an index

{pictures} of scikit-learn's digits, a small `UNet2DModel`, shards of {shard} pictures; seed {seed}. All is counted,
nothing is timed.

{kills} kills (SIGKILL), {damages} damaged files, {disks} failed disks: **{failures} failures**.
"""
KILLED = """## Kills

Each command runs in a process of its own that is killed at a random instant. After every kill the rows committed so far
read back as those of an undisturbed run, and an index that had been finished answers as before the command or as after
it; half of the indexes are killed again before they are whole. Then the command is run to its end. Every file of the
index is byte for byte that of an undisturbed run (but for the measured time of a search), no committed shard was made
twice, and `verify` calls the index whole.

*In the middle of a file*: a draft without its name was left over, which nothing reads.
"""
DAMAGED = """## Damages

Each time one file, or the two that are exchanged, of a finished index that has grown and lost pictures; every file in
turn. `verify` names it and nothing else; a query of each method gives the true answer or refuses; the same build mends
the index, again byte for byte.
"""
FAILED = """## Disks

Each of `build`, a build over more pictures, `index` and `remove` (a vanishing picture: the builds). A failed command
says why in one line, with status 1. What was committed stays, the index answers as before, and the command goes on when
the disk does.
"""


def page(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    counts = {part: sum(row[what] for row in results[part]) for part, what in COUNTED.items()}
    rows = [row for part in COUNTED for row in results[part]]
    facts = {"pictures": PICTURES, "shard": SHARD_ROWS, "seed": results["seed"], **counts}
    parts = [INTRODUCTION.format(**facts, failures=sum(row["failures"] for row in rows))]
    for part, text in zip(COUNTED, (KILLED, DAMAGED, FAILED), strict=True):
        if results[part]:
            shown = [{name: value for name, value in row.items() if name != "what"} for row in results[part]]
            parts += [text, record.table(shown) + "\n"]
    return "\n".join(parts + [f"- {what}" for row in rows for what in row["what"]]).rstrip()

"""Pictures that are removed while builds grow the index: no removal is lost."""

import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from command_processes import Command, exit_status, measure_duration, require_done
from digit_indexes import SEED, Setting, are_alike
from index_files import differences_from_either

from gradindex.builder.upkeep import id_key
from gradindex.builder.verify import damages
from gradindex.store.removals import REMOVED
from gradindex.store.store import Store

ONE_AFTER_ANOTHER, AT_ONCE = "one after the other", "at the same time"
KINDS = (ONE_AFTER_ANOTHER, AT_ONCE)  # of two builds
COUNTS = ("runs", "removals", "removals before the builds ended")

Random = np.random.Generator


@dataclass(frozen=True)
class Step:
    """A command that runs after a pause.

    Attributes:
        pause: seconds.
    """

    pause: float
    words: Sequence[str]


@dataclass(frozen=True)
class End:
    """How a step ended.

    Attributes:
        verb: of its command. instant: by time.perf_counter. message: its stderr.
    """

    verb: str
    status: int
    instant: float
    message: str


def remove_during_builds(
    setting: Setting, kinds: Sequence[str], count: int
) -> list[dict[str, Any]]:
    """Let two builds grow an index, while two commands remove pictures from it, so often.

    Args:
        kinds: of KINDS.

    Returns:
        A row for each kind, which counts, and says what was wrong.
    """
    random = np.random.default_rng(SEED)
    growth = setting.commands["build, more pictures"]
    seconds = measure_duration(growth, setting.folder / "place", setting.folder / "stderr")
    half_growth = grow_by_half(growth, setting.folder / "half")
    rows = []
    for kind in kinds:
        counts = dict.fromkeys(COUNTS, 0)
        wrong: list[str] = []
        builds = [half_growth, growth] if kind == ONE_AFTER_ANOTHER else [growth, growth]
        undisturbed = make_undisturbed(setting, builds)
        anew = setting.folder / "undisturbed-anew"
        setting.make_factors_anew(undisturbed, anew)
        for _ in range(count):
            wrong += _grow_and_remove(setting, kind, builds, seconds, counts, random)
            wrong += _check_removed(setting, growth, undisturbed, anew)
        rows.append({"two builds": kind, **counts, "failures": len(wrong), "what": wrong})
    return rows


def make_undisturbed(setting: Setting, builds: Sequence[Command]) -> Path:
    """Return an index that builds made and that lost its pictures then, one after the other."""
    index = setting.folder / "undisturbed"
    builds[0].lay_out(index)
    for command in (*builds, setting.commands["remove"]):
        require_done(command.words(index), setting.folder / "stderr")
    return index


def grow_by_half(growth: Command, folder: Path) -> Command:
    """Return a build that adds the first half of a growth's new pictures.

    Args:
        folder: gets its pictures.
    """
    assert growth.before
    old_ids, all_ids = (list(Store(index).sample_ids) for index in (growth.before, growth.after))
    new_ids = all_ids[len(old_ids) :]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in [*old_ids, *new_ids[: len(new_ids) // 2]]:
        shutil.copy2(growth.data / name, folder)
    options = [str(folder) if word == str(growth.data) else word for word in growth.options]
    return replace(growth, options=tuple(options))


def _grow_and_remove(
    setting: Setting,
    kind: str,
    builds: Sequence[Command],
    seconds: float,
    counts: dict[str, int],
    random: Random,
) -> list[str]:
    """Run two builds and two removals; what was wrong. What happened is counted.

    Args:
        seconds: that one build takes.
    """
    folder = setting.folder / "place"
    first, last = (build.words(folder) for build in builds)
    pictures = setting.commands["remove"].options
    split = int(random.integers(1, len(pictures)))
    if kind == ONE_AFTER_ANOTHER:
        lanes = [[Step(0, first), Step(0, last)]]
    else:
        lanes = [[Step(0, first)], [Step(random.uniform(0, seconds), last)]]
    for names in (pictures[:split], pictures[split:]):
        pause = random.uniform(0, 1.5 * seconds)
        lanes.append([Step(pause, ["remove", str(folder), *names])])
    builds[0].lay_out(folder)
    with ThreadPoolExecutor(len(lanes)) as pool:
        stderrs = [setting.folder / f"stderr-{number}" for number in range(len(lanes))]
        ends = [end for lane in pool.map(_take_steps, lanes, stderrs) for end in lane]
    counts["runs"] += 1
    built = max(end.instant for end in ends if end.verb == "build")
    for end in ends:
        if end.verb == "remove":
            counts["removals"] += 1
            counts["removals before the builds ended"] += end.instant < built
    return [f"{end.verb}: status {end.status}: {end.message}" for end in ends if end.status]


def _take_steps(steps: Sequence[Step], stderr: Path) -> list[End]:
    """Run commands one after the other; how each ended."""
    ends = []
    for step in steps:
        time.sleep(step.pause)
        status = exit_status(step.words, stderr)
        ends.append(End(step.words[0], status, time.perf_counter(), stderr.read_text()))
    return ends


def _check_removed(setting: Setting, build: Command, undisturbed: Path, anew: Path) -> list[str]:
    """What is wrong unless the index is the undisturbed one, now and after one more build.

    It holds two removals in place of one; every other file is the same, byte for byte. Whitening
    factors may be those made anew: a build makes them so when it finds another one writing them.
    """
    folder, stderr = setting.folder / "place", setting.folder / "stderr"
    keys = {id_key(name) for name in setting.commands["remove"].options}
    wrong = []
    for when in ("after the builds", "after one more"):
        lost = keys - set(Store(folder).header.removed)
        if lost:
            wrong.append(f"{when}: {len(lost)} of {len(keys)} pictures are not removed")
        lines = [*_differences_but_removals(folder, undisturbed, anew), *damages(folder)]
        if not are_alike(setting.answers(folder), setting.truth[setting.whole]):
            lines.append("another answer")
        wrong += [f"{when}: {line}" for line in lines]
        if exit_status(build.words(folder), stderr):
            wrong.append(f"one more build: {stderr.read_text()}")
    return wrong


def _differences_but_removals(folder: Path, undisturbed: Path, anew: Path) -> list[str]:
    """In which files an index differs from the undisturbed one, the removals' files aside."""
    lines = differences_from_either(folder, undisturbed, anew)
    return [line for line in lines if not line.startswith(f"{REMOVED}/")]

"""What an index makes of kills, damages and all that fails, at random: `tools/bench chaos`."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import record
from chaos_kills import SIGNALS, kill
from command_processes import SHARD_ROWS
from digit_indexes import COMMANDS, PICTURES, SEED, Setting
from failing_buckets import AT_TIMES, EXTENTS, fail_in_bucket
from failing_disks import FAILURES, fail
from faulty_bucket import FAULTS
from file_damages import damage
from refusing_file_systems import FILE_SYSTEMS, OFTEN_BUSY, SELDOM_BUSY, refuse
from removals_in_builds import KINDS, remove_during_builds

KILLS = dict(zip(COMMANDS, (110, 130, 140, 140), strict=True))  # with each signal
DAMAGES = 1080  # files damaged
DISKS, REFUSALS, BUCKETS = 5, 10, 3  # times that each kind of them tries each command
REMOVALS = 60  # runs of each kind

Rows = list[dict[str, Any]]


# {kind of part: the column of its rows that counts what was tried}
COUNTED = {
    "kills": "kills",
    "damages": "damages",
    "disks": "failed commands",
    "refusals": "commands",
    "removals": "removals",
    "buckets": "commands",
    "fuzz": "inputs",
}


def run(work: Path, device: str, only: list[str]) -> None:
    """Try, print, and write docs/benchmarks/chaos.json and .md.

    Args:
        only: some of the keys of COUNTED.
    """
    folder = work / "chaos"
    parts = _parts(folder)
    if only:
        parts = {name: part for name, part in parts.items() if _kind(name) in only}
    rows_of_parts = record.measure(folder / "done", parts, device)
    results: dict[str, Any] = {"seed": SEED, **{kind: [] for kind in COUNTED}}
    for name, rows in rows_of_parts.items():
        results[_kind(name)].extend(rows)
    text = page(results)
    print(text)
    if not only:
        record.save("chaos", device, "tools/bench chaos", results, text)


def _parts(folder: Path) -> dict[str, Callable[[], Rows]]:
    """What is tried, {name: how to}; each in a folder of its own."""
    trials: dict[str, tuple[Any, ...]] = {"damages": (damage, DAMAGES)}
    for name, count in KILLS.items():
        for signal_name in SIGNALS:
            trials[f"kills {name} {signal_name}"] = (kill, name, signal_name, count)
    trials["disks"] = (fail, tuple(FAILURES), COMMANDS, DISKS)
    for kind in FILE_SYSTEMS:
        trials[f"refusals {kind}"] = (refuse, (kind,), COMMANDS, REFUSALS)
    for kind in KINDS:
        trials[f"removals {kind}"] = (remove_during_builds, (kind,), REMOVALS)
    for fault in FAULTS:
        trials[f"buckets {fault}"] = (fail_in_bucket, (fault,), COMMANDS, BUCKETS)
    parts: dict[str, Callable[[], Rows]] = {}
    for name, (trial, *arguments) in trials.items():
        parts[name] = partial(_in_new_setting, folder / name, trial, *arguments)
    parts["fuzz"] = partial(_fuzz, folder / "fuzz")
    return parts


def _kind(name: str) -> str:
    """The key of COUNTED that a part belongs to."""
    return name.split()[0]


def _fuzz(folder: Path) -> Rows:
    """What comes of hostile inputs."""
    # With the tests' models it sets torch's threads, which say how many parts run side by side.
    from fuzz import INPUTS, fuzz

    return fuzz(folder, INPUTS)


def _in_new_setting(folder: Path, trial: Callable[..., Rows], *arguments: Any) -> Rows:
    """What a trial gives in a setting of its own."""
    return trial(Setting(folder), *arguments)


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
    shares = {
        "seldom": FILE_SYSTEMS[SELDOM_BUSY].busy_share,
        "often": FILE_SYSTEMS[OFTEN_BUSY].busy_share,
        "share": EXTENTS[AT_TIMES],
    }
    percents = {name: f"{100 * share:g} %" for name, share in shares.items()}
    sections = [introduction]
    for part in COUNTED:
        if results[part]:
            rows_of_part = _table(results[part])
            sections.append(record.fill_page(f"chaos-{part}", rows=rows_of_part, **percents))
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

"""Which parameters and which timesteps are worth their gradients: `tools/bench parts`.

Exact gradients of many timesteps are taken once; scores of every part of a model at every set of
timesteps come from their products, and are judged by models trained on random halves.
"""

import json
import os
from pathlib import Path
from typing import Any

import record
from kept_losses import PARTS, keep_losses, restore_losses
from parts_builds import builds
from parts_page import page
from parts_plots import draw, draw_timesteps
from parts_removals import removals
from parts_results import measure
from parts_subjects import NAMES, SMOKE, measured_subject
from parts_timesteps import TIMESTEPS, timestep_sets
from subset_models import all_subset_losses

TRAIN, KEEP, BUILDS, REMOVALS, PAGE = "train", "keep", "builds", "removals", "page"
FILE = "parts-results.json"  # a subject's figures, in its folder
# The figures of whole builds, and of pictures that are taken out, in the work folder.
BUILDS_FILE, REMOVALS_FILE = "parts-builds.json", "parts-removals.json"


def run(work: Path, device: str, only: list[str]) -> None:
    """Train, measure, print, and write docs/benchmarks/parts.json, .md and two plots.

    Args:
        only: names of subjects: these are measured, and the page of all that were measured so far
            goes into the work folder. Or what else to do: "train" trains their models, "keep" puts
            the losses of those trained so far into docs, from where another machine takes them,
            "builds" measures whole builds, "removals" what taking pictures out does, and "page"
            publishes the page, with the published figures where the work folder has none. "smoke"
            tries everything on few pictures; its page shows it alone.
    """
    actions = (TRAIN, KEEP, BUILDS, REMOVALS, PAGE)
    names = [name for name in only if name not in actions]
    known = (*NAMES, SMOKE)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise SystemExit(f"{unknown[0]}: no subject; give {', '.join((*actions, *known))}")
    if KEEP in only:
        for name in names or NAMES:
            measured = measured_subject(name, work)
            if not (work / measured.folder / "generated.npy").exists():
                continue  # nothing was trained here
            count = keep_losses(PARTS, name, work / measured.folder, measured.subject)
            print(f"{name}: {count} models")
        return
    if not only or set(only) - {BUILDS, REMOVALS, PAGE}:
        for name in names or NAMES:
            measure_subject(work, name, TRAIN in only)
    if TRAIN in only:
        return
    if not only or BUILDS in only:
        write_whole(work / BUILDS_FILE, builds(work))
    if not only or REMOVALS in only:
        write_whole(work / REMOVALS_FILE, removals(work))
    shown = [SMOKE] if names == [SMOKE] else list(NAMES)
    results = finished(work, shown)
    text = page(results)
    print(text)
    folder = work
    if not only or only == [PAGE]:
        folder = record.FOLDER
        record.save("parts", device, "tools/bench parts", results, text)
    else:
        (folder / "parts.md").write_text(text + "\n")
        (folder / "parts.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, folder / "parts.svg")
    draw_timesteps(results, folder / "parts-timesteps.svg")
    print(f"wrote {folder / 'parts.md'}")


def measure_subject(work: Path, name: str, only_train: bool) -> None:
    """Train a subject's models where they are not yet, and measure them."""
    measured = measured_subject(name, work)
    folder = work / measured.folder
    folder.mkdir(parents=True, exist_ok=True)
    restore_losses(PARTS, name, folder, measured.subject)
    losses = all_subset_losses(folder, measured.subject)
    if only_train:
        return
    header = record.figure_header("cpu", f"tools/bench parts {name}")
    write_whole(folder / FILE, {**measure(folder, measured, losses), "made": header})


def write_whole(file: Path, values: Any) -> None:
    """Write JSON values, so that a file of that name is never half of one."""
    draft = file.with_name(f"{file.name}.draft")
    draft.write_text(json.dumps(values))
    os.replace(draft, file)


def finished(work: Path, names: list[str]) -> dict[str, Any]:
    """Return the figures of the subjects that were measured, and which are missing."""
    known = {name: measured_subject(name, work) for name in names}
    files = {name: work / measured.folder / FILE for name, measured in known.items()}
    published = published_figures() if names == list(NAMES) else {}
    subjects = published.get("subjects", {})
    subjects |= {
        name: json.loads(file.read_text()) for name, file in files.items() if file.exists()
    }
    subjects = {name: subjects[name] for name in names if name in subjects}
    missing = [measured.title for name, measured in known.items() if name not in subjects]
    if not subjects:
        raise SystemExit(f"{work}: no subject is measured there yet; run tools/bench parts")
    return {
        "timesteps": TIMESTEPS,
        "sets": timestep_sets(),
        "subjects": subjects,
        "missing": missing,
        "builds": _own_or(work / BUILDS_FILE, published.get("builds")),
        "removals": _own_or(work / REMOVALS_FILE, published.get("removals")),
    }


def _own_or(file: Path, published: Any) -> Any:
    """The figures in a file, or the published ones where there is none."""
    return json.loads(file.read_text()) if file.exists() else published


def published_figures() -> dict[str, Any]:
    """Return the figures in docs; nothing where there are none yet."""
    file = record.FOLDER / "parts.json"
    return json.loads(file.read_text()) if file.exists() else {}

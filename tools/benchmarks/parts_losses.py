"""Losses of models of halves, kept with the project: a training once made need not be made again.

They belong to the pictures that a model generated, by which they are known: a model that was
trained anew on another machine may have made others.
"""

import json
from pathlib import Path

import numpy as np
import record
from subset_models import Subject, losses_file, query_pictures

from gradindex.store.digests import sha256

FILE = record.FOLDER / "parts-losses.json"
DIGITS = 7  # that are kept of a loss
SEED = 0  # a half has one model


def keep_losses(name: str, folder: Path, subject: Subject, file: Path = FILE) -> int:
    """Add the losses in a subject's folder to the file, and return how many halves it has now."""
    kept = _read(file)
    mine = _of(kept, name, folder, subject)
    for half in range(subject.subsets):
        made = losses_file(folder, half, SEED)
        if made.exists():
            mine[f"{half:02d}"] = [float(f"{loss:.{DIGITS}g}") for loss in np.load(made)]
    kept[name] = {"queries": _digest(folder, subject), "losses": dict(sorted(mine.items()))}
    lines = [f"{json.dumps(key)}: {_text(value)}" for key, value in sorted(kept.items())]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return len(mine)


def restore_losses(name: str, folder: Path, subject: Subject, file: Path = FILE) -> int:
    """Write the file's losses into a subject's folder, and return how many were new there."""
    count = 0
    for half, losses in _of(_read(file), name, folder, subject).items():
        made = losses_file(folder, int(half), SEED)
        if not made.exists():
            np.save(made, np.array(losses))
            count += 1
    return count


def _of(kept: dict[str, dict], name: str, folder: Path, subject: Subject) -> dict[str, list[float]]:
    """The losses that are kept of a subject, {half: [2 · queries]}; none of other pictures."""
    mine = kept.get(name)
    if mine is None or mine["queries"] != _digest(folder, subject):
        return {}
    return mine["losses"]


def _digest(folder: Path, subject: Subject) -> str:
    return sha256(query_pictures(folder, subject).tobytes())[:16]


def _text(mine: dict) -> str:
    """A subject's entry as JSON, a half a line."""
    lines = [f'  "{half}": {json.dumps(losses)}' for half, losses in mine["losses"].items()]
    body = ",\n".join(lines)
    return f'{{"queries": {json.dumps(mine["queries"])}, "losses": {{\n{body}\n}}}}'


def _read(file: Path) -> dict[str, dict]:
    return json.loads(file.read_text()) if file.exists() else {}

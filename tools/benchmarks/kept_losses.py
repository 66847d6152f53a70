"""Losses of models that were trained again, kept with the project: they need not be made twice.

They belong to the pictures that a model generated, by which they are known: a model that was
trained anew on another machine may have made others.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import record
from subset_models import Subject, query_pictures

from gradindex.store.digests import sha256

PARTS = record.FOLDER / "parts-losses.json"  # of models trained on halves
ANSWERS = record.FOLDER / "answers-losses.json"  # of models trained without some pictures
PATTERNS = ("losses-*.npy", "without-*.npy")  # that files of losses are called by
DIGITS = 7  # that are kept of a loss

Kept = dict[str, dict[str, Any]]  # {name of a subject: digest of its pictures, losses by file}


def keep_losses(file: Path, name: str, folder: Path, subject: Subject) -> int:
    """Add the losses in a subject's folder to a file, and return of how many models it has them."""
    kept = _read(file)
    losses = _losses_of(kept, name, folder, subject)
    for made in (path for pattern in PATTERNS for path in folder.glob(pattern)):
        losses[made.stem] = [float(f"{loss:.{DIGITS}g}") for loss in np.load(made)]
    kept[name] = {"queries": _digest(folder, subject), "losses": dict(sorted(losses.items()))}
    texts = [f"{json.dumps(key)}: {_text(**entry)}" for key, entry in sorted(kept.items())]
    file.write_text("{\n" + ",\n".join(texts) + "\n}\n")
    return len(losses)


def restore_losses(file: Path, name: str, folder: Path, subject: Subject) -> int:
    """Write a file's losses into a subject's folder, and return how many were new there."""
    count = 0
    for stem, losses in _losses_of(_read(file), name, folder, subject).items():
        made = folder / f"{stem}.npy"
        if not made.exists():
            np.save(made, np.array(losses))
            count += 1
    return count


def _losses_of(kept: Kept, name: str, folder: Path, subject: Subject) -> dict[str, list[float]]:
    """The losses that are kept of a subject, {file: [2 · queries]}; none of other pictures."""
    entry = kept.get(name)
    if entry is None or entry["queries"] != _digest(folder, subject):
        return {}
    return entry["losses"]


def _digest(folder: Path, subject: Subject) -> str:
    return sha256(query_pictures(folder, subject).tobytes())[:16]


def _text(queries: str, losses: dict[str, list[float]]) -> str:
    """A subject's entry as JSON, a model a line."""
    lines = [f'  "{stem}": {json.dumps(values)}' for stem, values in losses.items()]
    body = ",\n".join(lines)
    return f'{{"queries": {json.dumps(queries)}, "losses": {{\n{body}\n}}}}'


def _read(file: Path) -> Kept:
    return json.loads(file.read_text()) if file.exists() else {}

"""Losses of models that were trained again, kept with the project: they need not be made twice.

With them are the pictures that the model of all pictures generated, which they are losses on. On
another machine these stay, though the model that is trained anew there may differ from the one that
made them as two trainings do.
"""

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record
from subset_models import Subject, query_pictures, training_and_validation

PARTS = record.FOLDER / "parts-losses.json"  # of models trained on halves
ANSWERS = record.FOLDER / "answers-losses.json"  # of models trained without some pictures
PATTERNS = ("losses-*.npy", "without-*.npy")  # that files of losses are called by
DIGITS = 7  # that are kept of a loss

Kept = dict[str, dict[str, Any]]  # {name of a subject: generated pictures, losses by file}


def keep_losses(file: Path, name: str, folder: Path, subject: Subject) -> int:
    """Add the losses in a subject's folder to a file, and return of how many models it has them."""
    kept = _read(file)
    generated = _text_of(query_pictures(folder, subject)[subject.query_sets["generated"]])
    losses = _losses_on(generated, kept.get(name))
    for made in (path for pattern in PATTERNS for path in folder.glob(pattern)):
        losses[made.stem] = [float(f"{loss:.{DIGITS}g}") for loss in np.load(made)]
    kept[name] = {"generated": generated, "losses": dict(sorted(losses.items()))}
    texts = [f"{json.dumps(key)}: {_json_of(**entry)}" for key, entry in sorted(kept.items())]
    file.write_text("{\n" + ",\n".join(texts) + "\n}\n")
    return len(losses)


def restore_losses(file: Path, name: str, folder: Path, subject: Subject) -> int:
    """Write a file's generated pictures and losses into a subject's folder that lacks them.

    Returns:
        How many losses were new there: none where the folder's pictures are others.
    """
    entry = _read(file).get(name)
    if entry is None:
        return 0
    pictures = folder / "generated.npy"
    training, _ = training_and_validation(folder, subject)
    if not pictures.exists():
        np.save(pictures, _pictures_of(entry["generated"], training.shape[1:]))
    generated = _text_of(np.load(pictures))
    count = 0
    for stem, losses in _losses_on(generated, entry).items():
        made = folder / f"{stem}.npy"
        if not made.exists():
            np.save(made, np.array(losses))
            count += 1
    return count


def _losses_on(generated: str, entry: dict[str, Any] | None) -> dict[str, list[float]]:
    """The losses of an entry, {file: [2 · queries]}; none where they are of other pictures."""
    return entry["losses"] if entry and entry["generated"] == generated else {}


def _text_of(pictures: np.ndarray) -> str:
    """Pictures in [−1, 1] of 8 bits as text."""
    pixels = ((pictures + 1) * 127.5).round().astype(np.uint8)
    return b64encode(zlib.compress(pixels.tobytes(), 9)).decode()


def _pictures_of(text: str, shape: Sequence[int]) -> np.ndarray:
    """The pictures [·, channels, height, width] of a text."""
    pixels = np.frombuffer(zlib.decompress(b64decode(text)), np.uint8)
    return pixels.reshape(-1, *shape) / 127.5 - 1


def _json_of(generated: str, losses: dict[str, list[float]]) -> str:
    """A subject's entry as JSON, a model a line."""
    lines = [f'  "{stem}": {json.dumps(values)}' for stem, values in losses.items()]
    body = ",\n".join(lines)
    return f'{{"generated": {json.dumps(generated)}, "losses": {{\n{body}\n}}}}'


def _read(file: Path) -> Kept:
    return json.loads(file.read_text()) if file.exists() else {}

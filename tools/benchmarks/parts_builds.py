"""Whole builds with fewer timesteps and parameters, beside those of all parameters at ten."""

import statistics
import time
from pathlib import Path
from typing import Any

import record
from picture_sets import write_pictures
from trained_models import model_and_pictures

import gradindex

PICTURES = 512
ROUNDS = 3  # builds of each setting, in turns
EVEN = "ten even timesteps"  # that the others are compared with
SETTINGS: dict[str, dict[str, Any]] = {
    EVEN: {"timesteps": 10},
    "five weighted": {"timesteps": "weighted:5"},
    "three weighted": {"timesteps": "weighted:3"},
    "three weighted, compact": {"timesteps": "weighted:3", "rows": "compact"},
    "five weighted, the middle": {"timesteps": "weighted:5", "params": "middle"},
    "five weighted, norms": {"timesteps": "weighted:5", "params": "norms"},
    "five weighted, the last block": {"timesteps": "weighted:5", "params": "last-block"},
}

Rows = list[dict[str, Any]]


def builds(work: Path) -> Rows:
    """Return what each setting's build takes: time beside ten even timesteps', bytes a picture."""
    model, pictures = model_and_pictures("small", work)
    data = write_pictures(work / "parts-builds-pictures", pictures[:PICTURES])
    seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    sizes = {}
    for _ in range(ROUNDS):
        for name, options in SETTINGS.items():
            folder = work / "parts-builds-index"
            began = time.perf_counter()
            gradindex.build(folder, model=model, data=data, device="cpu", overwrite=True, **options)
            seconds[name].append(time.perf_counter() - began)
            sizes[name] = record.folder_bytes(folder)
    usual = seconds[EVEN]
    return [
        {
            "build": name,
            "time": statistics.median(a / b for a, b in zip(spent, usual, strict=True)),
            "bytes": sizes[name] / PICTURES,
        }
        for name, spent in seconds.items()
    ]

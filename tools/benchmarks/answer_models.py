"""Models of several seeds, each with an index, that answers are measured on.

Each seed has a folder of its own, and is an experiment of its own: model, generated pictures, index
and the models that are trained again.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from subset_models import (
    FASHION,
    WHOLE,
    Subject,
    picture_folder,
    query_pictures,
    true_losses,
    whole_model,
)

import gradindex
from gradindex.search.index import Index

SEEDS = 3


def seeded(work: Path, seed: int, pictures: int = FASHION.pictures) -> tuple[Path, Subject]:
    """Return the folder and the subject of a seed, trained as many times on each of N pictures."""
    folder = work / f"answers-{pictures}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    steps = FASHION.steps * pictures // FASHION.pictures
    return folder, replace(FASHION, seed=WHOLE + seed, pictures=pictures, steps=steps)


def index_of(folder: Path, subject: Subject) -> Index:
    """Return the index of the whole model's training pictures, as `build` makes it by default."""
    options: dict[str, Any] = {"device": "cpu"}
    model, data = whole_model(folder, subject)[-1], picture_folder(folder, subject)
    return gradindex.build(folder / "index", model=model, data=data, **options)


def asked_pictures(folder: Path, subject: Subject) -> list[torch.Tensor]:
    """Return validation pictures, then generated ones, as a query takes them."""
    return list(torch.from_numpy(query_pictures(folder, subject)))


def whole_losses(folder: Path, subject: Subject) -> np.ndarray:
    """Return the losses of the whole model on the pictures asked about, [2 · queries]."""
    model = subject.trained(whole_model(folder, subject)[-1])
    return true_losses(model, query_pictures(folder, subject), subject)

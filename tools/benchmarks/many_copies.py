"""Pictures that are in a training set twenty times, and what a query about their like answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from picture_sets import fashion_labels, small_fashion_mnist, write_pictures
from seeded_models import SCORES, SMOKE, SMOKE_SUBJECT, TOP, USUAL_TIMESTEPS, regenerated
from subset_models import FASHION, WHOLE, train_model, training_and_validation

import gradindex

COPIED, COPIES = 4, 20  # pictures, and how often each is there
QUERIES = 4  # of each kind about each
START = 400  # timestep from which look-alikes are made


def measure(work: Path, seed: int, smoke: bool) -> list[dict[str, Any]]:
    """Return what queries list, before and after copies are merged, of a model of one seed.

    Returns:
        A row for each score, kind of query and query, see `_row`.
    """
    subject = replace(SMOKE_SUBJECT if smoke else FASHION, seed=WHOLE + seed)
    folder = work / (f"many-copies-{SMOKE}" if smoke else "many-copies") / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    training, _ = training_and_validation(folder.parent, subject)
    labels = fashion_labels(work)
    copied = draw_copied(labels[: len(training)], seed)
    repeated = np.repeat(training[copied], COPIES - 1, axis=0)
    pictures = np.concatenate([training, repeated])
    names = np.arange(len(pictures))  # which picture each is
    names[len(training) :] = np.repeat(copied, COPIES - 1)
    model = folder / "model"
    if not model.exists():
        train_model(pictures, subject.seed, [model], subject)
    data = folder / "pictures"
    if not data.exists():
        write_pictures(folder / "pictures-draft", pictures).rename(data)
    index = gradindex.build(
        folder / "index", model=model, data=data, timesteps=USUAL_TIMESTEPS, device="cpu"
    )
    seen = subject.pictures + subject.queries
    others = small_fashion_mnist(work)[seen:]
    near = nearest(training[copied], others)
    unlike = unrelated(others, labels[seen:], labels[copied], seed)
    alike = regenerated(model, np.repeat(training[copied], QUERIES, axis=0), START, seed)
    rows = []
    for kind, queries in (("near", near), ("look-alike", alike), ("unrelated", unlike)):
        files = sorted(write_pictures(folder / kind, queries).glob("*.png"))
        for score, (method, whiten) in SCORES.items():
            apart = index.query(files, TOP, method, whiten=whiten)
            merged = index.query(files, TOP, method, whiten=whiten, merge_duplicates=True)
            all_scores = index.scores(files, method, whiten=whiten)
            for number, (one, other) in enumerate(zip(apart, merged, strict=True)):
                is_copy = names == copied[number // (len(files) // COPIED)]
                row = _row(one, other, is_copy, all_scores[number])
                rows.append({"score": score, "query": kind, **row})
    return rows


def draw_copied(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the rows of the pictures to copy, of different classes, [COPIED]."""
    random = np.random.default_rng(seed)
    classes = random.choice(np.unique(labels), COPIED, replace=False)
    return np.array([random.choice(np.flatnonzero(labels == label)) for label in classes])


def nearest(pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each picture the nearest of others in pixels, QUERIES of them, [·, 1, 16, 16].

    Those that are the same up to a grey level do not count.
    """
    chosen = []
    flat = others.reshape(len(others), -1)
    for picture in pictures:
        distances = np.abs(flat - picture.reshape(-1))
        squares = np.square(distances).sum(1)
        squares[distances.max(1) < 2 / 255] = np.inf
        chosen.append(others[np.argsort(squares)[:QUERIES]])
    return np.concatenate(chosen)


def unrelated(others: np.ndarray, labels: np.ndarray, classes: np.ndarray, seed: int) -> np.ndarray:
    """Return random pictures of other classes than some, QUERIES for each of these.

    Args:
        labels: of the others. classes: those of the copied pictures.
    """
    random = np.random.default_rng(seed)
    rows = [random.choice(np.flatnonzero(labels != own), QUERIES, replace=False) for own in classes]
    return others[np.concatenate(rows)]


def _row(
    apart: gradindex.Result, merged: gradindex.Result, is_copy: np.ndarray, scores: np.ndarray
) -> dict[str, Any]:
    """What one query lists.

    Returns:
        copies: how many of the ten best are copies. places: how many are after merging. rank: of
        the copies' hit; None where it is not listed. together: how many copies that hit holds;
        strangers: how many others. share: of the sum of all copies' scores in it; None where it is
        not listed.
    """
    places = [hit for hit in merged.hits if is_copy[hit.row]]
    copies = sum(is_copy[hit.row] for hit in apart.hits)
    row: dict[str, Any] = {
        "copies": int(copies),
        "places": len(places),
        "rank": None,
        "together": 0,
        "strangers": 0,
        "share": None,
    }
    if places:
        hit = places[0]
        members = [int(Path(name).stem) for name in (hit.id, *(hit.duplicates or ()))]
        together = int(is_copy[members].sum())
        strangers = len(members) - together
        share = float(hit.score / scores[is_copy].sum())
        row |= {"rank": hit.rank, "together": together, "strangers": strangers, "share": share}
    return row


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the means of some queries' rows.

    Keys: see `_row`; `listed` and `first` are the shares of queries whose list has the copies, and
    begins with them. `together` and `share` are of the lists that have them.
    """
    listed = [row for row in rows if row["rank"] is not None]
    figures: dict[str, float | None] = {
        name: float(np.mean([row[name] for row in rows])) for name in ("copies", "places")
    }
    figures["listed"] = len(listed) / len(rows)
    as_one = [row["places"] == 1 and row["together"] == COPIES for row in listed]
    figures["as one"] = float(np.mean(as_one)) if listed else None
    figures["first"] = float(np.mean([row["rank"] == 1 for row in rows]))
    for name in ("together", "strangers", "share"):
        figures[name] = float(np.mean([row[name] for row in listed])) if listed else None
    return figures

"""What a query's verdict is worth: `tools/bench verdict`.

Three questions: whether the loss of a picture rises where its named pictures are missing from
training; how often something stands out as training sets grow; and whether copies are told.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import record
import torch
from answer_models import SEEDS, asked_pictures, index_of, seeded
from changed_copies import CHANGES, changed
from subset_models import (
    Subject,
    load_or_make,
    losses_without,
    map_in_processes,
    query_pictures,
    training_and_validation,
)

import gradindex
from gradindex.search.index import Index
from gradindex.search.results import Result

REMOVED = 5  # pictures of the highest scores that are taken out
ASKED = 16  # pictures of each kind whose highest are taken out
SIZES = (500, 2000, 8000)  # of training sets
COPIES = 64  # training pictures of which changed copies are asked about
KINDS = ("copied", "attributable", "nothing stands out")
BEYOND = 1.645  # standard deviations: 5 % of a normal distribution are above


class Signs(NamedTuple):
    """What an answer shows of how far to trust it, one value a picture, each [Q].

    Attributes:
        q: false discovery rate at which the best hit stands out of the tail; low is strong.
        z: of the best hit. fifth: of the fifth hit. agreement: the share of the five best that
            another seed of noise and projection names, too.
    """

    q: np.ndarray
    z: np.ndarray
    fifth: np.ndarray
    agreement: np.ndarray


def run(work: Path, device: str, only: list[str]) -> None:
    """Train, ask, print, and write docs/benchmarks/verdict.json and .md.

    Args:
        only: "train" does nothing but train the models.
    """
    subjects = {size: [seeded(work, seed, size) for seed in range(SEEDS)] for size in SIZES}
    for folder, subject in subjects[SIZES[0]]:
        losses_without_best(folder, subject)
    for of_size in subjects.values():
        for folder, subject in of_size:
            query_pictures(folder, subject)
    if only == ["train"]:
        return
    part = record.resumable(work / f"verdict-{device}")
    results = {
        "asked": {"removed": REMOVED, "each kind": ASKED, "seeds": SEEDS, "copies": COPIES},
        "truth": [part(f"truth {f.name}", partial(truth, f, s)) for f, s in subjects[SIZES[0]]],
        "shares": {
            str(size): [part(f"shares {f.name}", partial(shares, f, s)) for f, s in of_size]
            for size, of_size in subjects.items()
        },
        "copies": [part(f"copies {f.name}", partial(copies, f, s)) for f, s in subjects[SIZES[0]]],
    }
    text = page(results)
    print(text)
    if not only:
        record.save("verdict", device, "tools/bench verdict", results, text)


# Whether a loss rises where the named pictures are missing.


def chosen_queries(subject: Subject) -> np.ndarray:
    """Return the pictures, of those asked about, whose best hits are taken out of training."""
    numbers = [np.arange(ASKED) + kind.start for kind in subject.query_sets.values()]
    return np.concatenate(numbers)


def best_rows(folder: Path, subject: Subject) -> np.ndarray:
    """Return the rows of the highest scores of each chosen picture, [chosen, REMOVED]."""

    def make() -> np.ndarray:
        results = _answers(index_of(folder, subject), folder, subject, chosen_queries(subject))
        return np.array([[hit.row for hit in result.hits[:REMOVED]] for result in results])

    return load_or_make(folder / "best-rows.npy", make)


def losses_without_best(folder: Path, subject: Subject) -> np.ndarray:
    """Return the losses of models trained without a picture's best, [chosen, 2 · queries]."""
    best = best_rows(folder, subject)
    subjects = [subject] * len(best)
    return np.stack(map_in_processes(losses_without, folder, best, subjects))


def rises(losses: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return by how many standard deviations each picture's loss rises without its best, [chosen].

    Retraining's noise is told by the models that are without other pictures' best.

    Args:
        losses: [chosen, 2 · queries], of the model without each one's best.
        chosen: which of the queries these are.
    """
    own = losses[:, chosen]
    of_others = np.where(np.eye(len(own), dtype=bool), np.nan, own)
    noise = np.nanstd(of_others, axis=0, ddof=1)
    return (np.diag(own) - np.nanmean(of_others, axis=0)) / noise


def truth(folder: Path, subject: Subject) -> dict[str, Any]:
    """Return the rise of each chosen picture's loss, and what its answer showed."""
    chosen = chosen_queries(subject)
    index = index_of(folder, subject)
    results = _answers(index, folder, subject, chosen)
    other = gradindex.build(
        folder / "index-1", model=index.store.header.model, data=folder / "pictures", seed=1
    )
    again = _answers(other, folder, subject, chosen)
    signs = signs_of(results, again)
    return {
        "rises": rises(losses_without_best(folder, subject), chosen).tolist(),
        "kinds": [str(result.verdict.kind) for result in results if result.verdict],
        "signs": {name: values.tolist() for name, values in signs._asdict().items()},
    }


def signs_of(results: Sequence[Result], again: Sequence[Result]) -> Signs:
    """Return what answers show, and how far those of another seed agree."""
    agreement = [
        len({hit.row for hit in result.hits[:REMOVED]} & {hit.row for hit in other.hits[:REMOVED]})
        for result, other in zip(results, again, strict=True)
    ]
    return Signs(
        q=np.array([result.verdict.q for result in results if result.verdict]),
        z=np.array([result.hits[0].z for result in results]),
        fifth=np.array([result.hits[4].z for result in results]),
        agreement=np.array(agreement) / REMOVED,
    )


def _answers(
    index: Index, folder: Path, subject: Subject, chosen: np.ndarray | None = None
) -> list[Result]:
    """What a query says of the pictures asked about, or of some of them."""
    pictures = asked_pictures(folder, subject)
    if chosen is not None:
        pictures = [pictures[number] for number in chosen]
    return list(index.query(pictures, verdict=True))


# How often something stands out.


def shares(folder: Path, subject: Subject) -> dict[str, dict[str, float]]:
    """Return {set of queries: {kind of verdict: its share}}."""
    results = _answers(index_of(folder, subject), folder, subject)
    return {name: kinds_of(results[queries]) for name, queries in subject.query_sets.items()}


def kinds_of(results: Sequence[Result]) -> dict[str, float]:
    """Return the share of each kind of verdict."""
    counts = Counter(result.verdict.kind for result in results if result.verdict)
    return {kind: counts[kind] / len(results) for kind in KINDS}


# Whether copies are told.


def copies(folder: Path, subject: Subject) -> dict[str, Any]:
    """Return how copies and pictures that are none are told.

    Returns:
        "called": {change: share of the copies that are called copied, of the right picture};
        "false": the share of validation pictures called so. "auc": {change: of the measure}.
    """
    index = index_of(folder, subject)
    training, _ = training_and_validation(folder, subject)
    held_out = _answers(index, folder, subject)[subject.query_sets["validation"]]
    measures = {"false": np.array([_measure(result) for result in held_out])}
    called, auc = {}, {}
    for name in CHANGES:
        pictures = [torch.from_numpy(changed(name, one)) for one in training[:COPIES]]
        results = list(index.query(pictures, verdict=True))
        is_right = [
            result.verdict is not None
            and result.verdict.kind == "copied"
            and result.verdict.ids == [index.ids[row]]
            for row, result in enumerate(results)
        ]
        called[name] = float(np.mean(is_right))
        own = np.array([_measure(result) for result in results])
        auc[name] = area_under_curve(own, measures["false"])
    wrong = [result.verdict is not None and result.verdict.kind == "copied" for result in held_out]
    return {"called": called, "auc": auc, "false": float(np.mean(wrong))}


def _measure(result: Result) -> float:
    """How much a picture is like a copy: 1 less the share that are as near, 0 where none is."""
    verdict = result.verdict
    if verdict is None or verdict.as_near is None:
        return 0.0
    return 1 - verdict.as_near


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return how often a positive value is above a negative one; equal ones count half.

    >>> area_under_curve(np.array([2.0, 1.0]), np.array([1.0, 0.0]))
    0.875
    """
    above = (positive[:, None] > negative).mean()
    return float(above + (positive[:, None] == negative).mean() / 2)


# The page.


def page(results: Mapping[str, Any]) -> str:
    """Return the tables and what they are of."""
    return record.fill_page(
        "verdict",
        asked=results["asked"],
        truth=record.table(_truth_rows(results["truth"])),
        signs=record.table(_sign_rows(results["truth"])),
        shares=record.table(_share_rows(results["shares"])),
        copies=record.table(_copy_rows(results["copies"])),
        false=_with_range([seed["false"] for seed in results["copies"]]),
    )


def _truth_rows(seeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many of each kind of verdict there were, and how many losses rose beyond noise."""
    all_kinds = np.concatenate([seed["kinds"] for seed in seeds])
    all_rises = np.concatenate([seed["rises"] for seed in seeds])
    rows = []
    for kind in KINDS:
        own = all_rises[all_kinds == kind]
        row = {"verdict": kind, "pictures": len(own), "rise beyond noise": "–", "mean rise": "–"}
        if len(own):
            row["rise beyond noise"] = f"{np.mean(own > BEYOND):.0%}"
            row["mean rise"] = f"{own.mean():.1f}"
        rows.append(row)
    return rows


def _sign_rows(seeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How well each sign tells the pictures whose loss rises beyond noise."""
    is_true = np.concatenate([seed["rises"] for seed in seeds]) > BEYOND
    rows = []
    for name in Signs._fields:
        values = np.concatenate([seed["signs"][name] for seed in seeds])
        strength = -values if name == "q" else values
        auc = area_under_curve(strength[is_true], strength[~is_true]) if is_true.any() else None
        best = np.argsort(-strength, kind="stable")[: len(strength) // 4]
        rows.append(
            {"sign": name, "AUC": auc, "true of its best quarter": f"{is_true[best].mean():.0%}"}
        )
    return rows


def _share_rows(sizes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The shares of verdicts by size of the training set."""
    rows = []
    for size, seeds in sizes.items():
        row: dict[str, Any] = {"training pictures": int(size)}
        for queries in seeds[0]:
            for kind in KINDS[:2]:
                row[f"{kind}, {queries}"] = _with_range([seed[queries][kind] for seed in seeds])
        rows.append(row)
    return rows


def _copy_rows(seeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How copies are told, by what was done to them."""
    return [
        {
            "copy": name,
            "called copied": _with_range([seed["called"][name] for seed in seeds]),
            "AUC": _with_range([seed["auc"][name] for seed in seeds]),
        }
        for name in CHANGES
    ]


def _with_range(values: Sequence[float]) -> str:
    """The mean over seeds, with the lowest and the highest."""
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"

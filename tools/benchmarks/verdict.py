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
from planted_copies import CHANGES, changed
from roc import auc
from seeded_models import (
    KEEP,
    SMOKE,
    TRAIN,
    SeededModel,
    asked_seeds,
    keep_all,
    over_seeds,
    seeded_model,
)
from subset_models import Subject, load_or_make, query_pictures

from gradindex.search.index import Index
from gradindex.search.results import Result
from gradindex.search.verdicts import JUDGED

REMOVED = JUDGED  # pictures of the highest scores that are taken out
ASKED = 8  # pictures of each kind whose highest are taken out
TIMES = (1, 4, 16)  # as many training pictures: 500, 2,000, 8,000
COPIES = 64  # training pictures of which changed copies are asked about
KINDS = ("copied", "attributable", "nothing stands out")
BEYOND = 1.645  # standard deviations: 5 % of a normal distribution are above


class Signs(NamedTuple):
    """What an answer shows of how far to trust it, one value a picture, each [Q].

    Attributes:
        share: of the influence, of the hits that stand out; what the verdict goes by.
        z: of the best hit. agreement: the share of those taken out that another seed of noise and
            projection names, too.
    """

    share: np.ndarray
    z: np.ndarray
    agreement: np.ndarray


def run(work: Path, device: str, only: list[str]) -> None:
    """Train, ask, print, and write docs/benchmarks/verdict.json and .md.

    Args:
        only: "train" does nothing but train the models; "keep" keeps their losses in docs, from
            where they are taken on another machine; "smoke" tries everything.
    """
    if only == [KEEP]:
        keep_all(work)
        return
    is_smoke = only == [SMOKE]
    seeds = asked_seeds([] if only == [TRAIN] else only)
    models = {
        times: [seeded_model(work, seed, is_smoke, times) for seed in seeds]
        for times in (TIMES[:1] if is_smoke else TIMES)
    }
    for model in models[1]:
        losses_without_best(model)
    for of_size in models.values():
        for model in of_size:
            query_pictures(model.folder, model.subject)
    if only == [TRAIN]:
        return
    part = record.resumable(work / f"verdict-{device}")
    asked = {"removed": REMOVED, "each kind": ASKED, "seeds": len(seeds), "copies": COPIES}
    results = {
        "asked": {**asked, "training": models[1][0].subject.pictures},
        "truth": [part(f"truth {m.folder.name}", partial(truth, m)) for m in models[1]],
        "shares": {
            str(of_size[0].subject.pictures): [
                part(f"shares {m.folder.name}", partial(shares, m)) for m in of_size
            ]
            for of_size in models.values()
        },
        "copies": [part(f"copies {m.folder.name}", partial(copies, m)) for m in models[1]],
    }
    text = page(results)
    print(text)
    if not only:
        record.save("verdict", device, "tools/bench verdict", results, text)


# Whether a loss rises where the named pictures are missing.


def chosen_queries(subject: Subject) -> np.ndarray:
    """Return the pictures, of those asked about, whose best hits are taken out of training."""
    count = min(ASKED, subject.queries)
    numbers = [np.arange(count) + kind.start for kind in subject.query_sets.values()]
    return np.concatenate(numbers)


def best_rows(model: SeededModel) -> np.ndarray:
    """Return the rows of the highest scores of each chosen picture, [chosen, REMOVED]."""

    def make() -> np.ndarray:
        results = _answers(model.index(), model, chosen_queries(model.subject))
        return np.array([[hit.row for hit in result.hits[:REMOVED]] for result in results])

    return load_or_make(model.folder / "best-rows.npy", make)


def losses_without_best(model: SeededModel) -> np.ndarray:
    """Return the losses of models trained without a picture's best, [chosen, 2 · queries]."""
    return model.losses_without(best_rows(model))


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


def truth(model: SeededModel) -> dict[str, Any]:
    """Return the rise of each chosen picture's loss, and what its answer showed."""
    chosen = chosen_queries(model.subject)
    results = _answers(model.index(), model, chosen)
    other = model.build("index-1", seed=1)
    signs = signs_of(results, _answers(other, model, chosen))
    return {
        "rises": rises(losses_without_best(model), chosen).tolist(),
        "kinds": [str(result.verdict.kind) for result in results if result.verdict],
        "signs": {name: values.tolist() for name, values in signs._asdict().items()},
    }


def signs_of(results: Sequence[Result], again: Sequence[Result]) -> Signs:
    """Return what answers show, and how far those of another seed agree."""
    agreement = [
        len({hit.row for hit in result.hits[:REMOVED]} & {hit.row for hit in other.hits[:REMOVED]})
        for result, other in zip(results, again, strict=True)
    ]
    shares = [result.verdict.share for result in results if result.verdict]
    return Signs(
        share=np.array([share or 0.0 for share in shares]),  # None: they are too few pictures
        z=np.array([result.hits[0].z for result in results]),
        agreement=np.array(agreement) / REMOVED,
    )


def _answers(index: Index, model: SeededModel, chosen: np.ndarray | None = None) -> list[Result]:
    """What a query says of the pictures asked about, or of some of them."""
    pictures = model.asked
    if chosen is not None:
        pictures = [pictures[number] for number in chosen]
    return list(index.query(pictures, verdict=True))


# How often something stands out.


def shares(model: SeededModel) -> dict[str, dict[str, float]]:
    """Return {set of queries: {kind of verdict: its share}}."""
    results = _answers(model.index(), model)
    sets = model.subject.query_sets.items()
    return {name: kinds_of(results[queries]) for name, queries in sets}


def kinds_of(results: Sequence[Result]) -> dict[str, float]:
    """Return the share of each kind of verdict."""
    counts = Counter(result.verdict.kind for result in results if result.verdict)
    return {kind: counts[kind] / len(results) for kind in KINDS}


# Whether copies are told.


def copies(model: SeededModel) -> dict[str, Any]:
    """Return how copies and pictures that are none are told.

    Returns:
        "called": {change: share of the copies that are called copied, of the right picture};
        "false": the share of validation pictures called so. "auc": {change: of the measure}.
    """
    index = model.index()
    held_out = _answers(index, model)[model.subject.query_sets["validation"]]
    measures = {"false": np.array([_measure(result) for result in held_out])}
    called, areas = {}, {}
    for name in CHANGES:
        pictures = [torch.from_numpy(changed(name, one)) for one in model.pictures[:COPIES]]
        results = list(index.query(pictures, verdict=True))
        is_right = [
            result.verdict is not None
            and result.verdict.kind == "copied"
            and result.verdict.ids == [index.ids[row]]
            for row, result in enumerate(results)
        ]
        called[name] = float(np.mean(is_right))
        own = np.array([_measure(result) for result in results])
        areas[name] = auc(own, measures["false"])
    wrong = [result.verdict is not None and result.verdict.kind == "copied" for result in held_out]
    return {"called": called, "auc": areas, "false": float(np.mean(wrong))}


def _measure(result: Result) -> float:
    """How much a picture is like a copy: 1 less the share that are as near, 0 where none is."""
    verdict = result.verdict
    if verdict is None or verdict.as_near is None:
        return 0.0
    return 1 - verdict.as_near


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
        false=over_seeds([seed["false"] for seed in results["copies"]]),
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
        strength = np.concatenate([seed["signs"][name] for seed in seeds])
        area = auc(strength[is_true], strength[~is_true]) if is_true.any() else None
        best = np.argsort(-strength, kind="stable")[: len(strength) // 4]
        rows.append(
            {"sign": name, "AUC": area, "true of its best quarter": f"{is_true[best].mean():.0%}"}
        )
    return rows


def _share_rows(sizes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The shares of verdicts by size of the training set."""
    rows = []
    for size, seeds in sizes.items():
        row: dict[str, Any] = {"training pictures": int(size)}
        for queries in seeds[0]:
            for kind in KINDS[:2]:
                row[f"{kind}, {queries}"] = over_seeds([seed[queries][kind] for seed in seeds])
        rows.append(row)
    return rows


def _copy_rows(seeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How copies are told, by what was done to them."""
    return [
        {
            "copy": name,
            "called copied": over_seeds([seed["called"][name] for seed in seeds]),
            "AUC": over_seeds([seed["auc"][name] for seed in seeds]),
        }
        for name in CHANGES
    ]

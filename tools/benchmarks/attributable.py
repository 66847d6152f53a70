"""Whether pictures that a verdict names are worth it: `tools/bench attributable`.

The models of `tools/bench parts` were trained on random halves of the pictures. Where named
pictures made a picture, its loss is lower in the models that saw more of them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record
from kept_losses import PARTS, restore_losses
from parts_products import SEEDS
from parts_results import pixel_scores
from parts_scores import Scoring, mean_scores
from parts_subjects import NAMES, MeasuredSubject, measured_subject
from parts_timesteps import USUAL_SET, timestep_sets
from subset_models import all_subset_losses, subsets

from gradindex.search.factors import DAMPING
from gradindex.search.results import Hit
from gradindex.search.standing import Standing
from gradindex.search.verdicts import JUDGED, SHARE, standing_out

SETS = (USUAL_SET, "even 10")
SCORINGS = {
    "ReTrac, whitened": Scoring("retrac", DAMPING),
    "TracIn, whitened": Scoring("tracin", DAMPING),
    "ReTrac": Scoring("retrac", None),
    "TracIn": Scoring("tracin", None),
}
USUAL = next(iter(SCORINGS))  # as `query` scores unless told otherwise
BOUND = 1.68  # of t with 46 degrees of freedom: 5 % of chance lie above
SHARES = (0.1, 0.15, 0.2, SHARE, 0.3)  # that could have been asked for


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/attributable.json and .md.

    Args:
        only: names of subjects to measure; the others' published figures stay. Products that
            `tools/bench parts` left in the work folder are taken from there.
    """
    unknown = sorted(set(only) - set(NAMES))
    if unknown:
        raise SystemExit(f"{unknown[0]}: no subject; give {', '.join(NAMES)}")
    file = record.FOLDER / "attributable.json"
    found = json.loads(file.read_text())["subjects"] if file.exists() else {}
    for name in only or NAMES:
        measured = measured_subject(name, work)
        found[name] = {"title": measured.title, **measure(name, work / measured.folder, measured)}
    results = {"subjects": {name: found[name] for name in NAMES if name in found}}
    text = page(results)
    print(text)
    record.save("attributable", device, "tools/bench attributable", results, text)


def measure(name: str, folder: Path, measured: MeasuredSubject) -> dict[str, Any]:
    """Return what is said of every picture, and how it fares in the models of halves.

    Returns:
        {set of timesteps: {scoring: {set of queries: {"named", "share", "t": values}}}}; each has a
        value for every query and seed of noise: how many pictures stand out, their share of the
        influence, and `presence_t` of them, or of the ten best where none does. Beside the sets,
        under "pixels", {set of queries: `presence_t` of the ten nearest in pixels}.
    """
    subject = measured.subject
    folder.mkdir(parents=True, exist_ok=True)
    restore_losses(PARTS, name, folder, subject)
    losses = all_subset_losses(folder, subject).mean(1)
    halves = subsets(subject)
    found: dict[str, Any] = {"pixels": {}}
    nearest = np.argsort(-pixel_scores(folder, subject), kind="stable")[:, :JUDGED]
    for query_set, queries in subject.query_sets.items():
        pairs = zip(nearest[queries], losses[:, queries].T, strict=True)
        found["pixels"][query_set] = [presence_t(halves[:, rows], own) for rows, own in pairs]
    for set_name in SETS:
        found[set_name] = {}
        for scoring_name, scoring in SCORINGS.items():
            timesteps = timestep_sets()[set_name]
            of_seeds = [mean_scores(folder, subject, timesteps, seed, scoring) for seed in SEEDS]
            found[set_name][scoring_name] = {
                query_set: judged(
                    [scores[queries] for scores in of_seeds], halves, losses[:, queries]
                )
                for query_set, queries in subject.query_sets.items()
            }
    return found


def judged(
    of_seeds: Sequence[np.ndarray], halves: np.ndarray, losses: np.ndarray
) -> dict[str, list[float]]:
    """Return what is said of each query by each seed's scores [Q, N], see `measure`.

    Args:
        halves: [M, N] bool. losses: [M, Q].
    """
    found: dict[str, list[float]] = {"named": [], "share": [], "t": []}
    for scores in of_seeds:
        for own, of_models in zip(scores, losses.T, strict=True):
            best = np.argsort(-own, kind="stable")[:JUDGED]
            hits = [Hit(rank, str(row), int(row), own[row], None) for rank, row in enumerate(best)]
            named, _, share = standing_out(hits, Standing.of(own))
            rows = [hit.row for hit in named or hits]
            found["named"].append(len(named))
            found["share"].append(share or 0.0)
            found["t"].append(presence_t(halves[:, rows], of_models))
    return found


def presence_t(present: np.ndarray, losses: np.ndarray) -> float:
    """Return how surely losses fall with the number of some pictures that models saw: −t of a line.

    Args:
        present: [models, pictures] bool. losses: [models].

    >>> saw = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    >>> round(presence_t(saw, np.array([3.0, 2.1, 1.0, 1.9])), 2)
    14.14
    """
    counts = present.sum(1) - present.sum(1).mean()
    centred = losses - losses.mean()
    slope = counts @ centred / (counts @ counts)
    rest = centred - slope * counts
    error = np.sqrt(rest @ rest / (len(losses) - 2) / (counts @ counts))
    return float(-slope / error)


def page(results: Mapping[str, Any]) -> str:
    """Return the tables and what they are of."""
    subjects = list(results["subjects"].values())
    return record.fill_page(
        "attributable",
        said=record.table(_said_rows(subjects)),
        shares=record.table(_share_rows(subjects)),
        scorings=record.table(_scoring_rows(subjects)),
    )


def _said_rows(subjects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is said of each set of queries, and how often it is true."""
    rows = []
    for subject in subjects:
        for query_set, values in subject[USUAL_SET][USUAL].items():
            share, t = np.array(values["share"]), np.array(values["t"])
            said = share >= SHARE
            rows.append(
                {
                    "models": subject["title"],
                    "pictures asked about": query_set,
                    "attributable": f"{said.mean():.0%}",
                    "true of them": _true(t[said]),
                    "true of the others": _true(t[~said]),
                    "of the ten nearest in pixels": _true(np.array(subject["pixels"][query_set])),
                }
            )
    return rows


def _share_rows(subjects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How often it were true if another share of the influence were asked for."""
    rows = []
    for least in SHARES:
        row: dict[str, Any] = {"share of the influence": f"{least:.0%}"}
        for subject in subjects:
            row[subject["title"]] = _true_of_said(subject[USUAL_SET][USUAL], least)
        rows.append(row)
    return rows


def _scoring_rows(subjects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same for other scores and timesteps."""
    rows = []
    for set_name in SETS:
        for scoring in SCORINGS:
            row: dict[str, Any] = {"timesteps": set_name, "scores": scoring}
            for subject in subjects:
                row[subject["title"]] = _true_of_said(subject[set_name][scoring], SHARE)
            rows.append(row)
    return rows


def _true_of_said(query_sets: Mapping[str, Mapping[str, list[float]]], least: float) -> str:
    """How much is true of what has a share of the influence, and how much that is, as text."""
    share, t = (
        np.concatenate([values[name] for values in query_sets.values()]) for name in ("share", "t")
    )
    said = share >= least
    return f"{_true(t[said])} of {said.mean():.0%}"


def _true(t: np.ndarray) -> str:
    """The share of named pictures that the models confirm, as text."""
    return f"{np.mean(t > BOUND):.0%}" if len(t) else "–"

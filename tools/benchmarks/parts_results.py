"""All figures of a subject of `tools/bench parts`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record
from parts_choice import Halves, Part, aims, chosen_rows, mean_of_halves
from parts_costs import FORWARD, costs, row_bytes
from parts_kinds import EVERYTHING, kinds_of
from parts_noise import noise_rows, seed_agreements
from parts_products import SEEDS, products_file
from parts_rules import chosen_rule_rows, rule_rows
from parts_scores import (
    DAMPINGS,
    USUAL,
    Judgement,
    Predictions,
    Scoring,
    judge_query_sets,
    over,
    predictions_file,
)
from parts_subjects import MeasuredSubject
from parts_timesteps import (
    DRAWS,
    MORE_DRAWS,
    TIMESTEPS,
    TODAY,
    USUAL_SET,
    log_snr,
    timestep_sets,
)
from subset_models import (
    Subject,
    map_in_processes,
    query_pictures,
    subsets,
    training_and_validation,
    whole_model,
)

from gradindex.gradients.fold import unit
from gradindex.report.ranking import spearman
from gradindex.search.factors import DAMPING
from gradindex.search.scoring import METHODS

Rows = list[dict[str, Any]]


def measure(folder: Path, measured: MeasuredSubject, losses: np.ndarray) -> dict[str, Any]:
    """Return all figures of a subject.

    Args:
        losses: of the models of halves, [subsets, seeds, 2 · queries].
    """
    subject = measured.subject
    # What the processes below share.
    whole_model(folder, subject)
    query_pictures(folder, subject)
    jobs = [(subject, t, seed) for t in TIMESTEPS for seed in SEEDS]
    for make in (products_file, predictions_file):
        map_in_processes(make, folder, *zip(*jobs, strict=True))
    predictions = Predictions(folder, subject)
    part = record.resumable(folder / "costs")
    sizes = numbers_of_kinds(subject.untrained())
    steps = part("steps", lambda: costs(subject, measured.timed, sizes))
    parts = [Part(kind, sizes[kind], steps[kind]) for kind in predictions.kinds]
    true = losses.mean(1)
    pixels = pixel_predictions(folder, subject)
    today = judged_today(subject, predictions, true)
    halves = Halves(subject, true)
    chosen = [
        choice
        for part in parts
        for scoring in USUAL
        for choice in halves.choose(part, scoring, predictions.of(part.kind, scoring))
    ]
    usual = over(predictions.of(EVERYTHING, Scoring("retrac", DAMPING)), timestep_sets()[TODAY])
    return {
        "subject": {
            "title": measured.title,
            "pictures": subject.pictures,
            "queries": subject.queries,
            "subsets": subject.subsets,
            "seeds": subject.seeds,
            "steps": subject.steps,
            "parameters": sizes[EVERYTHING],
        },
        "seeds_agree": _seed_agreement(subject, losses),
        "forward": steps[FORWARD],
        "timed_larger": numbers_of_kinds(measured.timed())[EVERYTHING] > sizes[EVERYTHING],
        "kinds": [
            {"kind": part.kind, "numbers": part.numbers, "steps": part.steps}
            | {"bytes": row_bytes(part.numbers)}
            for part in parts
        ],
        "pixels": _figures(judge_query_sets(subject, pixels, true)),
        "halves": {  # each half's pictures judged by its models, as all that is chosen
            "today": _figures(mean_of_halves(halves.judge(usual))),
            "pixels": _figures(mean_of_halves(halves.judge(pixels))),
        },
        "today": {method: _figures(results) for method, results in today.items()},
        "aims": with_seed_agreements(
            folder, subject, aims(chosen, halves.judge(usual), halves.judge(pixels))
        ),
        "rows": set_rows(subject, predictions, parts, true, today),
        "singles": single_rows(subject, predictions, true),
        "chosen": chosen_rows(chosen, halves.judge(usual)),
        "rules": rule_rows(subject, predictions, true),
        "chosen rules": chosen_rule_rows(halves, predictions),
        "damping": damping_rows(subject, predictions, true),
        "noise": noise_rows(folder, subject, parts),
    }


def numbers_of_kinds(model: Any) -> dict[str, int]:
    """Return how many numbers each kind of a model's parameters has."""
    return {
        kind: sum(model.get_parameter(name).numel() for name in names)
        for kind, names in kinds_of(model).items()
    }


def judged_today(
    subject: Subject, predictions: Predictions, losses: np.ndarray
) -> dict[str, dict[str, Judgement]]:
    """Return what models say of the former default, {method: {query set: judgement}}."""
    timesteps = timestep_sets()[TODAY]
    return {
        method: judge_query_sets(
            subject,
            over(predictions.of(EVERYTHING, Scoring(method, DAMPING)), timesteps),
            losses,
        )
        for method in METHODS
    }


def pixel_predictions(folder: Path, subject: Subject) -> np.ndarray:
    """Return what the cosine of pixels predicts of each half, [1, 2 · queries, M]."""
    return (pixel_scores(folder, subject) @ subsets(subject).T)[None]


def pixel_scores(folder: Path, subject: Subject) -> np.ndarray:
    """Return the cosine of pixels, [2 · queries, N] float64."""
    training, _ = training_and_validation(folder, subject)
    queries = query_pictures(folder, subject)
    flat = [unit(pictures.reshape(len(pictures), -1)) for pictures in (queries, training)]
    return flat[0].astype(np.float64) @ flat[1].T


def _seed_agreement(subject: Subject, losses: np.ndarray) -> dict[str, float | None]:
    """Spearman's ρ of two seeds of training's losses over halves; None where there is one."""
    if subject.seeds < 2:
        return dict.fromkeys(subject.query_sets)
    return {
        name: spearman(losses[:, 0, queries].T, losses[:, 1, queries].T)
        for name, queries in subject.query_sets.items()
    }


def set_rows(
    subject: Subject,
    predictions: Predictions,
    parts: Sequence[Part],
    losses: np.ndarray,
    today: dict[str, dict[str, Judgement]],
) -> Rows:
    """Return every part's scores at the fixed sets of timesteps, and beside the former.

    A difference is from the former default of the same method, whitened.
    """
    rows: Rows = []
    for part in parts:
        for draws in DRAWS:
            for scoring in USUAL:
                of_part = predictions.of(part.kind, scoring, draws)
                for name, timesteps in timestep_sets().items():
                    if draws > 1 and name not in MORE_DRAWS:
                        continue
                    results = judge_query_sets(subject, over(of_part, timesteps), losses)
                    row = part.row(len(timesteps), draws) | scoring.row() | {"set": name}
                    row |= _figures(results)
                    row["difference"] = {
                        query: result.minus(today[scoring.method][query])
                        for query, result in results.items()
                    }
                    rows.append(row)
    return rows


def with_seed_agreements(folder: Path, subject: Subject, aims: Rows) -> Rows:
    """Return the rows of aims, each pick with how far the scores of two seeds of noise agree."""
    for aim in aims:
        for pick in aim["picks"]:
            damping = DAMPING if pick["treatment"] == "whitened" else None
            scoring = Scoring(pick["method"], damping)
            sets = [pick["chosen"]]
            (agreement,) = seed_agreements(folder, subject, pick["kind"], scoring, sets)
            pick["seeds_agree"] = agreement
    return aims


def _figures(results: Mapping[str, Judgement]) -> dict[str, list[float]]:
    """The means and intervals of judgements, {query set: figures}."""
    return {query: result.figures() for query, result in results.items()}


def single_rows(subject: Subject, predictions: Predictions, losses: np.ndarray) -> Rows:
    """Return the scores of every kind at single timesteps."""
    rows: Rows = []
    for kind in predictions.kinds:
        for scoring in USUAL:
            of_kind = predictions.of(kind, scoring)
            for t, ratio in zip(TIMESTEPS, log_snr().tolist(), strict=True):
                results = judge_query_sets(subject, over(of_kind, [t]), losses)
                rows.append(
                    {"kind": kind, **scoring.row(), "timestep": t, "log_snr": ratio}
                    | _figures(results)
                )
    return rows


def damping_rows(subject: Subject, predictions: Predictions, losses: np.ndarray) -> Rows:
    """Return the whitened scores of every kind with every damping."""
    rows: Rows = []
    sets = timestep_sets()
    for kind in predictions.kinds:
        for method in METHODS:
            for damping in DAMPINGS:
                of_kind = predictions.of(kind, Scoring(method, damping))
                for name in (TODAY, USUAL_SET):
                    results = judge_query_sets(subject, over(of_kind, sets[name]), losses)
                    rows.append(
                        {"kind": kind, "method": method, "damping": damping, "set": name}
                        | _figures(results)
                    )
    return rows

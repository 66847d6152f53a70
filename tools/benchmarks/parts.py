"""Which parameters and which timesteps are worth their gradients: `tools/bench parts`.

Exact gradients of many timesteps are taken once; scores of every part of a model at every set of
timesteps come from their products, and are judged by models trained on random halves.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record
from diffusers import DDPMScheduler
from parts_choice import Halves, Part, aims, chosen_rows
from parts_costs import FORWARD, costs, row_bytes
from parts_kinds import EVERYTHING, kinds_of
from parts_page import page
from parts_plots import draw, draw_timesteps
from parts_products import DRAWS, EVEN, SEEDS, TIMESTEPS, products_file, read_products
from parts_scores import (
    DAMPINGS,
    USUAL,
    Judgement,
    Predictions,
    Scoring,
    block_scores,
    judge,
    over,
    predictions_file,
)
from parts_subjects import SMOKE, SUBJECTS, MeasuredSubject
from subset_models import (
    Subject,
    all_subset_losses,
    map_in_processes,
    query_pictures,
    subsets,
    training_and_validation,
)

from gradindex.gradients.fold import unit
from gradindex.recipe import grid
from gradindex.report.ranking import spearman
from gradindex.search.scoring import METHODS
from gradindex.search.whitening import DAMPING

TODAY = "even 10"  # timesteps of a build unless told otherwise
LOG_SNR = (3.0, -2.5)  # where a first look found the timesteps that are worth most
FIRST_LOOK = {"first look 3": (75, 200, 500), "first look 5": (25, 75, 150, 300, 500)}
NOISE_SETS = (TODAY, "even 5", "even 2", *FIRST_LOOK)  # measured with more draws, and two seeds

Rows = list[dict[str, Any]]


def run(work: Path, device: str, only: list[str]) -> None:
    """Train, measure, print, and write docs/benchmarks/parts.json, .md and .svg.

    Args:
        only: names of subjects; "train" does nothing but train their models. "smoke" tries
            everything on few pictures.
    """
    names = [name for name in only if name != "train"] or list(SUBJECTS)
    known = {**SUBJECTS, "smoke": SMOKE}
    results: dict[str, Any] = {"timesteps": TIMESTEPS, "sets": timestep_sets(), "subjects": {}}
    for name in names:
        measured = known[name]
        folder = work / measured.folder
        folder.mkdir(parents=True, exist_ok=True)
        losses = all_subset_losses(folder, measured.subject)
        if "train" not in only:
            results["subjects"][name] = measure(folder, measured, losses)
    if "train" in only:
        return
    text = page(results)
    print(text)
    if not only:
        record.save("parts", device, "tools/bench parts", results, text)
        draw(results, record.FOLDER / "parts.svg")
        draw_timesteps(results, record.FOLDER / "parts-timesteps.svg")


def timestep_sets() -> dict[str, tuple[int, ...]]:
    """Return the sets of timesteps that were fixed before, {name: timesteps}.

    Even in log-SNR: the nearest of TIMESTEPS to the middles of equal parts of LOG_SNR.
    """
    sets = {f"even {count}": grid(count, 1000) for count in EVEN}
    sets |= FIRST_LOOK
    ratios = log_snr()
    first, last = LOG_SNR
    for count in (1, 2, 3, 5):
        middles = first + (np.arange(count) + 0.5) / count * (last - first)
        nearest = [int(np.abs(ratios - middle).argmin()) for middle in middles]
        sets[f"even in log-SNR {count}"] = tuple(TIMESTEPS[position] for position in nearest)
    return sets


def log_snr() -> np.ndarray:
    """Return the logarithm of each of TIMESTEPS' ratio of signal to noise."""
    alphas = DDPMScheduler().alphas_cumprod.double().numpy()[list(TIMESTEPS)]
    return np.log(alphas / (1 - alphas))


def measure(folder: Path, measured: MeasuredSubject, losses: np.ndarray) -> dict[str, Any]:
    """Return all figures of a subject.

    Args:
        losses: of the models of halves, [subsets, seeds, 2 · queries].
    """
    subject = measured.subject
    query_pictures(folder, subject)  # made once, before the processes need it
    jobs = [(subject, t, seed) for t in TIMESTEPS for seed in SEEDS]
    for make in (products_file, predictions_file):
        map_in_processes(make, folder, *zip(*jobs, strict=True))
    predictions = Predictions(folder, subject)
    part = record.resumable(folder / "costs")
    steps = part("steps", lambda: costs(subject, measured.timed))
    model = subject.untrained()
    sizes = {
        kind: sum(model.get_parameter(name).numel() for name in names)
        for kind, names in kinds_of(model).items()
    }
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
        "kinds": [
            {"kind": part.kind, "numbers": part.numbers, "steps": part.steps}
            | {"bytes": row_bytes(part.numbers)}
            for part in parts
        ],
        "pixels": _figures(judged(subject, pixels, true)),
        "today": {method: _figures(results) for method, results in today.items()},
        "aims": aims(chosen, halves.judge(usual), halves.judge(pixels)),
        "rows": set_rows(subject, predictions, parts, true, today),
        "singles": single_rows(subject, predictions, true),
        "chosen": chosen_rows(chosen, halves.judge(usual)),
        "damping": damping_rows(subject, predictions, true),
        "noise": noise_rows(folder, subject, parts),
    }


def judged(subject: Subject, predicted: np.ndarray, losses: np.ndarray) -> dict[str, Judgement]:
    """Return what all models say of predictions [seeds, 2 · queries, M], for each query set."""
    return {
        name: judge(predicted[:, queries], losses[:, queries])
        for name, queries in subject.query_sets.items()
    }


def judged_today(
    subject: Subject, predictions: Predictions, losses: np.ndarray
) -> dict[str, dict[str, Judgement]]:
    """Return what models say of today's default, {method: {query set: judgement}}."""
    timesteps = timestep_sets()[TODAY]
    return {
        method: judged(
            subject,
            over(predictions.of(EVERYTHING, Scoring(method, DAMPING)), timesteps),
            losses,
        )
        for method in METHODS
    }


def pixel_predictions(folder: Path, subject: Subject) -> np.ndarray:
    """Return what the cosine of pixels predicts of each half, [1, 2 · queries, M]."""
    training, _ = training_and_validation(folder, subject)
    queries = query_pictures(folder, subject)
    flat = [unit(pictures.reshape(len(pictures), -1)) for pictures in (queries, training)]
    cosines = flat[0].astype(np.float64) @ flat[1].T
    return (cosines @ subsets(subject).T)[None]


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
    """Return every part's scores at the fixed sets of timesteps, and by how much they are today's.

    A difference is from today's default of the same method, whitened.
    """
    rows: Rows = []
    for part in parts:
        for draws in DRAWS:
            for scoring in USUAL:
                of_part = predictions.of(part.kind, scoring, draws)
                for name, timesteps in timestep_sets().items():
                    if draws > 1 and name not in NOISE_SETS:
                        continue
                    results = judged(subject, over(of_part, timesteps), losses)
                    row = part.row(len(timesteps), draws) | scoring_row(scoring) | {"set": name}
                    row |= _figures(results)
                    row["difference"] = {
                        query: result.minus(today[scoring.method][query])
                        for query, result in results.items()
                    }
                    rows.append(row)
    return rows


def _figures(results: dict[str, Judgement]) -> dict[str, list[float]]:
    """The means and intervals of judgements, {query set: figures}."""
    return {query: result.figures() for query, result in results.items()}


def scoring_row(scoring: Scoring) -> dict[str, Any]:
    """Return a scoring as JSON values."""
    return {"method": scoring.method, "treatment": scoring.treatment}


def single_rows(subject: Subject, predictions: Predictions, losses: np.ndarray) -> Rows:
    """Return the scores of every kind at single timesteps."""
    rows: Rows = []
    for kind in predictions.kinds:
        for scoring in USUAL:
            of_kind = predictions.of(kind, scoring)
            for t, ratio in zip(TIMESTEPS, log_snr().tolist(), strict=True):
                results = judged(subject, over(of_kind, [t]), losses)
                rows.append(
                    {"kind": kind, **scoring_row(scoring), "timestep": t, "log_snr": ratio}
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
                for name in (TODAY, "first look 5"):
                    results = judged(subject, over(of_kind, sets[name]), losses)
                    rows.append(
                        {"kind": kind, "method": method, "damping": damping, "set": name}
                        | _figures(results)
                    )
    return rows


def noise_rows(folder: Path, subject: Subject, parts: Sequence[Part]) -> Rows:
    """Return how far two seeds of the noise agree: Spearman's ρ of their scores, mean over queries.

    Of ReTrac, plain and whitened, at the sets that are measured with more draws.
    """
    jobs = [(subject, part, draws) for part in parts for draws in DRAWS]
    rows = map_in_processes(_noise_rows, folder, *zip(*jobs, strict=True))
    return [row for several in rows for row in several]


def _noise_rows(folder: Path, subject: Subject, part: Part, draws: int) -> Rows:
    """Those of one kind and number of draws."""
    sets = {name: timestep_sets()[name] for name in NOISE_SETS}
    rows: Rows = []
    products = {
        (t, seed): read_products(products_file(folder, subject, t, seed), draws, part.kind)
        for t in sorted({t for timesteps in sets.values() for t in timesteps})
        for seed in SEEDS
    }
    for scoring in USUAL:
        if scoring.method != "retrac":
            continue
        scores = {
            event: block_scores(of_event, subject.pictures, scoring)
            for event, of_event in products.items()
        }
        for name, timesteps in sets.items():
            first, second = (sum(scores[t, seed] for t in timesteps) for seed in SEEDS)
            row = part.row(len(timesteps), draws) | scoring_row(scoring) | {"set": name}
            rows.append({**row, "seeds_agree": spearman(first, second)})
    return rows

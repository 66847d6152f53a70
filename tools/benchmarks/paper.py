"""The paper's claims, replayed on real pictures: `tools/bench paper`.

A DDPM is trained with `TrainingRecorder` on one class of Fashion-MNIST and 200 handwritten zeros.
The pictures are indexed at the timesteps and with the noise that they were last trained on, and
asked about generated pictures.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
from paper_page import LENGTHS, OUTLIERS, PRECISIONS, QUERIES, TRACED, page, plot
from paper_parts import WHOLE, part_rows
from paper_training import STEPS, generate, train, write_training_pictures

import gradindex
from gradindex.report.diagnose import norms, picture_norms
from gradindex.report.ranking import influence, overlap, spearman, top
from gradindex.search.index import Index
from gradindex.search.scoring import METHODS

SEEDS = (0, 1, 2, 3)
GRID = "weighted:5"  # timesteps at which parts of the model are asked beside recorded ones

Scores = Mapping[str, np.ndarray]  # {method: [Q, N]}


def run(work: Path, device: str, only: list[str]) -> None:
    """Train, measure, print, and write docs/benchmarks/paper.json, plots and docs/reproduction.md.

    Args:
        only: some training seeds.
    """
    data = write_training_pictures(work)
    seeds = [int(seed) for seed in only] or list(SEEDS)
    parts = {}
    for seed in seeds:
        folder = work / f"paper-{seed}"
        parts[f"seed {seed}"] = partial(measure, folder, data, seed, device)
    runs = list(record.measure(work / f"paper-{device}", parts, device).values())
    text = page(runs)
    print(text)
    if not only:
        page_file = record.ROOT / "docs/reproduction.md"
        record.save("paper", device, "tools/bench paper", {"runs": runs}, text, page_file)
        plot(runs, record.FOLDER)


def measure(folder: Path, data: Path, seed: int, device: str) -> dict[str, Any]:
    """Return everything about one training seed.

    Args:
        folder: for the model and its indexes.
        data: the training pictures, sneakers and zeros.
    """
    recorder_share = train(folder, data, seed, device)
    model = folder / "run" / f"checkpoint-{STEPS}"
    log = folder / "run/log"
    build = partial(gradindex.build, model=model, data=data, device=device)
    recorded = build(folder / "recorded", timesteps="recorded", log=log)
    weights = weights_of(recorded)
    training = recorded.read_pictures(sorted(data.rglob("*.png")))
    zero = np.char.startswith(np.array(recorded.store.sample_ids), "zero/")
    generated = generate(model, seed, device)
    is_zero = zero[nearest(generated, training)]
    traced = generated[is_zero][:TRACED]
    queries = np.concatenate([generated[:QUERIES], traced])
    fresh = build(folder / "fresh", timesteps="recorded", log=log, noise="own")
    grid = build(folder / "grid", checkpoints=weights, timesteps=10)
    score = partial(_plain_scores, queries=queries)
    scores = {
        "recorded": score(recorded),
        "fresh noise": score(fresh),
        "grid, mean": score(grid, pairing="mean"),
        "grid, matched": score(grid),
    }
    norm = picture_norms(recorded.store)
    builds = {
        "recorded": partial(_of_part, build, folder / "recorded", timesteps="recorded", log=log),
        GRID: partial(_of_part, build, folder / "weighted", checkpoints=weights, timesteps=GRID),
    }
    some = np.random.default_rng(seed).choice(np.flatnonzero(~zero), OUTLIERS, replace=False)
    judged = np.union1d(np.flatnonzero(zero), some)
    pixels = _pixel_similarity(queries, training)
    return {
        "seed": seed,
        "recorder's share of a step": recorder_share,
        "zeros": {"generated": float(is_zero.mean()), "queries": len(traced)},
        "norm": norms(recorded.store),
        "general": {name: _general(tables, norm) for name, tables in scores.items()},
        "tracing": {str(k): _tracing(scores, pixels, zero, k) for k in PRECISIONS},
        "parts": part_rows(builds, generated[:QUERIES], traced, norm, zero, judged),
        "change": {
            name: _change(scores["recorded"], tables)
            for name, tables in scores.items()
            if name != "recorded"
        },
    }


def _of_part(build: Callable[..., Index], place: Path, part: str, **options: Any) -> Index:
    """The index of a part of the model; of the whole that which is at the place."""
    if part == WHOLE:
        return build(place, **options)
    return build(place.with_name(f"{place.name}-{part}"), params=part, **options)


def _plain_scores(index: Index, queries: np.ndarray, **options: Any) -> Scores:
    return index.scores_by_method(queries, *METHODS, whiten=False, **options)


def _pixel_similarity(queries: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Minus the squared distance of pixels, [Q, N]."""
    flat_training = training.reshape(len(training), -1)
    flat_queries = queries.reshape(len(queries), 1, -1)
    return -np.square(flat_queries - flat_training[None]).sum(2)


def _general(scores: Scores, norm: np.ndarray) -> dict[str, Any]:
    """How general the influential pictures of the first queries are, for lists of several lengths.

    Args:
        norm: mean gradient norm of each training picture, [N].
    """
    general = {}
    for method in METHODS:
        table = scores[method][:QUERIES]
        general[method] = {str(k): influence(table, norm, k) for k in LENGTHS}
    return general


def _tracing(
    scores: Mapping[str, Scores], pixels: np.ndarray, zero: np.ndarray, k: int
) -> dict[str, float]:
    """The share of zeros among the k highest scores of generated zeros, for each kind of score.

    Args:
        pixels: similarity of the queries' pixels, [Q, N]. zero: which training pictures are zeros.
    """
    precisions = {}
    for name, tables in scores.items():
        for method in METHODS:
            precisions[f"{name}, {method}"] = precision(tables[method][QUERIES:], zero, k)
    precisions["pixel similarity"] = precision(pixels[QUERIES:], zero, k)
    precisions["random"] = float(zero.mean())
    return precisions


def _change(recorded: Scores, other: Scores) -> dict[str, dict[str, float]]:
    """The agreement of scores with those of recorded timesteps and noise, for each method."""
    agreement = {}
    for method in METHODS:
        tables = recorded[method], other[method]
        agreement[method] = {"spearman": spearman(*tables), "overlap@10": overlap(*tables, 10)}
    return agreement


def weights_of(index: Index) -> dict[str, float]:
    """Return the checkpoints of an index with their weights, {path: weight}."""
    header = index.store.header
    paths = [checkpoint.path for checkpoint in header.checkpoints]
    return dict(zip(paths, header.weights, strict=True))


def nearest(pictures: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Return the row of the training picture that is nearest in pixels, for each picture [Q]."""
    flat = pictures.reshape(len(pictures), -1)
    flat_training = training.reshape(len(training), -1)
    # |a − b|² without |a|², which is the same for all training pictures.
    return (np.square(flat_training).sum(1) - 2 * flat @ flat_training.T).argmin(1)


def precision(scores: np.ndarray, zero: np.ndarray, k: int) -> float:
    """Return the share of zeros among the k highest scores [Q, N], mean over queries."""
    return float(zero[top(scores, k)].mean()) if len(scores) else float("nan")

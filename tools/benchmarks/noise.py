"""How far two noise seeds agree on a ranking: `tools/bench noise`.

The same model, pictures, queries and projection; only the noise differs. Every figure is a mean over queries of
Spearman's ρ, and of the overlap of the ten best.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
from subjects import subject
from tqdm import tqdm

from gradindex.denoiser import Checkpoints, Denoiser
from gradindex.diagnose import METHODS
from gradindex.gradients.noise import noise, random_offset
from gradindex.gradients.projection import TWO_SIDED
from gradindex.gradients.rows import Events, capture_for, choose_strong, grid_events, sample_gradients
from gradindex.ranking import overlap, spearman
from gradindex.recipe import Recipe, grid
from gradindex.scoring import unit

PICTURES, QUERIES = 1000, 24
GRIDS = (1, 2, 5, 10, 20, 50, 100)  # timesteps, one draw each
DRAWS = (1, 2, 4, 8, 16)  # at ten timesteps
BUDGETS = ((10, 1), (25, 1), (50, 1), (10, 5), (100, 1), (25, 4), (100, 4), (100, 16))  # of a query to recorded rows
EVENTS = (1, 5, 10)  # recorded events of a picture
SEEDS = (0, 1)

Scores = dict[str, np.ndarray]  # {method: [Q, N]}


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/noise.json and .md; `only` names parts: grid, recorded."""
    part = record.resumable(work / f"noise-{device}")
    results = {}
    if not only or "grid" in only:
        results["grid"] = [
            row
            for kind in ("shared", "own")
            for row in part(f"grid {kind}", lambda kind=kind: on_a_grid(Subject(work, device), kind))
        ]
    if not only or "recorded" in only:
        results["recorded"] = part("recorded", lambda: recorded(Subject(work, device)))
    text = page(results)
    print(text)
    if not only:
        record.save("noise", device, "tools/bench noise", results, text)


class Subject:
    """A trained model, training pictures, and queries that it never saw."""

    def __init__(self, work: Path, device: str) -> None:
        folder, pictures = subject("tiny", work)
        checkpoints = Checkpoints([folder], folder, None, device, "float32")
        self.denoiser: Denoiser = checkpoints[0]
        self.pictures = np.concatenate([pictures[:PICTURES], pictures[-QUERIES:]])
        self.ids = [f"picture {number}" for number in range(len(self.pictures))]
        count = sum(self.denoiser.model.get_parameter(name).numel() for name in self.denoiser.trainable)
        recipe = Recipe(
            **checkpoints.facts(), params=None, parameter_count=count, timesteps=grid(10, 1000), draws=1, noise="own",
            seed=0, loss="mse", projection=TWO_SIDED, rank=16, strong=(), dim=4096,
        )  # fmt: skip
        some = np.linspace(0, PICTURES - 1, 8).astype(int)
        strong = choose_strong(self.denoiser, recipe, self.pictures[some], [self.ids[i] for i in some], None, 64)
        self.recipe = replace(recipe, strong=strong)

    def gradients(self, events: Events, rows: slice) -> np.ndarray:
        """[rows, T, D]."""
        with capture_for(self.denoiser, self.recipe) as capture:
            return sample_gradients(
                self.denoiser, capture, self.recipe, self.pictures[rows], events, None, batch_size=64
            )

    def on_grid(self, timesteps: Sequence[int], seed: int, kind: str, draw: int, rows: slice) -> np.ndarray:
        """[rows, T, D] at the same timesteps for all, with one draw of the noise of a seed."""
        events = grid_events(replace(self.recipe, seed=seed, noise=kind), self.ids[rows], timesteps, draws=1)
        return self.gradients(replace(events, noise=lambda i, j, _: events.noise(i, j, draw)), rows)


ALL, ASKED, TRAINING = slice(None), slice(PICTURES, None), slice(PICTURES)


def on_a_grid(model: Subject, kind: str) -> list[dict[str, Any]]:
    """Agreement of two seeds for growing grids and growing numbers of draws."""
    settings = [(count, 1) for count in GRIDS] + [(10, draws) for draws in DRAWS[1:]]
    scores: dict[tuple[int, int], list[dict[str, Scores]]] = {setting: [] for setting in settings}
    for seed in SEEDS:
        for count in tqdm(GRIDS, desc=f"{kind} noise, seed {seed}"):
            timesteps, total = grid(count, 1000), 0.0
            for draw in range(max(DRAWS) if count == 10 else 1):
                total = total + model.on_grid(timesteps, seed, kind, draw, ALL)
                if (count, draw + 1) in scores:
                    asked, rows = total[ASKED], total[TRAINING]
                    scores[count, draw + 1].append({name: of(asked, rows) for name, of in PAIRINGS.items()})
    return [
        {"noise": kind, "pairing": pairing, "timesteps": count, "draws": draws, "gradients": count * draws,
         **compared(first[pairing], second[pairing])}
        for pairing in PAIRINGS
        for (count, draws), (first, second) in scores.items()
    ]  # fmt: skip


def matched(asked: np.ndarray, rows: np.ndarray) -> Scores:
    """Timestep by timestep, from rows [·, T, D]."""
    sides = {"tracin": (asked, rows), "retrac": (unit(asked), unit(rows))}
    return {method: left.reshape(len(left), -1) @ right.reshape(len(right), -1).T
            for method, (left, right) in sides.items()}  # fmt: skip


def mean(asked: np.ndarray, rows: np.ndarray) -> Scores:
    """Means over timesteps, of which the two sides may have different ones."""
    sides = {"tracin": (asked, rows), "retrac": (unit(asked), unit(rows))}
    return {method: left.mean(1) @ right.mean(1).T for method, (left, right) in sides.items()}


PAIRINGS = {"matched": matched, "mean": mean}


def recorded(model: Subject) -> list[dict[str, Any]]:
    """Agreement of two noise seeds of the queries, and of two trainings' draws, for rows at random timesteps.

    The rows' timesteps and noise are drawn as `TrainingRecorder` draws them.
    """
    rows = {
        (seed, count): model.gradients(random_events(model.ids[TRAINING], seed, count), TRAINING)
        for seed in SEEDS
        for count in EVENTS
    }
    times = {count: random_events(model.ids[TRAINING], 0, count).timesteps for count in EVENTS}
    found, queries = [], {}
    for count, draws in tqdm(BUDGETS, desc="queries"):
        timesteps = grid(count, 1000)
        for seed in SEEDS:
            queries[seed, count, draws] = np.mean(
                [model.on_grid(timesteps, seed, "own", draw, ASKED) for draw in range(draws)], axis=0
            )
        budget = {"timesteps": count, "draws": draws, "gradients": count * draws}
        for events in EVENTS:
            for pairing, score in (("mean", mean), ("nearest", partial(to_nearest, times[events], timesteps))):
                pair = [score(queries[seed, count, draws], rows[0, events]) for seed in SEEDS]
                found.append({"differs": "query noise", "events": events, "pairing": pairing, **budget,
                              **compared(*pair)})  # fmt: skip
    for events in EVENTS:
        count, draws = BUDGETS[-1]
        pair = [mean(queries[0, count, draws], rows[seed, events]) for seed in SEEDS]
        found.append({"differs": "training's draws", "events": events, "pairing": "mean", "timesteps": count,
                      "draws": draws, "gradients": count * draws, **compared(*pair)})  # fmt: skip
    return found


def random_events(ids: Sequence[str], seed: int, count: int) -> Events:
    """The last `count` of a training run's events; those of a smaller count are among them."""
    timesteps = np.array([[random_offset(seed, "timestep", name, j, below=1000) for j in range(count)] for name in ids])

    def noise_of(i: int, j: int, m: int) -> np.ndarray:
        return noise(seed, ids[i], int(timesteps[i, j]), j, (1, 16, 16))

    return Events(ids, timesteps, 1, noise_of)


def to_nearest(times: np.ndarray, timesteps: Sequence[int], asked: np.ndarray, rows: np.ndarray) -> Scores:
    """Every row with the query at the nearest of its timesteps."""
    nearest = np.abs(times[:, :, None] - np.array(timesteps)).argmin(2)
    scores = {}
    for method, change in (("tracin", lambda side: side), ("retrac", unit)):
        left, right = change(asked), change(rows)
        scores[method] = np.stack([np.einsum("ned,ned->n", right, query[nearest]) for query in left])
    return scores


def compared(first: Scores, second: Scores) -> dict[str, float]:
    figures: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "spearman": spearman, "overlap@10": partial(overlap, k=10)
    }  # fmt: skip
    return {f"{method} {name}": figure(first[method], second[method]) for method in METHODS
            for name, figure in figures.items()}  # fmt: skip


def page(results: Mapping[str, list[dict[str, Any]]]) -> str:
    """The results as Markdown."""
    parts = [f"# How much of a ranking is noise\n\nTwo indexes and queries that differ in nothing but the seed of their"
             f" noise: how far do their rankings agree? A DDPM of 0.7 M parameters on Fashion-MNIST at 16×16,"
             f" {PICTURES:,} training pictures, {QUERIES} queries that it never saw, projection `auto`, D = 4096."
             " Spearman's ρ / overlap of the ten best, means over queries. *Gradients*: of one query."]  # fmt: skip
    for kind, rows in results.items():
        parts.append("\n## The same timesteps for every picture\n" if kind == "grid" else "\n## Recorded timesteps\n")
        parts.append(
            record.table(
                [{**{name: value for name, value in row.items() if not name.startswith(METHODS)},
                  **{title: f"{row[f'{method} spearman']:.2f} / {row[f'{method} overlap@10']:.2f}"
                     for method, title in zip(METHODS, ("TracIn", "ReTrac"), strict=True)}} for row in rows]
            )
        )  # fmt: skip
    if "recorded" in results:
        parts.append("\nRows at one event of training are what they are; here the queries' noise differs, own for each."
                     " *nearest*: a row is paired with the query at the nearest timestep of its grid. *training's"
                     " draws*: the queries are the same, and the rows those of another run of the recorder over the"
                     " same weights: so much of a ranking is the chance of training.")  # fmt: skip
    return "\n".join(parts)

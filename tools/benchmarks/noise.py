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
from fidelity import QUERIES, Subject
from subjects import subject

from gradindex.diagnose import METHODS
from gradindex.gradients.noise import noise, random_timestep
from gradindex.gradients.rows import Events, capture_for, grid_events, sample_gradients
from gradindex.ranking import overlap, spearman
from gradindex.recipe import grid
from gradindex.scoring import unit

PICTURES = 1000
GRIDS = (1, 2, 5, 10, 20, 50, 100)  # timesteps, one draw each
DRAWN, DRAWS = 10, (1, 2, 4, 8, 16)  # timesteps, and draws there
BUDGETS = (
    (10, 1), (5, 2), (10, 2), (25, 1), (50, 1), (25, 2), (10, 5), (5, 10), (100, 1), (50, 2), (25, 4), (100, 2),
    (100, 4), (100, 16),
)  # of a query to recorded rows  # fmt: skip
EVENTS = (1, 5, 10)  # recorded events of a picture
SEEDS = (0, 1)
BATCH = 64

Scores = dict[str, np.ndarray]  # {method: [Q, N]}


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/noise.json and .md; `only` names parts: grid, recorded."""
    subject("tiny", work)  # trained once, before the parts need it side by side
    parts: dict[str, Callable[[], Any]] = {}
    if not only or "recorded" in only:
        parts["recorded"] = partial(recorded, work, device)
    if not only or "grid" in only:
        for kind in ("shared", "own"):
            for count in reversed(GRIDS):
                draws = DRAWS if count == DRAWN else (1,)
                parts[f"grid {kind} {count:03d}"] = partial(on_a_grid, work, device, kind, count, draws)
    found = record.measure(work / f"noise-{device}", parts, device)
    results = {}
    for name, rows in found.items():
        results.setdefault(name.split()[0], []).extend(rows)
    if "grid" in results:
        results["grid"].sort(key=lambda row: (row["noise"], row["pairing"], row["draws"], row["timesteps"]))
    text = page(results)
    print(text)
    if not only:
        record.save("noise", device, "tools/bench noise", results, text)


class Setting:
    """A trained model, training pictures, and queries that it never saw, with projected gradients of all of them."""

    def __init__(self, work: Path, device: str) -> None:
        self.subject = Subject(*subject("tiny", work), device, training=PICTURES)
        self.recipe = replace(self.subject.recipe, dim=4096, strong=self.subject.strong(16, BATCH))
        self.ids = self.subject.ids

    def gradients(self, events: Events, rows: slice) -> np.ndarray:
        """[rows, T, D]."""
        denoiser, pictures = self.subject.denoiser, self.subject.pictures[rows]
        with capture_for(denoiser, self.recipe) as capture:
            return sample_gradients(denoiser, capture, self.recipe, pictures, events, None, batch_size=BATCH)

    def on_grid(self, count: int, seed: int, kind: str, draw: int, rows: slice) -> np.ndarray:
        """[rows, T, D] at the same timesteps for all, with one draw of the noise of a seed."""
        events = grid_events(replace(self.recipe, seed=seed, noise=kind), self.ids[rows], grid(count, 1000), draws=1)
        return self.gradients(replace(events, noise=lambda i, j, _: events.noise(i, j, draw)), rows)


ALL, ASKED, TRAINING = slice(None), slice(PICTURES, None), slice(PICTURES)


def on_a_grid(work: Path, device: str, kind: str, count: int, draws: Sequence[int]) -> list[dict[str, Any]]:
    """Agreement of two seeds at one grid, for growing numbers of draws."""
    setting = Setting(work, device)
    scores: dict[int, list[dict[str, Scores]]] = {number: [] for number in draws}
    for seed in SEEDS:
        total = np.zeros(())
        for draw in range(max(draws)):
            total = total + setting.on_grid(count, seed, kind, draw, ALL)
            if draw + 1 in scores:
                asked, rows = total[ASKED], total[TRAINING]
                scores[draw + 1].append({name: of(asked, rows) for name, of in PAIRINGS.items()})
    return [
        {"noise": kind, "pairing": pairing, "timesteps": count, "draws": number, "gradients": count * number,
         **compared(first[pairing], second[pairing])}
        for pairing in PAIRINGS
        for number, (first, second) in scores.items()
    ]  # fmt: skip


ROWS = {"tracin": np.asarray, "retrac": unit}  # what each method makes of gradients


def matched(asked: np.ndarray, rows: np.ndarray) -> Scores:
    """Timestep by timestep, from rows [·, T, D]."""
    return {method: of(asked).reshape(len(asked), -1) @ of(rows).reshape(len(rows), -1).T
            for method, of in ROWS.items()}  # fmt: skip


def mean(asked: np.ndarray, rows: np.ndarray) -> Scores:
    """Means over timesteps, of which the two sides may have different ones."""
    return {method: of(asked).mean(1) @ of(rows).mean(1).T for method, of in ROWS.items()}


PAIRINGS = {"matched": matched, "mean": mean}


def recorded(work: Path, device: str) -> list[dict[str, Any]]:
    """Agreement of two noise seeds of the queries, and of two trainings' draws, for rows at random timesteps.

    The rows' timesteps and noise are drawn as `TrainingRecorder` draws them.
    """
    setting = Setting(work, device)
    events = {(seed, count): random_events(setting.ids[TRAINING], seed, count) for seed in SEEDS for count in EVENTS}
    rows = {key: setting.gradients(some, TRAINING) for key, some in events.items()}
    found = []
    for count, draws in BUDGETS:
        queries = [
            np.mean([setting.on_grid(count, seed, "own", draw, ASKED) for draw in range(draws)], axis=0)
            for seed in SEEDS
        ]
        budget = {"timesteps": count, "draws": draws, "gradients": count * draws}
        for number in EVENTS:
            stored, nearest = rows[0, number], partial(to_nearest, events[0, number].timesteps)
            for pairing, score in (("mean", mean), ("nearest", nearest)):
                agreed = compared(*(score(query, stored) for query in queries))
                found.append({"differs": "query noise", "events": number, "pairing": pairing, **budget, **agreed})
    for number in EVENTS:  # with the last budget's queries
        agreed = compared(*(mean(queries[0], rows[seed, number]) for seed in SEEDS))
        found.append({"differs": "training's draws", "events": number, "pairing": "mean", **budget, **agreed})
    return found


def random_events(ids: Sequence[str], seed: int, count: int) -> Events:
    """The last `count` of a training run's events; those of a smaller count are among them."""
    timesteps = np.array([[random_timestep(seed, name, j, below=1000) for j in range(count)] for name in ids])

    def noise_of(i: int, j: int, m: int) -> np.ndarray:
        return noise(seed, ids[i], int(timesteps[i, j]), j, (1, 16, 16))

    return Events(ids, timesteps, 1, noise_of)


def to_nearest(times: np.ndarray, asked: np.ndarray, rows: np.ndarray) -> Scores:
    """Every row, of its own timesteps [N, T], with the query at the nearest of a grid."""
    nearest = np.abs(times[:, :, None] - np.array(grid(asked.shape[1], 1000))).argmin(2)
    return {
        method: np.stack([np.einsum("ned,ned->n", of(rows), query[nearest]) for query in of(asked)])
        for method, of in ROWS.items()
    }


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

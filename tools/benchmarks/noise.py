"""How far two noise seeds agree on a ranking: `tools/bench noise`.

The same model, pictures, queries and projection; only the noise differs. Every figure is a mean
over queries of Spearman's ρ, and of the overlap of the ten best.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
from measured_model import QUERIES, MeasuredModel
from trained_models import model_and_pictures

from gradindex.gradients.events import Events, grid_events
from gradindex.gradients.fold import unit
from gradindex.gradients.parameters import capture_for
from gradindex.gradients.sampling import sample_gradients
from gradindex.models.examples import Examples
from gradindex.random_numbers import noise, random_timestep
from gradindex.recipe import grid
from gradindex.report.ranking import overlap, spearman
from gradindex.search.scoring import METHODS

PICTURES = 1000  # that the model was trained on
GRIDS = (1, 2, 5, 10, 20, 50, 100)  # timesteps, one draw each
DRAWN, DRAWS = 10, (1, 2, 4, 8, 16)  # timesteps, and draws there
NOISES = ("shared", "own")
BUDGETS = (  # timesteps and draws of a query to recorded rows
    (10, 1),
    (5, 2),
    (10, 2),
    (25, 1),
    (50, 1),
    (25, 2),
    (10, 5),
    (5, 10),
    (100, 1),
    (50, 2),
    (25, 4),
    (100, 2),
    (100, 4),
    (100, 16),
)
EVENTS = (1, 5, 10)  # recorded events of a picture
SEEDS = (0, 1)
BATCH = 64
TITLES = {"tracin": "TracIn", "retrac": "ReTrac"}
ORDER = ("noise", "pairing", "draws", "timesteps")  # of the rows for a grid

Scores = dict[str, np.ndarray]  # {method: [Q, N]}


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/noise.json and .md.

    Args:
        only: some of the parts "grid" and "recorded".
    """
    model_and_pictures("tiny", work)  # trained once, before the parts need it side by side
    parts: dict[str, Callable[[], Any]] = {}
    if not only or "recorded" in only:
        parts["recorded"] = partial(recorded_timesteps, work, device)
    if not only or "grid" in only:
        parts |= _grid_parts(work, device)
    rows_of_parts = record.measure(work / f"noise-{device}", parts, device)
    results: dict[str, list[dict[str, Any]]] = {}
    for name, rows in rows_of_parts.items():
        results.setdefault(name.split()[0], []).extend(rows)
    if "grid" in results:
        results["grid"].sort(key=lambda row: tuple(row[column] for column in ORDER))
    text = page(results)
    print(text)
    if not only:
        record.save("noise", device, "tools/bench noise", results, text)


def _grid_parts(work: Path, device: str) -> dict[str, Callable[[], Any]]:
    """What is measured with the same timesteps for every picture, the longest grid first."""
    parts: dict[str, Callable[[], Any]] = {}
    for kind in NOISES:
        for count in reversed(GRIDS):
            draws = DRAWS if count == DRAWN else (1,)
            part = partial(same_timesteps, work, device, kind, count, draws)
            parts[f"grid {kind} {count:03d}"] = part
    return parts


class NoiseExperiment:
    """Projected gradients of a model's training pictures, and of queries that it never saw.

    Attributes:
        ids: of training pictures, then of queries.
        training, queries: their rows.
    """

    training = slice(PICTURES)
    queries = slice(PICTURES, None)

    def __init__(self, work: Path, device: str) -> None:
        model, pictures = model_and_pictures("tiny", work)
        self._model = MeasuredModel(model, pictures, device, training=PICTURES)
        high_rank = self._model.high_rank(16, BATCH)
        self._recipe = replace(self._model.recipe, dim=4096, high_rank=high_rank)
        self.ids = self._model.ids

    def gradients(self, events: Events, rows: slice) -> np.ndarray:
        """Return the gradients of some rows, [rows, T, D] float32, `events` being theirs."""
        denoiser, pictures = self._model.denoiser, self._model.pictures[rows]
        with capture_for(denoiser, self._recipe) as capture:
            return sample_gradients(
                denoiser, capture, self._recipe, Examples(pictures), events, batch_size=BATCH
            )

    def gradients_on_grid(
        self, count: int, seed: int, kind: str, draw: int, rows: slice
    ) -> np.ndarray:
        """Return the gradients at `count` timesteps, the same for all rows, [rows, T, D] float32.

        Args:
            seed: of the noise. kind: "shared" or "own".
            draw: which draw of the noise is taken.
        """
        recipe = replace(self._recipe, seed=seed, noise=kind)
        events = grid_events(recipe, self.ids[rows], grid(count, 1000), draws=1)

        def noise_of_draw(i: int, j: int, _: int) -> np.ndarray:
            return events.noise(i, j, draw)

        return self.gradients(replace(events, noise=noise_of_draw), rows)


def same_timesteps(
    work: Path, device: str, kind: str, count: int, draws: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the agreement of two seeds on one grid, for growing numbers of draws.

    Args:
        kind: of noise, "shared" or "own". count: timesteps of the grid.
        draws: how many draws gradients are means over.
    """
    experiment = NoiseExperiment(work, device)
    all_rows = slice(None)
    # {draws: for each seed {pairing: scores}}
    scores: dict[int, list[dict[str, Scores]]] = {number: [] for number in draws}
    for seed in SEEDS:
        total = np.zeros(())
        for draw in range(max(draws)):
            total = total + experiment.gradients_on_grid(count, seed, kind, draw, all_rows)
            if draw + 1 in scores:
                queries, training = total[experiment.queries], total[experiment.training]
                of_pairings = {name: pair(queries, training) for name, pair in PAIRINGS.items()}
                scores[draw + 1].append(of_pairings)
    rows = []
    for pairing in PAIRINGS:
        for number, (first, second) in scores.items():
            row = {
                "noise": kind,
                "pairing": pairing,
                "timesteps": count,
                "draws": number,
                "gradients": count * number,
            }
            rows.append({**row, **compare(first[pairing], second[pairing])})
    return rows


METHOD_ROWS = {"tracin": np.asarray, "retrac": unit}  # what each method makes of gradients


def matched(queries: np.ndarray, training: np.ndarray) -> Scores:
    """Return the scores timestep by timestep, from gradients [Q, T, D] and [N, T, D]."""
    scores = {}
    for method, rows_of in METHOD_ROWS.items():
        flat_queries = rows_of(queries).reshape(len(queries), -1)
        flat_training = rows_of(training).reshape(len(training), -1)
        scores[method] = flat_queries @ flat_training.T
    return scores


def mean(queries: np.ndarray, training: np.ndarray) -> Scores:
    """Return the scores of means over timesteps, of which the two sides may have different ones."""
    scores = {}
    for method, rows_of in METHOD_ROWS.items():
        scores[method] = rows_of(queries).mean(1) @ rows_of(training).mean(1).T
    return scores


def nearest(timesteps: np.ndarray, queries: np.ndarray, training: np.ndarray) -> Scores:
    """Return the scores of rows, each with the query at the nearest timestep of its grid.

    Args:
        timesteps: of training rows, [N, E].
        queries: gradients on a grid, [Q, T, D]. training: gradients [N, E, D].
    """
    distances = np.abs(timesteps[:, :, None] - np.array(grid(queries.shape[1], 1000)))
    positions = distances.argmin(2)
    scores = {}
    for method, rows_of in METHOD_ROWS.items():
        rows = rows_of(training)
        tables = [np.einsum("ned,ned->n", rows, query[positions]) for query in rows_of(queries)]
        scores[method] = np.stack(tables)
    return scores


PAIRINGS = {"matched": matched, "mean": mean}


def recorded_timesteps(work: Path, device: str) -> list[dict[str, Any]]:
    """Return the agreement for rows at random timesteps.

    Of two noise seeds of the queries, and of two trainings' draws. The rows' timesteps and noise
    are drawn as `TrainingRecorder` draws them.
    """
    experiment = NoiseExperiment(work, device)
    training_ids = experiment.ids[experiment.training]
    events, training = {}, {}
    for seed in SEEDS:
        for number in EVENTS:
            drawn = random_events(training_ids, seed, number)
            events[seed, number] = drawn
            training[seed, number] = experiment.gradients(drawn, experiment.training)
    rows = []
    for count, draws in BUDGETS:
        queries = [_mean_over_draws(experiment, count, draws, seed) for seed in SEEDS]
        budget = {"timesteps": count, "draws": draws, "gradients": count * draws}
        for number in EVENTS:
            to_nearest = partial(nearest, events[0, number].timesteps)
            for pairing, score in (("mean", mean), ("nearest", to_nearest)):
                first, second = (score(query, training[0, number]) for query in queries)
                row = {"differs": "query noise", "events": number, "pairing": pairing}
                rows.append({**row, **budget, **compare(first, second)})
    # Another training, with the last budget's queries.
    for number in EVENTS:
        first, second = (mean(queries[0], training[seed, number]) for seed in SEEDS)
        row = {"differs": "training's draws", "events": number, "pairing": "mean"}
        rows.append({**row, **budget, **compare(first, second)})
    return rows


def _mean_over_draws(experiment: NoiseExperiment, count: int, draws: int, seed: int) -> np.ndarray:
    """The queries' gradients on a grid with noise of their own, [Q, T, D]."""
    gradients = [
        experiment.gradients_on_grid(count, seed, "own", draw, experiment.queries)
        for draw in range(draws)
    ]
    return np.mean(gradients, axis=0)


def random_events(ids: Sequence[str], seed: int, count: int) -> Events:
    """Return the last `count` events of a training run; those of fewer are among them."""

    def timesteps_of(name: str) -> list[int]:
        return [random_timestep(seed, name, j, below=1000) for j in range(count)]

    timesteps = np.array([timesteps_of(name) for name in ids])

    def event_noise(i: int, j: int, _: int) -> np.ndarray:
        return noise(seed, ids[i], int(timesteps[i, j]), j, (1, 16, 16))

    return Events(ids, timesteps, 1, event_noise)


def compare(first: Scores, second: Scores) -> dict[str, float]:
    """Return Spearman's ρ and the overlap of the ten best, of each method."""
    figures = {}
    for method in METHODS:
        tables = first[method], second[method]
        figures[f"{method} spearman"] = spearman(*tables)
        figures[f"{method} overlap@10"] = overlap(*tables, k=10)
    return figures


def page(results: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the results as Markdown."""
    sections = [record.fill_page("noise", pictures=PICTURES, queries=QUERIES)]
    for part, rows in results.items():
        table = record.table([_page_row(row) for row in rows])
        sections.append(record.fill_page(f"noise-{part}", table=table))
    if "recorded" in results:
        sections.append(record.fill_page("noise-terms"))
    return "\n\n".join(sections)


def _page_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with both figures of a method in one cell."""
    cells = {name: value for name, value in row.items() if not name.startswith(METHODS)}
    for method, title in TITLES.items():
        agreement, common = row[f"{method} spearman"], row[f"{method} overlap@10"]
        cells[title] = f"{agreement:.2f} / {common:.2f}"
    return cells

"""Self-influence: each training picture's score for itself, and which pictures stand out by it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TypedDict

import numpy as np

from gradindex.errors import CallError
from gradindex.gradients.fold import unit
from gradindex.recipe import FOLDED
from gradindex.report.training_sample import training_gradients
from gradindex.search.index import Index
from gradindex.search.scoring import METHODS
from gradindex.store.store import Store

# Of a picture as a query for itself, where its rows are recorded ones.
SELF_TIMESTEPS = 5
SELF_DRAWS = 2

# What a method multiplies: {method: array of the store}.
METHOD_ARRAYS = {"tracin": "unnormalized", "retrac": "normalized"}

# A method, rows of the store (a slice or numbers), and what a checkpoint adds to their score.
Term = tuple[str, slice | np.ndarray, np.ndarray]


class Outlier(TypedDict):
    """A training picture that stands out: its id, its row, and its self-influence."""

    id: str
    row: int
    score: float


class Outliers(TypedDict):
    """The pictures that stand out by a method, and the quartiles of all self-influences."""

    outliers: list[Outlier]
    quartiles: list[float]


def self_influence(index: Index, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return each picture's plain score for itself, {method: [N] float64}.

    It is NaN for pictures that no query returns, and for others than those of `rows`.

    On a grid it comes from the stored rows. TracIn's is `Σ_c w_c mean_t ‖u‖²`, the matched score.
    ReTrac's matched score would be the same for all pictures, so it is that of the mean pairing,
    `Σ_c w_c ‖mean_t n‖²`. Recorded rows are scored, by both methods, for the picture as a query of
    SELF_TIMESTEPS × SELF_DRAWS gradients, which are taken now.

    Args:
        rows: of the pictures to score; all by default.

    Raises:
        CallError: rows are folded, so that timesteps cannot be told apart.
    """
    store = index.store
    require_full_rows(store)
    wanted = store.kept if rows is None else np.intersect1d(rows, store.kept)
    scores = {method: np.zeros(store.shape[1]) for method in METHODS}
    for checkpoint, weight in enumerate(store.header.weights):
        if store.recipe.events is None:
            terms = _grid_terms(store, checkpoint)
        else:
            terms = _recorded_terms(index, checkpoint, wanted)
        for method, some, term in terms:
            scores[method][some] += weight * term
    for values in scores.values():
        values[np.setdiff1d(np.arange(len(values)), wanted)] = np.nan
    return scores


def require_full_rows(store: Store) -> None:
    """Raise CallError where a picture has one row in place of one for each timestep."""
    if store.recipe.rows == FOLDED:
        raise CallError(
            f"{store.location}: rows are folded into one for each picture; norms and self-influence"
            " need all of them"
        )


def _grid_terms(store: Store, checkpoint: int) -> Iterator[Term]:
    """The terms of a checkpoint from rows at a grid: `mean_t ‖u‖²` and `‖mean_t n‖²`."""
    norm = store.read("norm", checkpoint, slice(None)).astype(np.float64)
    yield "tracin", slice(None), np.square(norm).mean(1)
    for block in store.blocks():
        mean = store.read("normalized", checkpoint, block).astype(np.float32).mean(1)
        yield "retrac", block, np.square(mean).sum(1)


def _recorded_terms(index: Index, checkpoint: int, wanted: np.ndarray) -> Iterator[Term]:
    """The terms of a checkpoint from recorded rows: mean query gradient times mean row.

    Args:
        wanted: rows of the pictures.
    """
    store = index.store
    denoiser = index.gradients.checkpoints[checkpoint]
    timesteps = denoiser.process.grid(SELF_TIMESTEPS)
    setting = replace(store.recipe, timesteps=timesteps, draws=SELF_DRAWS, events=None)
    for rows, gradients in training_gradients(index, denoiser, setting, wanted):
        query_gradients = {"tracin": gradients, "retrac": unit(gradients)}
        for method, query in query_gradients.items():
            stored = store.read(METHOD_ARRAYS[method], checkpoint, rows)
            mean_row = stored.astype(np.float32).mean(1)
            yield method, rows, np.einsum("nd,nd->n", query.mean(1), mean_row)


def find_outliers(store: Store, scores: np.ndarray, method: str, k: int) -> Outliers:
    """Return the k pictures that stand out by self-influence: TracIn's highest, ReTrac's lowest.

    Args:
        scores: self-influence by the method, [N]; NaN does not count.
    """
    order = np.argsort(-scores if method == "tracin" else scores, kind="stable")
    rows = order[~np.isnan(scores[order])][:k]
    outliers: list[Outlier] = [
        {"id": store.sample_ids[row], "row": int(row), "score": float(scores[row])} for row in rows
    ]
    quartiles = [float(value) for value in np.nanpercentile(scores, (25, 50, 75))]
    return {"outliers": outliers, "quartiles": quartiles}

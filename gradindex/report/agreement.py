"""Noise agreement: how far scores with the noise of one seed agree with those of another."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np

from gradindex.gradients.fold import unit
from gradindex.models.denoiser import Denoiser
from gradindex.models.examples import Pictures
from gradindex.recipe import Recipe
from gradindex.report.ranking import overlap, spearman
from gradindex.report.training_sample import (
    evenly_spaced,
    take_gradients,
    training_gradients,
)
from gradindex.search.index import Index
from gradindex.search.query import QUERY_DRAWS, QUERY_TIMESTEPS
from gradindex.search.row_whitening import whitened_by
from gradindex.search.scoring import row_pieces
from gradindex.store.progress import progress
from gradindex.store.store import Store


class Agreement(TypedDict):
    """How far two rankings agree, means over queries.

    Keys:
        spearman: Spearman's ρ of the scores.
        overlap: share of the k best that the two have in common.
    """

    spearman: float
    overlap: float


class SettingAgreement(TypedDict):
    """How far two noise seeds agree at a setting, by either method.

    Keys:
        timesteps, draws: the setting.
        gradients: of one query, timesteps × draws.
    """

    timesteps: int
    draws: int
    gradients: int
    tracin: Agreement
    retrac: Agreement


def noise_agreement(
    index: Index,
    queries: Pictures,
    compared: int,
    k: int,
    query_rows: Sequence[int | None] = (),
    whiten: bool = True,
) -> list[SettingAgreement]:
    """Return how far two noise seeds agree on scores, at the index's setting and around it.

    The settings are the index's own, one of half as many timesteps, of twice as many, and of twice
    as many draws. At a grid, the training pictures are a sample whose gradients are taken anew with
    both seeds, and they whiten the queries. Recorded rows are what they are, so only the queries'
    noise differs. The last checkpoint alone is used.

    Args:
        queries: Q pictures.
        compared: how many training pictures of a grid are in the sample.
        k: length of the lists that are compared.
        query_rows: rows of the queries that are training pictures; these are not in the sample.
        whiten: whether queries are whitened.
    """
    recipe = index.store.recipe
    denoiser = index.gradients.checkpoints[-1]
    rows = _sampled_rows(index.store, compared, query_rows)
    agreements = []
    settings = _settings(recipe, denoiser.num_train_timesteps)
    total = _count(settings, recipe, len(queries.arrays), len(rows))
    with progress(title="noise", total=total, unit="gradient") as bar:
        for timesteps, draws in settings:
            if timesteps == len(recipe.timesteps):
                chosen = recipe.timesteps
            else:
                chosen = denoiser.process.grid(timesteps)
            setting = replace(recipe, timesteps=chosen, draws=draws, events=None)
            first, second = (
                _scores_of_seed(
                    index, denoiser, replace(setting, seed=seed), queries, rows, whiten, bar.update
                )
                for seed in (recipe.seed, recipe.seed + 1)
            )
            agreement: SettingAgreement = {
                "timesteps": timesteps,
                "draws": draws,
                "gradients": timesteps * draws,
                "tracin": _agreement(first["tracin"], second["tracin"], k),
                "retrac": _agreement(first["retrac"], second["retrac"], k),
            }
            agreements.append(agreement)
    return agreements


def count_gradients(index: Index, queries: int, compared: int) -> int:
    """Return how many gradients `noise_agreement` takes of so many queries and pictures."""
    recipe = index.store.recipe
    settings = _settings(recipe, index.gradients.checkpoints[-1].num_train_timesteps)
    rows = min(compared, len(index.store.kept))
    return _count(settings, recipe, queries, rows)


def _count(settings: Sequence[tuple[int, int]], recipe: Recipe, queries: int, rows: int) -> int:
    """How many gradients some settings take with two seeds; recorded rows are not taken anew."""
    pictures = queries + (rows if recipe.events is None else 0)
    return 2 * pictures * sum(timesteps * draws for timesteps, draws in settings)


def _settings(recipe: Recipe, num_train_timesteps: int) -> list[tuple[int, int]]:
    """The distinct settings that are tried: how many timesteps, and how many draws at each."""
    if recipe.events is None:
        timesteps, draws = len(recipe.timesteps), recipe.draws
    else:
        timesteps, draws = QUERY_TIMESTEPS, QUERY_DRAWS
    settings = [
        (max(timesteps // 2, 1), draws),
        (timesteps, draws),
        (2 * timesteps, draws),
        (timesteps, 2 * draws),
    ]
    possible = [(min(count, num_train_timesteps), draws) for count, draws in settings]
    return list(dict.fromkeys(possible))


def _sampled_rows(store: Store, compared: int, query_rows: Sequence[int | None]) -> np.ndarray:
    """The rows that are ranked: without the queries' own, unless fewer than two would stay."""
    kept = store.kept
    rows = np.setdiff1d(kept, [row for row in query_rows if row is not None])
    if len(rows) < 2:
        rows = kept
    if store.recipe.events is None:
        rows = rows[evenly_spaced(len(rows), compared)]
    return rows


def _agreement(first: np.ndarray, second: np.ndarray, k: int) -> Agreement:
    """How far two tables of scores [Q, N] agree."""
    return {"spearman": spearman(first, second), "overlap": overlap(first, second, k)}


def _scores_of_seed(
    index: Index,
    denoiser: Denoiser,
    setting: Recipe,
    queries: Pictures,
    rows: np.ndarray,
    whiten: bool,
    on_taken: Callable[[int], object],
) -> dict[str, np.ndarray]:
    """Scores of each method with the noise of a setting's seed, {method: [Q, rows]}.

    The projection stays the index's. At a grid of T timesteps a score is the sum over them, T
    times what a query shows, which changes no rank.
    """
    per_picture = len(setting.timesteps) * setting.draws
    (gradients,) = take_gradients(index, denoiser, setting, [queries])
    on_taken(len(gradients) * per_picture)
    query_gradients = {"tracin": gradients, "retrac": unit(gradients)}
    scores = {}
    if index.store.recipe.events is not None:
        for method, q in query_gradients.items():
            scores[method] = _scores_of_means(index, method, q.mean(1), whiten)[:, rows]
        return scores
    groups = []
    for _, group in training_gradients(index, denoiser, setting, rows):
        groups.append(group)
        on_taken(len(group) * per_picture)
    training = np.concatenate(groups)
    for method, q in query_gradients.items():
        g = unit(training) if method == "retrac" else training
        if whiten:
            damping = index.ranker.usual_damping
            whitened = [whitened_by(g[:, t], q[:, t], damping) for t in range(q.shape[1])]
            q = np.stack(whitened, axis=1)
        scores[method] = np.einsum("qtd,ntd->qn", q, g)
    return scores


def _scores_of_means(index: Index, method: str, mean: np.ndarray, whiten: bool) -> np.ndarray:
    """The scores [Q, N] of recorded rows at the last checkpoint.

    Args:
        mean: the means of each query's gradients over its timesteps, [Q, D].
    """
    checkpoints, _, events, dim = index.store.shape
    last = checkpoints - 1
    block = np.zeros((len(mean), checkpoints, events, dim), np.float32)
    block[:, last] = mean[:, None]
    if whiten:
        block = index.ranker.whitened(method, block)
    query = block[:, last] / events
    scores = []
    for rows in index.store.blocks():
        for g, divisor in row_pieces(index.store, last, rows, method == "retrac", np.float32):
            scores.append(np.einsum("qed,ned->qn", query, g / divisor[:, :, None]))
    return np.concatenate(scores, axis=1)

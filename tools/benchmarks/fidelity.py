"""How well projected gradients rank training pictures, against exact full gradients."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gradient_costs import DIM, RANK, RANKS
from gradient_methods import DENSE_DIM, dattri_projector, trak_projector
from measured_model import GRID, QUERIES, TRAINING, MeasuredModel, Scores, scores_of
from torch import Tensor

from gradindex.gradients.projection import Rademacher
from gradindex.report.ranking import overlap, spearman
from gradindex.search.scoring import METHODS

WIDTHS = (256, 1024, 4096, 8192)
SEEDS = {"small": (0, 1), "cifar10": (0,)}
ONE = 250  # the single timestep at which every method is compared
HALF_STRIDE = 3  # of the grid's timesteps that weights in bfloat16 are tried at


def agreement(
    scores: Scores, exact: Scores, *, over: Sequence[int] | None = None
) -> dict[str, float]:
    """Return Spearman's ρ and recall@10 with the exact scores, means over queries.

    Args:
        scores, exact: {method: [T, Q, N]}.
        over: positions of timesteps whose scores are averaged first, as `build`'s grid does. None:
            each timestep by itself, and the agreement is averaged.
    """
    figures = {}
    for method in METHODS:
        tables = [scores[method], exact[method]]
        if over is not None:
            tables = [table[list(over)].mean(0, keepdims=True) for table in tables]
        flat, flat_exact = (table.reshape(-1, table.shape[-1]) for table in tables)
        figures[f"{method} spearman"] = spearman(flat, flat_exact)
        figures[f"{method} recall@10"] = overlap(flat, flat_exact, 10)
    return figures


def fidelities(
    name: str, model: MeasuredModel, cache: Path, high_rank: Mapping[int, Sequence[str]]
) -> list[dict[str, Any]]:
    """Return the agreement with exact scores of every rank and width, one row each.

    Args:
        name: of the model, a key of SEEDS.
        cache: the folder with its exact scores.
        high_rank: {rank: weights that a projection of that rank shrinks less}.
    """
    exact = model.exact_scores(GRID, cache)
    rows = []
    for rank in (*RANKS, None):
        # The large model has time for the whole grid at the default's rank only.
        grid = GRID if name == "small" or rank == RANK else (ONE,)
        positions = [GRID.index(t) for t in grid]
        exact_there = {method: table[positions] for method, table in exact.items()}
        weights = high_rank[rank] if rank else ()
        runs = [model.scores(grid, WIDTHS, seed, rank, weights) for seed in SEEDS[name]]
        for width in WIDTHS:
            agreements = _agreements(grid, [run[width] for run in runs], exact_there)
            rows.append({"rank": rank, "dim": width, "seeds": len(runs), **agreements})
    return rows


def _agreements(grid: Sequence[int], seeds: Sequence[Scores], exact: Scores) -> dict[str, Any]:
    """The agreement at one timestep, at each of a grid, and of the grid's mean.

    All are means over seeds.
    """

    def mean_agreement(over: Sequence[int] | None) -> dict[str, float]:
        return _mean([agreement(scores, exact, over=over) for scores in seeds])

    figures: dict[str, Any] = {"one timestep": mean_agreement([grid.index(ONE)])}
    if len(grid) > 1:
        figures["each timestep"] = mean_agreement(None)
        figures["by timestep"] = {str(t): mean_agreement([j]) for j, t in enumerate(grid)}
        figures["grid"] = mean_agreement(range(len(grid)))
    return figures


def dense_fidelity(model: MeasuredModel) -> dict[str, dict[str, float]]:
    """Return the agreement of dense projections of exact gradients, at one timestep.

    They are to as many numbers as the peers', {method: agreement}.
    """
    gradients = model.exact_gradients(ONE, range(TRAINING + QUERIES))
    exact = scores_of(gradients[None].cpu().numpy())
    device = str(gradients.device.type)
    projectors = {
        "TRAK": trak_projector(gradients.shape[1], DENSE_DIM, device),
        "dattri": dattri_projector(gradients.shape[1], DENSE_DIM, device),
        "rademacher": _rademacher,
    }
    figures = {}
    for method, project in projectors.items():
        rows = project(gradients)
        figures[method] = agreement(scores_of(rows[None].cpu().numpy()), exact)
    return figures


def half_precision(
    half: MeasuredModel, full: MeasuredModel, high_rank: Sequence[str]
) -> dict[str, float]:
    """Return the agreement of the default's scores from two precisions of the same weights.

    Args:
        half: with weights in bfloat16. full: in float32.
    """
    timesteps = GRID[::HALF_STRIDE]
    scores_with = partial(_default_scores, timesteps=timesteps, high_rank=high_rank)
    return agreement(scores_with(half), scores_with(full), over=range(len(timesteps)))


def _default_scores(
    model: MeasuredModel, timesteps: Sequence[int], high_rank: Sequence[str]
) -> Scores:
    return model.scores(timesteps, [DIM], 0, RANK, high_rank)[DIM]


def _mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of figures with the same keys, key by key."""
    means = {}
    for key in figures[0]:
        means[key] = float(np.mean([figure[key] for figure in figures]))
    return means


def _rademacher(gradients: Tensor) -> Tensor:
    """gradindex's dense projection of gradients [n, parameters] to [n, DENSE_DIM]."""
    rows = torch.zeros(len(gradients), DENSE_DIM, device=gradients.device)
    Rademacher(DENSE_DIM, 0).add(rows, "all parameters", gradients)
    return rows

"""The paper's questions, asked of parts of the model: at recorded timesteps and at a grid."""

from collections.abc import Callable
from typing import Any

import numpy as np
from roc import auc

from gradindex.report.ranking import influence, top
from gradindex.report.self_influence import self_influence
from gradindex.search.index import Index
from gradindex.search.scoring import METHODS

WHOLE = "all"
PARTS = (WHOLE, "second-half", "middle")
LENGTH = 10  # of the lists

Rows = list[dict[str, Any]]


def part_rows(
    builds: dict[str, Callable[[str], Index]],
    general: np.ndarray,
    traced: np.ndarray,
    norm: np.ndarray,
    zero: np.ndarray,
    judged: np.ndarray,
) -> Rows:
    """Return how each part answers, plain, for each kind of timesteps and method.

    Args:
        builds: {kind of timesteps: the part's name → its index}.
        general: generated pictures whose lists' general influence counts, [Q, 1, 16, 16].
        traced: generated zeros, [Q, 1, 16, 16].
        norm: mean gradient norm of each training picture, [N]. zero: which are zeros, [N].
        judged: rows of the pictures whose self-influence counts.
    """
    queries = np.concatenate([general, traced])
    rows: Rows = []
    for timesteps, build in builds.items():
        for part in PARTS:
            index = build(part)
            scores = index.scores_by_method(queries, *METHODS, whiten=False)
            own_scores = self_influence(index, judged)
            for method in METHODS:
                table = scores[method]
                found = top(table[len(general) :], LENGTH)
                own, is_zero = own_scores[method][judged], zero[judged]
                rows.append(
                    {
                        "timesteps": timesteps,
                        "part": part,
                        "method": method,
                        "tracing": float(zero[found].mean()) if len(traced) else float("nan"),
                        "outliers": auc(own[is_zero], own[~is_zero]),
                        "distinct": influence(table[: len(general)], norm, LENGTH)["distinct"],
                    }
                )
    return rows

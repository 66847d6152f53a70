"""Rankings compared: how far two agree, and who is in many of them."""

from typing import Any

import numpy as np

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)  # of all queries, in whose lists a generally influential picture is


def influence(scores: np.ndarray, norm: np.ndarray, k: int) -> dict[str, Any]:
    """How general the influential pictures are.

    A picture is *generally influential* at a share s when it is among the k highest scores of at least s of all
    queries, and of two at the least.

    Args:
        scores: [Q, N]; NaN where a picture does not count. norm: [N].

    Returns:
        `distinct`: pictures in any of the lists; `most`: the most that there could be, Q · k; `general`: the number of
        generally influential pictures for several shares; `norm_correlation`: Spearman's ρ of a picture's mean score
        with its gradient norm.
    """
    lists = top(scores, k)
    counts = np.bincount(lists.ravel(), minlength=scores.shape[1])
    everywhere = ~np.isnan(scores).all(0)
    with np.errstate(invalid="ignore"):
        mean = np.nanmean(scores[:, everywhere], axis=0)
    return {
        "distinct": int((counts > 0).sum()),
        "most": int(min(lists.size, everywhere.sum())),
        "general": {str(share): int((counts >= max(share * len(scores), 2)).sum()) for share in SHARES},
        "norm_correlation": spearman(mean[None], norm[None, everywhere]),
    }


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """The rows with the k highest of each query's scores [Q, N], best first; NaN is lowest."""
    ranked = np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=1, kind="stable")
    return ranked[:, : min(k, int((~np.isnan(scores)).sum(1).min()))]


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Mean over queries of Spearman's ρ between two tables of scores [Q, N]; 0 where a query's are all equal."""
    return float(correlations(ranks(left), ranks(right), np.ones((1, left.shape[1]))).mean())


def correlations(left: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's r between the rows of two tables [Q, N], for each row of weights [R, N]: [Q, R]; 0 without a spread."""
    weights = weights / weights.sum(1, keepdims=True)
    first, second = left - left.mean(1, keepdims=True), right - right.mean(1, keepdims=True)
    means = [values @ weights.T for values in (first, second)]
    together = (first * second) @ weights.T - means[0] * means[1]
    squares = [np.square(v) @ weights.T - np.square(m) for v, m in zip((first, second), means, strict=True)]
    lengths = np.sqrt(np.maximum(squares[0], 0) * np.maximum(squares[1], 0))
    return together / np.where(lengths < 1e-9, np.inf, lengths)


def ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks from 0 in each row of a table [Q, N]; equal values share the mean of theirs."""
    return np.stack([_ranks(row) for row in scores])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts + 1) / 2)[which]


def overlap(left: np.ndarray, right: np.ndarray, k: int) -> float:
    """Mean over queries of the share of the k highest scores that two tables [Q, N] have in common."""
    pairs = zip(top(left, k), top(right, k), strict=True)
    return float(np.mean([len(np.intersect1d(*pair)) / min(k, left.shape[1]) for pair in pairs]))

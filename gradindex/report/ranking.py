"""Rankings compared: how far two agree, and which pictures are in many of them."""

from typing import TypedDict

import numpy as np

# Shares of all queries: a picture in the lists of so many is generally influential.
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)

NO_SPREAD = 1e-9  # values whose product of standard deviations is below this are all equal


class Influence(TypedDict):
    """How general the influential pictures of a method are.

    Keys:
        distinct: how many pictures are in any query's list.
        most: how many there could be: Q · k, or all pictures where these are fewer.
        general: {share as text: how many pictures are generally influential at it}.
        norm_correlation: Spearman's ρ of a picture's mean score with its gradient norm.
    """

    distinct: int
    most: int
    general: dict[str, int]
    norm_correlation: float


def influence(scores: np.ndarray, norm: np.ndarray, k: int) -> Influence:
    """Return how general the influential pictures are.

    A picture is *generally influential* at a share s when it is among the k highest scores of at
    least s of all queries, and of two at the least.

    Args:
        scores: [Q, N]; NaN where a picture does not count for a query.
        norm: gradient norms, [N].
        k: length of a query's list.

    >>> scores = np.array([[3.0, 1.0, 2.0], [3.0, 0.0, 1.0]])
    >>> influence(scores, norm=np.array([9.0, 1.0, 4.0]), k=1)["general"]["0.5"]
    1
    """
    lists = top(scores, k)
    counts = np.bincount(lists.ravel(), minlength=scores.shape[1])
    scored = ~np.isnan(scores).all(0)
    with np.errstate(invalid="ignore"):
        mean_score = np.nanmean(scores[:, scored], axis=0)
    general = {}
    for share in SHARES:
        fewest_lists = max(share * len(scores), 2)
        general[str(share)] = int((counts >= fewest_lists).sum())
    return {
        "distinct": int((counts > 0).sum()),
        "most": int(min(lists.size, scored.sum())),
        "general": general,
        "norm_correlation": spearman(mean_score[None], norm[None, scored]),
    }


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the rows of the k highest of each query's scores [Q, N], best first.

    Equal scores are in the order of rows. NaN is lowest, and no list has one: where a query has
    fewer than k scores, all lists are as short as its own.

    >>> top(np.array([[0.1, 0.9, 0.5], [0.7, 0.2, np.nan]]), k=2)
    array([[1, 2],
           [0, 1]])
    """
    ranked = np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=1, kind="stable")
    fewest_scores = int((~np.isnan(scores)).sum(1).min())
    return ranked[:, : min(k, fewest_scores)]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean over queries of Spearman's ρ between two tables of scores [Q, N].

    It is 0 for a query whose scores in a table are all equal.

    >>> round(spearman(np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 3.0, 2.0]])), 6)
    0.5
    """
    weights = np.ones((1, first.shape[1]))
    return float(correlations(ranks(first), ranks(second), weights).mean())


def correlations(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Pearson's r between the rows of two tables, for each weighting of the columns.

    Args:
        first, second: [Q, N].
        weights: [R, N], such as how often each of N models is in each of R resamples.

    Returns:
        [Q, R]; 0 where a row has no spread.
    """
    weights = weights / weights.sum(1, keepdims=True)
    # Means do not change r. Without them the difference of two large sums loses fewer digits.
    x = first - first.mean(1, keepdims=True)
    y = second - second.mean(1, keepdims=True)
    x_mean = x @ weights.T
    y_mean = y @ weights.T
    covariance = (x * y) @ weights.T - x_mean * y_mean
    x_variance = np.square(x) @ weights.T - np.square(x_mean)
    y_variance = np.square(y) @ weights.T - np.square(y_mean)
    spread = np.sqrt(np.maximum(x_variance, 0) * np.maximum(y_variance, 0))
    return covariance / np.where(spread < NO_SPREAD, np.inf, spread)


def ranks(scores: np.ndarray) -> np.ndarray:
    """Return the ranks from 0 in each row of a table [Q, N]; equal values share their mean rank.

    >>> ranks(np.array([[0.2, 0.9, 0.2]]))
    array([[0.5, 2. , 0.5]])
    """
    return np.stack([_row_ranks(row) for row in scores])


def _row_ranks(values: np.ndarray) -> np.ndarray:
    """The ranks of the values [N] of one row."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    after = sizes.cumsum()  # the first rank after each group of equal values
    return (after - (sizes + 1) / 2)[group]


def overlap(first: np.ndarray, second: np.ndarray, k: int) -> float:
    """Return the mean over queries of the share of the k highest that two tables have in common.

    Args:
        first, second: scores, [Q, N].

    >>> overlap(np.array([[3.0, 2.0, 1.0]]), np.array([[3.0, 1.0, 2.0]]), k=2)
    0.5
    """
    shares = []
    for first_rows, second_rows in zip(top(first, k), top(second, k), strict=True):
        common = np.intersect1d(first_rows, second_rows)
        shares.append(len(common) / min(k, first.shape[1]))
    return float(np.mean(shares))

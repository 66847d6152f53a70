"""How likely scores as high as some are, if they were of the same kind as all the others.

The tail of a distribution above a high threshold is a generalized Pareto distribution (Pickands
1975). It is fitted to the highest min(n / 5, 3 √n) of n scores, the number of Vehtari, Simpson,
Gelman, Yao & Gabry 2024 ("Pareto smoothed importance sampling"). What is to be tested must not
shape what it is tested against: the fit leaves out the highest score, or the highest √n, and knows
only that they lie above the others (type II censoring). Of the two p-values the lower one counts,
times two (Bonferroni).

With b = shape / scale and λ = 1 / shape, each of m scores x above the threshold has the density
λ b (1 + b x)^(−λ − 1). Given b, the likelihood in λ is a gamma distribution's; over it a higher
score y is exceeded with probability (1 + log(1 + b y) / S)^(−k), where S is the sum of
log(1 + b x), a score left out counting as the highest that is not, and k how many are not. Over b
it is averaged on the grid of Zhang & Stephens 2009 ("A new and efficient estimation method for the
generalized Pareto distribution"), weighted by the likelihood. For b → 0 it is the exact
probability under an exponential tail of unknown scale.
"""

import numpy as np

FEWEST = 200  # scores that a tail is fitted to; of fewer, 40 or less would tell it
GRID = 30  # points of b, and √m more, as Zhang & Stephens have it


def tail_size(count: int) -> int:
    """How many of the highest of n scores are their tail.

    >>> tail_size(200), tail_size(10_000)
    (40, 300)
    """
    return min(count // 5, int(3 * np.sqrt(count)))


def exceedance(tail: np.ndarray, count: int, scores: np.ndarray) -> np.ndarray | None:
    """The probability that a score of the same kind is as high as each of `scores`, [K].

    Args:
        tail: the highest `tail_size(count)` + 1 of n scores, best first.
        count: n, how many scores there were.
        scores: [K], of the highest ones: lower ones are less likely than this tells.

    Returns:
        None where the scores are too few, or too many of them are the same.
    """
    if count < FEWEST:
        return None
    excesses = (tail[:-1] - tail[-1]).astype(np.float64)
    higher = np.asarray(scores, np.float64) - tail[-1]
    parts = [_survival(excesses, left_out, higher) for left_out in (1, int(np.sqrt(count)))]
    if any(part is None for part in parts):
        return None
    lowest = np.min(np.array(parts), axis=0)
    return np.minimum(1, 2 * lowest * len(excesses) / count)


def _survival(excesses: np.ndarray, left_out: int, higher: np.ndarray) -> np.ndarray | None:
    """The probability that one of the excesses' kind is as high as each of `higher`.

    Args:
        excesses: [m] above the threshold, highest first. left_out: how many of them.
    """
    known = excesses[left_out:]
    k, m = len(known), len(excesses)
    quartile = known[3 * k // 4]
    if quartile <= 0:
        return None
    points = GRID + int(np.sqrt(m))
    steps = 1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    b = -(1 / known[0] + steps / (3 * quartile))
    b[b == 0] = 1e-9 / known[0]
    sums = np.log1p(np.outer(b, known)).sum(1)
    total = sums + left_out * np.log1p(b * known[0])
    likelihood = k * np.log(b / total) - sums
    weights = np.exp(likelihood - likelihood.max())
    reach = np.outer(b, np.maximum(higher, 0))  # at −1 and below, the tail has ended
    logs = np.log1p(np.where(reach > -1, reach, 0))
    survival = np.where(reach > -1, (1 + logs / total[:, None]) ** -float(k), 0)
    return weights @ survival / weights.sum()


def adjusted(p: np.ndarray, count: int) -> np.ndarray:
    """The Benjamini–Hochberg (1995) q-values of the lowest K of `count` p-values, ascending.

    Those of q ≤ 0.05 have a false discovery rate of 5 %.

    >>> adjusted(np.array([0.001, 0.03]), count=10)
    array([0.01, 0.15])
    """
    q = p * count / np.arange(1, len(p) + 1)
    return np.minimum(1, np.minimum.accumulate(q[::-1])[::-1])

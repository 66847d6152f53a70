"""The scores of whole groups of training pictures, with the range that chance leaves them.

The range is a Bayesian bootstrap (Rubin 1981, "The Bayesian bootstrap") over pictures × timesteps:
each picture of a group, and each timestep, gets a random weight of exponential distribution, and
the sum is taken again. It needs one pass over the store and no memory that grows with the pictures.
"""

from dataclasses import dataclass

import numpy as np

from gradindex.errors import CallError
from gradindex.search.grouping import Grouping
from gradindex.search.results import Group
from gradindex.search.scoring import Span, scan_contributions
from gradindex.store.store import Store

DRAWS = 400  # of the bootstrap
INSIDE = 95  # percent of them that are in the range
WIDTH = 1.96  # standard deviations on either side of a mean that hold as many


@dataclass
class _Sums:
    """What one pass over the store adds up.

    Attributes:
        counts: [G], pictures of each group. scores: [Q, G], sums of their scores.
        squares: [Q], of all scores.
        drawn: [Q, G, draws], weighted sums of scores. weights: [G, draws], of their weights.
    """

    counts: np.ndarray
    scores: np.ndarray
    squares: np.ndarray
    drawn: np.ndarray
    weights: np.ndarray


def group_scores(
    store: Store, block: np.ndarray, method: str, span: Span | None, groups: Grouping
) -> list[list[Group]]:
    """What each group of training pictures did to each query, from one pass over the store.

    Args:
        block: query blocks [Q, C, T, D]; method, span: as for `scoring.scan`.

    Returns:
        For each query the groups that have pictures, those of the highest sums first.

    Raises:
        CallError: there is no picture that counts.
    """
    sums = _add_up(store, block, method, span, groups)
    present = np.flatnonzero(sums.counts)
    if not len(present):
        raise CallError("every picture was skipped or removed: there is none to answer with")
    counts = sums.counts[present]
    names = [groups.names[group] for group in present]
    answers = []
    for query in range(len(block)):
        scores = sums.scores[query, present]
        drawn = counts[:, None] * sums.drawn[query, present] / sums.weights[present]
        outside = (100 - INSIDE) / 2
        low, high = np.percentile(drawn, [outside, 100 - outside], axis=1)
        # Where few pictures have a long tail, the draws may all lie to one side of the sum.
        low, high = np.minimum(low, scores), np.maximum(high, scores)
        expected, deviation = _of_random_groups(scores, float(sums.squares[query]), counts)
        below_noise = (low <= expected) | (scores <= expected + WIDTH * deviation)
        positive = np.maximum(scores, 0)
        shares = positive / (positive.sum() or 1)
        order = np.argsort(-scores, kind="stable")
        answers.append(
            [
                Group(
                    group=names[n],
                    pictures=int(counts[n]),
                    score=float(scores[n]),
                    mean=float(scores[n] / counts[n]),
                    share=float(shares[n]),
                    low=float(low[n]),
                    high=float(high[n]),
                    below_noise=bool(below_noise[n]),
                )
                for n in order
            ]
        )
    return answers


def _of_random_groups(
    scores: np.ndarray, squares: float, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the sum of random pictures, as many as each group has.

    Args:
        scores, counts: [G] of all groups. squares: the sum of all pictures' squared scores.
    """
    total = counts.sum()
    mean = scores.sum() / total
    variance = max(squares / total - mean**2, 0.0)
    left = (total - counts) / max(total - 1, 1)  # drawn without replacement
    return counts * mean, np.sqrt(counts * variance * left)


def _add_up(
    store: Store, block: np.ndarray, method: str, span: Span | None, groups: Grouping
) -> _Sums:
    """The sums of one pass over the store."""
    queries, _, timesteps, _ = block.shape
    size = len(groups.names)
    sums = _Sums(
        counts=np.zeros(size, np.int64),
        scores=np.zeros((queries, size)),
        squares=np.zeros(queries),
        drawn=np.zeros((queries, size, DRAWS)),
        weights=np.zeros((size, DRAWS)),
    )
    of_timesteps = _weights(0, (timesteps, DRAWS))
    of_timesteps *= timesteps / of_timesteps.sum(0)
    for rows, added in scan_contributions(store, block, method, span):
        by_timestep = added.sum(2)  # over checkpoints, [Q, b, T]
        counted = ~np.isnan(by_timestep).any((0, 2))
        by_timestep, numbers = by_timestep[:, counted], groups.numbers[rows[counted]]
        if not len(numbers):
            continue
        order = np.argsort(numbers, kind="stable")
        present, starts = np.unique(numbers[order], return_index=True)
        scores = by_timestep.sum(2)
        weights = _weights(1 + int(rows[0]), (len(numbers), DRAWS))
        drawn = (by_timestep @ of_timesteps) * weights
        sums.counts += np.bincount(numbers, minlength=size)
        sums.squares += np.square(scores).sum(1)
        sums.scores[:, present] += np.add.reduceat(scores[:, order], starts, axis=1)
        sums.drawn[:, present] += np.add.reduceat(drawn[:, order], starts, axis=1)
        sums.weights[present] += np.add.reduceat(weights[order], starts, axis=0)
    return sums


def _weights(key: int, shape: tuple[int, ...]) -> np.ndarray:
    """Random weights of a bootstrap; the same for the same key."""
    return np.random.default_rng(key).exponential(size=shape)

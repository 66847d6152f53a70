"""The scores of whole groups of training pictures, with the range that chance leaves them.

The range is a Bayesian bootstrap (Rubin 1981, "The Bayesian bootstrap") over pictures × timesteps:
each picture of a group, and each timestep, gets a random weight of exponential distribution, and
the sum is taken again. It needs one pass over the store, and memory that grows with the groups, not
with the pictures; of very many groups several passes, for some queries each.
"""

import warnings
from dataclasses import dataclass

import numpy as np

from gradindex.errors import NONE_LEFT, CallError, quoted
from gradindex.search.grouping import Grouping
from gradindex.search.results import Group
from gradindex.search.scoring import Span, inside, scan_contributions
from gradindex.store.store import Store
from gradindex.wording import counted

DRAWS = 400  # of the bootstrap
INSIDE = 95  # percent of them that are in the range
MEMORY = 1 << 29  # bytes that the draws of the queries asked at once take at most
ROWS_AT_ONCE = 256  # that a block of the store has, about
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
    at_once = max(1, MEMORY // (8 * DRAWS * (len(groups.names) + ROWS_AT_ONCE)))
    if len(block) > at_once:
        pieces = [block[start : start + at_once] for start in range(0, len(block), at_once)]
        return [
            answer
            for piece in pieces
            for answer in group_scores(store, piece, method, span, groups)
        ]
    sums = _add_up(store, block, method, span, groups)
    present = np.flatnonzero(sums.counts)
    if not len(present):
        raise CallError(NONE_LEFT)
    absent = [groups.names[group] for group in np.flatnonzero(sums.counts == 0)]
    if absent:
        warnings.warn(
            f"{counted(len(absent), 'group')}, such as {quoted(absent[0])}: all pictures were"
            " skipped or removed, or have no row at these timesteps",
            stacklevel=2,
        )
    counts = sums.counts[present]
    names = [groups.names[group] for group in present]
    weights = sums.weights[present]
    outside = (100 - INSIDE) / 2
    answers = []
    for query in range(len(block)):
        scores = sums.scores[query, present]
        drawn = counts[:, None] * sums.drawn[query, present] / weights
        # The mean of all pictures in the same draw: timesteps move it and a group's together.
        of_all = sums.drawn[query, present].sum(0) / weights.sum(0)
        above = np.percentile(drawn - counts[:, None] * of_all, outside, axis=1)
        low, high = np.percentile(drawn, [outside, 100 - outside], axis=1)
        # Where few pictures have a long tail, the draws may all lie to one side of the sum.
        low, high = np.minimum(low, scores), np.maximum(high, scores)
        expected, deviation = _of_random_groups(scores, float(sums.squares[query]), counts)
        below_noise = (above <= 0) | (scores <= expected + WIDTH * deviation)
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
        counted = ~np.isnan(added).any((0, 2, 3))
        first = int(rows[0])
        added, rows = added[:, counted], rows[counted]
        numbers = groups.numbers[rows]
        if not len(numbers):
            continue
        norms = _total_weights(store, rows, span, of_timesteps)
        order = np.argsort(numbers, kind="stable")
        present, starts = np.unique(numbers[order], return_index=True)
        scores = added.sum((2, 3))
        weights = _weights(1 + first, (len(numbers), DRAWS))
        sums.counts += np.bincount(numbers, minlength=size)
        sums.squares += np.square(scores).sum(1)
        sums.scores[:, present] += np.add.reduceat(scores[:, order], starts, axis=1)
        for group, members in zip(present, np.split(order, starts[1:]), strict=True):
            own, its_norms = weights[members], None if norms is None else norms[members]
            sums.drawn[:, group] += _drawn(added[:, members], own, of_timesteps, its_norms)
            sums.weights[group] += own.sum(0)
    return sums


def _drawn(
    added: np.ndarray, weights: np.ndarray, of_timesteps: np.ndarray, norms: np.ndarray | None
) -> np.ndarray:
    """The sum of some pictures' scores in each draw, [Q, draws].

    Args:
        added: [Q, b, C, T] of b pictures. weights: theirs, [b, draws].
        of_timesteps: weights, [T, draws]. norms: see `_total_weights`.
    """
    if norms is not None:
        return ((added @ of_timesteps / norms).sum(2) * weights).sum(1)
    queries, _, _, timesteps = added.shape
    # One product of matrices: pictures are summed before timesteps.
    by_timestep = added.sum(2).swapaxes(1, 2).reshape(queries * timesteps, -1) @ weights
    return (by_timestep.reshape(queries, timesteps, -1) * of_timesteps).sum(1)


def _total_weights(
    store: Store, rows: np.ndarray, span: Span | None, of_timesteps: np.ndarray
) -> np.ndarray | None:
    """What weights of timesteps add up to, over those in the span and divided by their number.

    Args:
        rows: b of the pictures. of_timesteps: [T, draws], whose sums are T.

    Returns:
        [b, C, draws]; None where all timesteps count, which is 1.
    """
    if span is None:
        return None
    checkpoints = range(store.shape[0])
    counted = np.stack([inside(store.read("timestep", c, rows), span) for c in checkpoints], axis=1)
    numbers = counted.sum(2, keepdims=True)
    totals = counted @ of_timesteps / np.maximum(numbers, 1)
    return np.where(numbers == 0, 1.0, totals)


def _weights(key: int, shape: tuple[int, ...]) -> np.ndarray:
    """Random weights of a bootstrap; the same for the same key."""
    return np.random.default_rng(key).exponential(size=shape)

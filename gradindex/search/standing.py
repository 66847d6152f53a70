"""Where a score stands among those of all training pictures: robust standard deviations above them.

The bulk of a query's scores is told by their median and 1.4826 median absolute deviations (Hampel
1974, "The influence curve and its role in robust estimation"), which the few scores that stand out
do not move. A query scores but its candidates; for the bulk it also scores a random sample of
training pictures, always the same, or all of them where they are few.

What stands out of the bulk is told by that median and deviation too, as those of a normal
distribution (the empirical null of Efron 2004, "Large-scale simultaneous hypothesis testing"), and
by the false discovery rate of Benjamini & Hochberg 1995 among all training pictures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from gradindex.search.results import Hit
from gradindex.search.scoring import Span, as_columns, contributions
from gradindex.store.store import Store

TO_SIGMA = 1.4826  # a median absolute deviation times this is a normal distribution's sigma
SAMPLE_BYTES = 1 << 27  # of rows that are read to know the bulk of scores
FEWEST_SAMPLED = 512  # however wide they are: of so many, sigma is known to 5 %
FEWEST_JUDGED = 50  # of fewer scores it is not said what stands out
READ_ROWS = 256  # sampled rows whose scores at all timesteps are in memory at once


@dataclass(frozen=True)
class Standing:
    """What the scores of a query's hits are compared with: those of all training pictures.

    Attributes:
        median: of the scores; NaN where there are none.
        sigma: their robust standard deviation; 0 where half of them are the same.
        sampled: n, how many scores this was told by.
        pictures: N, how many training pictures have a score: n, or more where it is a sample's.
        positive: the sum of the positive scores of all N.
    """

    median: float
    sigma: float
    sampled: int = 0
    pictures: int = 0
    positive: float = 0.0

    @classmethod
    def of(cls, scores: np.ndarray, pictures: int | None = None) -> Self:
        """The standing among the scores [n] of some pictures or all, of which NaN do not count.

        Args:
            pictures: how many the scores, NaN among them, are a sample of; by default of none.
        """
        known = scores[~np.isnan(scores)]
        if not len(known):
            return cls(np.nan, np.nan)
        median = float(np.median(known))
        sigma = TO_SIGMA * float(np.median(np.abs(known - median)))
        of_all = len(known) if pictures is None else round(pictures * len(known) / len(scores))
        positive = of_all * float(np.maximum(known, 0).mean(dtype=np.float64))
        return cls(median, sigma, len(known), of_all, positive)

    def z(self, score: float) -> float | None:
        """How many robust standard deviations a score lies above the median; None: not known.

        >>> Standing(median=3.0, sigma=1.5).z(6.0)
        2.0
        """
        return (score - self.median) / self.sigma if self.sigma > 0 else None

    def q_values(self, scores: Sequence[float]) -> np.ndarray | None:
        """The false discovery rate at which each of the highest scores, best first, stands out.

        Returns:
            None where they are too few, or too much alike, to know their bulk.

        >>> Standing(median=0.0, sigma=1.0, sampled=100, pictures=100).q_values([5.0, 1.0]).round(5)
        array([3.e-05, 1.e+00])
        """
        if self.sampled < FEWEST_JUDGED or not self.sigma > 0:
            return None
        z = (np.array(scores, np.float64) - self.median) / self.sigma
        return adjusted(np.array([math.erfc(one / math.sqrt(2)) / 2 for one in z]), self.pictures)

    def share(self, scores: Sequence[float]) -> float:
        """The part of all positive influence that some scores have.

        >>> Standing(median=0.0, sigma=1.0, positive=8.0).share([1.5, 0.5])
        0.25
        """
        return float(np.maximum(scores, 0).sum()) / self.positive if self.positive > 0 else 0.0

    def with_z(self, hits: Sequence[Hit]) -> list[Hit]:
        """Hits that say where they stand."""
        return [replace(hit, z=self.z(hit.score)) for hit in hits]


def standings(store: Store, block: np.ndarray, method: str, span: Span | None) -> list[Standing]:
    """The standing of each query, from exact scores of the sampled rows.

    Args:
        block: query blocks [Q, C, T, D]; method, span: as for `scoring.scan`.
    """
    rows, pictures = sampled_rows(store)
    columns = as_columns(block)
    parts = [np.empty((len(block), 0), np.float32)]
    for start in range(0, len(rows), READ_ROWS):
        some_rows = rows[start : start + READ_ROWS]
        added = contributions(store, columns, method, some_rows, span)
        parts.append(added.sum((2, 3)).astype(np.float32))
    return [Standing.of(scores, pictures) for scores in np.concatenate(parts, axis=1)]


def sampled_rows(store: Store) -> tuple[np.ndarray, int]:
    """Rows, ascending, that stand for all that have a picture, and how many these are."""
    kept = store.kept
    checkpoints, _, timesteps, dim = store.shape
    row_bytes = 4 * checkpoints * timesteps * dim
    count = max(FEWEST_SAMPLED, SAMPLE_BYTES // row_bytes)
    if count >= len(kept):
        return kept, len(kept)
    chosen = np.random.default_rng(0).choice(kept, count, replace=False, shuffle=False)
    return np.sort(chosen), len(kept)


def adjusted(p: np.ndarray, count: int) -> np.ndarray:
    """The Benjamini–Hochberg (1995) q-values of the lowest K of `count` p-values, ascending.

    Those of q ≤ 0.01 have a false discovery rate of 1 %.

    >>> adjusted(np.array([0.001, 0.03]), count=10)
    array([0.01, 0.15])
    """
    q = p * count / np.arange(1, len(p) + 1)
    return np.minimum(1, np.minimum.accumulate(q[::-1])[::-1])

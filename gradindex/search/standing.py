"""Where a score stands among those of all training pictures: robust standard deviations above them.

The bulk of a query's scores is told by their median and 1.4826 median absolute deviations (Hampel
1974, "The influence curve and its role in robust estimation"), which the few scores that stand out
do not move. A query scores but its candidates; for the bulk it also scores a random sample of
training pictures, always the same, or all of them where they are few.

What stands out of the bulk is told by that median and deviation too, as those of a normal
distribution (the empirical null of Efron 2004, "Large-scale simultaneous hypothesis testing"), and
by the false discovery rate of Benjamini & Hochberg 1995 among all training pictures. Real bulks
have heavier tails, so that it is no rate of errors: of real scores some nearly always stand out.
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
BEST = 10  # of the highest scores that are kept
READ_ROWS = 256  # sampled rows whose scores at all timesteps are in memory at once


@dataclass(frozen=True)
class Standing:
    """What the scores of a query's hits are compared with: those of all training pictures.

    Attributes:
        median: of the scores; NaN where there are none.
        sigma: their robust standard deviation; 0 where half of them are the same.
        sampled: n, how many scores this was told by.
        pictures: N, how many training pictures have a score: n, or more where it is a sample's.
        positive: the sum of those of the n scores that are above 0.
        best: the `BEST` highest of them, best first.
    """

    median: float
    sigma: float
    sampled: int = 0
    pictures: int = 0
    positive: float = 0.0
    best: tuple[float, ...] = ()

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
        positive = float(np.maximum(known, 0).sum(dtype=np.float64))
        best = np.sort(np.partition(known, -BEST)[-BEST:] if len(known) > BEST else known)[::-1]
        return cls(median, sigma, len(known), of_all, positive, tuple(best.tolist()))

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

    def share(self, best: Sequence[float], count: int) -> float:
        """The part of all positive influence that the first `count` of the highest scores have.

        Of a sample the others' influence is told by those of its scores that are below the highest.

        Args:
            best: the highest scores of all N pictures, at most `BEST`, best first.

        >>> Standing.of(np.array([6.0, 2.0, 1.0, 1.0, -3.0])).share([6.0, 2.0], 1)
        0.6
        """
        positive = np.maximum(np.array(best, np.float64), 0)
        whole = self.positive
        if self.sampled < self.pictures:
            above = [score for score in self.best if score >= best[-1]]
            lower = self.positive - sum(max(score, 0.0) for score in above)
            others = (self.pictures - len(best)) / max(1, self.sampled - len(above))
            whole = positive.sum() + others * max(0.0, lower)
        return float(positive[:count].sum() / whole) if whole > 0 else 0.0

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

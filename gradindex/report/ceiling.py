"""How high a linear datamodeling score can be, since two trainings on the same pictures differ."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from gradindex.errors import CallError
from gradindex.report.evaluate import FEWEST_MODELS, INTERVAL, LDS, RESAMPLES
from gradindex.report.ranking import correlations, ranks


@dataclass(frozen=True)
class Ceiling:
    """What perfect predictions of the losses would score.

    Losses of reliability r have a correlation of at most √r with anything (Spearman 1904, "The
    proof and measurement of association between two things").

    Attributes:
        reliability: Spearman's ρ between the losses over subsets and those of another time, the
            mean over pictures.
        value: its square root. low, high: its 95 % bootstrap interval.
        resampled: the value in each of 2,000 resamples of pictures and subsets, [R].
        parts: how many the losses are the mean of: trainings, or halves of the timesteps.
    """

    reliability: float
    value: float
    low: float
    high: float
    resampled: np.ndarray
    parts: int

    def share(self, score: LDS) -> tuple[float, float, float]:
        """How much of the ceiling, which is above 0, a score reaches, with its 95 % interval."""
        shares = score.resampled / np.where(self.resampled > 0, self.resampled, np.nan)
        low, high = np.nanquantile(shares, INTERVAL)
        return score.mean / self.value, float(low), float(high)


def ceiling(losses: np.ndarray) -> Ceiling:
    """Return the ceiling of scores that are measured by the mean of several losses.

    The reliability of one is its correlation with another, the mean over pairs; that of their mean
    follows from it (Spearman 1910, Brown 1910: S r / (1 + (S − 1) r)).

    Args:
        losses: [S, M, Q], of S models that were trained on each of M subsets, or of one model at S
            parts of the timesteps, on each of Q pictures.

    Raises:
        CallError: S is below 2, or M below 3.

    >>> losses = np.array([[[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]]])
    >>> ceiling(losses).value
    1.0
    """
    losses = np.asarray(losses, float)
    if losses.ndim != 3 or len(losses) < 2 or losses.shape[1] < FEWEST_MODELS:
        raise CallError(
            f"losses {losses.shape}: give [S, M, Q], of two or more of each of three subsets or"
            " more"
        )
    if not np.isfinite(losses).all():
        raise CallError("losses: some are no finite numbers; leave out the models that failed")
    parts, subsets, pictures = losses.shape
    random = np.random.default_rng(0)
    subset_counts = random.multinomial(subsets, np.full(subsets, 1 / subsets), RESAMPLES)
    picture_counts = random.multinomial(pictures, np.full(pictures, 1 / pictures), RESAMPLES)
    ranked = [ranks(of_part.T) for of_part in losses]
    weights = np.concatenate([np.ones((1, subsets)), subset_counts])
    pairs = [correlations(*pair, weights) for pair in combinations(ranked, 2)]
    by_weights = np.mean(pairs, axis=0)  # [Q, 1 + R]
    single = float(by_weights[:, 0].mean())
    resampled = (by_weights[:, 1:] * picture_counts.T).sum(0) / pictures
    values = np.sqrt(_of_mean(resampled, parts))
    low, high = np.quantile(values, INTERVAL)
    reliability = float(_of_mean(np.array(single), parts))
    return Ceiling(reliability, reliability**0.5, float(low), float(high), values, parts)


def _of_mean(reliability: np.ndarray, parts: int) -> np.ndarray:
    """The reliability of a mean of several, from that of one; 0 where it is below."""
    reliability = np.maximum(reliability, 0)
    return parts * reliability / (1 + (parts - 1) * reliability)


def by_subset(subsets: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return distinct subsets [U, N] and the losses of their models [S, U, Q].

    Args:
        subsets: [M, N] bool. losses: [M, Q].

    Returns:
        None unless every subset has two models or more; of more than the fewest, the first count.
    """
    distinct, numbers, counts = np.unique(subsets, axis=0, return_inverse=True, return_counts=True)
    fewest = int(counts.min())
    if fewest < 2:
        return None
    models = [np.flatnonzero(numbers == number)[:fewest] for number in range(len(distinct))]
    return distinct, losses[np.array(models).T]

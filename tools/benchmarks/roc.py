"""How well a figure tells two kinds of pictures apart."""

import numpy as np

from gradindex.report.ranking import ranks


def auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Return the area under the ROC curve.

    It is the probability that a positive is higher than a negative; equal ones count half.

    >>> auc(np.array([3.0, 1.0]), np.array([2.0, 1.0]))
    0.625
    """
    both = ranks(np.concatenate([positives, negatives])[None])[0]
    lowest = len(positives) * (len(positives) - 1) / 2
    above = both[: len(positives)].sum() - lowest
    return float(above / (len(positives) * len(negatives)))

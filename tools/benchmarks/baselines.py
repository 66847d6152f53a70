"""Scores that take no gradients."""

from pathlib import Path

import numpy as np
from subset_models import PICTURES, QUERIES, query_pictures, training_and_validation

from gradindex.gradients.fold import unit


def baseline_scores(folder: Path) -> dict[str, np.ndarray]:
    """Return the cosine of pixels, and random numbers, {score: [2 · QUERIES, PICTURES]}."""
    training, _ = training_and_validation(folder)
    training_pixels = unit(training.reshape(len(training), -1))
    queries = query_pictures(folder)
    query_pixels = unit(queries.reshape(len(queries), -1))
    chance = np.random.default_rng(5).standard_normal((2 * QUERIES, PICTURES))
    return {"pixel cosine": query_pixels @ training_pixels.T, "random": chance}

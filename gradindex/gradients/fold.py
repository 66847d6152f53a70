"""A picture's search vector: its rows side by side, or added into one vector of a bounded width."""

import numpy as np

from gradindex.random_numbers import random_offset, random_signs
from gradindex.recipe import SEARCH_WIDTH, Recipe

FOLD_VERSION = 1  # raised whenever `search_vectors` gives other numbers for the same rows


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows [..., D] divided by their norms, float32; a zero row stays zero.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    norm = np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True)
    return (rows / np.where(norm == 0, 1, norm)).astype(np.float32)


def search_vectors(rows: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return a search vector of each picture's rows [B, C, T, D], [B, W] float32.

    W is C · T · D, or `SEARCH_WIDTH` (at least D) where that is less. Folded rows keep their inner
    products on average over seeds: each is multiplied by random signs and added into the vector
    from a random position on, wrapping round its end, so that what two different rows add to an
    inner product has the mean zero.
    """
    batch, checkpoints, timesteps, dim = rows.shape
    width = max(SEARCH_WIDTH, dim)
    if checkpoints * timesteps * dim <= width:
        side_by_side = rows.reshape(batch, checkpoints * timesteps * dim)
        return np.ascontiguousarray(side_by_side, dtype=np.float32)
    vectors = np.zeros((batch, width), np.float32)
    for c in range(checkpoints):
        for t in range(timesteps):
            signs = random_signs(recipe.seed, "search", c, t, size=dim)
            start = random_offset(recipe.seed, "search", c, t, below=width)
            before_end = min(dim, width - start)
            signed = rows[:, c, t] * signs
            vectors[:, start : start + before_end] += signed[:, :before_end]
            vectors[:, : dim - before_end] += signed[:, before_end:]
    return vectors

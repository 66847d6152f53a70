"""What the arrays of a store are called, what is in them, and how many ids a file of theirs holds.

Rows are kept as they are and normalized, ROW_ARRAYS, or as codes of 8 bits, COMPACT_ARRAYS.
"""

import math

import numpy as np

from gradindex.recipe import COMPACT, Recipe

ROW_ARRAYS = ("normalized", "unnormalized", "norm", "timestep")
COMPACT_ARRAYS = ("codes", "scale", "norm", "timestep")
WIDE = (*ROW_ARRAYS[:2], "codes")  # [C, N, T, D]; the others are [C, N, T]
DTYPES: dict[str, np.dtype] = {"normalized": np.dtype("float16"), "codes": np.dtype("int8")}
ROW_DTYPE = np.dtype("float32")  # of the others
IDS = "sample_ids"
CHUNK_IDS = 4096


def row_arrays(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the arrays that a recipe's rows are kept in."""
    return COMPACT_ARRAYS if recipe.rows == COMPACT else ROW_ARRAYS


def array_dtype(name: str) -> np.dtype:
    """Return the type of an array's numbers."""
    return DTYPES.get(name, ROW_DTYPE)


def array_bytes(recipe: Recipe, pictures: int) -> dict[str, int]:
    """Return how many bytes each array of a recipe has for N pictures, {name: bytes}."""
    shape = recipe.shape(pictures)
    return {
        name: array_dtype(name).itemsize * math.prod(shape if name in WIDE else shape[:3])
        for name in row_arrays(recipe)
    }

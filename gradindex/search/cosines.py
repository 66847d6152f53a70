"""How alike hits and the picture that was asked about are: cosines of pixels, or of an embedding.

Beside a score they say what anyone could have found without the model's gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradindex.gradients.fold import unit
from gradindex.search.results import Hit, Result

Read = Callable[[np.ndarray], Iterator[np.ndarray]]  # vectors of ascending rows, one by one


def with_cosines(
    results: Sequence[Result], field: str, queries: np.ndarray, read: Read
) -> list[Result]:
    """Return results whose hits tell the cosine of their vector and the asked picture's.

    Each row is read once, however many lists it is in.

    Args:
        field: of a hit, that gets the cosines: "pixel" or "embedding".
        queries: vectors of the Q pictures that were asked about, [Q, E].
        read: gives the vectors of training pictures; NaN where there is none.
    """
    asking: dict[int, set[int]] = {}  # which queries have a row among their hits
    for q, result in enumerate(results):
        for hit in [*result.hits, *(result.opponents or [])]:
            asking.setdefault(hit.row, set()).add(q)
    rows = np.array(sorted(asking), np.int64)
    units = unit(queries)
    cosines: dict[tuple[int, int], float] = {}
    for row, vector in zip(rows.tolist(), read(rows), strict=True):
        if not np.isnan(vector).any():
            of_row = unit(vector)
            cosines |= {(q, row): float(units[q] @ of_row) for q in asking[row]}
    return tell_cosines(results, field, lambda q, row: cosines.get((q, row)))


def tell_cosines(
    results: Sequence[Result], field: str, cosine_of: Callable[[int, int], float | None]
) -> list[Result]:
    """Return results whose hits have a field of what is given for their query and row."""

    def told(q: int, hits: Sequence[Hit]) -> list[Hit]:
        changes: list[dict[str, Any]] = [{field: cosine_of(q, hit.row)} for hit in hits]
        return [replace(hit, **change) for hit, change in zip(hits, changes, strict=True)]

    return [
        replace(
            result,
            hits=told(q, result.hits),
            opponents=None if result.opponents is None else told(q, result.opponents),
        )
        for q, result in enumerate(results)
    ]


def cosine_scores(queries: np.ndarray, rows: np.ndarray, pictures: int, read: Read) -> np.ndarray:
    """Return the cosines of Q vectors [Q, E] and those of training pictures, [Q, N] float32.

    They are NaN for pictures that are not among the ascending rows, or have no vector.

    Args:
        pictures: N. read: see `with_cosines`.
    """
    scores = np.full((len(queries), pictures), np.nan, np.float32)
    units = unit(queries)
    for row, vector in zip(rows.tolist(), read(rows), strict=True):
        if not np.isnan(vector).any():
            scores[:, row] = units @ unit(vector)
    return scores

"""Exact scores from the rows of a store: what each row adds, all of them or those of a range of timesteps."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from gradindex.ahead import ahead
from gradindex.errors import CallError
from gradindex.recipe import FOLDED, Recipe
from gradindex.store import Store

Span = tuple[float, float]  # timesteps from the first to before the second
SPARE = 8  # rows that a scan proposes beyond those asked for
THREADS = 4 * (os.cpu_count() or 1)  # that scan the store side by side, most of them waiting for a disk


class Best:
    """The k highest of scores that come piece by piece; equal ones in the order of rows.

    Attributes:
        rows, scores: [Q, up to k], best first.
    """

    def __init__(self, queries: int, k: int) -> None:
        self._k, self.rows, self.scores = k, np.empty((queries, 0), np.int64), np.empty((queries, 0))

    def add(self, rows: np.ndarray, scores: np.ndarray) -> None:
        """Scores [Q, B] of rows [B] that come after all before; −∞ never counts."""
        if self.scores.shape[1] == self._k and (scores <= self.scores[:, -1:]).all():
            return
        every = np.concatenate([self.scores, scores], axis=1)
        order = np.argsort(-every, axis=1, kind="stable")[:, : self._k]
        self.scores = np.take_along_axis(every, order, axis=1)
        whose = np.concatenate([self.rows, np.broadcast_to(rows, scores.shape)], axis=1)
        self.rows = np.take_along_axis(whose, order, axis=1)


def scan(
    store: Store, block: np.ndarray, method: str, span: Span | None, dtype: Any = np.float64
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The score of every picture, straight from the store: row numbers [B] and scores [Q, B], block by block.

    NaN where no picture counts or no row is in the span. Products are taken in `dtype`.
    """
    left_out, columns = np.array(store.left_out, np.int64), as_columns(block, dtype)

    def score(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        scores = contributions(store, columns, method, rows, span).sum((2, 3))
        scores[:, left_out[(left_out >= rows.start) & (left_out < rows.stop)] - rows.start] = np.nan
        return np.arange(rows.start, rows.stop), scores

    blocks = list(store.blocks())
    yield from tqdm(ahead(score, blocks, threads=THREADS), "scores", len(blocks), unit="block", delay=2, disable=None)


def scan_both_ends(
    store: Store, block: np.ndarray, method: str, span: Span | None, k: int
) -> dict[int, list[np.ndarray]]:
    """Rows among which the k best of each query are, and the k worst, {1: …, -1: …}, ascending, from one pass.

    The pass is in float32, and SPARE rows more than k are given, for those that its rounding puts in a wrong order.
    """
    ends = {sign: Best(len(block), k + SPARE) for sign in (1, -1)}
    for rows, scores in scan(store, block, method, span, np.float32):
        for sign, best in ends.items():
            best.add(rows, np.nan_to_num(sign * scores, nan=-np.inf))
    return {sign: [np.sort(rows[kept]) for rows, kept in zip(best.rows, best.scores > -np.inf, strict=True)]
            for sign, best in ends.items()}  # fmt: skip


def as_columns(block: np.ndarray, dtype: Any = np.float64) -> np.ndarray:
    """What rows are multiplied with, [Q, C, T, D], as `contributions` takes it: [C, T, D, Q]."""
    return np.ascontiguousarray(block.transpose(1, 2, 3, 0), dtype)


def contributions(
    store: Store, columns: np.ndarray, method: str, rows: slice | np.ndarray, span: Span | None
) -> np.ndarray:
    """What each row adds to the score of the given pictures, [Q, pictures, C, T] float64.

    The score is the sum: over checkpoints, of the mean over timesteps in the span. It is NaN for a picture without any.

    Args:
        columns: what each row is multiplied with, `as_columns`; products are taken in their type.
        rows: a slice or ascending numbers of pictures.
    """
    checkpoints, per_picture, _, queries = columns.shape
    parts = [
        products(pieces, columns)
        for pieces in zip(
            *(row_pieces(store, c, rows, method == "retrac", columns.dtype) for c in range(checkpoints)), strict=True
        )
    ]
    every = np.concatenate([np.empty((queries, 0, checkpoints, per_picture)), *parts], axis=1)
    if span is None:
        return every / per_picture
    counted = np.stack([inside(store.read("timestep", c, rows), span) for c in range(checkpoints)], axis=1)
    every *= counted / np.maximum(counted.sum(2, keepdims=True), 1)
    every[:, ~counted.any((1, 2))] = np.nan
    return every


def row_pieces(
    store: Store, checkpoint: int, rows: slice | np.ndarray, unit: bool, dtype: Any
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Unnormalized rows [b, T, D], a few MB at a time, and what divides them [b, T]: their norms, or ones.

    Unit rows come so because the normalized array is float16; only where rows are folded, it has to do.

    Raises:
        StoreError: also when rows and norms disagree, as where a file is missing or another lies in its place.
    """
    folded_units = unit and store.recipe.rows == FOLDED
    norms, done = store.read("norm", checkpoint, rows).astype(np.float64), 0
    for u in store.pieces("normalized" if folded_units else "unnormalized", checkpoint, rows, dtype):
        norm = norms[done : done + len(u)]
        done += len(u)
        if not folded_units and not (_agree(u, norm) or _agree(u.astype(np.float64), norm)):
            raise store.damage("rows and their norms disagree")
        yield u, np.where(norm == 0, 1, norm) if unit and not folded_units else np.ones_like(norm)


def _agree(rows: np.ndarray, norms: np.ndarray) -> bool:
    return bool((np.abs(np.sqrt(np.vecdot(rows, rows)) - norms) <= 1e-5 * norms).all())


def products(pieces: Sequence[tuple[np.ndarray, np.ndarray]], columns: np.ndarray) -> np.ndarray:
    """Rows times columns, [Q, b, C, T]; `pieces` has each checkpoint's rows [b, T, D] and divisors [b, T]."""
    found = []
    for (rows, divisor), column in zip(pieces, columns, strict=True):
        product = np.matmul(rows.transpose(1, 0, 2), column) / divisor.T[:, :, None]
        found.append(product.transpose(2, 1, 0))
    return np.stack(found, axis=2)


def stderrs(added: np.ndarray, recipe: Recipe, span: Span | None) -> np.ndarray | None:
    """Standard errors of scores over timesteps, [Q, pictures], from what each timestep adds, [Q, pictures, T].

    None for a single timestep, for folded rows, and for recorded ones in a span, of which pictures differ in how many.
    """
    if (recipe.events and span) or recipe.rows == FOLDED:
        return None
    if not recipe.events:
        added = added[:, :, [inside(t, span) for t in recipe.timesteps]]
    count = added.shape[2]
    return added.std(2, ddof=1) * np.sqrt(count) if count > 1 else None


def spread(store: Store, row: int, added: np.ndarray, span: Span | None) -> dict[float, float]:
    """{timestep: what it adds to a picture's score}, from what its rows [C, T] add."""
    found: dict[float, float] = {}
    for checkpoint, values in enumerate(added):
        times = store.read("timestep", checkpoint, slice(row, row + 1))[0].tolist()
        for t, value in zip(times, values.tolist(), strict=True):
            if inside(t, span):
                found[t] = found.get(t, 0.0) + value
    return dict(sorted(found.items()))


def to_span(timesteps: tuple[int | None, int | None] | None) -> Span | None:
    """A range of timesteps with open ends filled in."""
    if timesteps is None:
        return None
    try:
        first, stop = timesteps
    except (TypeError, ValueError):
        raise CallError(f"timesteps = {timesteps!r}: give the first and the one after the last, (A, B)") from None
    return (-np.inf if first is None else first, np.inf if stop is None else stop)


def inside(t: Any, span: Span | None) -> Any:
    """Whether timesteps are in the span, which holds its first but not its last."""
    return span is None or ((t >= span[0]) & (t < span[1]))


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows [..., D] divided by their norms, float32; a zero row stays zero."""
    norm = np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True)
    return (rows / np.where(norm == 0, 1, norm)).astype(np.float32)

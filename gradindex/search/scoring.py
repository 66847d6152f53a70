"""Exact scores from the rows of a store: what each row adds, all of them or those of a span."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gradindex.errors import CallError
from gradindex.recipe import FOLDED, Recipe
from gradindex.store.prefetch import prefetch
from gradindex.store.progress import progress as show_progress
from gradindex.store.store import Store

METHODS = ("tracin", "retrac")
Span = tuple[float, float]  # timesteps from the first to before the second
SPARE = 8  # rows that a scan proposes beyond those asked for
THREADS = 4 * (os.cpu_count() or 1)  # that scan side by side, most of them waiting for a disk


class Best:
    """The k highest of scores that come piece by piece; equal ones in the order of rows.

    Attributes:
        rows, scores: [Q, up to k], best first.

    >>> best = Best(queries=1, k=2)
    >>> best.add(np.array([0, 1]), np.array([[0.5, 0.9]]))
    >>> best.add(np.array([2]), np.array([[0.7]]))
    >>> best.rows
    array([[1, 2]])
    """

    def __init__(self, queries: int, k: int) -> None:
        self._k = k
        self.rows = np.empty((queries, 0), np.int64)
        self.scores = np.empty((queries, 0))

    def add(self, rows: np.ndarray, scores: np.ndarray) -> None:
        """Take in scores [Q, B] of rows [B] that come after all before; −∞ never counts."""
        if self.scores.shape[1] == self._k and (scores <= self.scores[:, -1:]).all():
            return
        candidates = np.concatenate([self.scores, scores], axis=1)
        rows = np.concatenate([self.rows, np.broadcast_to(rows, scores.shape)], axis=1)
        order = np.argsort(-candidates, axis=1, kind="stable")[:, : self._k]
        self.scores = np.take_along_axis(candidates, order, axis=1)
        self.rows = np.take_along_axis(rows, order, axis=1)


def scan(
    store: Store, block: np.ndarray, method: str, span: Span | None, dtype: Any = np.float64
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The score of every picture, straight from the store, block by block.

    Args:
        block: query blocks [Q, C, T, D].
        dtype: of the products.

    Yields:
        Row numbers [B] and scores [Q, B]; NaN where no picture counts or no row is in the span.
    """
    for rows, added in scan_contributions(store, block, method, span, dtype):
        yield rows, added.sum((2, 3))


def scan_contributions(
    store: Store, block: np.ndarray, method: str, span: Span | None, dtype: Any = np.float64
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What each row adds to the score of every picture: as `scan`, but [Q, B, C, T]."""
    excluded = np.array(store.excluded, np.int64)
    columns = as_columns(block, dtype)

    def score(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        added = contributions(store, columns, method, rows, span)
        inside_rows = (excluded >= rows.start) & (excluded < rows.stop)
        added[:, excluded[inside_rows] - rows.start] = np.nan
        return np.arange(rows.start, rows.stop), added

    blocks = list(store.blocks())
    scored = prefetch(score, blocks, threads=THREADS)
    yield from show_progress(scored, "scores", len(blocks), unit="block")


def scan_both_ends(
    store: Store, block: np.ndarray, method: str, span: Span | None, k: int
) -> dict[int, list[np.ndarray]]:
    """Rows among which the k best and the k worst of each query are, from one pass.

    The pass is in float32, and SPARE rows more than k are kept, for those that its rounding puts
    in a wrong order.

    Returns:
        {1: the best, −1: the worst}, row numbers of each query, ascending.
    """
    ends = {sign: Best(len(block), k + SPARE) for sign in (1, -1)}
    for rows, scores in scan(store, block, method, span, np.float32):
        for sign, best in ends.items():
            best.add(rows, np.nan_to_num(sign * scores, nan=-np.inf))
    return {sign: _sorted_rows(best) for sign, best in ends.items()}


def _sorted_rows(best: Best) -> list[np.ndarray]:
    """The rows of each query that have a score, ascending."""
    pairs = zip(best.rows, best.scores, strict=True)
    return [np.sort(rows[scores > -np.inf]) for rows, scores in pairs]


def as_columns(block: np.ndarray, dtype: Any = np.float64) -> np.ndarray:
    """Query blocks [Q, C, T, D] as `contributions` takes them: [C, T, D, Q]."""
    return np.ascontiguousarray(block.transpose(1, 2, 3, 0), dtype)


def contributions(
    store: Store, columns: np.ndarray, method: str, rows: slice | np.ndarray, span: Span | None
) -> np.ndarray:
    """What each row adds to the score of some pictures, [Q, pictures, C, T] float64.

    The score is their sum: over checkpoints, of the mean over timesteps in the span. It is NaN for
    a picture without any.

    Args:
        columns: what each row is multiplied with, `as_columns`; products are taken in their type.
        rows: a slice or ascending numbers of pictures.
    """
    checkpoints, timesteps, _, queries = columns.shape
    parts = [np.empty((queries, 0, checkpoints, timesteps))]
    for pieces in pieces_of_checkpoints(store, method, rows, columns.dtype):
        parts.append(products(pieces, columns))
    added = np.concatenate(parts, axis=1)
    if span is None:
        return added / timesteps
    in_span = [inside(store.read("timestep", c, rows), span) for c in range(checkpoints)]
    counted = np.stack(in_span, axis=1)
    added *= counted / np.maximum(counted.sum(2, keepdims=True), 1)
    added[:, ~counted.any((1, 2))] = np.nan
    return added


Pieces = tuple[tuple[np.ndarray, np.ndarray], ...]  # rows and divisors of each checkpoint


def pieces_of_checkpoints(
    store: Store, method: str, rows: slice | np.ndarray, dtype: Any
) -> Iterator[Pieces]:
    """The `row_pieces` of all checkpoints, side by side."""
    unit = method == "retrac"
    readers = [row_pieces(store, c, rows, unit, dtype) for c in range(store.shape[0])]
    return zip(*readers, strict=True)


def row_pieces(
    store: Store, checkpoint: int, rows: slice | np.ndarray, unit: bool, dtype: Any
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Unnormalized rows [b, T, D], a few MB at a time, and what divides them, [b, T].

    Args:
        unit: whether the divisors are the rows' norms; ones otherwise. Unit rows come so because
            the normalized array is float16; only where rows are folded, it has to do.

    Raises:
        StoreError: also when rows and norms disagree, as where a file is missing or another lies
            in its place.
    """
    folded_units = unit and store.recipe.rows == FOLDED
    norms = store.read("norm", checkpoint, rows).astype(np.float64)
    name = "normalized" if folded_units else "unnormalized"
    done = 0
    for u in store.pieces(name, checkpoint, rows, dtype):
        norm = norms[done : done + len(u)]
        done += len(u)
        if folded_units:
            yield u, np.ones_like(norm)
            continue
        if not (_agree(u, norm) or _agree(u.astype(np.float64), norm)):
            raise store.damage("rows and their norms disagree")
        yield u, np.where(norm == 0, 1, norm) if unit else np.ones_like(norm)


def _agree(rows: np.ndarray, norms: np.ndarray) -> bool:
    """Whether rows [b, T, D] have these norms [b, T], up to float32 rounding."""
    lengths = np.sqrt(np.vecdot(rows, rows))
    return bool((np.abs(lengths - norms) <= 1e-5 * norms).all())


def products(pieces: Sequence[tuple[np.ndarray, np.ndarray]], columns: np.ndarray) -> np.ndarray:
    """Rows times columns, [Q, b, C, T].

    Args:
        pieces: each checkpoint's rows [b, T, D] and divisors [b, T].
        columns: [C, T, D, Q].
    """
    checkpoints = []
    for (rows, divisor), column in zip(pieces, columns, strict=True):
        product = np.matmul(rows.transpose(1, 0, 2), column) / divisor.T[:, :, None]  # [T, b, Q]
        checkpoints.append(product.transpose(2, 1, 0))
    return np.stack(checkpoints, axis=2)


def stderrs(added: np.ndarray, recipe: Recipe, span: Span | None) -> np.ndarray | None:
    """Standard errors of scores over timesteps, [Q, pictures].

    Args:
        added: what each timestep adds to a score, [Q, pictures, T].

    Returns:
        None for a single timestep, for folded rows, and for recorded rows in a span, of which
        pictures differ in how many they have.
    """
    if (recipe.events and span) or recipe.rows == FOLDED:
        return None
    if not recipe.events:
        added = added[:, :, [inside(t, span) for t in recipe.timesteps]]
    count = added.shape[2]
    return added.std(2, ddof=1) * np.sqrt(count) if count > 1 else None


def by_timestep(store: Store, row: int, added: np.ndarray, span: Span | None) -> dict[float, float]:
    """{timestep: what it adds to a picture's score}, from what its rows [C, T] add."""
    totals: dict[float, float] = {}
    for checkpoint, values in enumerate(added):
        timesteps = store.read("timestep", checkpoint, slice(row, row + 1))[0].tolist()
        for t, value in zip(timesteps, values.tolist(), strict=True):
            if inside(t, span):
                totals[t] = totals.get(t, 0.0) + value
    return dict(sorted(totals.items()))


def to_span(timesteps: tuple[float | None, float | None] | None) -> Span | None:
    """A range of timesteps with open ends filled in.

    An end that is no whole number is rounded to float32, as the store's timesteps are: 999.67 is
    the timestep that people read as 999.67.

    >>> to_span((None, 500)), to_span((0.1, None))
    ((-inf, 500), (0.10000000149011612, inf))
    """
    if timesteps is None:
        return None
    try:
        first, stop = timesteps
        span = (_end(first, -np.inf), _end(stop, np.inf))
        is_range = span[0] < span[1]
    except (TypeError, ValueError):
        message = "give the first and the one after the last, (A, B)"
        raise CallError(f"timesteps = {timesteps!r}: {message}") from None
    if not is_range:
        raise CallError(f"timesteps = {first}:{stop}: give A:B with A below B")
    return span


def _end(given: float | None, open_end: float) -> float:
    if given is None:
        return open_end
    if isinstance(given, str):
        raise TypeError("a text")
    return int(given) if float(given).is_integer() else float(np.float32(given))


def inside(t: Any, span: Span | None) -> Any:
    """Whether timesteps are in the span, which holds its first but not its last."""
    return span is None or ((t >= span[0]) & (t < span[1]))

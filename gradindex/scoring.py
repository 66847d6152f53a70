"""Exact scores from the rows of a store: what each row adds, all of them or those of a range of timesteps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from gradindex.errors import CallError
from gradindex.recipe import Recipe
from gradindex.store import Store

Span = tuple[float, float]  # timesteps from the first to before the second


def scan(store: Store, block: np.ndarray, method: str, skipped: Sequence[int], span: Span | None) -> np.ndarray:
    """The score of every picture, [Q, N] float32; NaN where the build skipped it or no row is in the span."""
    blocks = tqdm(list(store.blocks()), desc="scores", unit="shard", delay=2, disable=None)
    parts = [contributions(store, block, method, rows, span).sum((2, 3)) for rows in blocks]
    scores = np.concatenate(parts, axis=1).astype(np.float32)
    scores[:, skipped] = np.nan
    return scores


def contributions(
    store: Store, block: np.ndarray, method: str, rows: slice | np.ndarray, span: Span | None
) -> np.ndarray:
    """What each row adds to the score of the given pictures, [Q, pictures, C, T] float64.

    The score is the sum: over checkpoints, of the mean over timesteps in the span. It is NaN for a picture without any.
    ReTrac's unit rows are taken from the unnormalized ones and their norms: the normalized array is float16.

    Args:
        block: what each row is multiplied with, [Q, C, T, D].
        rows: a slice or ascending numbers of pictures.
    """
    parts = []
    for checkpoint in range(block.shape[1]):
        u, norm = store.read_rows(checkpoint, rows)
        products = np.matmul(u.transpose(1, 0, 2), block[:, checkpoint].astype(np.float64).transpose(1, 2, 0))
        if method == "retrac":
            products /= np.where(norm == 0, 1, norm).T[:, :, None]
        parts.append(products.transpose(2, 1, 0))
    every = np.stack(parts, axis=2)
    if span is None:
        return every / every.shape[3]
    counted = np.stack([inside(store.read("timestep", c, rows), span) for c in range(block.shape[1])], axis=1)
    every *= counted / np.maximum(counted.sum(2, keepdims=True), 1)
    every[:, ~counted.any((1, 2))] = np.nan
    return every


def stderrs(added: np.ndarray, recipe: Recipe, span: Span | None) -> np.ndarray | None:
    """Standard errors of scores over timesteps, [Q, pictures], from what each timestep adds, [Q, pictures, T].

    None for a single timestep, and for recorded ones in a span, where pictures differ in how many they have.
    """
    if recipe.events and span:
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

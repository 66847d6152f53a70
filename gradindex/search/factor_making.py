"""Making whitening factors, of one method or both in one pass over the rows."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
import torch

from gradindex.errors import CallError
from gradindex.recipe import FOLDED
from gradindex.search.factors import (
    FactorBlock,
    FactorRecord,
    can_extend,
    factor_file,
    factors_file,
    new_factors,
)
from gradindex.search.gpu import free_memory_on
from gradindex.search.scoring import row_pieces
from gradindex.store.digests import sha256
from gradindex.store.manifest import seal
from gradindex.store.prefetch import prefetch
from gradindex.store.progress import progress as show_progress
from gradindex.store.store import Store

READERS = 2  # threads that read ahead

Made = tuple[FactorRecord, dict[str, Any]]  # a method's record, and {file: L} where none is saved


class NoFactor(Exception):
    """A file of an earlier record holds no factor of its block."""


def make_factors(
    store: Store,
    before: Mapping[str, FactorRecord | None],
    damping: float,
    device: str = "cpu",
    save: bool = True,
) -> dict[str, Made]:
    """Make all factors of some methods; those of fewer pictures are extended by the new rows.

    Methods that take the same rows read them once.

    Args:
        before: {method: the record of the factors that it had}.
        save: whether they are written into the store.

    Returns:
        {method: its record, and {file: L [D, D] float32} of what is not written}.
    """
    by_first: dict[int, dict[str, FactorRecord | None]] = {}
    for method, old in before.items():
        extended = old if old and can_extend(store, method, old) else None
        first = extended.pictures if extended else 0
        by_first.setdefault(first, {})[method] = extended
    made: dict[str, Made] = {}
    for first, olds in by_first.items():
        try:
            made |= _make(store, olds, first, damping, device, save)
        except NoFactor:
            made |= _make(store, dict.fromkeys(olds), 0, damping, device, save)
    return made


def _make(
    store: Store,
    olds: Mapping[str, FactorRecord | None],
    first: int,
    damping: float,
    device: str,
    save: bool,
) -> dict[str, Made]:
    """The same, from the rows from `first` on and factors of all before; NoFactor: one is none."""
    checkpoints, _, timesteps, dim = store.shape
    blocks: dict[str, list[FactorBlock]] = {method: [] for method in olds}
    kept: dict[str, dict[str, Any]] = {method: {} for method in olds}
    records = {method: new_factors(store, method, damping) for method in olds}
    at_once = max(1, free_memory_on(device) // 4 // (4 * dim * dim * len(olds)))
    for c in range(checkpoints):
        for start in range(0, timesteps, at_once):
            numbers = range(start, min(start + at_once, timesteps))
            grams = _grams(store, list(olds), c, numbers, first, device)
            for method, old in olds.items():
                counted = max(1, records[method].counted)
                for t, gram in zip(numbers, grams[method], strict=True):
                    total = gram.double()
                    if old:
                        total += _gram_of(store, old, old.blocks[c * timesteps + t], device)
                    mean = total / counted
                    block, factor = _factor(store, method, (c, t), mean, damping, save)
                    if not save:
                        kept[method][block.file] = factor
                    blocks[method].append(block)
    made: dict[str, Made] = {}
    for method, record in records.items():
        record = msgspec.structs.replace(record, blocks=blocks[method])
        if save:
            store.location.publish(factors_file(method), seal(record))
        made[method] = record, kept[method]
    return made


def _gram_of(store: Store, old: FactorRecord, block: FactorBlock, device: str) -> Any:
    """GᵀG [D, D] float64 of the pictures that a factor was made from: N (LLᵀ − λI)."""
    try:
        factor = read_factor(store, block, old.damping).to(device).double()
    except (ValueError, FileNotFoundError) as error:
        raise NoFactor(block.file) from error
    identity = torch.eye(store.shape[3], dtype=torch.float32).to(factor)
    return old.counted * (factor @ factor.T - block.added * identity)


def _factor(
    store: Store, method: str, place: tuple[int, int], mean: Any, damping: float, save: bool
) -> tuple[FactorBlock, Any]:
    """The factor L [D, D] float32 of one block from its GᵀG/N, [D, D] float64, and its record.

    Args:
        save: whether it is written into the store.
    """
    added = damping * float(mean.trace()) or 1.0
    factor = cholesky(mean, added).float()
    file, content = factor_file(method, *place), factor.cpu().numpy().tobytes()
    if save:
        store.location.publish(file, content)
    return FactorBlock(block=place, added=added, file=file, sha256=sha256(content)), factor


def read_factor(store: Store, block: FactorBlock, damping: float) -> Any:
    """A block's L [D, D] float32 from its file.

    LLᵀ = GᵀG/N + λI: its trace, the sum of L's squares, is λ / damping + λD, or λD where all rows
    are zero; and L's squares on the diagonal are λ or more.

    Args:
        damping: with which it was made.

    Raises:
        ValueError, FileNotFoundError: the file does not hold the L of the block.
    """
    dim = store.shape[3]
    content = store.location.fetch(block.file, block.sha256)
    factor = np.frombuffer(content, np.float32).reshape(dim, dim)
    with np.errstate(over="ignore", invalid="ignore"):  # what is no factor may hold anything
        squares = np.vecdot(factor, factor).sum(dtype=np.float64)
    traces = [block.added * (1 / damping + dim), block.added * dim]
    is_sound = any(np.isclose(squares, trace, rtol=1e-3, atol=0) for trace in traces)
    if not is_sound or (factor.diagonal() < 0.99 * np.sqrt(block.added)).any():
        raise ValueError("is no factor of these rows")
    return torch.from_numpy(factor.copy())


def _grams(
    store: Store, methods: Sequence[str], checkpoint: int, timesteps: range, first: int, device: str
) -> dict[str, Any]:
    """{method: GᵀG at some timesteps, [timesteps, D, D] float32}, of the pictures from `first` on.

    It takes one pass over these pictures' rows.
    """
    shape = (len(timesteps), store.shape[3], store.shape[3])
    grams = {method: torch.zeros(shape, dtype=torch.float32, device=device) for method in methods}
    blocks = list(store.blocks(first))
    read = partial(rows_of_methods, store, methods, checkpoint)
    title = f"{' and '.join(methods)} whitening"
    for rows in show_progress(prefetch(read, blocks, READERS), title, len(blocks), unit="block"):
        for method, of_method in rows.items():
            for gram, t in zip(grams[method], timesteps, strict=True):
                g = torch.from_numpy(of_method[:, t]).to(device)
                gram.addmm_(g.T, g)
    return grams


def rows_of_methods(
    store: Store, methods: Sequence[str], checkpoint: int, rows: slice | np.ndarray
) -> dict[str, np.ndarray]:
    """{method: its rows [B, T, D] float32}; both methods' from the same bytes, unless folded."""
    if len(methods) == 1 or store.recipe.rows == FOLDED:
        return {method: method_rows(store, method, checkpoint, rows) for method in methods}
    plain, unit = [], []
    for g, norm in row_pieces(store, checkpoint, rows, True, np.float32):
        plain.append(g)
        unit.append(_divided(g, norm))
    return {"tracin": np.concatenate(plain), "retrac": np.concatenate(unit)}


def method_rows(store: Store, method: str, checkpoint: int, rows: slice | np.ndarray) -> np.ndarray:
    """A method's rows [B, T, D] float32."""
    pieces = row_pieces(store, checkpoint, rows, method == "retrac", np.float32)
    return np.concatenate([_divided(g, divisor) for g, divisor in pieces])


def _divided(rows: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    """Rows [b, T, D] divided by numbers [b, T], float32."""
    divided: np.ndarray = rows / divisor.astype(np.float32)[:, :, None]
    return divided


def cholesky(matrix: Any, added: float, message: str = "these rows cannot be whitened") -> Any:
    """The lower Cholesky factor of a matrix with something added to its diagonal."""
    matrix = matrix.clone()
    matrix.diagonal().add_(added)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise CallError(message)
    return factor

"""Searching one FAISS index, some of whose rows were removed and are no candidates."""

from types import ModuleType
from typing import Any

import numpy as np

from gradindex.search.gpu import is_on_gpu

PRODUCT_BYTES = 16 << 20  # of scores of flat vectors that are in memory at once
NOT_FINITE = "its vectors are not finite"


def best_rows(
    faiss: ModuleType, index: Any, queries: np.ndarray, count: int, removed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of an index that FAISS ranks best for queries [Q, W], and their scores.

    Args:
        count: of each query; at most as many as are not removed.
        removed: numbers of rows that are no candidates, ascending.

    Returns:
        Rows and scores, [Q, count or more]; a row is −1 where there is none.

    Raises:
        RuntimeError: FAISS cannot search it.
        ValueError: a flat vector is not finite.
    """
    if isinstance(index, faiss.IndexFlat):
        return _best_flat_rows(faiss, index, queries, count, removed)
    scores, rows = _searched(faiss, index, queries, count, removed)
    rows[np.isin(rows, removed)] = -1
    return rows, scores


def _searched(
    faiss: ModuleType, index: Any, queries: np.ndarray, count: int, removed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What FAISS's own search gives: scores and rows, best first.

    Where it cannot leave rows out, as on a GPU, in codes for fast scans and in refined ones, so
    many more are asked for.
    """
    if not len(removed):
        return index.search(queries, count)
    if not is_on_gpu(index):
        try:
            return index.search(queries, count, params=_without(faiss, index, removed))
        except RuntimeError:  # raised again below, where another thing is wrong
            pass
    return index.search(queries, count + len(removed))


def _without(faiss: ModuleType, index: Any, removed: np.ndarray) -> Any:
    """The parameters of a search that leaves rows out, of whatever kind the index is."""
    is_kept = np.ones(index.ntotal, bool)
    is_kept[removed] = False
    selector = faiss.IDSelectorBitmap(np.packbits(is_kept, bitorder="little"))
    # Inverted files take no other parameters, nor the number of lists from elsewhere
    inverted = faiss.try_extract_index_ivf(index)
    nprobe = inverted.nprobe if inverted is not None else 1
    return faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)


def _best_flat_rows(
    faiss: ModuleType, index: Any, queries: np.ndarray, count: int, removed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best rows of flat vectors, by products with their matrix, and their scores.

    For one query that takes half of FAISS's time, and for many a tenth where rows are removed.
    """
    numbers = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    vectors = numbers.reshape(-1, index.d)
    at_once = max(1, PRODUCT_BYTES // (4 * index.ntotal))
    best, scores = [], []
    for start in range(0, len(queries), at_once):
        with np.errstate(over="ignore", invalid="ignore"):  # a file may hold any numbers
            products = queries[start : start + at_once] @ vectors.T
        if not np.isfinite(products).all():
            raise ValueError(NOT_FINITE)
        products[:, removed] = -np.inf
        rows = np.sort(np.argpartition(products, -count, axis=1)[:, -count:], axis=1)
        best.append(rows)
        scores.append(np.take_along_axis(products, rows, axis=1))
    return np.concatenate(best), np.concatenate(scores)

"""Whitening: a query's block q becomes (GᵀG/N + λI)⁻¹ q at each (checkpoint, timestep).

G are the method's rows there, [N, D]. What all pictures' gradients have in common, and no picture
more than another, then counts for little (Park et al. 2023, TRAK, arXiv 2303.14186, whose kernel
has no λ). λ is `damping` times the trace of GᵀG/N, which is the mean square of a row's norm:
projections keep that, so λ does not depend on D.

Kept in the store's `whiten` folder, per method: for each block the lower Cholesky factor L of
GᵀG/N + λI. It also gives back GᵀG/N, for another damping and for rows that were added later. The
score qᵀ(LLᵀ)⁻¹g is the inner product of L⁻¹q and L⁻¹g, the half-whitened rows, which FAISS is
given.

Rows that are too wide for a D × D matrix, and those of few pictures, need no factors: see
`row_whitening`.

Removed pictures count until `compact` makes the folder anew; skipped ones have zero rows.
"""

from collections.abc import Iterator, Sequence
from threading import RLock
from typing import Any

import numpy as np
import torch

from gradindex.errors import CallError
from gradindex.search.factor_making import cholesky, make_factors, read_factor
from gradindex.search.factors import (
    WHITENED,
    WIDEST,
    FactorBlock,
    FactorRecord,
    factor_damages,
    factors_file,
    factors_fit,
    is_wide,
    saved_factors,
    usual_damping,
)
from gradindex.search.gpu import free_memory_on
from gradindex.store.store import Store

TOO_SMALL = "damping = {}: too small for these rows"


class Whitening:
    """What whitens the queries of a method; made from the store's rows where it does not fit them.

    Args:
        device: where it computes.
        save: whether factors that are made are written into the store, as a build does; a reader
            keeps them in memory.

    Attributes:
        record: which rows it was made from, and the files of its factors.

    Raises:
        CallError: rows are too wide for D × D matrices.
    """

    def __init__(self, store: Store, method: str, device: str = "cpu", save: bool = True) -> None:
        if is_wide(store):
            raise CallError(
                f"rows of {store.shape[3]} numbers are too wide to whiten search files,"
                f" {WIDEST} is the most"
            )
        self._store, self._method, self._device = store, method, device
        self._save = save
        self._open: dict[str, Any] = {}
        self._lock = RLock()  # for threads that share an index
        saved = saved_factors(store, method)
        self.record = saved if saved and factors_fit(store, method, saved) else self._make(saved)

    def whitened(self, block: np.ndarray, damping: float | None = None) -> np.ndarray:
        """(GᵀG/N + λI)⁻¹ q of query blocks [Q, C, T, D] float32."""
        out = np.empty_like(block)
        for c, t, factor in self._factors(damping):
            q = torch.from_numpy(block[:, c, t].T.astype(np.float64)).to(factor)
            out[:, c, t] = torch.cholesky_solve(q, factor).T.cpu().numpy()
        return out

    def half_rows(self, rows: np.ndarray) -> np.ndarray:
        """L⁻¹ g of rows [B, C, T, D] float32."""
        out = np.empty_like(rows, dtype=np.float32)
        for c, t, factor in self._kept_factors():
            g = torch.from_numpy(rows[:, c, t].T.astype(np.float32)).to(factor)
            out[:, c, t] = torch.linalg.solve_triangular(factor, g, upper=False).T.cpu().numpy()
        return out

    def half_queries(self, whitened: np.ndarray) -> np.ndarray:
        """L⁻¹ q of query blocks that are whitened already, [Q, C, T, D] float32: Lᵀ times them."""
        out = np.empty_like(whitened)
        for c, t, factor in self._kept_factors():
            out[:, c, t] = whitened[:, c, t] @ factor.cpu().numpy()
        return out

    def mend(self) -> None:
        """Make all factors anew where a file is not as it was made."""
        if factor_damages(self._store, self.record):
            self.record = self._make(None)

    def _kept_factors(self) -> Iterator[tuple[int, int, Any]]:
        """Checkpoint, timestep and L [D, D] float32 of every block."""
        for block in self.record.blocks:
            yield *block.block, self._factor(block)

    def _factors(self, damping: float | None) -> Iterator[tuple[int, int, Any]]:
        """The same in float64, a block at a time, for another damping too."""
        for block in self.record.blocks:
            factor = self._factor(block).double()
            if damping not in (None, self.record.damping):
                change = block.added * (damping / self.record.damping - 1)
                factor = cholesky(factor @ factor.T, change, TOO_SMALL.format(damping))
            yield *block.block, factor

    def _factor(self, block: FactorBlock) -> Any:
        """A block's L. They stay on the device where all fit into half of what is free there."""
        with self._lock:
            if block.file in self._open:
                return self._open[block.file]
            factor = self._fetch(block)
            dim = self._store.shape[3]
            if len(self.record.blocks) * dim * dim * 4 < free_memory_on(self._device) // 2:
                self._open[block.file] = factor
            return factor

    def _fetch(self, block: FactorBlock) -> Any:
        """A block's L from its file; where that is damaged, all factors are made anew."""
        try:
            factor = read_factor(self._store, block, self.record.damping)
        except (ValueError, FileNotFoundError):
            self.record = self._make(None)
            block = next(new for new in self.record.blocks if new.block == block.block)
            if not self._save:
                return self._open[block.file]
            factor = read_factor(self._store, block, self.record.damping)
        return factor.to(self._device)

    def _make(self, before: FactorRecord | None) -> FactorRecord:
        """Make all factors, see `make_factors`; those that are not saved stay in memory."""
        olds = {self._method: before}
        damping = usual_damping(self._store)
        made = make_factors(self._store, olds, damping, self._device, self._save)
        record, self._open = made[self._method]
        return record


def make_whitenings(store: Store, methods: Sequence[str], device: str = "cpu") -> None:
    """Make the factors of methods that have none of the store's rows, in one pass over these."""
    saved = {method: saved_factors(store, method) for method in methods}
    olds = {
        method: factors
        for method, factors in saved.items()
        if factors is None or not factors_fit(store, method, factors)
    }
    if olds and not is_wide(store):
        make_factors(store, olds, usual_damping(store), device)


def whitening_of_index(store: Store, name: str, device: str = "cpu") -> Whitening | None:
    """What half-whitens the rows of a search index of that name; None where they are plain."""
    if not name.endswith(WHITENED):
        return None
    return Whitening(store, name.removesuffix(WHITENED), device)


def mend_whitening(store: Store, method: str, device: str) -> None:
    """Make a method's factors anew where they are damaged or of other rows, if there are any."""
    (content,) = store.location.read_many([factors_file(method)])
    if content is not None:
        Whitening(store, method, device).mend()

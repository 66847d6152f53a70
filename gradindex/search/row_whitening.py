"""Whitening by the rows themselves, with an N × N matrix in place of a D × D one.

It is exact, and needs nothing on disk: for few pictures. Of rows that are too wide for a D × D
matrix a sample stands for all.
"""

from threading import RLock
from typing import Any

import numpy as np
import torch

from gradindex.models.devices import plain_torch
from gradindex.search.factor_making import cholesky, method_rows
from gradindex.search.factors import WIDEST, is_wide
from gradindex.search.gpu import free_memory_on
from gradindex.search.whitening import TOO_SMALL
from gradindex.store.store import Store

SAMPLE = 2048  # rows that stand for all where they are wide


class RowWhitening:
    """Whitens queries of a method by its rows S themselves, with an m × m matrix for each block.

    S are all rows, which is exact; of wide rows SAMPLE, evenly spread. Nothing is written. What was
    computed stays in memory where it fits.
    """

    def __init__(self, store: Store, method: str, device: str = "cpu") -> None:
        self._store, self._method, self._device = store, method, device
        self._rows: dict[int, Any] = {}  # {checkpoint: S [m, T, D]}
        self._solvers: dict[tuple[int, int], RowSolver] = {}  # {(checkpoint, timestep): of S there}
        self._lock = RLock()  # for threads that share an index

    @plain_torch()
    def whitened(self, block: np.ndarray, damping: float) -> np.ndarray:
        """(SᵀS/m + λI)⁻¹ q of query blocks [Q, C, T, D] float32."""
        out = np.empty_like(block)
        for c in range(block.shape[1]):
            rows = self._rows_at(c)
            for t in range(block.shape[2]):
                q = torch.from_numpy(np.ascontiguousarray(block[:, c, t])).to(self._device)
                solver = self._solver(c, t, rows[:, t])
                out[:, c, t] = solver.whitened(rows[:, t], q, damping).cpu().numpy()
        return out

    def _rows_at(self, checkpoint: int) -> Any:
        """S of a checkpoint, [m, T, D] float32."""
        with self._lock:
            if checkpoint in self._rows:
                return self._rows[checkpoint]
            store = self._store
            checkpoints, pictures, timesteps, dim = store.shape
            sample = np.setdiff1d(np.arange(pictures), store.summary.skipped)
            if is_wide(store):
                row_bytes = 4 * timesteps * dim
                fitting = max(1, min(SAMPLE, free_memory_on(self._device) // 4 // row_bytes))
                count = min(fitting, len(sample))
                sample = sample[np.linspace(0, len(sample) - 1, count).astype(int)]
            rows = torch.from_numpy(method_rows(store, self._method, checkpoint, sample))
            rows = rows.to(self._device)
            if checkpoints * rows.nbytes < free_memory_on(self._device) // 2:
                self._rows[checkpoint] = rows
            return rows

    def _solver(self, checkpoint: int, timestep: int, rows: Any) -> "RowSolver":
        """What whitens by the rows S [m, D] of a block."""
        with self._lock:
            place = (checkpoint, timestep)
            if place in self._solvers:
                return self._solvers[place]
            solver = RowSolver(rows)
            checkpoints, _, timesteps, _ = self._store.shape
            all_bytes = checkpoints * timesteps * solver.bytes
            if all_bytes < free_memory_on(self._device) // 2:
                self._solvers[place] = solver
            return solver


class RowSolver:
    """Whitens by rows S [m, D]: S Sᵀ, and its Cholesky factor for the damping asked for last.

    Both are [m, m] float32: rounded so, SSᵀ + mλI is off by a millionth of λ or so.

    Attributes:
        bytes: of both.
    """

    def __init__(self, rows: Any) -> None:
        self._gram = rows @ rows.T
        self.bytes = 2 * self._gram.nbytes
        self._trace = float(self._gram.diagonal().double().sum())
        self._last: tuple[float, Any] | None = None

    def whitened(self, rows: Any, queries: Any, damping: float) -> Any:
        """(SᵀS/m + λI)⁻¹ q, by the matrix inversion lemma: (q − Sᵀ (SSᵀ + mλI)⁻¹ S q) / λ.

        Little is left of a query that lies among the rows: sums are in float64.

        Args:
            rows: S [m, D]. queries: q [Q, D] float32.
        """
        load = damping * self._trace or 1.0  # mλ
        inner = torch.zeros(len(rows), len(queries), dtype=torch.float64, device=rows.device)
        pieces = range(0, rows.shape[1], WIDEST)
        for start in pieces:
            columns = slice(start, start + WIDEST)
            inner += rows[:, columns].double() @ queries[:, columns].double().T
        inner = torch.cholesky_solve(inner, self._factor(damping, load).double())
        rest = torch.empty_like(queries)
        for start in pieces:
            columns = slice(start, start + WIDEST)
            spanned = inner.T @ rows[:, columns].double()
            rest[:, columns] = (queries[:, columns] - spanned) * (len(rows) / load)
        return rest

    def _factor(self, damping: float, load: float) -> Any:
        """The lower Cholesky factor of SSᵀ + mλI."""
        last = self._last  # threads may share it
        if last is None or last[0] != damping:
            factor = cholesky(self._gram.double(), load, TOO_SMALL.format(damping))
            last = self._last = (damping, factor.float())
        return last[1]


@plain_torch()
def whitened_by(rows: np.ndarray, queries: np.ndarray, damping: float) -> np.ndarray:
    """(SᵀS/m + λI)⁻¹ q of queries [Q, D] float32 and rows S [m, D], by way of an m × m matrix."""
    sample, q = torch.from_numpy(rows), torch.from_numpy(queries)
    return RowSolver(sample).whitened(sample, q, damping).numpy()

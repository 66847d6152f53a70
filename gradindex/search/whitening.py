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

from collections.abc import Iterator
from functools import partial
from threading import RLock
from typing import Any

import msgspec
import numpy as np
import torch

from gradindex.errors import CallError
from gradindex.search.factors import (
    WHITENED,
    WIDEST,
    FactorBlock,
    FactorRecord,
    can_extend,
    factor_damages,
    factor_file,
    factors_file,
    factors_fit,
    is_wide,
    new_factors,
    saved_factors,
)
from gradindex.search.gpu import free_memory_on
from gradindex.search.scoring import row_pieces
from gradindex.store.digests import sha256
from gradindex.store.manifest import seal
from gradindex.store.prefetch import prefetch
from gradindex.store.progress import progress as show_progress
from gradindex.store.store import Store

DAMPING = 0.0003  # good at every D and T that was tried: `tools/bench lds`
READERS = 2  # threads that read ahead

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
            factor = self._fetch(block, self.record.damping)
            dim = self._store.shape[3]
            if len(self.record.blocks) * dim * dim * 4 < free_memory_on(self._device) // 2:
                self._open[block.file] = factor
            return factor

    def _fetch(self, block: FactorBlock, damping: float) -> Any:
        """A block's L from its file; where that is damaged, all factors are made anew.

        Args:
            damping: with which it was made.
        """
        try:
            content = self._store.location.fetch(block.file, block.sha256)
            self._require_factor(content, block, damping)
        except (ValueError, FileNotFoundError):
            self.record = self._make(None)
            block = next(new for new in self.record.blocks if new.block == block.block)
            if not self._save:
                return self._open[block.file]
            content = self._store.location.fetch(block.file, block.sha256)
        dim = self._store.shape[3]
        factor = np.frombuffer(content, np.float32).reshape(dim, dim).copy()
        return torch.from_numpy(factor).to(self._device)

    def _require_factor(self, content: bytes, block: FactorBlock, damping: float) -> None:
        """Raise ValueError unless a file holds the L of a block.

        LLᵀ = GᵀG/N + λI: its trace, the sum of L's squares, is λ / damping + λD, or λD where all
        rows are zero; and L's squares on the diagonal are λ or more.
        """
        dim = self._store.shape[3]
        factor = np.frombuffer(content, np.float32).reshape(dim, dim)
        with np.errstate(over="ignore", invalid="ignore"):  # what is no factor may hold anything
            squares = np.vecdot(factor, factor).sum(dtype=np.float64)
        traces = [block.added * (1 / damping + dim), block.added * dim]
        is_sound = any(np.isclose(squares, trace, rtol=1e-3, atol=0) for trace in traces)
        if not is_sound or (factor.diagonal() < 0.99 * np.sqrt(block.added)).any():
            raise ValueError("is no factor of these rows")

    def _make(self, before: FactorRecord | None) -> FactorRecord:
        """Make all factors; those of fewer pictures are extended by the rows that are new."""
        store, method = self._store, self._method
        self._open = {}
        checkpoints, _, timesteps, dim = store.shape
        record = new_factors(store, method, DAMPING)
        old = before if before and can_extend(store, method, before) else None
        first = old.pictures if old else 0
        at_once = max(1, free_memory_on(self._device) // 4 // (4 * dim * dim))
        blocks = []
        for c in range(checkpoints):
            for start in range(0, timesteps, at_once):
                numbers = range(start, min(start + at_once, timesteps))
                for t, gram in zip(numbers, self._grams(c, numbers, first), strict=True):
                    total = gram.double()
                    if old:
                        total += self._gram_of(old, old.blocks[c * timesteps + t])
                    blocks.append(self._keep(c, t, total / max(1, record.counted)))
        record = msgspec.structs.replace(record, blocks=blocks)
        if self._save:
            store.location.publish(factors_file(method), seal(record))
        return record

    def _gram_of(self, old: FactorRecord, block: FactorBlock) -> Any:
        """GᵀG [D, D] float64 of the pictures that a factor was made from: N (LLᵀ − λI)."""
        factor = self._fetch(block, old.damping).double()
        identity = torch.eye(self._store.shape[3], dtype=torch.float32).to(factor)
        return old.counted * (factor @ factor.T - block.added * identity)

    def _keep(self, c: int, t: int, mean: Any) -> FactorBlock:
        """Write the factor of one block from its GᵀG/N, [D, D] float64, or keep it in memory."""
        added = DAMPING * float(mean.trace()) or 1.0
        factor = cholesky(mean, added).float()
        content = factor.cpu().numpy().tobytes()
        file = factor_file(self._method, c, t)
        if self._save:
            self._store.location.publish(file, content)
        else:
            self._open[file] = factor
        return FactorBlock(block=(c, t), added=added, file=file, sha256=sha256(content))

    def _grams(self, checkpoint: int, timesteps: range, first: int) -> Any:
        """GᵀG at some timesteps, [timesteps, D, D] float32, of the pictures from `first` on.

        It takes one pass over these pictures' rows.
        """
        dim = self._store.shape[3]
        read = partial(method_rows, self._store, self._method, checkpoint)
        grams = torch.zeros(len(timesteps), dim, dim, dtype=torch.float32, device=self._device)
        blocks = list(self._store.blocks(first))
        title = f"{self._method} whitening"
        bar = show_progress(prefetch(read, blocks, READERS), title, len(blocks), unit="block")
        for rows in bar:
            for gram, t in zip(grams, timesteps, strict=True):
                g = torch.from_numpy(rows[:, t]).to(self._device)
                gram.addmm_(g.T, g)
        return grams


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


def method_rows(store: Store, method: str, checkpoint: int, rows: slice | np.ndarray) -> np.ndarray:
    """A method's rows [B, T, D] float32."""
    parts = []
    for g, divisor in row_pieces(store, checkpoint, rows, method == "retrac", np.float32):
        parts.append(g / divisor.astype(np.float32)[:, :, None])
    return np.concatenate(parts)


def cholesky(matrix: Any, added: float, message: str = "these rows cannot be whitened") -> Any:
    """The lower Cholesky factor of a matrix with something added to its diagonal."""
    matrix = matrix.clone()
    matrix.diagonal().add_(added)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise CallError(message)
    return factor

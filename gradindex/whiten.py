"""Whitening: at each (checkpoint, timestep) a query's block q becomes (GᵀG/N + λI)⁻¹ q, G the method's rows [N, D].

What all pictures' gradients have in common, and no picture more than another, then counts for little. λ is `damping`
times the trace of GᵀG/N, which is the mean square of a row's norm: projections keep it, so λ does not depend on D.

Kept in the store's `whiten` folder, per method: for each block the lower Cholesky factor L of GᵀG/N + λI. It also
gives back GᵀG/N, for another damping and for rows that were added later. The score qᵀ(LLᵀ)⁻¹g is the inner product of
L⁻¹q and L⁻¹g, the half-whitened rows, which FAISS is given.

Where rows are too wide for a D × D matrix, up to 2,048 of them, S, evenly spread, stand for all, and
(SᵀS/m + λI)⁻¹ q = (q − Sᵀ (SSᵀ + mλI)⁻¹ S q) / λ, which is exact where they are all. Nothing is kept of that.

Removed pictures count until `compact` makes the folder anew; skipped ones have zero rows.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gradindex import factors
from gradindex.ahead import ahead
from gradindex.errors import CallError
from gradindex.factors import WHITENED
from gradindex.manifest import seal
from gradindex.memory import free_memory
from gradindex.place import sha256
from gradindex.scoring import row_pieces
from gradindex.store import Store

DAMPING = 0.0003  # good at every D and T that was tried: `tools/bench lds`
READERS = 2  # threads that read ahead
SAMPLE = 2048  # rows that stand for all where they are wider


def whitened_by_some(store: Store, method: str, block: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """(SᵀS/m + λI)⁻¹ q of query blocks [Q, C, T, D] float32, S some of the rows: for those that are wide."""
    checkpoints, pictures, timesteps, dim = store.shape
    kept = np.setdiff1d(np.arange(pictures), store.summary["skipped"])
    fitting = max(1, min(SAMPLE, free_memory() // 2 // (8 * timesteps * dim)))
    chosen = np.unique(np.linspace(0, len(kept) - 1, min(fitting, len(kept))).astype(int))
    out = np.empty_like(block)
    for c in range(checkpoints):
        rows = _rows(store, method, c, kept[chosen])
        for t in range(timesteps):
            out[:, c, t] = whitened_by(rows[:, t], block[:, c, t], damping)
    return out


def whitened_by(rows: np.ndarray, queries: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """(SᵀS/m + λI)⁻¹ q of queries [Q, D] float32, S rows [m, D], by way of an m × m matrix."""
    some, q = torch.from_numpy(rows), torch.from_numpy(queries)
    gram = (some @ some.T).double()
    load = damping * float(gram.trace()) or 1.0
    inner = torch.cholesky_solve((some @ q.T).double(), _cholesky(gram, load, _TOO_SMALL.format(damping)))
    return ((q - (some.T @ inner.float()).T) * (len(some) / load)).numpy()


def _rows(store: Store, method: str, checkpoint: int, rows: slice | np.ndarray) -> np.ndarray:
    """A method's rows [B, T, D] float32."""
    pieces = row_pieces(store, checkpoint, rows, method == "retrac", np.float32)
    return np.concatenate([g / divisor.astype(np.float32)[:, :, None] for g, divisor in pieces])


_TOO_SMALL = "damping = {}: too small for these rows"


class Whitening:
    """What whitens the queries of a method; made from the store's rows where it is absent or of other rows.

    Attributes:
        facts: what is in its JSON: which rows it was made from, `damping`, and each block's `lambda`.
    """

    def __init__(self, store: Store, method: str, device: str = "cpu") -> None:
        if factors.is_wide(store):
            raise CallError(
                f"rows of {store.shape[3]} numbers are too wide to whiten search files, {factors.WIDEST} is the most"
            )
        self._store, self._method, self._device = store, method, device
        self._open: dict[str, Any] = {}
        saved = factors.saved_factors(store, method)
        self.facts = saved if saved and factors.fits(store, method, saved) else self._make(saved)

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
        for c, t, factor in self._kept():
            g = torch.from_numpy(rows[:, c, t].T.astype(np.float32)).to(factor)
            out[:, c, t] = torch.linalg.solve_triangular(factor, g, upper=False).T.cpu().numpy()
        return out

    def half_queries(self, whitened: np.ndarray) -> np.ndarray:
        """L⁻¹ q of query blocks that are whitened already, [Q, C, T, D] float32: Lᵀ times them."""
        out = np.empty_like(whitened)
        for c, t, factor in self._kept():
            out[:, c, t] = whitened[:, c, t] @ factor.cpu().numpy()
        return out

    def _kept(self) -> Iterator[tuple[int, int, Any]]:
        """Checkpoint, timestep and L [D, D] float32 of every block."""
        for block in self.facts["blocks"]:
            yield *block["block"], self._factor(block)

    def _factors(self, damping: float | None) -> Iterator[tuple[int, int, Any]]:
        """The same in float64, a block at a time, for another damping too."""
        for block in self.facts["blocks"]:
            factor = self._factor(block).double()
            if damping not in (None, self.facts["damping"]):
                change = block["lambda"] * (damping / self.facts["damping"] - 1)
                factor = _cholesky(factor @ factor.T, change, _TOO_SMALL.format(damping))
            yield *block["block"], factor

    def _factor(self, block: dict[str, Any]) -> Any:
        """A block's L. They stay in memory where all of them fit into half of what is free."""
        name, dim = block["file"], self._store.shape[3]
        if name in self._open:
            return self._open[name]
        factor = self._fetch(block)
        if len(self.facts["blocks"]) * dim * dim * 4 < free_memory() // 2:
            self._open[name] = factor
        return factor

    def _fetch(self, block: dict[str, Any]) -> Any:
        try:
            content = self._store.place.fetch(block["file"], block["sha256"])
        except (ValueError, FileNotFoundError):
            self.facts = self._make(None)
            block = next(other for other in self.facts["blocks"] if other["block"] == block["block"])
            content = self._store.place.fetch(block["file"], block["sha256"])
        dim = self._store.shape[3]
        return torch.from_numpy(np.frombuffer(content, np.float32).reshape(dim, dim).copy()).to(self._device)

    def _make(self, before: dict[str, Any] | None) -> dict[str, Any]:
        """Make all factors; those of fewer pictures are extended by the rows that are new."""
        store, method = self._store, self._method
        self._open = {}
        checkpoints, _, timesteps, dim = store.shape
        facts = {**factors.made_from_now(store, method), "damping": DAMPING, "blocks": []}
        old = before if before and factors.extended_by(store, method, before) else None
        first, counted = (old["pictures"], old["counted"]) if old else (0, 0)
        at_once = max(1, free_memory() // 4 // (4 * dim * dim))
        for c in range(checkpoints):
            for start in range(0, timesteps, at_once):
                chosen = range(start, min(start + at_once, timesteps))
                for t, gram in zip(chosen, self._grams(c, chosen, first), strict=True):
                    total = gram.double()
                    if old:
                        block = old["blocks"][c * timesteps + t]
                        factor = self._fetch(block).double()
                        total += counted * (factor @ factor.T - block["lambda"] * torch.eye(dim).to(factor))
                    mean = total / max(1, facts["counted"])
                    damped = DAMPING * float(mean.trace()) or 1.0
                    content = _cholesky(mean, damped).float().cpu().numpy().tobytes()
                    file = f"whiten/{method}-{c}-{t}.f32"
                    store.place.publish(file, content)
                    entry = {"block": [c, t], "lambda": damped, "file": file, "sha256": sha256(content)}
                    facts["blocks"].append(entry)
        store.place.publish(factors.facts_of(method), seal(facts))
        return facts

    def _grams(self, checkpoint: int, timesteps: range, first: int) -> Any:
        """GᵀG at some timesteps, [timesteps, D, D] float32, from one pass over the pictures from `first` on."""
        dim, read = self._store.shape[3], partial(_rows, self._store, self._method, checkpoint)
        grams = torch.zeros(len(timesteps), dim, dim, device=self._device)
        blocks = list(self._store.blocks(first))
        bar = tqdm(ahead(read, blocks, READERS), f"{self._method} whitening", len(blocks), delay=2, disable=None)
        for rows in bar:
            for gram, t in zip(grams, timesteps, strict=True):
                g = torch.from_numpy(rows[:, t]).to(self._device)
                gram.addmm_(g.T, g)
        return grams


def of_index(store: Store, name: str, device: str = "cpu") -> Whitening | None:
    """What half-whitens the rows of a search index of that name; None where they are plain."""
    return Whitening(store, name.removesuffix(WHITENED), device) if name.endswith(WHITENED) else None


def mend(store: Store, method: str, device: str) -> None:
    """Make a method's factors anew where they are damaged or of other rows, if there are any."""
    (content,) = store.place.read_many([factors.facts_of(method)])
    if content is None:
        return
    whitening = Whitening(store, method, device)
    if factors.damages(store, whitening.facts):
        whitening.facts = whitening._make(None)


def _cholesky(matrix: Any, added: float, message: str = "these rows cannot be whitened") -> Any:
    """The lower Cholesky factor of a matrix with something added to its diagonal."""
    matrix = matrix.clone()
    matrix.diagonal().add_(added)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise CallError(message)
    return factor

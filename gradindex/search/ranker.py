"""From query blocks to hits: candidates from FAISS or a scan, then exact scores from the store."""

from collections.abc import Sequence

import numpy as np

from gradindex.errors import StoreError
from gradindex.search.ann_builder import build_ann_index, open_ann_index
from gradindex.search.ann_index import AnnIndex
from gradindex.search.factors import WHITENED, is_wide
from gradindex.search.results import Hit
from gradindex.search.scoring import (
    Span,
    as_columns,
    by_timestep,
    contributions,
    scan,
    scan_both_ends,
    stderrs,
)
from gradindex.search.whitening import DAMPING, Whitening, whitened_by_sample
from gradindex.store.store import Store

READ_ROWS = 256  # candidates whose rows are in memory at once


class Ranker:
    """What whitens query blocks [Q, C, T, D] and ranks the store's rows by them.

    It keeps the whitening factors and search files that it has opened.

    Args:
        device: where whitening and FAISS compute. ray: see `AnnIndex`.
    """

    def __init__(self, store: Store, device: str, ray: str | None = None) -> None:
        self._store, self._device, self._ray = store, device, ray
        self._indexes: dict[str, AnnIndex] = {}
        self._whitenings: dict[str, Whitening] = {}

    def whitened(self, method: str, block: np.ndarray, damping: float = DAMPING) -> np.ndarray:
        """(GᵀG/N + λI)⁻¹ q of query blocks [Q, C, T, D] float32."""
        if is_wide(self._store):
            return whitened_by_sample(self._store, method, block, damping)
        return self._whitening(method).whitened(block, damping)

    def scores(self, method: str, block: np.ndarray, span: Span | None = None) -> np.ndarray:
        """The exact score of every training picture, float32 [Q, N]."""
        parts = [scores for _, scores in scan(self._store, block, method, span)]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def proposed(
        self,
        block: np.ndarray,
        k: int,
        method: str,
        span: Span | None,
        damping: float | None,
        signs: Sequence[int],
    ) -> dict[int, list[np.ndarray]]:
        """Rows among which the best k of each query are (sign 1), and the worst (sign −1).

        Args:
            block: query blocks, whitened with this damping; None: plain ones.

        Returns:
            {sign: row numbers of each query, ascending}, from FAISS or a scan.
        """
        plain = damping is None
        has_index = plain or (damping == DAMPING and not is_wide(self._store))
        if span is None and has_index:
            name = method if plain else method + WHITENED
            candidates = self._candidates(name, block, k, signs)
            if candidates is not None:
                return candidates
        return scan_both_ends(self._store, block, method, span, k)

    def _candidates(
        self, name: str, block: np.ndarray, k: int, signs: Sequence[int]
    ) -> dict[int, list[np.ndarray]] | None:
        """The candidates of the search index of that name; None where it has no files."""
        try:
            if name not in self._indexes:
                self._indexes[name] = self._open_index(name)
            return self._indexes[name].proposed(block, k, signs)
        except StoreError:
            # An index file is damaged: it is made anew from the rows. Where those are damaged,
            # making it raises the error again.
            build_ann_index(self._store, name, whitening=self._whitening_of(name))
            self._indexes[name] = self._open_index(name)
            return self._indexes[name].proposed(block, k, signs)

    def _open_index(self, name: str) -> AnnIndex:
        whitening = self._whitening_of(name)
        return open_ann_index(self._store, name, self._ray, self._device, whitening)

    def _whitening_of(self, name: str) -> Whitening | None:
        """What half-whitens the rows of a search index of that name."""
        if not name.endswith(WHITENED):
            return None
        return self._whitening(name.removesuffix(WHITENED))

    def _whitening(self, method: str) -> Whitening:
        if method not in self._whitenings:
            self._whitenings[method] = Whitening(self._store, method, self._device)
        return self._whitenings[method]

    def hits(
        self,
        block: np.ndarray,
        k: int,
        method: str,
        span: Span | None,
        with_timesteps: bool,
        sign: int,
        proposed: Sequence[np.ndarray],
    ) -> list[list[Hit]]:
        """The k best of the proposed rows for each query, scored exactly.

        Args:
            with_timesteps: also tell what each timestep adds to a score.
            sign: 1 looks for the highest scores, −1 for the most negative.
            proposed: row numbers of each query, ascending.
        """
        rows = np.unique(np.concatenate(proposed))
        columns = as_columns(block)
        parts = []
        for start in range(0, len(rows), READ_ROWS):
            some_rows = rows[start : start + READ_ROWS]
            parts.append(contributions(self._store, columns, method, some_rows, span))
        added = np.concatenate(parts, axis=1)
        scores = added.sum((2, 3)).astype(np.float32)
        errors = stderrs(added.sum(2), self._store.recipe, span)

        def hit(rank: int, query: int, position: int) -> Hit:
            row = int(rows[position])
            return Hit(
                rank=rank,
                id=self._store.sample_ids[row],
                row=row,
                score=float(scores[query, position]),
                stderr=None if errors is None else float(errors[query, position]),
                by_timestep=by_timestep(self._store, row, added[query, position], span)
                if with_timesteps
                else None,
            )

        lists = []
        for query, candidates in enumerate(proposed):
            # Only its own candidates: a query's answer does not depend on the others beside it.
            positions = np.searchsorted(rows, candidates)
            order = np.lexsort((candidates, -sign * scores[query, positions]))
            best = positions[order][:k]
            lists.append([hit(rank, query, int(p)) for rank, p in enumerate(best, 1)])
        return lists

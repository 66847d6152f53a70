"""From query blocks to hits: candidates from FAISS or a scan, then exact scores from the store."""

import warnings
from collections.abc import Sequence
from threading import RLock

import numpy as np

from gradindex.errors import MissingPackage, StoreError
from gradindex.search.ann_index import AnnIndex, require_faiss, saved_ann_index
from gradindex.search.ann_record import STORE
from gradindex.search.factors import WHITENED, goes_by_rows, usual_damping
from gradindex.search.results import Hit
from gradindex.search.row_whitening import RowWhitening
from gradindex.search.scoring import (
    Span,
    as_columns,
    by_timestep,
    contributions,
    scan,
    scan_both_ends,
    stderrs,
)
from gradindex.search.whitening import Whitening
from gradindex.store.store import Store

READ_ROWS = 256  # candidates whose rows are in memory at once


class Ranker:
    """What whitens query blocks [Q, C, T, D] and ranks the store's rows by them.

    It keeps the whitening factors and search files that it has opened, and writes nothing: where
    the store has no factors it makes them in memory, where it has no search files that fit, or
    FAISS cannot read them, it scans the store and warns. Threads may share one.

    Args:
        device: where whitening and FAISS compute. ray: see `AnnIndex`.
    """

    def __init__(self, store: Store, device: str, ray: str | None = None) -> None:
        self._store, self._device, self._ray = store, device, ray
        self._indexes: dict[str, AnnIndex | None] = {}  # None: the store is scanned
        self._whitenings: dict[str, Whitening] = {}
        self._row_whitenings: dict[str, RowWhitening | None] = {}  # None: by factors
        self._lock = RLock()

    @property
    def usual_damping(self) -> float:
        """The damping of the store's factors and search files."""
        return usual_damping(self._store)

    def whitened(self, method: str, block: np.ndarray, damping: float | None = None) -> np.ndarray:
        """(GᵀG/N + λI)⁻¹ q of query blocks [Q, C, T, D] float32."""
        by_rows = self._by_rows(method)
        damping = self.usual_damping if damping is None else damping
        return (by_rows or self._whitening(method)).whitened(block, damping)

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
        *,
        is_like_rows: bool,
    ) -> dict[int, list[np.ndarray]]:
        """Rows among which the best k of each query are (sign 1), and the worst (sign −1).

        Args:
            block: query blocks, whitened with this damping; None: plain ones.
            is_like_rows: see `Query`. Search files are asked only by such queries, and whitened
                only for the best: there is too little between the worst and all others.

        Returns:
            {sign: row numbers of each query, ascending}, from FAISS or a scan.
        """
        plain = damping is None
        is_usual = damping == self.usual_damping and not self._by_rows(method)
        has_index = plain or (is_usual and -1 not in signs)
        if span is None and is_like_rows and has_index:
            name = method if plain else method + WHITENED
            candidates = self._candidates(name, block, k, signs)
            if candidates is not None:
                return candidates
        return scan_both_ends(self._store, block, method, span, k)

    def _candidates(
        self, name: str, block: np.ndarray, k: int, signs: Sequence[int]
    ) -> dict[int, list[np.ndarray]] | None:
        """The candidates of the search index of that name; None where it has no files."""
        index = self._index(name)
        if index is None:
            return None
        try:
            return index.proposed(block, k, signs)
        except StoreError as error:  # a file is damaged, or another version of FAISS wrote it
            self._scan_from_now_on(name, str(error))
            return None

    def _index(self, name: str) -> AnnIndex | None:
        """The search index of that name; None where there is none of the store's rows."""
        with self._lock:
            if name not in self._indexes:
                self._indexes[name] = self._open_index(name)
            return self._indexes[name]

    def _open_index(self, name: str) -> AnnIndex | None:
        saved = saved_ann_index(self._store, name)
        whitening = self._whitening_of(name)
        if saved is None or not saved.fits():
            self._scan_from_now_on(name, f"{self._store.location}: no {name} index fits the rows")
            return None
        if saved.record.factory != STORE:
            try:
                require_faiss()
            except MissingPackage as error:
                self._scan_from_now_on(name, str(error))
                return None
        return AnnIndex(self._store, name, saved.record, self._ray, self._device, whitening)

    def _scan_from_now_on(self, name: str, reason: str) -> None:
        """Answer without a search index: exactly, but every row is read."""
        self._indexes[name] = None
        warnings.warn(
            f"{reason}; the store is scanned. `gradindex index {self._store.location}` makes search"
            " files anew",
            stacklevel=2,
        )

    def _whitening_of(self, name: str) -> Whitening | None:
        """What half-whitens the rows of a search index of that name."""
        if not name.endswith(WHITENED):
            return None
        return self._whitening(name.removesuffix(WHITENED))

    def _by_rows(self, method: str) -> RowWhitening | None:
        """What whitens queries of a method by its rows themselves; None where factors do."""
        with self._lock:
            if method not in self._row_whitenings:
                by_rows = goes_by_rows(self._store, method)
                self._row_whitenings[method] = (
                    RowWhitening(self._store, method, self._device) if by_rows else None
                )
            return self._row_whitenings[method]

    def _whitening(self, method: str) -> Whitening:
        with self._lock:
            if method not in self._whitenings:
                whitening = Whitening(self._store, method, self._device, save=False)
                self._whitenings[method] = whitening
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
        lists = []
        for candidates, added in zip(
            proposed, self._added(block, method, span, proposed), strict=True
        ):
            scores = added.sum((1, 2)).astype(np.float32)
            errors = stderrs(added.sum(1)[None], self._store.recipe, span)
            best = np.lexsort((candidates, -sign * scores))[:k]
            hits = []
            for rank, position in enumerate(best.tolist(), 1):
                row = int(candidates[position])
                of_timesteps = None
                if with_timesteps:
                    of_timesteps = by_timestep(self._store, row, added[position], span)
                hits.append(
                    Hit(
                        rank=rank,
                        id=self._store.sample_ids[row],
                        row=row,
                        score=float(scores[position]),
                        stderr=None if errors is None else float(errors[0, position]),
                        by_timestep=of_timesteps,
                    )
                )
            lists.append(hits)
        return lists

    def _added(
        self, block: np.ndarray, method: str, span: Span | None, proposed: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """What each row adds to the scores of a query's own candidates, [candidates, C, T] float64.

        Each row is read once, and multiplied with the queries alone that it is a candidate of.
        """
        rows = np.unique(np.concatenate(proposed))
        columns = as_columns(block)
        added = [np.empty((len(candidates), *block.shape[1:3])) for candidates in proposed]
        for start in range(0, len(rows), READ_ROWS):
            some_rows = rows[start : start + READ_ROWS]
            ends = [some_rows[0], some_rows[-1] + 1]
            places = [slice(*np.searchsorted(candidates, ends)) for candidates in proposed]
            asking = [q for q, place in enumerate(places) if place.start < place.stop]
            values = contributions(self._store, columns[..., asking], method, some_rows, span)
            for of_query, q in zip(values, asking, strict=True):
                positions = np.searchsorted(some_rows, proposed[q][places[q]])
                added[q][places[q]] = of_query[positions]
        return added

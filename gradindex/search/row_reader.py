"""Reading rows of both methods at once, and scoring them meanwhile."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gradindex.recipe import FOLDED
from gradindex.search.factors import WHITENED
from gradindex.search.scoring import Pieces, pieces_of_checkpoints, products
from gradindex.store.store import Store


class RowReader:
    """Reads rows of one or both methods, from the same bytes where it can."""

    def __init__(self, store: Store, methods: Sequence[str]) -> None:
        self._store, self.methods = store, methods

    def rows(self, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        """{method: its rows [B, C, T, D] float32}."""
        return self.scored_rows(rows, {})[0]

    def scored_rows(
        self, rows: slice | np.ndarray, columns: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The same, and the scores [Q, B] of the queries of each index.

        Args:
            columns: {name of an index: its queries [C, T, D, Q]}.
        """
        parts: dict[str, list[np.ndarray]] = {method: [] for method in self.methods}
        scores: dict[str, list[np.ndarray]] = {name: [] for name in columns}
        for method, pieces in self._pieces(rows):
            divided = [part / divisor[:, :, None].astype(np.float32) for part, divisor in pieces]
            parts[method].append(np.stack(divided, axis=1))
            for name, column in columns.items():
                if name.removesuffix(WHITENED) == method:
                    scores[name].append(products(pieces, column).sum((2, 3)))
        return (
            {method: np.concatenate(some) for method, some in parts.items()},
            {name: np.concatenate(some, axis=1) for name, some in scores.items()},
        )

    def _pieces(self, rows: slice | np.ndarray) -> Iterator[tuple[str, Pieces]]:
        """Rows and their divisors, a few MB at a time, and of which method they are."""
        if len(self.methods) == 1 or self._store.recipe.rows == FOLDED:
            for method in self.methods:
                for pieces in pieces_of_checkpoints(self._store, method, rows, np.float32):
                    yield method, pieces
            return
        for pieces in pieces_of_checkpoints(self._store, "retrac", rows, np.float32):
            yield "retrac", pieces
            yield "tracin", tuple((part, np.ones_like(divisor)) for part, divisor in pieces)

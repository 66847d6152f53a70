"""Reading the rows of a store, a few MB at a time."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradindex.store.array_names import WIDE, array_dtype
from gradindex.store.arrays import read_pieces
from gradindex.store.codes import decode
from gradindex.store.records import Header
from gradindex.store.shard_files import row_norms, unit_rows
from gradindex.store.shard_list import ShardList

BLOCK_BYTES = 8 << 20  # that are read for one piece of work, about


class StoredRows(ShardList):
    """The rows of a store with shape [C, N, T, D]; see `Store`."""

    header: Header

    def read(self, name: str, checkpoint: int, rows: slice | np.ndarray) -> np.ndarray:
        """Rows of one array at one checkpoint; `rows` is a slice or ascending row numbers.

        Raises:
            StoreError: a checksum does not match.
        """
        return np.concatenate(list(self.pieces(name, checkpoint, rows)))

    def pieces(
        self, name: str, checkpoint: int, rows: slice | np.ndarray, dtype: Any = None
    ) -> Iterator[np.ndarray]:
        """The same rows, a few MB at a time; compact ones are decoded."""
        numbers = np.arange(*rows.indices(self.shape[1])) if isinstance(rows, slice) else rows
        if name in WIDE and name not in self.arrays:
            yield from self._decoded(name, checkpoint, numbers, dtype or array_dtype(name))
            return
        picture = self.shape[2:] if name in WIDE else self.shape[2:3]
        layout = self.shard_rows, self.header.chunk_rows
        try:
            yield from read_pieces(
                self.location, name, checkpoint, numbers, picture, *layout, dtype
            )
        except (ValueError, OSError) as error:
            raise self.damage(f"{name} is damaged ({error})") from error

    def _decoded(
        self, name: str, checkpoint: int, rows: np.ndarray, dtype: Any
    ) -> Iterator[np.ndarray]:
        scale = self.read("scale", checkpoint, rows)
        done = 0
        for codes in self.pieces("codes", checkpoint, rows):
            decoded = decode(codes, scale[done : done + len(codes)])
            done += len(codes)
            if name == "normalized":
                decoded = unit_rows(decoded, row_norms(decoded))
            yield decoded.astype(dtype, copy=False)

    def blocks(self, first: int = 0, stop: int | None = None) -> Iterator[slice]:
        """Slices of rows that are read best together: whole shards, a few MB of them."""
        shard_bytes = self.shard_rows * math.prod(self.shape[2:]) * 4
        step = self.shard_rows * max(1, BLOCK_BYTES // shard_bytes)
        stop = self.shape[1] if stop is None else stop
        for start in range(first, stop, step):
            yield slice(start, min(start + step, stop))

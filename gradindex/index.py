"""Making and measuring search indexes: in files of a bounded size, and of such codes as find the true hits.

How many candidates it takes, for 10 hits to be the true 10, is measured when an index is made, with sums of two rows
as queries.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from gradindex.ahead import ahead
from gradindex.errors import CallError, first_line
from gradindex.manifest import seal
from gradindex.memory import free_memory
from gradindex.place import sha256
from gradindex.scoring import THREADS, Best, as_columns, products, row_pieces
from gradindex.search_index import (
    FLAT,
    STORE,
    K,
    SearchIndex,
    facts_of,
    file_of,
    made_from,
    require_faiss,
    saved_index,
)
from gradindex.store import Store

if TYPE_CHECKING:
    from gradindex.whiten import Whitening

LADDER = ("PCA64,SQfp16", "PCA256,SQfp16", "HR,RaBitQ4", STORE)  # `auto`, until the measured recall is high enough
FLAT_BYTES = 1 << 30  # of search vectors, up to which they are kept as they are
FILE_BYTES = 64 << 20  # of an index file, about
TRAINED_ON = 4096  # vectors, or 64 for each list of an inverted file
QUERIES = 64  # that recall is measured with
TIMED = 8  # of them, one by one
GOAL = 0.995
CANDIDATES = (20, 50, 100, 200, 500, 1000, 2000)


def build_index(store: Store, name: str, factory: str = "auto", whitening: "Whitening | None" = None) -> SearchIndex:
    """Make and measure a search index over all rows, and save it in the store's `faiss` folder.

    Args:
        name: "tracin", "retrac", or with "-whitened" that of the half-whitened rows.
        factory: "flat" (float32 vectors), "store" (none at all: a query scans the store), a string of FAISS's
            `index_factory`, or "auto": flat up to a gigabyte of vectors, then what first reaches a recall@10 of
            0.995 of LADDER: the rows' few strongest directions where these tell enough, RaBitQ codes where not.
        whitening: of the method, where one is open already.

    Raises:
        CallError: FAISS does not know the factory, or no picture is left. StoreError: rows are damaged.
    """
    if len(store.left_out) == store.shape[1]:
        raise CallError(f"{store.place}: every picture was skipped or removed; there is nothing to search")
    width, before = store.recipe.search_width, saved_index(store, name)
    whitening = SearchIndex(store, name, {}, whitening=whitening).whitening  # made, if need be, before facts name it
    flat = store.shape[1] * width * 4 <= min(FLAT_BYTES, free_memory() // 4)
    left = {file_of(name, number) for number in range(len(before.facts["files"]))} if before else set()
    for chosen in [factory] if factory != "auto" else [FLAT, *LADDER] if flat else LADDER:
        index = _Making(store, name, chosen, width, whitening).index()
        left |= {part["file"] for part in index.facts["files"]}
        if index.facts["recall_at_10"] >= GOAL:
            break
    index.facts["asked"] = factory
    store.place.publish(facts_of(name), seal(index.facts))
    for name in left - {part["file"] for part in index.facts["files"]}:
        store.place.discard(name)
    return index


class _Making:
    """An index that is being made: its files one after the other, and the true answers meanwhile."""

    def __init__(self, store: Store, name: str, factory: str, width: int, whitening: "Whitening | None") -> None:
        self._store, self._name, self._factory, self._width = store, name, factory, width
        self._made = SearchIndex(store, name, {}, whitening=whitening)
        self._made.facts = {"factory": factory, "width": width, **made_from(store, name), "files": []}
        kept = np.setdiff1d(np.arange(store.shape[1]), store.left_out)
        one = kept[np.linspace(0, len(kept) - 1, QUERIES).astype(int)]
        self._parents = np.stack([one, np.roll(one, QUERIES // 2)])  # whose sums are the queries; they do not count
        rows = self._rows(every := np.unique(one), None)[0]
        queries = sum(rows[np.searchsorted(every, half)] for half in self._parents)
        queries = whitening.whitened(queries) if whitening else queries
        self._queries, self._columns = self._made.query_vectors(queries), as_columns(queries, np.float32)
        self._truth = Best(QUERIES, K)

    def index(self) -> SearchIndex:
        """Make all files, measure them."""
        index = self._made
        if self._factory == STORE:
            index.facts |= {"candidates": 0, "recall_at_10": 1.0}
            return index
        shard, size = self._store.shard_rows, self._code_size()
        step = max(1, FILE_BYTES // size // shard) * shard
        starts = range(0, self._store.shape[1], step)
        for number, start in enumerate(tqdm(starts, f"{self._name} index", unit="file", delay=2, disable=None)):
            index.facts["files"].append(self._file(number, start, min(start + step, self._store.shape[1])))
        self._measure(index)
        return index

    def _file(self, number: int, start: int, stop: int) -> dict[str, Any]:
        """Make the index file of the pictures from `start` to before `stop`."""
        index = self._new()
        some = np.unique(np.linspace(start, stop - 1, max(TRAINED_ON, 64 * _lists(index))).astype(int))
        sample = self._made.row_vectors(self._rows(some, None)[0])
        if self._factory.startswith("PCA"):
            directions = require_faiss().downcast_VectorTransform(index.chain.at(0))
            few = len(sample) < directions.d_out  # then FAISS finds too few, or any, unless there are W vectors
            sample = np.concatenate([sample, -sample])  # mirrored: no mean is taken off, which changes products
            if few:
                sample = np.pad(sample, ((0, max(0, self._width - len(sample))), (0, 0)))
            index.train(sample)
            directions.PCAMat.resize(0)  # all of them, W² numbers, of which a search needs none
        else:
            index.train(sample)
        blocks = list(self._store.blocks(start, stop))
        read = ahead(lambda block: self._rows(block, self._columns), blocks, THREADS)
        for block, (rows, scores) in zip(blocks, read, strict=True):
            index.add(self._made.row_vectors(rows))
            numbers = np.arange(block.start, block.stop)
            out = np.isin(numbers, self._store.left_out) | (numbers == self._parents[:, :, None]).any(0)
            self._truth.add(numbers, np.where(out, -np.inf, scores))
        content = require_faiss().serialize_index(index).tobytes()
        file = file_of(self._name, number)
        self._store.place.publish(file, content)
        return {"file": file, "rows": [start, stop], "bytes": len(content), "sha256": sha256(content)}

    def _rows(self, rows: slice | np.ndarray, columns: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """A method's rows [B, C, T, D] float32, and their scores [Q, B] with the columns."""
        parts, scores = [], []
        unit = self._made.method == "retrac"
        for pieces in zip(
            *(row_pieces(self._store, c, rows, unit, np.float32) for c in range(self._store.shape[0])), strict=True
        ):
            if columns is not None:
                scores.append(products(pieces, columns).sum((2, 3)))
            units = [rows / divisor[:, :, None] for rows, divisor in pieces]
            parts.append(np.stack(units, axis=1).astype(np.float32))
        return np.concatenate(parts), np.concatenate(scores, axis=1) if scores else np.empty(0)

    def _measure(self, index: SearchIndex) -> None:
        """How many candidates it takes, how often the true ten are among them, and how long a query searches."""
        lists = _lists(self._new())
        for nprobe in sorted({*(4**power for power in range(20) if 4**power < lists), lists}):
            if lists:
                index.facts["nprobe"] = nprobe
            recalls = self._recalls(index.ranked(self._queries, CANDIDATES[-1] + 2))
            if recalls[-1] >= GOAL:
                break
        enough = next((i for i, recall in enumerate(recalls) if recall >= GOAL), -1)
        index.facts |= {"candidates": CANDIDATES[enough], "recall_at_10": round(recalls[enough], 4)}
        began = time.perf_counter()
        for query in self._queries[:TIMED]:
            index.candidates(query[None], K)
        index.facts["query_seconds"] = round((time.perf_counter() - began) / len(self._queries[:TIMED]), 6)

    def _recalls(self, ranked: Sequence[np.ndarray]) -> list[float]:
        """Which share of the true ten is among so many candidates."""
        shares: list[list[float]] = [[] for _ in CANDIDATES]
        lists = zip(self._parents.T, self._truth.rows, self._truth.scores, ranked, strict=True)
        for parents, rows, scores, mine in lists:
            true, others = rows[scores > -np.inf], mine[~np.isin(mine, parents)]
            for share, count in zip(shares, CANDIDATES, strict=True):
                share.append(len(np.intersect1d(true, others[:count])) / max(1, len(true)) if len(true) else 1.0)
        return [float(np.mean(share)) for share in shares]

    def _new(self) -> Any:
        faiss = require_faiss()
        name = "Flat" if self._factory == FLAT else self._factory
        try:
            return faiss.index_factory(self._width, name, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            what = first_line(error).rpartition(": ")[2]
            raise CallError(f"factory {self._factory}: give auto, flat, store, or what FAISS knows ({what})") from error

    def _code_size(self) -> int:
        """Bytes of a vector."""
        try:
            return int(self._new().sa_code_size())
        except RuntimeError:  # of an index that is no codec, such as a graph
            return 4 * self._width


def _lists(index: Any) -> int:
    """How many lists an inverted file has; 0 for an index of another kind."""
    found = require_faiss().try_extract_index_ivf(index)
    return found.nlist if found is not None else 0


def open_index(
    store: Store, name: str, ray: str | None = None, device: str = "cpu", whitening: "Whitening | None" = None
) -> SearchIndex:
    """The saved index of a name; made anew, as it was asked for, when it is absent or of other rows.

    Args:
        ray: the Ray cluster that searches it: "local", or an address.
        device: where FAISS searches, on its GPU if that is "cuda" and the FAISS that is installed has one.
        whitening: of the method, where one is open already.
    """
    index = saved_index(store, name)
    if index is None or not index.fits():
        index = build_index(store, name, index.facts["asked"] if index else "auto", whitening)
    return SearchIndex(store, name, index.facts, ray, device, whitening)

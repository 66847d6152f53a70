"""Making and measuring search indexes, in files of a bounded size, of codes that find the hits.

How many candidates it takes, for 10 hits to be the true 10, is measured when an index is made, with
sums of two rows as queries.
"""

import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gradindex.errors import CallError, first_line
from gradindex.search.ann_index import AnnIndex, K, open_whitening, require_faiss, saved_ann_index
from gradindex.search.ann_record import (
    FLAT,
    STORE,
    AnnFile,
    AnnRecord,
    index_file,
    index_origin,
    index_record_file,
)
from gradindex.search.factors import is_few
from gradindex.search.scoring import (
    METHODS,
    THREADS,
    Best,
    as_columns,
    pieces_of_checkpoints,
    products,
)
from gradindex.store.digests import sha256
from gradindex.store.manifest import seal
from gradindex.store.memory import free_memory
from gradindex.store.prefetch import prefetch
from gradindex.store.progress import progress as show_progress
from gradindex.store.store import Store

if TYPE_CHECKING:
    from gradindex.search.whitening import Whitening

# What `auto` tries, one after the other, until the measured recall is high enough
LADDER = ("PCA64,SQfp16", "PCA256,SQfp16", "HR,RaBitQ4", STORE)
WIDEST_VECTOR = 1 << 20  # numbers; FAISS refuses to read files of wider ones
FLAT_BYTES = 1 << 30  # of search vectors, up to which they are kept as they are
FILE_BYTES = 64 << 20  # of an index file, about
TRAINED_ON = 4096  # vectors, or 64 for each list of an inverted file
QUERIES = 64  # that recall is measured with
TIMED = 8  # of them, one by one
GOAL = 0.995  # recall@10
CANDIDATES = (20, 50, 100, 200, 500, 1000, 2000)


def build_ann_index(
    store: Store, name: str, factory: str = "auto", whitening: "Whitening | None" = None
) -> AnnIndex:
    """Make and measure a search index over all rows, and save it in the store's `faiss` folder.

    Args:
        name: "tracin", "retrac", or with "-whitened" that of the half-whitened rows.
        factory: "flat" (float32 vectors), "store" (none at all: a query scans the store), a string
            of FAISS's `index_factory`, or "auto": none for the plain rows of few pictures, flat up
            to a gigabyte of vectors, then what first reaches a recall@10 of 0.995 of LADDER: the
            rows' few strongest directions where these tell enough, RaBitQ codes where not.
        whitening: of the method, where one is open already.

    Raises:
        CallError: FAISS does not know the factory, or no picture is left.
        StoreError: rows are damaged.
    """
    if len(store.excluded) == store.shape[1]:
        raise CallError(
            f"{store.location}: every picture was skipped or removed; there is nothing to search"
        )
    if factory not in ("auto", STORE) and store.recipe.search_width > WIDEST_VECTOR:
        raise CallError(
            f"factory {factory}: FAISS reads vectors of {WIDEST_VECTOR:,} numbers at the most,"
            f" these have {store.recipe.search_width:,}; give auto or store"
        )
    before = saved_ann_index(store, name)
    # Named here, not read from the record, which may be another index's in the wrong place.
    count = len(before.record.files) if before else 0
    obsolete = {index_file(name, number) for number in range(count)}
    for candidate in _factories(store, name, factory):
        index = _build_or_scan(store, name, candidate, whitening)
        whitening = index.whitening
        obsolete |= {part.file for part in index.record.files}
        if index.record.recall_at_10 >= GOAL:
            break
    index.record = msgspec.structs.replace(index.record, asked=factory)
    store.location.publish(index_record_file(name), seal(index.record))
    for file in obsolete - {part.file for part in index.record.files}:
        store.location.discard(file)
    return index


def _build_or_scan(
    store: Store, name: str, factory: str, whitening: "Whitening | None"
) -> AnnIndex:
    """The index of a factory; one that scans the store where FAISS cannot make that of these rows.

    Codes may need more pictures to train than there are; FAISS then raises what it likes.
    """
    try:
        return AnnBuilder(store, name, factory, whitening).build()
    except (RuntimeError, AssertionError, MemoryError) as error:
        warnings.warn(
            f"{store.location}: FAISS cannot make {factory} of these rows ({first_line(error)});"
            " queries scan the store",
            stacklevel=3,
        )
        return AnnBuilder(store, name, STORE, whitening).build()


def _factories(store: Store, name: str, factory: str) -> Sequence[str]:
    """What is tried for a factory that was asked for, in this order."""
    if factory != "auto":
        return [factory]
    if store.recipe.search_width > WIDEST_VECTOR or (is_few(store) and name in METHODS):
        return [STORE]
    flat_bytes = store.shape[1] * store.recipe.search_width * 4
    if flat_bytes <= min(FLAT_BYTES, free_memory() // 4):
        return [FLAT, *LADDER]
    return LADDER


class AnnBuilder:
    """An index that is being made: its files one after the other, and the true answers meanwhile.

    The queries that measure it are sums of two rows. Their parents, the two rows, are the nearest
    by construction and do not count.
    """

    def __init__(
        self, store: Store, name: str, factory: str, whitening: "Whitening | None"
    ) -> None:
        self._store, self._name, self._factory = store, name, factory
        self._width = store.recipe.search_width
        self._index = self._empty_index(whitening)
        if factory == STORE and name in METHODS:
            return
        kept = store.kept
        parents = kept[np.linspace(0, len(kept) - 1, QUERIES).astype(int)]
        self._parents = np.stack([parents, np.roll(parents, QUERIES // 2)])
        numbers = np.unique(parents)
        rows = self._rows(numbers)
        queries = sum(rows[np.searchsorted(numbers, half)] for half in self._parents)
        if self._index.whitening:
            queries = self._index.whitening.whitened(queries)
        self._queries = self._index.query_vectors(queries)
        self._columns = as_columns(queries, np.float32)
        self._truth = Best(QUERIES, K)

    def _empty_index(self, whitening: "Whitening | None") -> AnnIndex:
        """The index without files, and what half-whitens its rows."""
        if whitening is None:
            whitening = open_whitening(self._store, self._name)
        # The record names the factors, which were made just now where there were none
        origin = index_origin(self._store, self._name)
        record = AnnRecord(
            factory=self._factory,
            width=self._width,
            **origin._asdict(),
            files=[],
            candidates=0,
            recall_at_10=0.0,
        )
        return AnnIndex(self._store, self._name, record, whitening=whitening)

    def build(self) -> AnnIndex:
        """Make all files, measure them."""
        index = self._index
        if self._factory == STORE:
            index.record = msgspec.structs.replace(index.record, recall_at_10=1.0)
            return index
        pictures, shard_rows = self._store.shape[1], self._store.shard_rows
        step = max(1, FILE_BYTES // self._code_bytes() // shard_rows) * shard_rows
        starts = range(0, pictures, step)
        bar = show_progress(starts, f"{self._name} index", unit="file")
        files = []
        for number, start in enumerate(bar):
            files.append(self._make_file(number, start, min(start + step, pictures)))
        index.record = msgspec.structs.replace(index.record, files=files)
        self._measure(index)
        return index

    def _make_file(self, number: int, start: int, stop: int) -> AnnFile:
        """Make the index file of the pictures from `start` to before `stop`."""
        faiss_index = self._new()
        self._train(faiss_index, start, stop)
        blocks = list(self._store.blocks(start, stop))
        for block, (rows, scores) in zip(
            blocks, prefetch(self._scored_rows, blocks, THREADS), strict=True
        ):
            faiss_index.add(self._index.row_vectors(rows))
            numbers = np.arange(block.start, block.stop)
            is_parent = (numbers == self._parents[:, :, None]).any(0)
            uncounted = np.isin(numbers, self._store.excluded) | is_parent
            self._truth.add(numbers, np.where(uncounted, -np.inf, scores))
        content = require_faiss().serialize_index(faiss_index).tobytes()
        file = index_file(self._name, number)
        self._store.location.publish(file, content)
        return AnnFile(file=file, rows=(start, stop), bytes=len(content), sha256=sha256(content))

    def _train(self, faiss_index: Any, start: int, stop: int) -> None:
        """Train FAISS's codes on some of the pictures from `start` to before `stop`."""
        count = max(TRAINED_ON, 64 * _lists(faiss_index))
        numbers = np.unique(np.linspace(start, stop - 1, count).astype(int))
        sample = self._index.row_vectors(self._rows(numbers))
        if not self._factory.startswith("PCA"):
            faiss_index.train(sample)
            return
        directions = require_faiss().downcast_VectorTransform(faiss_index.chain.at(0))
        too_few = len(sample) < directions.d_out
        # Mirrored, so that no mean is taken off, which would change inner products.
        sample = np.concatenate([sample, -sample])
        if too_few:  # FAISS then finds too few directions, or any, unless there are W vectors
            missing = max(0, self._width - len(sample))
            sample = np.pad(sample, ((0, missing), (0, 0)))
        faiss_index.train(sample)
        directions.PCAMat.resize(0)  # all W² numbers of them, of which a search needs none

    def _rows(self, rows: slice | np.ndarray) -> np.ndarray:
        """A method's rows [B, C, T, D] float32."""
        return self._read(rows, None)[0]

    def _scored_rows(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """A method's rows [B, C, T, D] float32, and their scores [Q, B] for the queries."""
        return self._read(rows, self._columns)

    def _read(
        self, rows: slice | np.ndarray, columns: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        parts, scores = [], []
        method = self._index.method
        for pieces in pieces_of_checkpoints(self._store, method, rows, np.float32):
            if columns is not None:
                scores.append(products(pieces, columns).sum((2, 3)))
            divided = [part / divisor[:, :, None] for part, divisor in pieces]
            parts.append(np.stack(divided, axis=1).astype(np.float32))
        return np.concatenate(parts), np.concatenate(scores, axis=1) if scores else np.empty(0)

    def _measure(self, index: AnnIndex) -> None:
        """Measure how many candidates it takes, the recall with them, and a query's seconds."""
        lists = _lists(self._new())
        for nprobe in _probes(lists):
            if lists:
                index.record = msgspec.structs.replace(index.record, nprobe=nprobe)
            recalls = self._recalls(index.ranked(self._queries, CANDIDATES[-1] + 2))
            if recalls[-1] >= GOAL:
                break
        enough = next((i for i, recall in enumerate(recalls) if recall >= GOAL), -1)
        index.record = msgspec.structs.replace(
            index.record, candidates=CANDIDATES[enough], recall_at_10=round(recalls[enough], 4)
        )
        began = time.perf_counter()
        for query in self._queries[:TIMED]:
            index.candidates(query[None], K)
        seconds = (time.perf_counter() - began) / len(self._queries[:TIMED])
        index.record = msgspec.structs.replace(index.record, query_seconds=round(seconds, 6))

    def _recalls(self, ranked: Sequence[np.ndarray]) -> list[float]:
        """Which share of the true ten is among so many candidates, for each of CANDIDATES."""
        shares: list[list[float]] = [[] for _ in CANDIDATES]
        truths = zip(self._truth.rows, self._truth.scores, strict=True)
        for parents, (rows, scores), answer in zip(self._parents.T, truths, ranked, strict=True):
            true_rows = rows[scores > -np.inf]
            others = answer[~np.isin(answer, parents)]
            for share, count in zip(shares, CANDIDATES, strict=True):
                hits = len(np.intersect1d(true_rows, others[:count]))
                share.append(hits / len(true_rows) if len(true_rows) else 1.0)
        return [float(np.mean(share)) for share in shares]

    def _new(self) -> Any:
        """An empty FAISS index of the factory."""
        faiss = require_faiss()
        name = "Flat" if self._factory == FLAT else self._factory
        try:
            return faiss.index_factory(self._width, name, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            what = first_line(error).rpartition(": ")[2]
            message = f"give auto, flat, store, or what FAISS knows ({what})"
            raise CallError(f"factory {self._factory}: {message}") from error

    def _code_bytes(self) -> int:
        """Bytes of a vector."""
        try:
            return int(self._new().sa_code_size())
        except RuntimeError:  # of an index that is no codec, such as a graph
            return 4 * self._width


def _probes(lists: int) -> list[int]:
    """How many lists of an inverted file to try: powers of four, then all; [0] without lists."""
    powers = {4**power for power in range(20) if 4**power < lists}
    return sorted({*powers, lists})


def _lists(index: Any) -> int:
    """How many lists an inverted file has; 0 for an index of another kind."""
    inverted = require_faiss().try_extract_index_ivf(index)
    return inverted.nlist if inverted is not None else 0


def open_ann_index(
    store: Store,
    name: str,
    ray: str | None = None,
    device: str = "cpu",
    whitening: "Whitening | None" = None,
) -> AnnIndex:
    """The saved index of a name; made anew, as it was asked for, when it is absent or does not fit.

    Args:
        ray, device, whitening: see `AnnIndex`.
    """
    index = saved_ann_index(store, name)
    if index is None or not index.fits():
        asked = (index and index.record.asked) or "auto"
        index = build_ann_index(store, name, asked, whitening)
    return AnnIndex(store, name, index.record, ray, device, whitening)

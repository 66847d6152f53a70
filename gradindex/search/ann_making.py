"""One search index that is being made, and measured.

How many candidates it takes, for 10 hits to be the true 10, is measured with sums of two rows as
queries.
"""

import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gradindex.errors import first_line
from gradindex.search.ann_files import (
    FileWriter,
    codes_of,
    lists_of,
    narrowed,
    new_faiss_index,
    train,
    training_rows,
)
from gradindex.search.ann_index import AnnIndex, K, require_faiss, saved_ann_index
from gradindex.search.ann_record import (
    FLAT,
    STORE,
    AnnFile,
    AnnRecord,
    index_file,
    index_origin,
    index_record_file,
)
from gradindex.search.scoring import Best, as_columns
from gradindex.store.manifest import seal
from gradindex.store.store import Store

if TYPE_CHECKING:
    from gradindex.search.whitening import Whitening

NARROWER = {"PCA256,SQfp16": "PCA64,SQfp16"}  # taken in its place where it serves as well
FILE_BYTES = 64 << 20  # of an index file, about
QUERIES = 64  # that recall is measured with
TIMED = 8  # of them, one by one
GOAL = 0.995  # recall@10
CANDIDATES = (20, 50, 100, 200, 500, 1000, 2000)


class AnnBuilder:
    """An index that is being made: what is tried, its files, and the true answers meanwhile.

    The queries that measure it are sums of two rows. Their parents, the two rows, are the nearest
    by construction and do not count.

    Args:
        asked: the factory that was asked for. factories: what is tried for it, in this order.

    Attributes:
        index: with the files of the factory that is tried.
        is_new: whether the true answers are not known yet.
        training_rows: those whose vectors train its files.
        columns: its queries as `products` takes them.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        asked: str,
        factories: Sequence[str],
        whitening: "Whitening | None",
    ) -> None:
        self._store, self.name = store, name
        self._asked, self._factories = asked, list(factories)
        origin = index_origin(store, name)
        record = AnnRecord(
            factory="",
            width=store.recipe.search_width,
            **origin._asdict(),
            files=[],
            candidates=0,
            recall_at_10=0.0,
        )
        self.index = AnnIndex(store, name, record, whitening=whitening)
        before = saved_ann_index(store, name)
        # Named here, not read from the record, which may be another index's in the wrong place.
        count = len(before.record.files) if before else 0
        self._obsolete = {index_file(name, number) for number in range(count)}
        pairs = store.kept[np.linspace(0, len(store.kept) - 1, QUERIES).astype(int)]
        self._parents = np.stack([pairs, np.roll(pairs, QUERIES // 2)])
        self.parents = np.unique(pairs)
        self.is_new = True
        self.training_rows = np.empty(0, int)
        self._truth = Best(QUERIES, K)

    def begin(self) -> bool:
        """Begin with the next factory; return whether it takes a pass over the store."""
        factory = self._factories.pop(0)
        self._restart(factory)
        if factory == STORE:
            if self.index.whitening:
                self.index.whitening.mend()
            return False
        self._faiss_index = new_faiss_index(factory, self.index.record.width)
        self.training_rows = training_rows(self._store.kept, self._faiss_index)
        if factory == FLAT:
            self.training_rows = np.empty(0, int)
            self._open_writer()
        return True

    def _restart(self, factory: str) -> None:
        """Have no files, of another factory."""
        record = self.index.record
        self._obsolete |= {part.file for part in record.files}
        fields = {"factory": factory, "files": [], "candidates": 0, "recall_at_10": 0.0}
        record = msgspec.structs.replace(record, nprobe=None, query_seconds=None, **fields)
        self.index = AnnIndex(self._store, self.name, record, whitening=self.index.whitening)

    def take_queries(self, rows: np.ndarray) -> None:
        """Make the queries from the parents' rows [·, C, T, D]."""
        queries = sum(rows[np.searchsorted(self.parents, half)] for half in self._parents)
        if self.index.whitening:
            queries = self.index.whitening.whitened(queries)
        self._queries = self.index.query_vectors(queries)
        self.columns = as_columns(queries, np.float32)

    def train(self, sample: np.ndarray) -> None:
        """Train the files on a sample of vectors [n, W]; scan the store where FAISS cannot.

        Codes may need more pictures to train than there are; FAISS then raises what it likes.
        """
        factory = self.index.record.factory
        try:
            train(self._faiss_index, factory, sample)
        except (RuntimeError, AssertionError, MemoryError) as error:
            warnings.warn(
                f"{self._store.location}: FAISS cannot make {factory} of these rows"
                f" ({first_line(error)}); queries scan the store",
                stacklevel=4,
            )
            self._restart(STORE)
            return
        self._open_writer()

    def _open_writer(self) -> None:
        self._writer = FileWriter(self._store, self.name, self._faiss_index, FILE_BYTES)

    def take_scores(self, numbers: np.ndarray, scores: np.ndarray) -> None:
        """Take the exact scores [Q, B] of the next rows, whose numbers are given."""
        is_parent = (numbers == self._parents[:, :, None]).any(0)
        uncounted = np.isin(numbers, self._store.excluded) | is_parent
        self._truth.add(numbers, np.where(uncounted, -np.inf, scores))

    def add(self, rows: np.ndarray) -> None:
        """Add the next rows [B, C, T, D] to the files."""
        self._writer.add(self.index.row_vectors(rows))

    def finish(self) -> bool:
        """Measure the files; publish them where they serve, or nothing else is left to try.

        Flat vectors that do not serve are what others are made of.

        Returns:
            Whether that is done; else `begin` goes on.
        """
        self.is_new = False
        vectors = None
        while not self._serves():
            if self.index.record.factory == FLAT:
                vectors = self._flat_vectors()
            if vectors is None:
                return False
            self.begin()
            self._make_of(vectors)
        self._narrow()
        self.index.record = msgspec.structs.replace(self.index.record, asked=self._asked)
        self._store.location.publish(index_record_file(self.name), seal(self.index.record))
        for file in self._obsolete - {part.file for part in self.index.record.files}:
            self._store.location.discard(file)
        return True

    def _serves(self) -> bool:
        """Close the files and measure them; return whether no other factory is to be tried."""
        if self.index.record.factory == STORE:
            self.index.record = msgspec.structs.replace(self.index.record, recall_at_10=1.0)
            return True
        files = self._writer.close()
        self.index.record = msgspec.structs.replace(self.index.record, files=files)
        self._measure(self.index)
        return self.index.record.recall_at_10 >= GOAL or not self._factories

    def _flat_vectors(self) -> np.ndarray:
        """The vectors in the files of a flat index, which fit into memory, [N, W] float32."""
        parts = []
        for number in range(len(self.index.record.files)):
            flat = self.index.load(number)
            numbers = require_faiss().rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)
            parts.append(numbers.reshape(-1, flat.d).copy())
        return np.concatenate(parts)

    def _make_of(self, vectors: np.ndarray) -> None:
        """Make the files of all vectors [N, W]."""
        if self.index.record.factory != STORE:
            self.train(vectors[self.training_rows])
        if self.index.record.factory != STORE:
            self._writer.add(vectors)

    def _narrow(self) -> None:
        """Keep fewer directions where these serve as well."""
        narrower = NARROWER.get(self.index.record.factory)
        if self._asked != "auto" or narrower is None:
            return
        narrow = NarrowedIndex(self._store, self.name, self.index.record, narrower)
        if self._recalls(narrow.ranked(self._queries, CANDIDATES[-1] + 2))[-1] < GOAL:
            return
        template = narrowed(self._faiss_index, narrower)
        writer = FileWriter(self._store, self.name, template, FILE_BYTES)
        # A file is written once those that it is made of, and lie in its place, are read.
        for number in range(len(self.index.record.files)):
            writer.add_coded(codes_of(narrow.load(number)))
        self._restart(narrower)
        self.index.record = msgspec.structs.replace(self.index.record, files=writer.close())
        self._measure(self.index)

    def _measure(self, index: AnnIndex) -> None:
        """Measure how many candidates it takes, the recall with them, and a query's seconds."""
        lists = lists_of(self._faiss_index)
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


class NarrowedIndex(AnnIndex):
    """A search index as it would be with fewer directions.

    Args:
        factory: the narrower one.
    """

    def __init__(self, store: Store, name: str, record: AnnRecord, factory: str) -> None:
        super().__init__(store, name, record)
        self._factory = factory

    def _fetch(self, part: AnnFile) -> Any:
        return narrowed(super()._fetch(part), self._factory)


def _probes(lists: int) -> list[int]:
    """How many lists of an inverted file to try: powers of four, then all; [0] without lists."""
    powers = {4**power for power in range(20) if 4**power < lists}
    return sorted({*powers, lists})

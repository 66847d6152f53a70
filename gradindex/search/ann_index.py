"""A method's FAISS index over the store's rows.

It proposes candidates, whose exact scores the store then has. The search vector of a picture is
`gradients.fold.search_vectors` of its rows, or of its half-whitened rows.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import cache, cached_property, partial
from importlib.metadata import distributions
from threading import Lock, RLock
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from gradindex.errors import MissingPackage, StoreError, first_line
from gradindex.gradients.fold import search_vectors
from gradindex.search.ann_record import (
    FLAT,
    STORE,
    AnnFile,
    AnnOrigin,
    AnnRecord,
    covers_rows,
    index_origin,
    index_record_file,
    names_own_files,
)
from gradindex.search.ann_search import NOT_FINITE, best_rows
from gradindex.search.factors import WHITENED, is_few, is_wide
from gradindex.search.gpu import copied_to_gpu, faiss_resources, free_memory_on, is_on_gpu
from gradindex.search.scoring import METHODS, Best
from gradindex.search.workers import SearchWorkers
from gradindex.store.manifest import differences, read_record
from gradindex.store.prefetch import prefetch
from gradindex.store.store import Store

if TYPE_CHECKING:
    from gradindex.search.whitening import Whitening

INDEX_NAMES = (*METHODS, *(method + WHITENED for method in METHODS))
K = 10  # hits that the measured number of candidates is for
CPUS = os.cpu_count() or 1

_reading = Lock()  # FAISS has one limit of sizes for all that it reads


def default_index_names(store: Store, whiten: bool | None = None) -> list[str]:
    """The names of the search indexes that a build makes.

    Args:
        whiten: only those of half-whitened rows (True), or only the others (False).
    """
    if whiten is None and (is_wide(store) or is_few(store)):
        whiten = False
    return [name for name in INDEX_NAMES if whiten in (None, name.endswith(WHITENED))]


def saved_ann_index(store: Store, name: str) -> "AnnIndex | None":
    """The saved index of a name, of whichever rows; None where there is none."""
    (content,) = store.location.read_many([index_record_file(name)])
    with suppress(ValueError):
        return AnnIndex(store, name, read_record(content, AnnRecord))
    return None


def open_whitening(store: Store, name: str, device: str = "cpu") -> "Whitening | None":
    """What half-whitens the rows of a search index of that name; None where they are plain."""
    # torch takes seconds to import, and a Ray worker that only searches does without
    from gradindex.search.whitening import whitening_of_index

    return whitening_of_index(store, name, device)


def _open_again(path: str, name: str, record: AnnRecord, excluded: list[int]) -> "AnnIndex":
    """The same index in another process, with the same pictures, whatever was removed since."""
    store = Store(path)
    store.excluded = excluded
    return AnnIndex(store, name, record)


class AnnIndex:
    """The search index of a method's rows, or of its half-whitened rows.

    Args:
        name: "tracin", "retrac", or with "-whitened" that of the half-whitened rows.
        ray: the Ray cluster that searches it: "local", or an address; None: this process.
        device: where FAISS searches: on its GPU if that is "cuda", the FAISS there has one and the
            vectors fit into half of what is free on it.
        whitening: of the method, where one is open already.

    Attributes:
        method: whose rows it is of.
        record: what it was made from, its files, and what was measured.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        record: AnnRecord,
        ray: str | None = None,
        device: str = "cpu",
        whitening: "Whitening | None" = None,
    ) -> None:
        self.record = record
        self.method = name.removesuffix(WHITENED)
        self._store, self._name, self._ray, self._device = store, name, ray, device
        if whitening:
            self.whitening = whitening
        self._open: dict[str, Any] = {}
        self._workers: SearchWorkers | None = None
        self._lock = RLock()  # for threads that share an index; FAISS on a GPU takes one at a time

    @cached_property
    def whitening(self) -> "Whitening | None":
        """What half-whitens rows and queries."""
        return open_whitening(self._store, self._name, self._device)

    def row_vectors(self, rows: np.ndarray) -> np.ndarray:
        """The search vectors [B, W] of rows [B, C, T, D]."""
        if self.whitening:
            rows = self.whitening.half_rows(rows)
        return search_vectors(rows, self._store.recipe)

    def query_vectors(self, block: np.ndarray) -> np.ndarray:
        """The search vectors [Q, W] of query blocks [Q, C, T, D], whitened where the rows are."""
        if self.whitening:
            block = self.whitening.half_queries(block)
        return search_vectors(block, self._store.recipe)

    def fits(self) -> bool:
        """Whether it is of that name, made from the store's rows."""
        record = self.record
        if not (names_own_files(record, self._name) and covers_rows(record, self._store)):
            return False
        origin = AnnOrigin(record.recipe, record.state, record.fold, record.whitened)
        return origin == index_origin(self._store, self._name)

    def damages(self) -> list[str]:
        """Which of its files are not as they were made, one line each."""
        if not names_own_files(self.record, self._name):
            return [f"{index_record_file(self._name)} names other files"]
        digests = {part.file: part.sha256 for part in self.record.files}
        return differences(self._store.location, digests)

    def proposed(
        self, block: np.ndarray, k: int, signs: Sequence[int]
    ) -> dict[int, list[np.ndarray]] | None:
        """The `candidates` of query blocks [Q, C, T, D] for the highest scores and the lowest.

        Args:
            signs: 1 for the highest, −1 for the lowest, or both.

        Returns:
            {sign: candidates}; None where there are no files and a scan must do.
        """
        if self.record.factory == STORE:
            return None
        vectors = self.query_vectors(block)
        return {sign: self.candidates(sign * vectors, k) for sign in signs}

    def candidates(self, queries: np.ndarray, k: int) -> list[np.ndarray]:
        """Rows among which the best k of each query [Q, W] are, ascending.

        Raises:
            StoreError: a file is not as it was made.
        """
        count = self.record.candidates * -(-k // K)
        return [np.sort(rows) for rows in self.ranked(queries, count)]

    def ranked(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """The `count` rows that FAISS ranks best for each query, best first; none excluded."""
        best = Best(len(queries), count)
        for rows, scores in self._search_files(queries, count):
            best.add(rows, scores)
        pairs = zip(best.rows, best.scores, strict=True)
        return [rows[scores > -np.inf] for rows, scores in pairs]

    def _search_files(
        self, queries: np.ndarray, count: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What each file has, file by file: rows and their scores by FAISS, [Q, up to count]."""
        numbers = range(len(self.record.files))
        if self._ray is None:
            threads = 1 if self._gpu else CPUS
            search = partial(self.search_file, queries=queries, count=count)
            yield from prefetch(search, numbers, threads, 4 * threads)
            return
        with self._lock:
            if self._workers is None:
                self._workers = self._start_workers(len(numbers))
        answers = dict(self._workers.search(queries, count))
        yield from (answers[number] for number in numbers)

    def _start_workers(self, files: int) -> SearchWorkers:
        assert self._ray is not None
        store = self._store
        path = str(store.location)
        opened = partial(_open_again, path, self._name, self.record, store.excluded)
        return SearchWorkers(self._ray, opened, files)

    def search_file(
        self, number: int, queries: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best rows of one file for queries [Q, W], none excluded.

        Returns:
            Rows and their scores by FAISS, [Q, count or more, as far as there are]; −∞ where a
            query has no more rows.
        """
        part = self.record.files[number]
        first, stop = part.rows
        removed = self._excluded[slice(*np.searchsorted(self._excluded, part.rows))] - first
        count = min(count, stop - first - len(removed))
        if not count:
            return np.empty((len(queries), 0), int), np.empty((len(queries), 0))
        index = self.load(number)
        faiss = require_faiss()
        threads = max(1, CPUS // len(self.record.files))
        faiss.omp_set_num_threads(threads)  # of this thread's searches
        try:
            with self._lock if is_on_gpu(index) else nullcontext():
                rows, scores = best_rows(faiss, index, queries, count, removed)
        except (RuntimeError, ValueError) as error:
            raise self._damage(part, first_line(error)) from error
        if rows.max(initial=-1) >= stop - first:
            raise self._damage(part, "it has vectors of other pictures")
        if not np.isfinite(scores[rows >= 0]).all():
            raise self._damage(part, NOT_FINITE)
        return rows + first, np.where(rows < 0, -np.inf, scores)

    def load(self, number: int) -> Any:
        """The FAISS index of one file.

        They stay in memory where all of them fit into half of what is free, or are on the GPU.
        """
        part = self.record.files[number]
        opened = self._open.get(part.file) or self._fetch(part)
        if self.record.nprobe:
            try:
                require_faiss().ParameterSpace().set_index_parameter(
                    opened, "nprobe", self.record.nprobe
                )
            except RuntimeError as error:
                raise self._damage(part, first_line(error)) from error
        if is_on_gpu(opened) or self._bytes < free_memory_on("cpu") // 2:
            self._open[part.file] = opened
        return opened

    def _fetch(self, part: AnnFile) -> Any:
        """Read one file; on the GPU where it is searched there."""
        location = self._store.location
        try:
            index = read_faiss(location.fetch(part.file, part.sha256), self.record.width)
            self._require_vectors(index, part)
        except (ValueError, FileNotFoundError, RuntimeError) as error:
            # FAISS raises RuntimeError for a file that another version of it wrote
            raise self._damage(part, first_line(error)) from error
        if not self._gpu:
            return index
        return copied_to_gpu(require_faiss(), self._gpu, self._device, index)

    def _require_vectors(self, index: Any, part: AnnFile) -> None:
        """Raise ValueError unless a FAISS index has the vectors of a file's pictures."""
        faiss = require_faiss()
        first, stop = part.rows
        if (index.d, index.ntotal) != (self.record.width, stop - first):
            raise ValueError(f"it has {index.ntotal} vectors of {index.d} numbers")
        is_flat = isinstance(index, faiss.IndexFlat)
        if index.metric_type != faiss.METRIC_INNER_PRODUCT or is_flat != (
            self.record.factory in (FLAT, "Flat")
        ):
            raise ValueError("it is an index of another kind")

    def _damage(self, part: AnnFile, problem: str) -> StoreError:
        """The error of a file that is not as it was made, or that FAISS cannot use."""
        return StoreError(f"{self._store.location}: {part.file} is damaged ({problem})")

    @cached_property
    def _excluded(self) -> np.ndarray:
        """Rows that no query returns, ascending."""
        return np.array(self._store.excluded, np.int64)

    @property
    def _bytes(self) -> int:
        """Bytes of all files together."""
        return sum(part.bytes for part in self.record.files)

    @cached_property
    def _gpu(self) -> Any:
        """What FAISS needs to search flat vectors on the GPU, a thread at a time; None: the CPU."""
        if self.record.factory != FLAT:
            return None
        return faiss_resources(require_faiss(), self._device, self._bytes)


def read_faiss(content: bytes, width: int) -> Any:
    """The FAISS index in a file's content.

    FAISS takes memory for the sizes that a file declares before it reads: here, for no more than
    the file has and a rotation of vectors takes, to the next power of two, where this FAISS can
    be told so.

    Args:
        width: numbers in a vector.

    Raises:
        RuntimeError: FAISS does not read it.
    """
    faiss = require_faiss()
    with _reading:
        if hasattr(faiss, "set_deserialization_vector_byte_limit"):
            faiss.set_deserialization_vector_byte_limit(len(content) + 8 * width**2)
            faiss.set_deserialization_loop_limit(len(content))
        return faiss.deserialize_index(np.frombuffer(content, np.uint8))


@cache
def require_faiss() -> ModuleType:
    """The faiss module.

    Raises:
        MissingPackage: it is not installed, or two wheels are that overwrite each other.
    """
    names = {distribution.name or "" for distribution in distributions()}
    wheels = sorted(name for name in names if name.startswith(("faiss-cpu", "faiss-gpu")))
    if len(wheels) > 1:
        raise MissingPackage(
            f"{' and '.join(wheels)} overwrite each other's files: uninstall all of them, then"
            " install gradindex[cpu] or gradindex[gpu]"
        )
    try:
        # Whatever it is called: conda's packages and builds from source have other names
        import faiss
    except ImportError as error:
        raise MissingPackage(
            "FAISS is not installed: pip install 'gradindex[cpu]', or [gpu] where there is CUDA"
        ) from error
    return faiss

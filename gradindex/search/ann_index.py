"""A method's FAISS index over the store's rows.

It proposes candidates, whose exact scores the store then has. The search vector of a picture is
`gradients.fold.search_vectors` of its rows, or of its half-whitened rows.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import cache, cached_property, partial
from importlib.metadata import distributions
from threading import RLock
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from gradindex.errors import MissingPackage, StoreError, first_line
from gradindex.gradients.fold import FOLD_VERSION, search_vectors
from gradindex.search.factors import WHITENED, is_wide, saved_factors
from gradindex.search.scoring import METHODS, Best
from gradindex.search.workers import SearchWorkers
from gradindex.store.manifest import differences, read_record
from gradindex.store.memory import free_memory
from gradindex.store.prefetch import prefetch
from gradindex.store.store import Store

if TYPE_CHECKING:
    from gradindex.search.whitening import Whitening

INDEX_NAMES = (*METHODS, *(method + WHITENED for method in METHODS))
FLAT, STORE = "flat", "store"
K = 10  # hits that the measured number of candidates is for
CPUS = os.cpu_count() or 1


class AnnFile(msgspec.Struct, frozen=True):
    """One file of an index: its pictures (first, one after the last), its size and SHA-256."""

    file: str
    rows: tuple[int, int]
    bytes: int
    sha256: str


class AnnRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What an index was made from, and what was measured of it.

    Attributes:
        factory: what its files are: "flat", "store" (none), or a string of FAISS's index_factory.
        width: numbers in a search vector.
        recipe, state: the store's, which change with its rows.
        fold: version of the code that makes search vectors.
        whitened: SHA-256 of the factors that half-whitened the rows.
        files: one for about 64 MiB.
        candidates: how many have to be scored exactly for 10 hits.
        recall_at_10: the share of the true ten among them, measured when it was made.
        query_seconds: of a search, on the machine that made it.
        nprobe: how many lists of an inverted file are searched.
        asked: the factory that was asked for.
    """

    factory: str
    width: int
    recipe: str
    state: str
    fold: int
    whitened: list[str] | None = None
    files: list[AnnFile]
    candidates: int
    recall_at_10: float
    query_seconds: float | None = None
    nprobe: int | None = None
    asked: str | None = None


class AnnOrigin(NamedTuple):
    """What an index must agree with: the rows, and how search vectors are made of them."""

    recipe: str
    state: str
    fold: int
    whitened: list[str] | None


def index_origin(store: Store, name: str) -> AnnOrigin:
    """The origin of an index of that name that is made now."""
    whitened = None
    if name.endswith(WHITENED):
        saved = saved_factors(store, name.removesuffix(WHITENED))
        if saved:
            whitened = [block.sha256 for block in saved.blocks]
    return AnnOrigin(store.recipe.digest, store.summary.state, FOLD_VERSION, whitened)


def index_file(name: str, number: int) -> str:
    """An index's file of that number.

    >>> index_file("tracin", 0), index_file("tracin", 1)
    ('faiss/tracin.faiss', 'faiss/tracin-1.faiss')
    """
    return f"faiss/{name}-{number}.faiss" if number else f"faiss/{name}.faiss"


def index_record_file(name: str) -> str:
    """The file with an index's AnnRecord."""
    return f"faiss/{name}.json"


def default_index_names(store: Store, whiten: bool | None = None) -> list[str]:
    """The names of the search indexes that a build makes.

    Args:
        whiten: only those of half-whitened rows (True), or only the others (False).
    """
    if whiten is None and is_wide(store):
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


def _open_again(path: str, name: str, record: AnnRecord) -> "AnnIndex":
    """The same index in another process."""
    return AnnIndex(Store(path), name, record)


class AnnIndex:
    """The search index of a method's rows, or of its half-whitened rows.

    Args:
        name: "tracin", "retrac", or with "-whitened" that of the half-whitened rows.
        ray: the Ray cluster that searches it: "local", or an address; None: this process.
        device: where FAISS searches: on its GPU if that is "cuda" and the FAISS there has one.
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
        files = [part.file for part in record.files]
        if files != [index_file(self._name, number) for number in range(len(files))]:
            return False
        origin = AnnOrigin(record.recipe, record.state, record.fold, record.whitened)
        return origin == index_origin(self._store, self._name)

    def damages(self) -> list[str]:
        """Which of its files are not as they were made, one line each."""
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
        excluded = np.array(self._store.excluded, np.int64)
        with_excluded = count + len(excluded)
        best = Best(len(queries), with_excluded)
        for rows, scores in self._search_files(queries, with_excluded):
            best.add(rows, scores)
        lists = []
        for rows, scores in zip(best.rows, best.scores, strict=True):
            counted = (scores > -np.inf) & ~np.isin(rows, excluded)
            lists.append(rows[counted][:count])
        return lists

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
        opened = partial(_open_again, str(self._store.location), self._name, self.record)
        return SearchWorkers(self._ray, opened, files)

    def search_file(
        self, number: int, queries: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What one file has for queries [Q, W]: rows and scores by FAISS, [Q, up to count]."""
        first, stop = self.record.files[number].rows
        index = self.load(number)
        count = min(count, stop - first)
        if self.record.factory == FLAT and len(queries) == 1 and not self._gpu:
            # One product with the matrix of vectors takes half of FAISS's time.
            pointer = index.get_xb()
            vectors = require_faiss().rev_swig_ptr(pointer, index.ntotal * index.d)
            products = np.vecdot(vectors.reshape(-1, index.d), queries)
            rows = np.argpartition(products, -count)[-count:]
            return rows[None] + first, products[None, rows]
        threads = max(1, CPUS // len(self.record.files))
        require_faiss().omp_set_num_threads(threads)  # of this thread's searches
        with self._lock if self._gpu else nullcontext():
            scores, rows = index.search(queries, count)
        return rows + first, np.where(rows < 0, -np.inf, scores)

    def load(self, number: int) -> Any:
        """The FAISS index of one file.

        They stay in memory where all of them fit into half of what is free.
        """
        part = self.record.files[number]
        opened = self._open.get(part.file) or self._fetch(part)
        if self.record.nprobe:
            require_faiss().ParameterSpace().set_index_parameter(
                opened, "nprobe", self.record.nprobe
            )
        if sum(other.bytes for other in self.record.files) < free_memory() // 2:
            self._open[part.file] = opened
        return opened

    def _fetch(self, part: AnnFile) -> Any:
        """Read one file; on the GPU where it is searched there."""
        location = self._store.location
        try:
            content = np.frombuffer(location.fetch(part.file, part.sha256), np.uint8)
            index = require_faiss().deserialize_index(content)
        except (ValueError, FileNotFoundError, RuntimeError) as error:
            # FAISS raises RuntimeError for a file that another version of it wrote
            message = f"{location}: {part.file} is damaged ({first_line(error)})"
            raise StoreError(message) from error
        if not self._gpu:
            return index
        number = int(self._device.partition(":")[2] or 0)
        return require_faiss().index_cpu_to_gpu(self._gpu, number, index)

    @cached_property
    def _gpu(self) -> Any:
        """What FAISS needs to search flat vectors on the GPU, a thread at a time; None: the CPU."""
        faiss = require_faiss()
        if not (self._device.startswith("cuda") and self.record.factory == FLAT):
            return None
        has_gpu = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()
        return faiss.StandardGpuResources() if has_gpu else None


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

"""A method's FAISS index over the store's rows: what proposes candidates, whose exact scores the store then has.

The search vector of a picture is its rows over all (checkpoint, timestep), one after the other. Where that is wider
than SEARCH_WIDTH numbers, each row is added into one vector with random signs and a random shift of its own, which
keeps inner products right on average.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache, cached_property, partial
from importlib.metadata import distributions
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from gradindex import factors
from gradindex.ahead import ahead
from gradindex.distributed import Finders
from gradindex.errors import MissingPackage, StoreError, first_line
from gradindex.factors import WHITENED
from gradindex.gradients.noise import random_offset, random_signs
from gradindex.manifest import differences, unseal
from gradindex.memory import free_memory
from gradindex.recipe import SEARCH_WIDTH, Recipe
from gradindex.scoring import Best
from gradindex.store import Store

if TYPE_CHECKING:
    from gradindex.whiten import Whitening

METHODS = ("tracin", "retrac")
NAMES = (*METHODS, *(method + WHITENED for method in METHODS))  # of search indexes
FOLD_VERSION = 1  # raised whenever `search_vectors` gives other numbers for the same rows
FLAT, STORE = "flat", "store"
K = 10  # hits that the measured number of candidates is for
CPUS = os.cpu_count() or 1


def search_vectors(rows: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Rows [B, C, T, D] → search vectors [B, W] float32, W = C·T·D or at most SEARCH_WIDTH (at least D)."""
    batch, checkpoints, timesteps, dim = rows.shape
    width = max(SEARCH_WIDTH, dim)
    if checkpoints * timesteps * dim <= width:
        return np.ascontiguousarray(rows.reshape(batch, checkpoints * timesteps * dim), dtype=np.float32)
    vectors = np.zeros((batch, width), np.float32)
    for c in range(checkpoints):
        for t in range(timesteps):
            signs = random_signs(recipe.seed, "search", c, t, size=dim)
            start = random_offset(recipe.seed, "search", c, t, below=width)
            head = min(dim, width - start)
            signed = rows[:, c, t] * signs
            vectors[:, start : start + head] += signed[:, :head]
            vectors[:, : dim - head] += signed[:, head:]
    return vectors


def wanted(store: Store, whiten: bool | None = None) -> list[str]:
    """The names of the search indexes that a build makes; only those of half-whitened rows, or only the others."""
    if whiten is None and factors.is_wide(store):
        whiten = False
    return [name for name in NAMES if whiten is None or name.endswith(WHITENED) == whiten]


def saved_index(store: Store, name: str) -> "SearchIndex | None":
    """The saved index of a name, of whichever rows; None where there is none."""
    (facts,) = store.place.read_many([facts_of(name)])
    with suppress(ValueError):
        return SearchIndex(store, name, unseal(facts, "factory"))
    return None


def _open_again(path: str, name: str, facts: dict[str, Any]) -> "SearchIndex":
    """The same index in another process."""
    return SearchIndex(Store(path), name, facts)


class SearchIndex:
    """The search index of a method's rows, or of its half-whitened rows.

    Attributes:
        method: whose rows it is of.
        facts: what is in its JSON: which rows it was made from, `factory`, `candidates` (how many have to be scored
            exactly for 10 hits), and measured on the machine that made it `recall_at_10` and `query_seconds`.
    """

    def __init__(
        self, store: Store, name: str, facts: dict[str, Any], ray: str | None = None, device: str = "cpu",
        whitening: "Whitening | None" = None,
    ) -> None:  # fmt: skip
        self.facts, self._store, self._name, self._ray, self._device = facts, store, name, ray, device
        if whitening:
            self.whitening = whitening
        self.method = name.removesuffix(WHITENED)
        self._open: dict[str, Any] = {}
        self._finders: Finders | None = None

    @cached_property
    def whitening(self) -> "Whitening | None":
        """What half-whitens rows and queries."""
        from gradindex.whiten import of_index  # and torch, which takes seconds, and which a Ray worker can do without

        return of_index(self._store, self._name, self._device)

    def row_vectors(self, rows: np.ndarray) -> np.ndarray:
        """The search vectors [B, W] of rows [B, C, T, D]."""
        return search_vectors(self.whitening.half_rows(rows) if self.whitening else rows, self._store.recipe)

    def query_vectors(self, block: np.ndarray) -> np.ndarray:
        """The search vectors [Q, W] of query blocks [Q, C, T, D], whitened ones where the rows are."""
        return search_vectors(self.whitening.half_queries(block) if self.whitening else block, self._store.recipe)

    def fits(self) -> bool:
        """Whether it is of that name, made from the store's rows."""
        made, files = made_from(self._store, self._name), [part["file"] for part in self.facts["files"]]
        own = [file_of(self._name, number) for number in range(len(files))]
        return files == own and {name: self.facts.get(name) for name in made} == made

    def damages(self) -> list[str]:
        """Which of its files are not as they were made, one line each."""
        return differences(self._store.place, {part["file"]: part["sha256"] for part in self.facts["files"]})

    def proposed(self, block: np.ndarray, k: int, signs: Sequence[int]) -> dict[int, list[np.ndarray]] | None:
        """The `candidates` of query blocks [Q, C, T, D] for the highest scores (sign 1), and for the lowest (−1)."""
        if self.facts["factory"] == STORE:
            return None
        vectors = self.query_vectors(block)
        return {sign: self.candidates(sign * vectors, k) for sign in signs}

    def candidates(self, queries: np.ndarray, k: int) -> list[np.ndarray]:
        """Rows among which the best k of each query [Q, W] are, ascending.

        Raises:
            StoreError: a file is not as it was made.
        """
        count = self.facts["candidates"] * -(-k // K)
        return [np.sort(rows) for rows in self.ranked(queries, count)]

    def ranked(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """The `count` rows that FAISS ranks best for each query, best first; none of those that are left out."""
        left_out = np.array(self._store.left_out, np.int64)
        wanted = count + len(left_out)
        best = Best(len(queries), wanted)
        for rows, scores in self._search_all(queries, wanted):
            best.add(rows, scores)
        lists = zip(best.rows, best.scores, strict=True)
        return [rows[(scores > -np.inf) & ~np.isin(rows, left_out)][:count] for rows, scores in lists]

    def _search_all(self, queries: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What each file has, file by file: rows and their scores by FAISS, [Q, up to count] both."""
        numbers = range(len(self.facts["files"]))
        if self._ray is None:
            threads = 1 if self._gpu else CPUS
            yield from ahead(lambda number: self.search_file(number, queries, count), numbers, threads, 4 * threads)
            return
        if self._finders is None:
            opened = partial(_open_again, str(self._store.place), self._name, self.facts)
            self._finders = Finders(self._ray, opened, len(numbers))
        found = dict(self._finders.search(queries, count))
        yield from (found[number] for number in numbers)

    def search_file(self, number: int, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """What one file has for the queries [Q, W]: rows and their scores by FAISS, [Q, up to count] both."""
        first, stop = self.facts["files"][number]["rows"]
        index, count = self.load(number), min(count, stop - first)
        if self.facts["factory"] == FLAT and len(queries) == 1 and not self._gpu:  # FAISS takes twice the time
            vectors = require_faiss().rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(-1, index.d)
            products = np.vecdot(vectors, queries)
            found = np.argpartition(products, -count)[-count:]
            return found[None] + first, products[None, found]
        require_faiss().omp_set_num_threads(max(1, CPUS // len(self.facts["files"])))  # in this thread
        scores, found = index.search(queries, count)
        return found + first, np.where(found < 0, -np.inf, scores)

    def load(self, number: int) -> Any:
        """The FAISS index of one file. They stay in memory where all of them fit into half of what is free."""
        part = self.facts["files"][number]
        opened = self._open.get(part["file"]) or self._fetch(part)
        if "nprobe" in self.facts:
            require_faiss().ParameterSpace().set_index_parameter(opened, "nprobe", self.facts["nprobe"])
        if sum(each["bytes"] for each in self.facts["files"]) < free_memory() // 2:
            self._open[part["file"]] = opened
        return opened

    def _fetch(self, part: dict[str, Any]) -> Any:
        place = self._store.place
        try:
            content = np.frombuffer(place.fetch(part["file"], part["sha256"]), np.uint8)
            index = require_faiss().deserialize_index(content)
        except (ValueError, FileNotFoundError, RuntimeError) as error:  # RuntimeError: another FAISS wrote it
            raise StoreError(f"{place}: {part['file']} is damaged ({first_line(error)})") from error
        return require_faiss().index_cpu_to_gpu(self._gpu, 0, index) if self._gpu else index

    @cached_property
    def _gpu(self) -> Any:
        """What FAISS needs to search flat vectors on the GPU, a thread at a time; None where it takes the CPU."""
        faiss = require_faiss()
        wanted = self._device.startswith("cuda") and self.facts["factory"] == FLAT
        there = wanted and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()
        return faiss.StandardGpuResources() if there else None


def made_from(store: Store, name: str) -> dict[str, Any]:
    """What an index must agree with: the rows, and how search vectors are made of them."""
    facts = {"recipe": store.recipe.digest, "state": store.summary["state"], "fold": FOLD_VERSION}
    if name.endswith(WHITENED):
        saved = factors.saved_factors(store, name.removesuffix(WHITENED))
        facts["whitened"] = saved and [block["sha256"] for block in saved["blocks"]]
    return facts


def file_of(name: str, number: int) -> str:
    """An index's file of that number."""
    return f"faiss/{name}{f'-{number}' * (number > 0)}.faiss"


def facts_of(name: str) -> str:
    """The file with an index's facts."""
    return f"faiss/{name}.json"


@cache
def require_faiss() -> ModuleType:
    """The faiss module.

    Raises:
        MissingPackage: no wheel is installed, or two that overwrite each other.
    """
    wheels = sorted({d.name for d in distributions() if (d.name or "").startswith(("faiss-cpu", "faiss-gpu"))})
    if len(wheels) > 1:
        raise MissingPackage(
            f"{' and '.join(wheels)} overwrite each other's files: uninstall all of them, then install"
            " gradindex[cpu] or gradindex[gpu]"
        )
    if not wheels:
        raise MissingPackage("FAISS is not installed: pip install 'gradindex[cpu]', or [gpu] where there is CUDA")
    import faiss

    return faiss

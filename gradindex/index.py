"""FAISS proposes candidates: inner-product indexes over the store's rows, in files of a bounded size per method.

The search vector of a picture is its rows over all (checkpoint, timestep), one after the other. Where that is wider
than SEARCH_WIDTH numbers, each row is added into one vector with random signs and a random shift of its own, which
keeps inner products right on average. The exact scores come from the store afterwards; how many candidates that takes,
for 10 hits to be the true 10, is measured when an index is made, with sums of two rows as queries.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from gradindex.ahead import ahead
from gradindex.distributed import Finders
from gradindex.errors import CallError, MissingPackage, StoreError, first_line
from gradindex.gradients.noise import random_offset, random_signs
from gradindex.manifest import differences, seal, unseal
from gradindex.place import sha256
from gradindex.recipe import SEARCH_WIDTH, Recipe
from gradindex.scoring import THREADS, Best, as_columns, products, row_pieces
from gradindex.store import Store

METHODS = ("tracin", "retrac")
FOLD_VERSION = 1  # raised whenever `search_vectors` gives other numbers for the same rows

FLAT, STORE = "flat", "store"
LADDER = ("PCA64,SQfp16", "PCA256,SQfp16", "HR,RaBitQfs4", STORE)  # `auto`, until the measured recall is high enough
FLAT_BYTES = 1 << 30  # of search vectors, up to which they are kept as they are
FILE_BYTES = 64 << 20  # of an index file, about
TRAINED_ON = 4096  # vectors, or 64 for each list of an inverted file
QUERIES, K = 64, 10  # that recall is measured with
TIMED = 8  # of them, one by one
GOAL = 0.995
CANDIDATES = (20, 50, 100, 200, 500, 1000, 2000)


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


def build_index(store: Store, method: str, factory: str = "auto") -> "SearchIndex":
    """Make and measure a method's index over all rows, and save it in the store's `faiss` folder.

    Args:
        factory: "flat" (float32 vectors), "store" (none at all: a query scans the store), a string of FAISS's
            `index_factory`, or "auto": flat up to a gigabyte of vectors, then what first reaches a recall@10 of
            0.995 of LADDER: the rows' few strongest directions where these tell enough, RaBitQ codes where not.

    Raises:
        CallError: FAISS does not know the factory. StoreError: rows are damaged.
    """
    width, before = store.recipe.search_width, saved_index(store, method)
    flat = store.shape[1] * width * 4 <= min(FLAT_BYTES, free_memory() // 4)
    left = {file_of(method, number) for number in range(len(before.facts["files"]))} if before else set()
    for chosen in [factory] if factory != "auto" else [FLAT, *LADDER] if flat else LADDER:
        index = _Making(store, method, chosen, width).index()
        left |= {part["file"] for part in index.facts["files"]}
        if index.facts["recall_at_10"] >= GOAL:
            break
    index.facts["asked"] = factory
    store.place.publish(facts_of(method), seal(index.facts))
    for name in left - {part["file"] for part in index.facts["files"]}:
        store.place.discard(name)
    return index


class _Making:
    """An index that is being made: its files one after the other, and the true answers meanwhile."""

    def __init__(self, store: Store, method: str, factory: str, width: int) -> None:
        self._store, self._method, self._factory, self._width = store, method, factory, width
        kept = np.setdiff1d(np.arange(store.shape[1]), store.left_out)
        one = kept[np.linspace(0, len(kept) - 1, QUERIES).astype(int)]
        self._parents = np.stack([one, np.roll(one, QUERIES // 2)])  # whose sums are the queries; they do not count
        rows = self._rows(every := np.unique(one), None)[0]
        queries = sum(rows[np.searchsorted(every, half)] for half in self._parents)
        self._queries, self._columns = search_vectors(queries, store.recipe), as_columns(queries)
        self._truth = Best(QUERIES, K)
        self._facts = {"factory": factory, "width": width, **made_from(store), "files": []}

    def index(self) -> "SearchIndex":
        """Make all files, measure them."""
        if self._factory == STORE:
            return SearchIndex(self._store, self._method, {**self._facts, "candidates": 0, "recall_at_10": 1.0})
        shard, size = self._store.shard_rows, self._code_size()
        step = max(1, FILE_BYTES // size // shard) * shard
        starts = range(0, self._store.shape[1], step)
        for number, start in enumerate(tqdm(starts, f"{self._method} index", unit="file", delay=2, disable=None)):
            self._facts["files"].append(self._file(number, start, min(start + step, self._store.shape[1])))
        index = SearchIndex(self._store, self._method, self._facts)
        self._measure(index)
        return index

    def _file(self, number: int, start: int, stop: int) -> dict[str, Any]:
        """Make the index file of the pictures from `start` to before `stop`."""
        index = self._new()
        some = np.unique(np.linspace(start, stop - 1, max(TRAINED_ON, 64 * _lists(index))).astype(int))
        sample = search_vectors(self._rows(some, None)[0], self._store.recipe)
        if self._factory.startswith("PCA"):  # with their mirror images: no mean is taken off, which changes products
            sample = np.concatenate([sample, -sample])
        index.train(sample)
        if self._factory.startswith("PCA"):  # all directions, W² numbers, of which a search needs none
            require_faiss().downcast_VectorTransform(index.chain.at(0)).PCAMat.resize(0)
        blocks = list(self._store.blocks(start, stop))
        read = ahead(lambda block: self._rows(block, self._columns), blocks, THREADS)
        for block, (rows, scores) in zip(blocks, read, strict=True):
            index.add(search_vectors(rows, self._store.recipe))
            numbers = np.arange(block.start, block.stop)
            out = np.isin(numbers, self._store.left_out) | (numbers == self._parents[:, :, None]).any(0)
            self._truth.add(numbers, np.where(out, -np.inf, scores))
        content = require_faiss().serialize_index(index).tobytes()
        file = file_of(self._method, number)
        self._store.place.publish(file, content)
        return {"file": file, "rows": [start, stop], "bytes": len(content), "sha256": sha256(content)}

    def _rows(self, rows: slice | np.ndarray, columns: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """A method's rows [B, C, T, D] float32, and their scores [Q, B] with the columns."""
        parts, scores = [], []
        unit = self._method == "retrac"
        for pieces in zip(*(row_pieces(self._store, c, rows, unit) for c in range(self._store.shape[0])), strict=True):
            if columns is not None:
                scores.append(products(pieces, columns).sum((2, 3)))
            units = [rows / divisor[:, :, None] for rows, divisor in pieces]
            parts.append(np.stack(units, axis=1).astype(np.float32))
        return np.concatenate(parts), np.concatenate(scores, axis=1) if scores else np.empty(0)

    def _measure(self, index: "SearchIndex") -> None:
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


def open_index(store: Store, method: str, ray: str | None = None) -> "SearchIndex":
    """The saved index of a method; made anew, as it was asked for, when it is absent or of other rows.

    Args:
        ray: the Ray cluster that searches it: "local", or an address.
    """
    index = saved_index(store, method)
    if index is None or not index.fits():
        index = build_index(store, method, index.facts["asked"] if index else "auto")
    return SearchIndex(store, method, index.facts, ray)


def saved_index(store: Store, method: str) -> "SearchIndex | None":
    """The saved index of a method, of whichever rows; None where there is none."""
    (facts,) = store.place.read_many([facts_of(method)])
    with suppress(ValueError):
        return SearchIndex(store, method, unseal(facts, "factory"))
    return None


def _open_again(path: str, method: str, facts: dict[str, Any]) -> "SearchIndex":
    """The same index in another process."""
    return SearchIndex(Store(path), method, facts)


class SearchIndex:
    """The search index of a method.

    Attributes:
        facts: what is in its JSON: which rows it was made from, `factory`, `candidates` (how many have to be scored
            exactly for 10 hits), and measured on the machine that made it `recall_at_10` and `query_seconds`.
    """

    def __init__(self, store: Store, method: str, facts: dict[str, Any], ray: str | None = None) -> None:
        self.facts, self._store, self._method, self._ray = facts, store, method, ray
        self._open: dict[str, Any] = {}
        self._finders: Finders | None = None

    def fits(self) -> bool:
        """Whether it is the method's, made from the store's rows."""
        made, files = made_from(self._store), [part["file"] for part in self.facts["files"]]
        own = [file_of(self._method, number) for number in range(len(files))]
        return files == own and {name: self.facts.get(name) for name in made} == made

    def damages(self) -> list[str]:
        """Which of its files are not as they were made, one line each."""
        return differences(self._store.place, {part["file"]: part["sha256"] for part in self.facts["files"]})

    def candidates(self, queries: np.ndarray, k: int) -> list[np.ndarray] | None:
        """Rows among which the best k of each query [Q, W] are, ascending; None: there is no index, scan the store.

        Raises:
            StoreError: a file is not as it was made.
        """
        if self.facts["factory"] == STORE:
            return None
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
            yield from ahead(lambda number: self.search_file(number, queries, count), numbers, os.cpu_count() or 1)
            return
        if self._finders is None:
            opened = partial(_open_again, str(self._store.place), self._method, self.facts)
            self._finders = Finders(self._ray, opened, len(numbers))
        found = dict(self._finders.search(queries, count))
        yield from (found[number] for number in numbers)

    def search_file(self, number: int, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """What one file has for the queries [Q, W]: rows and their scores by FAISS, [Q, up to count] both."""
        first, stop = self.facts["files"][number]["rows"]
        scores, found = self.load(number).search(queries, min(count, stop - first))
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
            return require_faiss().deserialize_index(content)
        except (ValueError, FileNotFoundError, RuntimeError) as error:  # RuntimeError: another FAISS wrote it
            raise StoreError(f"{place}: {part['file']} is damaged ({first_line(error)})") from error


def made_from(store: Store) -> dict[str, Any]:
    """What an index must agree with: the rows, and how search vectors are made of them."""
    return {"recipe": store.recipe.digest, "state": store.summary["state"], "fold": FOLD_VERSION}


def file_of(method: str, number: int) -> str:
    """A method's index file of that number."""
    return f"faiss/{method}{f'-{number}' * (number > 0)}.faiss"


def facts_of(method: str) -> str:
    """The file with a method's facts."""
    return f"faiss/{method}.json"


def free_memory() -> int:
    """Bytes that can still be had: what the kernel calls available, or half of a container's limit."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")]
    with suppress(OSError, ValueError):  # "max" where there is no limit
        free.append(int(Path("/sys/fs/cgroup/memory.max").read_text()) // 2)
    return min(free)


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

"""Search at scale: `tools/bench search`.

Exact scans and codes over rows that are like real gradients.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
from drawn_rows import RowDistribution, drawn_store
from picture_sets import write_pictures
from read_speed import median_seconds, read_files, seconds_of, seconds_to_read_memory
from trained_models import model_and_pictures

import gradindex
from gradindex.gradients.fold import search_vectors, unit
from gradindex.search.ann_builder import build_ann_index
from gradindex.search.ann_index import AnnIndex
from gradindex.search.ann_record import FLAT
from gradindex.search.index import Index
from gradindex.search.scoring import METHODS, scan_both_ends
from gradindex.store.arrays import shard_key
from gradindex.store.store import Store

SIZES = (10_000, 100_000, 1_000_000)  # pictures
REAL = 20_000  # pictures whose gradients are taken
DIM = 1024
JOINT = 8  # principal coordinates that are drawn together with the norm
QUERIES = 100  # none of which is in the store
TIMED = 20  # queries whose time is taken
ROUNDS = 3  # of reading all rows from the store
CODES = ("PCA64,SQfp16", "HR,RaBitQfs")
K = 10


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/search.json and .md.

    Args:
        only: some of the stores: "real", or numbers of pictures.
    """
    part = record.resumable(work / f"search-{device}")
    names = only or ["real", *map(str, SIZES)]
    results = {name: part(name, partial(measure, name, work)) for name in names}
    text = page(results)
    print(text)
    if not only:
        record.save("search", device, "tools/bench search", {"sizes": results}, text)


def measure(name: str, work: Path) -> dict[str, Any]:
    """Search one store in every way, with both methods."""
    real = real_rows(work)
    distribution = RowDistribution.of(real, JOINT)
    queries = distribution.draw(QUERIES, np.random.default_rng(2))
    if name == "real":
        store = real
        queries = real_queries(real, work)
    else:
        store = drawn_store(work / f"search-{name}", real, distribution, int(name))
    results: dict[str, Any] = {"pictures": store.shape[1], "row_bytes": DIM * 4}
    for method in METHODS:
        vectors = unit(queries) if method == "retrac" else queries
        results[method] = SearchTest(store, method, vectors).measure()
    return results


def real_rows(work: Path) -> Store:
    """Return a store of a small trained model over Fashion-MNIST: one timestep, DIM numbers."""
    model, pictures = model_and_pictures("tiny", work)
    data = work / "real-pictures"
    if not data.exists():
        write_pictures(data, pictures[:REAL])
    folder = work / "real-rows"
    index = gradindex.build(folder, model=model, data=data, timesteps=1, dim=DIM, device="cpu")
    return index.store


def real_queries(store: Store, work: Path) -> np.ndarray:
    """Return the gradients of pictures that are not in the store of real rows, [Q, D]."""
    _, pictures = model_and_pictures("tiny", work)
    index = Index(store, None, "cpu")
    query = index.to_query(list(pictures[REAL : REAL + QUERIES]), whiten=False)
    (block,) = index.query_blocks(query, "tracin")
    return block[:, 0, 0]


class SearchTest:
    """A method's search of one store: seconds of a single query, bytes in memory, and recall.

    Args:
        queries: gradients [Q, D], as the method takes them.
    """

    def __init__(self, store: Store, method: str, queries: np.ndarray) -> None:
        self._store, self._method = store, method
        self._ranker = Index(store, None, "cpu").ranker
        self._blocks = queries[:, None, None]
        self._vectors = search_vectors(self._blocks, store.recipe)

    def measure(self) -> dict[str, dict[str, Any]]:
        """Return the figures of every way to search.

        For exact ones also the share of the bandwidth, which is measured beside them.
        """
        flat = build_ann_index(self._store, self._method, FLAT)
        truth = [self._best(flat, number) for number in range(len(self._blocks))]
        results = {"in memory": self._flat_figures(flat), **self._scan_figures()}
        for factory in CODES:
            results[factory] = self._code_figures(factory, truth)
        return results

    def _flat_figures(self, index: AnnIndex) -> dict[str, Any]:
        """The figures of an index of float32 rows in memory."""
        size = sum(file.bytes for file in index.record.files)
        read = seconds_to_read_memory(size)
        seconds = median_seconds(partial(self._candidates, index), TIMED)
        return _exact_figures(size, seconds, read)

    def _scan_figures(self) -> dict[str, dict[str, Any]]:
        """The figures of scans of the store, its files in the page cache or not."""
        files = self._files()
        read = partial(read_files, files)
        figures = {}
        for name, cold in (("from the store, cached", False), ("from the store", True)):
            uncached = files if cold else ()
            read_times, scan_times = [], []
            for _ in range(ROUNDS):
                read_times.append(seconds_of(read, uncached))
                scan_times.append(seconds_of(self._scan, uncached))
            read_seconds = float(np.median(read_times))
            scan_seconds = float(np.median(scan_times))
            figures[name] = _exact_figures(0, scan_seconds, read_seconds)
        return figures

    def _code_figures(self, factory: str, truth: list[list[int]]) -> dict[str, Any]:
        """The figures of an index of codes, whose candidates are scored exactly.

        Args:
            truth: the K best rows of each query.
        """
        index = build_ann_index(self._store, self._method, factory)
        shares = []
        for number, best in enumerate(truth):
            common = set(self._best(index, number)) & set(best)
            shares.append(len(common) / K)
        return {
            "bytes": sum(file.bytes for file in index.record.files),
            "seconds": median_seconds(partial(self._best, index), TIMED),
            "recall_at_10": float(np.mean(shares)),
            "measured_by_itself": index.record.recall_at_10,
            "candidates": index.record.candidates,
        }

    def _candidates(self, index: AnnIndex, number: int) -> list[np.ndarray]:
        """The rows that an index proposes for a query."""
        return index.candidates(self._vectors[number][None], K)

    def _best(self, index: AnnIndex, number: int) -> list[int]:
        """The K best rows among those that an index proposes for a query, scored exactly."""
        proposed = self._candidates(index, number)
        block = self._blocks[number][None]
        (hits,) = self._ranker.hits(block, K, self._method, None, False, 1, proposed)
        return [hit.row for hit in hits]

    def _scan(self) -> None:
        """Search all rows for one query."""
        scan_both_ends(self._store, self._blocks[:1], self._method, None, K)

    def _files(self) -> list[Path]:
        """The files of the unnormalized rows."""
        folder = Path(str(self._store.location)) / "unnormalized"
        return [
            folder / shard_key("unnormalized", 0, shard.number) for shard in self._store.shards()
        ]


def _exact_figures(size: int, seconds: float, read_seconds: float) -> dict[str, Any]:
    """The figures of an exact search.

    Args:
        size: bytes that it holds in memory. seconds: of a query.
        read_seconds: what reading the same bytes takes.
    """
    return {
        "bytes": size,
        "seconds": seconds,
        "of_bandwidth": read_seconds / seconds,
        "recall_at_10": 1.0,
    }


def page(results: Mapping[str, Any]) -> str:
    """Return the table and what it is of."""
    rows = []
    for size in results.values():
        for method in METHODS:
            in_memory = size[method]["in memory"]
            for search, figures in size[method].items():
                rows.append(
                    {
                        "pictures": size["pictures"],
                        "method": method,
                        "way": search,
                        "memory": figures["bytes"] / in_memory["bytes"],
                        "times faster": in_memory["seconds"] / figures["seconds"],
                        "of the read bandwidth": figures.get("of_bandwidth"),
                        "candidates": figures.get("candidates"),
                        "recall@10": figures["recall_at_10"],
                    }
                )
    return record.fill_page(
        "search", real=REAL, dim=DIM, joint=JOINT, queries=QUERIES, rows=record.table(rows)
    )

"""Search at scale: `tools/bench search`. Exact scans and codes over rows that are like real gradients."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from build import write_pictures
from subjects import subject

import gradindex
from gradindex.ahead import ahead
from gradindex.arrays import shard_key
from gradindex.index import build_index
from gradindex.place import Disk
from gradindex.scoring import THREADS, scan_both_ends, unit
from gradindex.search import Index
from gradindex.search_index import FLAT, METHODS, SearchIndex, search_vectors
from gradindex.store import Store

SIZES = (10_000, 100_000, 1_000_000)
REAL = 20_000  # pictures whose gradients are taken
DIM = 1024
JOINT = 8  # principal coordinates that are drawn together with the norm
ASKED = 100  # queries, none of which is in the store
TIMED = 20
CODES = ("PCA64,SQfp16", "HR,RaBitQfs")
K = 10


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/search.json and .md."""
    part = record.resumable(work / f"search-{device}")
    results = {name: part(name, partial(measure, name, work)) for name in only or ["real", *map(str, SIZES)]}
    text = page(results)
    print(text)
    if not only:
        record.save("search", device, "tools/bench search", {"sizes": results}, text)


def real_rows(work: Path) -> Store:
    """The store of a small trained model over Fashion-MNIST: one timestep, 1,024 numbers."""
    model, pictures = subject("tiny", work)
    data = work / "real-pictures"
    if not data.exists():
        write_pictures(data, pictures[:REAL])
    return gradindex.build(work / "real-rows", model=model, data=data, timesteps=1, dim=DIM, device="cpu").store


@dataclass(frozen=True)
class Fit:
    """What rows are drawn from: mean, principal directions and their coordinates of real unit rows, and norms."""

    mean: np.ndarray
    directions: np.ndarray
    coordinates: np.ndarray
    norms: np.ndarray

    @classmethod
    def of(cls, store: Store) -> "Fit":
        rows, norms = store.read("unnormalized", 0, slice(None))[:, 0], store.read("norm", 0, slice(None))[:, 0]
        units = unit(rows).astype(np.float64)
        mean = units.mean(0)
        _, directions = np.linalg.eigh((units - mean).T @ (units - mean))
        directions = directions[:, ::-1]
        return cls(mean, directions, (units - mean) @ directions, norms)

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Rows [count, D]: the first coordinates and the norm of one real row, every other coordinate of another."""
        real = len(self.norms)
        one = random.integers(real, size=count)
        chosen = random.integers(real, size=(count, DIM))
        chosen[:, :JOINT] = one[:, None]
        drawn = self.coordinates[chosen, np.arange(DIM)].astype(np.float32)
        units = drawn @ self.directions.T.astype(np.float32) + self.mean.astype(np.float32)
        return unit(units) * self.norms[one, None]


def store_of(place: Path, real: Store, fit: Fit, count: int) -> Store:
    """A store of so many drawn rows; an unfinished one is gone on with."""
    try:
        store = Store(place)
    except gradindex.GradindexError:
        store = Store.create(place, real.recipe, [f"{row:07d}" for row in range(count)], weights=[1.0])
    for shard in store.missing():
        rows = fit.draw(shard.stop - shard.start, np.random.default_rng([1, shard.number]))
        store.write(shard, rows[:, None], np.full((len(rows), 1), 500, np.float32))
    store.finish()
    return Store.finished(place)


def measure(name: str, work: Path) -> dict[str, Any]:
    """Every way to search one store, both methods; bandwidths of the machine measured in between."""
    real = real_rows(work)
    fit = Fit.of(real)
    queries = fit.draw(ASKED, np.random.default_rng(2))
    if name == "real":
        pictures = subject("tiny", work)[1][REAL : REAL + ASKED]
        index = Index(real, None, "cpu")
        queries = index.query_blocks(index.question(list(pictures), whiten=False), "tracin")[0][:, 0, 0]
    store = real if name == "real" else store_of(work / f"search-{name}", real, fit, int(name))
    found: dict[str, Any] = {"pictures": store.shape[1], "row_bytes": DIM * 4}
    for method in METHODS:
        found[method] = ways(store, method, unit(queries) if method == "retrac" else queries)
    return found


def ways(store: Store, method: str, queries: np.ndarray) -> dict[str, Any]:
    """Seconds of a single query, bytes and recall of each way, and shares of the bandwidth measured beside it."""
    opened, blocks = Index(store, None, "cpu"), queries[:, None, None]
    vectors = search_vectors(blocks, store.recipe)

    def hits(index: SearchIndex, number: int) -> list[int]:
        proposed = index.candidates(vectors[number][None], K)
        assert proposed is not None
        return [hit.row for hit in opened._hits(blocks[number][None], K, method, None, False, 1, proposed)[0]]

    def scan_store() -> None:
        scan_both_ends(store, blocks[:1], method, None, K)

    flat = build_index(store, method, FLAT)
    truth = [hits(flat, number) for number in range(len(blocks))]
    size = sum(part["bytes"] for part in flat.facts["files"])
    read = seconds_to_read_memory(size)
    seconds = median(lambda number: flat.candidates(vectors[number][None], K))
    found = {"in memory": {"bytes": size, "seconds": seconds, "of_bandwidth": read / seconds, "recall_at_10": 1.0}}
    assert isinstance(store.place, Disk)
    files = [store.place.path / f"unnormalized/{shard_key('unnormalized', 0, each.number)}" for each in store.shards()]
    for name, cold in (("from the store, cached", False), ("from the store", True)):
        times = [[timed(files, way, cold) for way in (partial(read_files, files), scan_store)] for _ in range(3)]
        read, seconds = (float(np.median(way)) for way in zip(*times, strict=True))
        found[name] = {"bytes": 0, "seconds": seconds, "of_bandwidth": read / seconds, "recall_at_10": 1.0}
    for factory in CODES:
        index = build_index(store, method, factory)
        right = [len({*hits(index, number)} & {*true}) / K for number, true in enumerate(truth)]
        found[factory] = {
            "bytes": sum(part["bytes"] for part in index.facts["files"]),
            "seconds": median(partial(hits, index)),
            "recall_at_10": float(np.mean(right)),
            "measured_by_itself": index.facts["recall_at_10"],
            "candidates": index.facts["candidates"],
        }
    return found


def median(search: Callable[[int], Any]) -> float:
    """Seconds of one call; the first does not count."""
    times = []
    for number in range(TIMED + 1):
        began = time.perf_counter()
        search(number)
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:]))


def timed(files: Sequence[Path], way: Callable[[], None], cold: bool) -> float:
    """Seconds of one call, with the files in the page cache or, cold, not."""
    for file in files if cold else ():
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


def read_files(files: Sequence[Path]) -> None:
    """Every byte of the files, in order, in as many threads as a scan has: what the disk can give."""
    buffers, size = threading.local(), files[0].stat().st_size

    def read(file: Path) -> None:
        if not hasattr(buffers, "mine"):
            buffers.mine = bytearray(size)
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffers.mine):
                pass

    for _ in ahead(read, files, THREADS):
        pass


def seconds_to_read_memory(size: int) -> float:
    """The least that it takes to read so many bytes of memory, with all threads: a sum over them."""
    numbers = torch.ones(min(size, 4 << 30) // 4)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        numbers.sum()
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * size / (numbers.numel() * 4)


def page(results: dict[str, Any]) -> str:
    """The table and what it is of."""
    rows = [
        {
            "pictures": size["pictures"],
            "method": method,
            "way": way,
            "memory": facts["bytes"] / size[method]["in memory"]["bytes"],
            "times faster": size[method]["in memory"]["seconds"] / facts["seconds"],
            "of the read bandwidth": facts.get("of_bandwidth"),
            "candidates": facts.get("candidates"),
            "recall@10": facts["recall_at_10"],
        }
        for size in results.values()
        for method in METHODS
        for way, facts in size[method].items()
    ]
    return f"""# Search, exact and not

One query after the other, exact scores of 10 hits, both cores. The first {REAL:,} pictures are real: gradients of a
small DDPM (0.7 M parameters) over Fashion-MNIST, one timestep, {DIM:,} numbers each, and the queries are real too. The
other stores hold rows drawn after them: mean, principal directions and the distribution of every coordinate are those
of the real unit rows, the {JOINT} strongest coordinates and the norm are drawn together; {ASKED} queries, drawn alike,
are in no store.

*In memory* is FAISS's flat index of float32 rows; memory and speed of the others are relative to it, in the same run.
*From the store* reads every row from disk (its cache emptied, or all in it) and is exact without any index. The
bandwidth is that of reading the same bytes and doing nothing else, measured in between. Codes are searched first, and
as many candidates as the index has measured to need are then scored exactly from the store.

{record.table(rows)}"""

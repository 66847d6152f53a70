"""What making the search files of a store takes: `tools/bench index`.

All names in one pass over the rows, directions from a randomized SVD; and, side by side, a pass for
each name and each factory that is tried, with FAISS's own training.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import record
from whiten import recipe_of_digits

from gradindex import GradindexError
from gradindex.search import ann_builder, ann_making
from gradindex.search.ann_builder import build_ann_index, build_ann_indexes
from gradindex.search.ann_index import INDEX_NAMES, AnnIndex
from gradindex.search.ann_making import GOAL
from gradindex.search.scoring import METHODS
from gradindex.search.whitening import Whitening
from gradindex.store.store import Store

SIZES = {"published": (20_000, 4, 512), "wide": (70_000, 10, 4096)}  # pictures, timesteps, numbers
BEFORE = ("PCA64,SQfp16", "PCA256,SQfp16", "HR,RaBitQ4", "store")  # tried one after the other
ONE_PASS, MANY = "one pass for all", "a pass for each"


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/index.json and .md.

    Args:
        only: another of SIZES, or numbers of pictures, timesteps and numbers in a row; nothing is
            published then.
    """
    pictures, timesteps, dim = _size(only)
    store = drawn_store(work / f"index-{pictures}-{timesteps}-{dim}", pictures, timesteps, dim)
    results = {"pictures": pictures, "timesteps": timesteps, "dim": dim, **measure(store)}
    text = page(results)
    print(text)
    if not only:
        record.save("index", device, "tools/bench index", results, text)


def _size(only: list[str]) -> tuple[int, int, int]:
    if not only:
        return SIZES["published"]
    if only[0] in SIZES:
        return SIZES[only[0]]
    pictures, timesteps, dim = map(int, only)
    return pictures, timesteps, dim


def drawn_store(folder: Path, pictures: int, timesteps: int, dim: int) -> Store:
    """Return a store of random rows; an unfinished one is gone on with.

    Like gradients they share a direction, have a few strong directions and uneven norms.
    """
    try:
        store = Store(folder)
    except GradindexError:
        recipe = recipe_of_digits(folder.with_name(folder.name + "-digits"), timesteps, dim)
        ids = [f"{row:06d}" for row in range(pictures)]
        store = Store.create(folder, recipe, ids, weights=[1.0])
    strengths = np.arange(1, dim + 1, dtype=np.float32) ** -0.7
    for shard in store.missing():
        random = np.random.default_rng(shard.number)
        count = shard.stop - shard.start
        picture = random.standard_normal((count, 1, dim), np.float32)
        rows = random.standard_normal((count, timesteps, dim), np.float32) + 2 * picture
        rows = rows * strengths + 2 * np.eye(1, dim, dtype=np.float32)
        rows *= random.lognormal(sigma=0.5, size=(count, 1, 1)).astype(np.float32)
        store.write(shard, rows, np.zeros(rows.shape[:2], np.float32))
    store.finish()
    return Store.finished(folder)


def measure(store: Store) -> dict[str, Any]:
    """Make the search files in both ways, the factors once before."""
    for method in METHODS:
        Whitening(store, method)
    ways: dict[str, Callable[[Store], Mapping[str, AnnIndex]]] = {
        MANY: one_by_one,
        ONE_PASS: lambda store: build_ann_indexes(store, INDEX_NAMES),
    }
    results = {}
    with mock.patch.object(ann_builder, "FLAT_BYTES", 0):  # as of a larger set
        for way, make in ways.items():
            with counted_reads(store) as reads:
                began = time.perf_counter()
                indexes = make(store)
                seconds = time.perf_counter() - began
            results[way] = {
                "seconds": seconds,
                "passes": sum(reads) / np.prod(store.shape) / 4,
                "indexes": {name: _facts(index) for name, index in indexes.items()},
            }
    return results


def one_by_one(store: Store) -> dict[str, AnnIndex]:
    """Make one index after the other: each factory from the store, trained by FAISS."""
    indexes = {}
    with mock.patch.object(ann_making, "train", _train_by_faiss):
        for name in INDEX_NAMES:
            for factory in BEFORE:
                indexes[name] = build_ann_index(store, name, factory)
                if indexes[name].record.recall_at_10 >= GOAL:
                    break
    return indexes


def _train_by_faiss(faiss_index: Any, factory: str, sample: np.ndarray) -> None:
    """Train as FAISS does, on the sample and its mirror image: no mean is taken off."""
    both = np.concatenate([sample, -sample]) if factory.startswith("PCA") else sample
    faiss_index.train(both)


@contextmanager
def counted_reads(store: Store) -> Iterator[list[int]]:
    """Meanwhile, note the bytes of the rows that are read from a store, as float32."""
    reads: list[int] = []
    pieces = store.pieces

    def counting(name: str, *args: Any) -> Iterator[np.ndarray]:
        for piece in pieces(name, *args):
            if name == "unnormalized":
                reads.append(4 * piece.size)
            yield piece

    with mock.patch.object(store, "pieces", counting):
        yield reads


def _facts(index: AnnIndex) -> dict[str, Any]:
    facts = index.record
    return {
        "factory": facts.factory,
        "candidates": facts.candidates,
        "recall_at_10": facts.recall_at_10,
        "bytes": sum(part.bytes for part in facts.files),
    }


def page(results: Mapping[str, Any]) -> str:
    """Return the tables and what they are of."""
    one_pass = results[ONE_PASS]
    ways, indexes = [], []
    for way in (ONE_PASS, MANY):
        measured = results[way]
        ways.append(
            {
                "way": way,
                "time": measured["seconds"] / one_pass["seconds"],
                "passes over the rows": measured["passes"],
            }
        )
        for name, facts in measured["indexes"].items():
            indexes.append(
                {
                    "index": name,
                    "way": way,
                    "factory": facts["factory"],
                    "candidates": facts["candidates"],
                    "recall@10": facts["recall_at_10"],
                }
            )
    return record.fill_page(
        "index",
        pictures=results["pictures"],
        timesteps=results["timesteps"],
        dim=results["dim"],
        ways=record.table(ways),
        indexes=record.table(indexes),
    )

"""What a small set takes after its gradients: `tools/bench small`.

Fewer pictures than numbers in a row: without factors and search files, and with both, side by side.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import record
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from digit_indexes import write_digits
from trained_models import untrained_model

import gradindex
from gradindex.builder import build as build_module
from gradindex.search.ann_builder import build_ann_index
from gradindex.search.ann_index import INDEX_NAMES
from gradindex.search.ann_record import FLAT
from gradindex.search.ranker import Ranker
from gradindex.search.scoring import METHODS
from gradindex.store.arrays import ROW_ARRAYS
from gradindex.store.store import Store

PICTURES, TIMESTEPS, DIM = 300, 10, 4096
ROUNDS = 3  # of queries, each in a process of its own
QUERIES = 8  # whose scores are compared
CHILD = Path(__file__).with_name("small_child.py")
BEFORE, NOW = "factors and files", "rows alone"


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/small.json and .md.

    Args:
        only: another number of pictures; nothing is published then.
    """
    count = int(only[0]) if only else PICTURES
    folder = work / "small"
    shutil.rmtree(folder, ignore_errors=True)
    results = measure(folder, count)
    text = page(results)
    print(text)
    if not only:
        record.save("small", device, "tools/bench small", results, text)


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Build an index of digits, a copy with factors and search files, and ask both."""
    model = folder / "model"
    DDPMPipeline(untrained_model("small", "cpu"), DDPMScheduler()).save_pretrained(model)
    (query,) = write_digits(folder / "query", [count])
    places = {NOW: folder / "now", BEFORE: folder / "before"}
    after: dict[str, float] = {}
    whole, after[NOW] = build(places[NOW], model, write_digits(folder / "data", range(count)))
    shutil.copytree(places[NOW], places[BEFORE])
    began = time.perf_counter()
    with_factors(Store.finished(places[BEFORE]))
    after[BEFORE] = time.perf_counter() - began
    results: dict[str, Any] = {
        "pictures": count,
        "timesteps": TIMESTEPS,
        "dim": DIM,
        "gradients": whole - after[NOW],
        "scores": score_difference(*(Store.finished(place) for place in places.values())),
    }
    queries = query_seconds(places, model, query)
    for way, place in places.items():
        rows, others = bytes_of(place)
        results[way] = {
            "after": after[way],
            "bytes": others,
            "rows": rows,
            "query": queries[way],
            "loading": queries["loading"],
        }
    return results


def build(place: Path, model: Path, pictures: list[Path]) -> tuple[float, float]:
    """Build an index; return the seconds of all of it and of what followed the gradients."""
    spent = []
    finish = build_module._finish

    def timed(*args: Any) -> None:
        began = time.perf_counter()
        finish(*args)
        spent.append(time.perf_counter() - began)

    began = time.perf_counter()
    with mock.patch.object(build_module, "_finish", timed):
        gradindex.build(
            place,
            model=model,
            data=pictures[0].parent,
            timesteps=TIMESTEPS,
            dim=DIM,
            device="cpu",
        )
    return time.perf_counter() - began, spent[0]


def with_factors(store: Store) -> None:
    """Make what an index of more pictures than numbers in a row has: D × D factors, all files."""
    for name in INDEX_NAMES:
        build_ann_index(store, name, FLAT)


def score_difference(now: Store, before: Store) -> float:
    """The largest difference of whitened scores, as a share of the largest score of a query."""
    random = np.random.default_rng(0)
    rows = random.choice(now.shape[1], QUERIES, replace=False)
    block = now.read("unnormalized", 0, np.sort(rows))[:, None]
    block = block + np.roll(block, 1, axis=0)
    differences = []
    for method in METHODS:
        scores = []
        for store in (now, before):
            ranker = Ranker(store, "cpu")
            scores.append(ranker.scores(method, ranker.whitened(method, block)))
        largest = np.abs(scores[1]).max(1, keepdims=True)
        differences.append(float((np.abs(scores[0] - scores[1]) / largest).max()))
    return max(differences)


def query_seconds(places: Mapping[str, Path], model: Path, query: Path) -> dict[str, Any]:
    """Seconds of a first query of each index, and of importing and loading alone; medians.

    Each in a process of its own, one after the other, in ROUNDS rounds.
    """
    found: dict[str, list[Any]] = {"loading": [], **{way: [] for way in places}}
    bytecode = model.parent / "bytecode"
    for place in places.values():  # compiles what an installed package has compiled
        _in_process(bytecode, "query", place, query)
    for _ in range(ROUNDS):
        found["loading"].append(_in_process(bytecode, "load", model)["seconds"])
        for way, place in places.items():
            found[way].append(_in_process(bytecode, "query", place, query))
    medians: dict[str, Any] = {"loading": float(np.median(found["loading"]))}
    for way in places:
        parts = {part: [answer[part] for answer in found[way]] for part in found[way][0]}
        medians[way] = {part: float(np.median(seconds)) for part, seconds in parts.items()}
    return medians


def _in_process(bytecode: Path, *arguments: object) -> dict[str, float]:
    """What small_child.py measures with these arguments.

    Args:
        bytecode: folder of compiled modules.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    threads = str(torch.get_num_threads())
    command = [sys.executable, str(CHILD), threads, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def bytes_of(place: Path) -> tuple[int, int]:
    """The bytes of an index's rows, and of whitening factors and search files."""
    store = Store(place)
    sizes = {"rows": 0, "others": 0}
    for name, size, _ in store.location.files():
        folder = name.partition("/")[0]
        if folder in ROW_ARRAYS:
            sizes["rows"] += size
        elif folder in ("whiten", "faiss"):
            sizes["others"] += size
    return sizes["rows"], sizes["others"]


def page(results: Mapping[str, Any]) -> str:
    """Return the table and what it is of."""
    rows = []
    for way in (NOW, BEFORE):
        measured = results[way]
        query = measured["query"]
        least = measured["loading"] + query["gradients"]
        rows.append(
            {
                "way": way,
                "time after the gradients": f"{measured['after'] / results['gradients']:.2%}",
                "bytes beside the rows": f"{measured['bytes'] / measured['rows']:.2%}",
                "first query": f"{query['whole'] / least:.2f}",
                "search": f"{query['search'] / query['gradients']:.2f}",
            }
        )
    return record.fill_page(
        "small",
        pictures=results["pictures"],
        timesteps=results["timesteps"],
        dim=results["dim"],
        scores=f"{results['scores']:.1g}",
        rounds=ROUNDS,
        rows=record.table(rows),
    )

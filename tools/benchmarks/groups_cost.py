"""What groups cost a query of many pictures, beside an exact scan of the store."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import record
from drawn_rows import TIMESTEP, RowDistribution, drawn_store
from seeded_models import SeededModel

import gradindex
from gradindex.search.group_scores import group_scores
from gradindex.search.grouping import Grouping
from gradindex.search.scoring import scan_both_ends

PICTURES, GROUPS, DIM = 100_000, 20, 4096
QUERIES, BEST, RUNS = 4, 10, 3


def groups_cost(folder: Path, model: SeededModel, pictures: int = PICTURES) -> dict[str, Any]:
    """Return what groups of many pictures read and take, in exact scans of the store.

    Args:
        folder: for the stores; model: after whose rows rows are drawn.
    """
    real = gradindex.build(
        folder / "real",
        model=model.checkpoint,
        data=model.folder / "pictures",
        timesteps=[TIMESTEP],
        dim=DIM,
        device="cpu",
    ).store
    distribution = RowDistribution.of(real, joint=32)
    store = drawn_store(folder / f"drawn-{pictures}", real, distribution, pictures)
    random = np.random.default_rng(0)
    block = random.standard_normal((QUERIES, 1, 1, DIM), np.float32)
    names = [f"group {number}" for number in range(GROUPS)]
    groups = Grouping(names, random.integers(GROUPS, size=pictures))

    def scan() -> None:
        scan_both_ends(store, block, "retrac", None, BEST)

    def ask() -> None:
        group_scores(store, block, "retrac", None, groups)

    scan()  # what is read once is read before
    costs = [(*_cost(scan), *_cost(ask)) for _ in range(RUNS)]
    return {
        "pictures": pictures,
        "groups": GROUPS,
        "queries": QUERIES,
        "dim": DIM,
        "bytes": statistics.median(of_groups / of_scan for of_scan, _, of_groups, _ in costs),
        "time": statistics.median(of_groups / of_scan for _, of_scan, _, of_groups in costs),
    }


def _cost(work: Callable[[], None]) -> tuple[int, float]:
    """The bytes that some work reads, and its seconds."""
    before, began = record.bytes_read(), time.perf_counter()
    work()
    return record.bytes_read() - before, time.perf_counter() - began

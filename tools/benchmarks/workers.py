"""What a second worker saves: `tools/bench workers`.

The same build on Ray clusters of one CPU and of two.
"""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import record
from picture_sets import write_pictures
from ray import cluster_utils
from replaced_functions import replaced
from trained_models import model_and_pictures

import gradindex
from gradindex.builder.workers import fill_on_cluster

PICTURES, TIMESTEPS, DIM, REPEATS = 4000, 10, 1024, 2


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/workers.json and .md; with `only` write nothing."""
    # Ray's own is 15; then whatever else runs here is in it.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    model, pictures = model_and_pictures("tiny", work)
    data = work / "workers-pictures"
    if not data.exists():
        write_pictures(data, pictures[:PICTURES])
    times: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for workers in [1, 2] * REPEATS:
        seconds = build_seconds(workers, model, data, work / "workers-rows")
        times[workers].append(seconds)
        print(workers, seconds, flush=True)
    one, two = _medians(times[1]), _medians(times[2])
    ratios = {part: two[part] / one[part] for part in one}
    text = page(ratios)
    print(text)
    if not only:
        results = {
            "pictures": PICTURES,
            "timesteps": TIMESTEPS,
            "times": {str(workers): runs for workers, runs in times.items()},
            "ratios": ratios,
        }
        record.save("workers", device, "tools/bench workers", results, text)


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each part's seconds over runs."""
    medians = {}
    for part in runs[0]:
        medians[part] = median([seconds[part] for seconds in runs])
    return medians


def build_seconds(workers: int, model: Path, data: Path, folder: Path) -> dict[str, float]:
    """Return the seconds of a whole build, and of making its shards.

    Making the shards is the workers' start, their set-up and their work.

    Args:
        workers: nodes of the cluster, each with one CPU. folder: of the index, made from nothing.
    """
    shutil.rmtree(folder, ignore_errors=True)
    build = partial(
        gradindex.build,
        folder,
        model=model,
        data=data,
        timesteps=TIMESTEPS,
        dim=DIM,
        device="cpu",
    )
    seconds = {}

    def timed_fill(*arguments: Any, **options: Any) -> None:
        began = time.perf_counter()
        fill_on_cluster(*arguments, **options)
        seconds["making the shards"] = time.perf_counter() - began

    cluster = cluster_utils.Cluster(True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(workers):
            cluster.add_node(num_cpus=1)
        with replaced(fill_on_cluster, timed_fill):
            began = time.perf_counter()
            build(ray=cluster.address)
            return {"whole build": time.perf_counter() - began, **seconds}
    finally:
        cluster.shutdown()


def page(ratios: Mapping[str, float]) -> str:
    """Return the table and what it is of."""
    rows = [
        {"part": part, "time of two workers in that of one": ratio}
        for part, ratio in ratios.items()
    ]
    return record.fill_page(
        "workers",
        pictures=PICTURES,
        timesteps=TIMESTEPS,
        dim=DIM,
        repeats=REPEATS,
        ratios=record.table(rows),
    )

"""What a second worker saves: `tools/bench workers`. The same build on Ray clusters of one CPU and of two."""

import os
import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any

import record
from build import write_pictures
from ray import cluster_utils
from subjects import subject

import gradindex
from gradindex import distributed

COUNT, TIMESTEPS, DIM, REPEATS = 4000, 10, 1024, 2


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/workers.json and .md."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (Ray's own is 15; then whatever else runs here is in it)
    model, pictures = subject("tiny", work)
    data = work / "workers-pictures"
    if not data.exists():
        write_pictures(data, pictures[:COUNT])
    times: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for workers in [1, 2] * REPEATS:
        times[workers].append(timed(workers, model, data, work / "workers-rows"))
        print(workers, times[workers][-1], flush=True)
    one, two = ({part: median(each[part] for each in runs) for part in runs[0]} for runs in times.values())
    results = {"pictures": COUNT, "timesteps": TIMESTEPS, "times": {str(n): runs for n, runs in times.items()}}
    ratios = {part: two[part] / one[part] for part in one}
    text = page(ratios)
    print(text)
    if not only:
        record.save("workers", device, "tools/bench workers", {**results, "ratios": ratios}, text)


def timed(workers: int, model: Path, data: Path, place: Path) -> dict[str, float]:
    """Seconds of a whole build, and of making its shards: the workers' start, their set-up and their work."""
    shutil.rmtree(place, ignore_errors=True)
    cluster = cluster_utils.Cluster(True, head_node_args={"num_cpus": 0})
    seconds, fill = {}, distributed.fill

    def timed_fill(*arguments: Any) -> None:
        began = time.perf_counter()
        fill(*arguments)
        seconds["making the shards"] = time.perf_counter() - began

    try:
        for _ in range(workers):
            cluster.add_node(num_cpus=1)
        distributed.fill = timed_fill
        began = time.perf_counter()
        gradindex.build(place, model=model, data=data, timesteps=TIMESTEPS, dim=DIM, device="cpu", ray=cluster.address)
        return {"whole build": time.perf_counter() - began, **seconds}
    finally:
        distributed.fill = fill
        cluster.shutdown()


def page(ratios: dict[str, float]) -> str:
    """The table and what it is of."""
    rows = [{"part": part, "time of two workers in that of one": ratio} for part, ratio in ratios.items()]
    return f"""# What a second worker saves

{COUNT:,} pictures of Fashion-MNIST, gradients of a small DDPM (0.7 M parameters) at {TIMESTEPS} timesteps × {DIM:,}
numbers, made by `build --ray` on a cluster of one node with one CPU, and of two such nodes on the same machine; medians
of {REPEATS} builds each, one after the other. A worker computes in one thread. The whole build also reads the data set
before, and makes and measures the search files after.

{record.table(rows)}"""

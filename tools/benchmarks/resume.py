"""What going on with an index costs: `tools/bench resume`.

A build that has nothing to do, one that was stopped before its last shard, and one with a picture
more, of stores of two sizes; beside each the same with `--check`, which reads every byte of what is
there, as every build did once.
"""

import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import record
from digit_indexes import save_model, write_digits
from memory import random_gradients

import gradindex
from gradindex.builder import shard_gradients

PICTURES, DIGITS, TIMESTEPS = 4000, 1797, 5  # all of them, and how many are different
DIMS = (128, 1024)
RUNS = 3
WAYS = {"check": True, "now": False}


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/resume.json and .md.

    Args:
        only: other widths of rows.
    """
    part = record.resumable(work / "resume")
    rows = []
    for dim in [int(text) for text in only] or DIMS:
        folder = work / "resume" / f"index-{dim}"
        rows += part(str(dim), partial(measure, folder, dim))
    text = page(rows)
    print(text)
    if not only:
        results = {"pictures": PICTURES, "timesteps": TIMESTEPS, "runs": RUNS, "builds": rows}
        record.save("resume", device, "tools/bench resume", results, text)


def measure(folder: Path, dim: int) -> list[dict[str, Any]]:
    """Return a row for each kind of build that goes on, with rows of so many numbers."""
    shutil.rmtree(folder, ignore_errors=True)
    model = save_model(folder / "model")
    digits = write_digits(folder / "digits", range(DIGITS))
    data = folder / "data"
    data.mkdir()
    for number in range(PICTURES):
        os.link(digits[number % DIGITS], data / f"{number:07d}.png")
    index = folder / "index"

    def build(check: bool) -> gradindex.Index:
        options: dict[str, Any] = {"timesteps": TIMESTEPS, "dim": dim, "batch_size": 64}
        # Gradients are no matter here: random rows come in their place.
        with mock.patch.object(shard_gradients, "launch_gradients", random_gradients):
            return gradindex.build(
                index, model=model, data=data, device="cpu", check=check, **options
            )

    store = build(False).store
    size = record.folder_bytes(index)
    whole = folder / "whole"
    shutil.copytree(index, whole)
    last_entry = store.shards()[-1].entry

    def lay_out() -> None:
        shutil.rmtree(index)
        shutil.copytree(whole, index)

    def nothing() -> None:
        """Leave it as it is."""

    def stop_before_last() -> None:
        (index / last_entry).unlink()

    kinds = {"nothing to do": nothing, "the last shard to make": stop_before_last}
    costs = {kind: _costs(build, prepare) for kind, prepare in kinds.items()}
    os.link(digits[0], data / f"{PICTURES:07d}.png")
    costs["a picture more"] = _costs(build, lay_out)
    return [{"build": kind, "dim": dim, "bytes": size, **cost} for kind, cost in costs.items()]


def _costs(build: Callable[[bool], object], prepare: Callable[[], None]) -> dict[str, float]:
    """Return the seconds and the bytes read of a build, {"seconds check": …}; medians.

    The ways take turns.
    """
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    reads: dict[str, list[int]] = {way: [] for way in WAYS}
    for _ in range(RUNS):
        for way, check in WAYS.items():
            prepare()
            began, before = time.perf_counter(), record.bytes_read()
            build(check)
            seconds[way].append(time.perf_counter() - began)
            reads[way].append(record.bytes_read() - before)
    costs = {f"seconds {way}": statistics.median(values) for way, values in seconds.items()}
    return costs | {f"bytes {way}": statistics.median(values) for way, values in reads.items()}


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as Markdown."""
    cells = [
        {
            "build with": row["build"],
            "numbers in a row": row["dim"],
            "index": f"{row['bytes'] / 1e6:.0f} MB",
            "read by `--check`": f"{row['bytes check'] / 1e6:.1f} MB",
            "read without": f"{row['bytes now'] / 1e6:.1f} MB",
            "time with `--check`": f"{row['seconds check'] / row['seconds now']:.2f}",
        }
        for row in rows
    ]
    return record.fill_page(
        "resume", pictures=PICTURES, timesteps=TIMESTEPS, runs=RUNS, costs=record.table(cells)
    )

"""The memory that commands take at two numbers of pictures: `tools/bench memory`."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import record
from digit_indexes import save_model, write_digits

import gradindex
from gradindex.builder import shard_gradients
from gradindex.gradients.capture import Capture
from gradindex.gradients.events import Events
from gradindex.models.denoiser import Denoiser
from gradindex.recipe import Recipe
from gradindex.store.manifest import Shard

SIZES = (4096, 81920)  # pictures, a factor 20 apart
DIGITS = 1797  # pictures that are different
OPTIONS = {"timesteps": 1, "dim": 1024, "batch_size": 64, "device": "cpu"}
RUNS = 3  # of a command that leaves the index as it was; threads differ in what they hold at once
CODES = "HR,RaBitQfs"
COMMAND = Path(__file__).with_name("memory_child.py")


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/memory.json and .md.

    Args:
        only: other numbers of pictures.
    """
    part = record.resumable(work / "memory")
    sizes = [int(size) for size in only] or SIZES
    peaks = {}
    for size in sizes:
        peaks[size] = part(str(size), partial(measure, work / "memory" / "index", size))
    smallest, largest = peaks[sizes[0]], peaks[sizes[-1]]
    rows = []
    for command in smallest:
        of_sizes = {f"{size:,} pictures": peaks[size][command] for size in sizes}
        ratio = largest[command] / smallest[command]
        rows.append({"command": command, **of_sizes, "ratio": ratio})
    text = page(rows)
    print(text)
    if not only:
        record.save("memory", device, "tools/bench memory", {"unit": "MiB", "commands": rows}, text)


def measure(folder: Path, size: int) -> dict[str, float]:
    """Return the peak memory of each command on an index of `size` pictures, MiB."""
    shutil.rmtree(folder, ignore_errors=True)
    model = save_model(folder / "model")
    digits = write_digits(folder / "digits", range(DIGITS))
    data = folder / "data"
    data.mkdir()
    for number in range(size):
        os.link(digits[number % DIGITS], data / f"{number:07d}.png")
    index = folder / "index"
    last_shard = _build_of_random_rows(index, model, data)
    query = ["query", str(index), str(digits[0])]
    peaks = {}
    for factory in ("auto", CODES):
        remake = ["index", str(index), "--factory", factory]
        peaks[f"index, {factory}"] = peak_memory(remake, RUNS)
        peaks[f"query, {factory}"] = peak_memory(query, RUNS)
    peaks["verify"] = peak_memory(["verify", str(index)], RUNS)
    build = ["build", str(index), "--model", str(model), "--data", str(data)]
    for name, value in OPTIONS.items():
        build += [f"--{name.replace('_', '-')}", str(value)]
    # The search files are those of CODES now, and stay so until they are gone.
    for factory in (CODES, "auto"):
        (index / last_shard.entry).unlink()
        if factory == "auto":
            shutil.rmtree(index / "faiss")
        peaks[f"build, last shard and index, {factory}"] = peak_memory(build)
    return peaks


def _build_of_random_rows(folder: Path, model: Path, data: Path) -> Shard:
    """Build an index of random numbers in place of gradients; return its last shard."""
    with mock.patch.object(shard_gradients, "launch_gradients", random_gradients):
        index = gradindex.build(folder, model=model, data=data, **OPTIONS)
    return index.store.shards()[-1]


def random_gradients(
    denoiser: Denoiser,
    capture: Capture,
    recipe: Recipe,
    events: Events,
    *_: Any,
) -> Callable[[], np.ndarray]:
    """Return what waits for random rows in place of pictures' gradients, [B, T, D] float32."""
    pictures = len(events.names)
    random = np.random.default_rng(pictures)
    shape = pictures, recipe.per_picture, recipe.dim
    return lambda: random.standard_normal(shape, np.float32)


def peak_memory(arguments: Sequence[str], runs: int = 1) -> float:
    """Return the most memory that a command of gradindex has at once, MiB.

    Each run is a process of its own; it is the median of several.
    """
    command = [sys.executable, str(COMMAND), *arguments]
    peaks = []
    for _ in range(runs):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(done.stderr.split("VmHWM:")[1].split()[0]))  # KiB
    return float(np.median(peaks)) / 1024


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as Markdown."""
    return record.fill_page("memory", peaks=record.table([_page_row(row) for row in rows]))


def _page_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with peaks in whole MiB and the ratio with three digits."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if name == "command":
            cells[name] = value
        elif name == "ratio":
            cells[name] = f"{value:.3f}"
        else:
            cells[name] = round(value)
    return cells

"""The memory that commands take at two numbers of pictures, a factor 20 apart: `tools/bench memory`."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import record
from trials import save_model, write_digits

import gradindex
from gradindex import work as work_module

SIZES = (4096, 81920)
DIGITS = 1797  # pictures that are different
OPTIONS = {"timesteps": 1, "dim": 1024, "batch_size": 64, "device": "cpu"}
RUNS = 3  # of a command that leaves the index as it was; threads differ in what they hold at once
CODES = "HR,RaBitQfs"
CHILD = """
import atexit, sys
def peak():
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
atexit.register(peak)  # of this program alone; getrusage counts the one that started it too
from gradindex.cli import main
main()
"""


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/memory.json and .md; `only`: some numbers of pictures."""
    part = record.resumable(work / "memory")
    sizes = [int(size) for size in only] or SIZES
    found = {size: part(str(size), partial(measure, work / "memory" / "index", size)) for size in sizes}
    rows = [
        {"command": command, **{f"{size:,} pictures": found[size][command] for size in sizes},
         "ratio": found[sizes[-1]][command] / found[sizes[0]][command]}
        for command in found[sizes[0]]
    ]  # fmt: skip
    text = page(rows)
    print(text)
    if not only:
        record.save("memory", device, "tools/bench memory", {"unit": "MiB", "commands": rows}, text)


def measure(folder: Path, size: int) -> dict[str, float]:
    """The peak of each command, MiB, on an index of so many pictures."""
    shutil.rmtree(folder, ignore_errors=True)
    model = save_model(folder / "model")
    files = write_digits(folder / "digits", range(DIGITS))
    (folder / "data").mkdir()
    for number in range(size):
        os.link(files[number % DIGITS], folder / "data" / f"{number:07d}.png")
    place = folder / "index"
    with mock.patch.object(work_module, "sample_gradients", random_gradients):
        last = gradindex.build(place, model=model, data=folder / "data", **OPTIONS).store.shards()[-1]  # type: ignore[arg-type]
    query = ["query", str(place), str(files[0])]
    found = {}
    for factory in ("auto", CODES):
        found[f"index, {factory}"] = peak(["index", str(place), "--factory", factory], RUNS)
        found[f"query, {factory}"] = peak(query, RUNS)
    found["verify"] = peak(["verify", str(place)], RUNS)
    options = [word for name, value in {"model": model, "data": folder / "data", **OPTIONS}.items()
               for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    for factory in (CODES, "auto"):  # the search files are those of CODES now, and stay so until they are gone
        (place / last.entry).unlink()
        if factory == "auto":
            shutil.rmtree(place / "faiss")
        found[f"build, last shard and index, {factory}"] = peak(["build", str(place), *options])
    return found


def random_gradients(denoiser: Any, capture: Any, recipe: Any, pictures: np.ndarray, *_: Any, **options: Any) -> Any:
    """In place of real ones, [B, T, D]."""
    random = np.random.default_rng(len(pictures))
    return random.standard_normal((len(pictures), recipe.per_picture, recipe.dim), np.float32)


def peak(words: Sequence[str], runs: int = 1) -> float:
    """The most memory, MiB, that a command has at once, in a process of its own; the median of several runs."""
    command = [sys.executable, "-c", CHILD, *words]
    said = [subprocess.run(command, check=True, capture_output=True, text=True).stderr for _ in range(runs)]
    return float(np.median([int(text.split("VmHWM:")[1].split()[0]) for text in said])) / 1024


TEXT = """# The memory that commands take

The peak of each command in a process of its own, MiB, on two indexes whose numbers of pictures are a factor 20 apart:
one checkpoint, one timestep, D = 1024. The data set is a folder of so many PNG files; the rows are random numbers but
for those of the last shard, which `build` makes, the others being there already. Where the search files do not fit the
rows any more, it makes them anew.

"""
WHY = """

*auto* takes float vectors as long as all of them are within a gigabyte. Their files, of up to 64 MiB, are smaller in
the smaller index, and a query keeps them in memory where all fit into half of what is free: both grow up to that
gigabyte and no further, and from there on *auto* takes codes."""


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    shown = [{name: f"{value:.3f}" if name == "ratio" else round(value) for name, value in row.items()
              if name != "command"} for row in rows]  # fmt: skip
    return (
        TEXT
        + record.table([{"command": row["command"], **cells} for row, cells in zip(rows, shown, strict=True)])
        + WHY
    )

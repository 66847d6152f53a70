"""What whitening takes: `tools/bench whiten`. Its memory, and its time in passes over the store."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import record
from digit_indexes import save_model, write_digits

import gradindex
from gradindex import GradindexError
from gradindex.recipe import Recipe
from gradindex.store.store import Store

PICTURES, TIMESTEPS, DIM = 100_000, 10, 4096
MEASURE = Path(__file__).with_name("whiten_child.py")


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/whiten.json and .md.

    Args:
        only: another number of pictures.
    """
    count = int(only[0]) if only else PICTURES
    folder = work / f"whiten-{count}"
    store = random_store(folder, count)
    for file in (folder / "whiten").glob("*"):
        file.unlink()
    command = [sys.executable, str(MEASURE), str(store.location)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured = json.loads(done.stdout)
    results = {"pictures": count, "timesteps": TIMESTEPS, "dim": DIM, **measured}
    text = page(results)
    print(text)
    if not only:
        record.save("whiten", device, "tools/bench whiten", results, text)


def random_store(folder: Path, count: int) -> Store:
    """Return a store of random rows; an unfinished one is gone on with."""
    try:
        store = Store(folder)
    except GradindexError:
        ids = [f"{row:06d}" for row in range(count)]
        recipe = recipe_of_digits(folder.with_name(folder.name + "-digits"), TIMESTEPS, DIM)
        store = Store.create(folder, recipe, ids, weights=[1.0])
    for shard in store.missing():
        random = np.random.default_rng(shard.number)
        rows = random.standard_normal((shard.stop - shard.start, TIMESTEPS, DIM), np.float32)
        store.write(shard, rows, np.zeros(rows.shape[:2], np.float32))
    store.finish()
    return Store.finished(folder)


def recipe_of_digits(folder: Path, timesteps: int, dim: int) -> Recipe:
    """Return the recipe of an index of four digits, which is built now; random rows get it."""
    write_digits(folder / "digits", range(4))
    index = gradindex.build(
        folder / "index",
        model=save_model(folder / "model"),
        data=folder / "digits",
        timesteps=timesteps,
        dim=dim,
        device="cpu",
    )
    return index.store.recipe


def page(results: Mapping[str, Any]) -> str:
    """Return the table and what it is of."""
    one_pass = results["pass"]
    row = {
        "memory of making the factors": f"{results['memory']:,.0f} MiB",
        "their time": f"{results['made'] / one_pass:.1f} passes",
        "whitening a query": f"{results['query'] / one_pass:.2f} passes",
    }
    return record.fill_page(
        "whiten",
        pictures=results["pictures"],
        timesteps=results["timesteps"],
        dim=results["dim"],
        row=record.table([row]),
    )

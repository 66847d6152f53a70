"""What whitening takes: `tools/bench whiten`. Its memory, and its time in passes over the store."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import record
from trials import save_model, write_digits

import gradindex
from gradindex import GradindexError
from gradindex.store import Store

COUNT, TIMESTEPS, DIM = 100_000, 10, 4096
CHILD = """
import json, sys, time
import numpy as np
from gradindex.scoring import scan_both_ends
from gradindex.store import Store
from gradindex.whiten import Whitening

store = Store.finished(sys.argv[1])
block = np.random.default_rng(0).standard_normal((1, 1, store.shape[2], store.shape[3]), np.float32)

def seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

made = seconds(lambda: Whitening(store, "tracin"))
memory = peak()
whitened = seconds(lambda: Whitening(store, "tracin").whitened(block))
scanned = seconds(lambda: scan_both_ends(store, block, "tracin", None, 10))
print(json.dumps({"memory": memory, "memory of all": peak(), "made": made, "query": whitened, "pass": scanned}))
"""


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/whiten.json and .md; `only`: another number of pictures."""
    count = int(only[0]) if only else COUNT
    store = random_store(work / f"whiten-{count}", count)
    for file in (work / f"whiten-{count}/whiten").glob("*"):
        file.unlink()
    output = subprocess.run([sys.executable, "-c", CHILD, str(store.place)], check=True, capture_output=True, text=True)
    found = json.loads(output.stdout)
    results = {"pictures": count, "timesteps": TIMESTEPS, "dim": DIM, **found}
    text = page(results)
    print(text)
    if not only:
        record.save("whiten", device, "tools/bench whiten", results, text)


def random_store(place: Path, count: int) -> Store:
    """A store of random rows; an unfinished one is gone on with."""
    try:
        store = Store(place)
    except GradindexError:
        folder = place.with_name(place.name + "-digits")
        data = write_digits(folder / "digits", range(4))[0].parent
        tiny = gradindex.build(folder / "index", model=save_model(folder / "model"), data=data, timesteps=TIMESTEPS,
                               dim=DIM, device="cpu")  # fmt: skip
        store = Store.create(place, tiny.store.recipe, [f"{row:06d}" for row in range(count)], weights=[1.0])
    for shard in store.missing():
        random = np.random.default_rng(shard.number)
        rows = random.standard_normal((shard.stop - shard.start, TIMESTEPS, DIM), np.float32)
        store.write(shard, rows, np.zeros(rows.shape[:2], np.float32))
    store.finish()
    return Store.finished(place)


def page(found: dict[str, Any]) -> str:
    """The table and what it is of."""
    row = {
        "memory of making the factors": f"{found['memory']:,.0f} MiB",
        "their time": f"{found['made'] / found['pass']:.1f} passes",
        "whitening a query": f"{found['query'] / found['pass']:.2f} passes",
    }
    return f"""# What whitening takes

{found["pictures"]:,} pictures × {found["timesteps"]} timesteps × {found["dim"]:,} random numbers. The factors are made
once, in a process of its own; a pass is an exact scan of the same store.

{record.table([row])}"""

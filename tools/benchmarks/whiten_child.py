"""Measure whitening of the store at argv[1], alone in this process; print the figures as JSON.

Memory in MiB, times in seconds.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gradindex.search.scoring import scan_both_ends
from gradindex.search.whitening import Whitening
from gradindex.store.store import Store


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def peak_memory() -> float:
    """Return the most memory that this process has had so far, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


def main() -> None:
    """Make the factors, whiten a query with them, and scan the store once."""
    store = Store.finished(sys.argv[1])
    random = np.random.default_rng(0)
    block = random.standard_normal((1, 1, *store.shape[2:]), np.float32)
    made = seconds_of(lambda: Whitening(store, "tracin"))
    memory = peak_memory()
    query = seconds_of(lambda: Whitening(store, "tracin").whitened(block))
    scan = seconds_of(lambda: scan_both_ends(store, block, "tracin", None, 10))
    figures = {
        "memory": memory,
        "memory of all": peak_memory(),
        "made": made,
        "query": query,
        "pass": scan,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

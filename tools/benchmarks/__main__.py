"""`tools/bench NAME`: every published figure is made here.

A benchmark is the module of its name, which has `run` and `page`; the other modules are what
benchmarks share or consist of. The words of the pages are in the folder pages.
"""

import argparse
import os
from importlib import import_module
from pathlib import Path

import torch

from gradindex.store.memory import keep_freed_memory

BENCHMARKS = (
    "gradients",
    "build",
    "noise",
    "paper",
    "search",
    "folded",
    "chaos",
    "memory",
    "workers",
    "resume",
    "pipeline",
    "lds",
    "parts",
    "bytes",
    "groups",
    "verdict",
    "attributable",
    "whiten",
    "coverage",
    "lora",
    "emoji",
    "gpu",
    "regions",
    "audit",
    "duplicates",
    "small",
    "index",
)


def main() -> None:
    """Run the benchmark that the command line names."""
    description = "`tools/bench NAME`: every published figure is made here."
    parser = argparse.ArgumentParser(prog="tools/bench", description=description)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument(
        "only", nargs="*", help="some architectures or parts; nothing is published then"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(".bench"), help="where models and exact scores are kept"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as `gradindex build` does
    benchmark = import_module(options.name)
    benchmark.run(options.work.resolve(), options.device, options.only)


if __name__ == "__main__":
    main()

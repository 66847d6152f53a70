"""`tools/bench NAME`: every published figure is made here."""

import argparse
import os
from importlib import import_module
from pathlib import Path

import torch

from gradindex.memory import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__)
    names = ["gradients", "build", "noise", "paper", "search", "folded", "chaos", "memory", "workers", "lds", "whiten"]
    parser.add_argument("name", choices=names)
    parser.add_argument("only", nargs="*", help="some architectures or parts; nothing is published then")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="where models and exact scores are kept")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as `gradindex build` does
    import_module(options.name).run(options.work.resolve(), options.device, options.only)


if __name__ == "__main__":
    main()

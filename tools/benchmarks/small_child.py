"""Seconds of a process that loads a model, or answers one query: prints them as JSON.

Arguments: torch's threads, then `load MODEL`, or `query INDEX PICTURE`.
"""

import json
import sys
import time

BEGAN = time.perf_counter()


def load(model: str) -> dict[str, float]:
    """Import torch and diffusers, and load a model."""
    from diffusers import UNet2DModel

    UNet2DModel.from_pretrained(model, subfolder="unet")
    return {"seconds": time.perf_counter() - BEGAN}


def query(index: str, picture: str) -> dict[str, float]:
    """Answer a query: seconds of all, of its gradients and of its search."""
    import gradindex

    result = gradindex.open(index, device="cpu").query(picture)[0]
    return {"whole": time.perf_counter() - BEGAN, **result.seconds}


def main() -> None:
    """Measure what the command line names."""
    import torch

    threads, name, *arguments = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps({"load": load, "query": query}[name](*arguments)))


if __name__ == "__main__":
    main()

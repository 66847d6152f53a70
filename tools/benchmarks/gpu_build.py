"""A whole build on a GPU beside the bare capture of its batches, its steps, and queries."""

import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import record
import torch
from build import bare_capture, timed
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from gpu_profile import Utilization
from picture_sets import write_pictures
from trained_models import SMALL

import gradindex
from gradindex.builder import build as build_module
from gradindex.builder import continuation, plan, shard_gradients
from gradindex.gradients.batch_size import fitting_batch
from gradindex.models.loading import load_denoiser
from gradindex.store.store import SHARD_ROWS, Store

PICTURES = 12_288  # a multiple of a shard's
ROUNDS = 10
QUERIES = 5
SIZE = 32


def measure(device: str, small: bool) -> dict[str, Any]:
    """`gradindex.build` with its defaults over random pictures, model (a), in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        place, count = Path(folder), 24 if small else PICTURES
        torch.manual_seed(0)
        config = {**SMALL, "block_out_channels": (8, 16, 16)} if small else SMALL
        DDPMPipeline(UNet2DModel(**config), DDPMScheduler()).save_pretrained(place / "model")
        random = np.random.default_rng(0)
        pictures = random.uniform(-1, 1, (count + QUERIES, 1, SIZE, SIZE)).astype(np.float32)
        data = write_pictures(place / "pictures", pictures[:count])
        options = {"timesteps": 2, "dim": 64} if small else {}
        found = build(place / "index", place / "model", data, device, options)
        found["query"] = query(place / "index", pictures[count:], device)
        return {"pictures": count, **found}


def build(
    place: Path,
    model: Path,
    data: Path,
    device: str,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Seconds of the build's steps; its speed beside nothing but captured gradients."""
    spent: dict[str, float] = defaultdict(float)
    steps = [
        (plan, "check_capture"),
        (plan, "fitting_batch"),
        (continuation, "find_high_rank"),
        (build_module, "fill"),
        (build_module, "mend_ann_indexes"),
        (shard_gradients, "launch_gradients"),  # does not wait for the GPU
        # These two in threads of their own, beside the gradients; the first waits for them.
        (shard_gradients, "_shard_rows"),
        (Store, "write"),
        (Store, "finish"),
    ]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with ExitStack() as watched:
        for owner, name in steps:
            function = timed(getattr(owner, name), name, spent)
            watched.enter_context(mock.patch.object(owner, name, function))
        utilization = watched.enter_context(Utilization(device))
        began = time.perf_counter()
        index = gradindex.build(place, model=model, data=data, device=device, **options)
        whole = time.perf_counter() - began
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else None
    recipe, denoiser = index.store.recipe, load_denoiser(model, device=device)
    gradients = index.store.shape[1] * len(recipe.timesteps)
    batch = min(fitting_batch(denoiser, recipe), SHARD_ROWS * len(recipe.timesteps), gradients)
    bare = bare_capture(denoiser, recipe, batch, ROUNDS) * gradients / batch
    return {
        "gradients": gradients,
        "batch": batch,
        "seconds": whole,
        "seconds of steps": dict(spent),
        "seconds of the bare capture": bare,
        "share of the bare capture": bare / whole,
        "share of the bare capture, gradients alone": bare / spent["fill"],
        "gradients a second": gradients / spent["fill"],
        "bytes": record.folder_bytes(place),
        "peak memory": memory,
        "utilization": utilization.mean,
    }


def query(place: Path, pictures: np.ndarray, device: str) -> dict[str, Any]:
    """Seconds of queries of a picture each, whitened and plain; the first also loads the model."""
    found: dict[str, Any] = {}
    for name, whitened in (("whitened", True), ("plain", False)):
        index = gradindex.open(place, device=device)
        times: list[float] = []
        parts: dict[str, list[float]] = defaultdict(list)
        for picture in pictures:
            began = time.perf_counter()
            (result,) = index.query([torch.from_numpy(picture)], whiten=whitened)
            times.append(time.perf_counter() - began)
            for part, seconds in result.seconds.items():
                parts[part].append(seconds)
        later = {part: float(np.median(seconds[1:])) for part, seconds in parts.items()}
        found[name] = {"first": times[0], "later": float(np.median(times[1:])), **later}
    return found

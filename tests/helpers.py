"""What tests of several packages share: the command line in this process, a small store."""

import contextlib
import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from gradindex.cli.main import main
from gradindex.recipe import Recipe
from gradindex.store.manifest import Shard
from gradindex.store.store import Store

RECIPE = Recipe(
    model="UNet2DModel",
    config="c" * 64,
    checkpoints=("a" * 64, "b" * 64),
    scheduler="{}",
    prediction_type="epsilon",
    image=(1, 8, 8),
    classes=None,
    params=None,
    parameter_count=1000,
    dtype="float32",
    timesteps=(50, 500, 950),
    draws=1,
    noise="shared",
    seed=0,
    loss="mse",
    projection="sketch",
    rank=None,
    high_rank=(),
    dim=16,
)

IDS = [f"folder/é{number}.png" for number in range(10)]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object, cwd: Path | None = None) -> Done:
    """What `gradindex ARGUMENTS` does, in this process: a new one takes seconds to load torch."""
    out, errors, status = io.StringIO(), io.StringIO(), 0
    with contextlib.chdir(cwd or "."), redirect_stdout(out), redirect_stderr(errors):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
    return Done(status, out.getvalue(), errors.getvalue())


def rows_of(shard: Shard, scale: float = 1.0) -> np.ndarray:
    generator = np.random.default_rng([shard.checkpoint, shard.number])
    return (generator.standard_normal((shard.stop - shard.start, 3, 16)) * scale).astype(np.float32)


def fill(store: Store, shards: list[Shard] | None = None, scale: float = 1.0) -> Store:
    for shard in store.shards() if shards is None else shards:
        timestep = np.tile(np.float32([50, 500, 950]), (shard.stop - shard.start, 1))
        store.write(shard, rows_of(shard, scale), timestep)
    return store


def drawing(seed: int) -> Image.Image:
    """Three discs of random colours, of 32 pixels a side."""
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (32, 32), tuple(random.integers(0, 256, 3).tolist()))
    for _ in range(3):
        x, y, side = random.integers(0, 20), random.integers(0, 20), random.integers(6, 16)
        colour = tuple(random.integers(0, 256, 3).tolist())
        ImageDraw.Draw(picture).ellipse([x, y, x + side, y + side], fill=colour)
    return picture


def write_drawings(folder: Path, count: int) -> Path:
    """Write the drawings of seeds 0 … count − 1 as 000.png, …; return the folder."""
    folder.mkdir()
    for seed in range(count):
        drawing(seed).save(folder / f"{seed:03d}.png")
    return folder

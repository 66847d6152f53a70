"""How busy a build keeps a GPU: `tools/bench pipeline`.

A simulated GPU takes the time that an H100 would; see simulated_device.py.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import record
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from ray import cluster_utils
from simulated_device import batches_of, shares, simulated

import gradindex
from gradindex.builder import build as build_module
from gradindex.store.store import Store

PICTURES, SIZE, BATCH, TIMESTEPS = 20480, 64, 512, 10
SPEED = 4500  # gradients a second, of an H100 at 35 M parameters
RUNS = {
    "alone": {},
    "alone, own noise": {"noise": "own"},
    "a Ray worker": {"ray": True},
}


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/pipeline.json and .md.

    Args:
        only: another number of pictures.
    """
    pictures = int(only[0]) if only else PICTURES
    folder = work / "pipeline"
    model = save_model(folder / "model")
    data = write_pictures(folder / f"pictures-{pictures}", pictures)
    rows = []
    for name, options in RUNS.items():
        rows.append({"build": name, **measure(folder / "run", model, data, **options)})
        print(rows[-1], flush=True)
    text = page(rows, pictures)
    print(text)
    if not only:
        results = {"pictures": PICTURES, "side": SIZE, "batch": BATCH, "speed": SPEED}
        record.save("pipeline", device, "tools/bench pipeline", {**results, "shares": rows}, text)


def save_model(folder: Path) -> Path:
    """Write a small DDPM of colour pictures, whose gradients are not taken; return its folder."""
    unet = UNet2DModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder


def write_pictures(folder: Path, count: int) -> Path:
    """Write PNG files as large as photographs of their size, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(len(list(folder.iterdir())), count):
        coarse = Image.fromarray(random.integers(0, 256, (16, 16, 3)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.int16)
        grain = random.integers(-8, 9, smooth.shape)
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")
    return folder


def measure(
    folder: Path, model: Path, data: Path, ray: bool = False, **options: Any
) -> dict[str, float]:
    """Return the shares of a build's time in which the simulated device was busy.

    Args:
        ray: whether a worker of a Ray cluster makes the rows.
    """
    shutil.rmtree(folder, ignore_errors=True)
    log, seconds = folder / "log", {}

    def timed(make: Callable[..., None], *arguments: Any) -> None:
        began = time.monotonic()
        make(*arguments)
        seconds["rows"] = time.monotonic() - began

    with simulated(SPEED, log), one_node(ray) as address:
        fill, fill_with_ray = build_module.fill, build_module._fill_with_ray
        with (
            mock.patch.object(build_module, "fill", partial(timed, fill)),
            mock.patch.object(build_module, "_fill_with_ray", partial(timed, fill_with_ray)),
            # The search files are no matter here.
            mock.patch.object(build_module, "_finish", lambda store, *_: Store.finish(store)),
        ):
            gradindex.build(
                folder / "index",
                model=model,
                data=data,
                device="cpu",
                timesteps=TIMESTEPS,
                batch_size=BATCH,
                ray=address,
                **options,
            )
    return dict(shares(batches_of(log), seconds["rows"]))


@contextmanager
def one_node(wanted: bool) -> Iterator[str | None]:
    """Run a Ray cluster with one CPU for workers, if wanted, and give its address, or None."""
    if not wanted:
        yield None
        return
    here = str(Path(__file__).parent)  # so that a worker finds simulated_device.py
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 — Ray's own is 15
    cluster = cluster_utils.Cluster(True, head_node_args={"num_cpus": 0})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


def page(rows: list[Mapping[str, Any]], pictures: int) -> str:
    """Return the shares as Markdown."""
    cells = [
        {name: value if name == "build" else f"{value:.3f}" for name, value in row.items()}
        for row in rows
    ]
    return record.fill_page(
        "pipeline",
        pictures=pictures,
        side=SIZE,
        batch=BATCH,
        speed=SPEED,
        shares=record.table(cells),
    )

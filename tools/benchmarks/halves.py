"""Models that were trained again: on random halves of the pictures, and without some. What scores are held against."""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from build import write_pictures
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from subjects import TINY, batches, fashion_mnist, halved, train

from gradindex.denoiser import Denoiser
from gradindex.gradients.rows import mean_losses
from gradindex.place import sha256
from gradindex.recipe import grid

CONFIG = {**TINY, "block_out_channels": (24, 48)}  # 0.4 M parameters
PICTURES, ASKED = 500, 64  # trained on; validation pictures, and generated ones
STEPS, BATCH, RATE = 700, 48, 1e-3
SUBSETS, SEEDS, CHECKPOINTS = 64, 2, 4
TIMESTEPS, DRAWS = 50, 2  # of a true loss
WHOLE = 10_000  # seed of the model that was trained on all pictures
NOISE_SEED = 1000  # unlike any that rows are made with


def pictures(work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Those trained on and those for validation, [N, 1, 16, 16] float32."""
    every = halved(fashion_mnist(work)[: PICTURES + ASKED])
    every = ((every + 1) * 127.5).round() / 127.5 - 1  # as in a PNG
    return every[:PICTURES], every[PICTURES:]


def subsets() -> np.ndarray:
    """Which half of the pictures each model is trained on, [SUBSETS, PICTURES] bool."""
    random = np.random.default_rng(0)
    return np.stack([random.permutation(PICTURES) < PICTURES // 2 for _ in range(SUBSETS)])


def new_pipeline(seed: int) -> DDPMPipeline:
    torch.manual_seed(seed)
    return DDPMPipeline(UNet2DModel(**CONFIG), DDPMScheduler())


def trained(data: np.ndarray, seed: int, folders: Sequence[Path] = ()) -> UNet2DModel:
    """A model trained on some pictures; saved at equal distances into `folders`, if there are any."""
    pipeline = new_pipeline(seed)

    def save(step: int) -> None:
        if folders and step % (STEPS // len(folders)) == 0:
            pipeline.save_pretrained(folders[step // (STEPS // len(folders)) - 1])

    train(pipeline, data, STEPS, "half", BATCH, rate=RATE, decay=True, seed=seed, after=save)
    return pipeline.unet


def true_losses(model: UNet2DModel, asked: np.ndarray) -> np.ndarray:
    """The mean loss of each picture over a fine grid, at noise that all pictures share, [Q]."""
    denoiser = Denoiser(model, dict(DDPMScheduler().config), "", "cpu", "float32")
    return mean_losses(denoiser, asked, None, grid(TIMESTEPS, 1000), DRAWS, NOISE_SEED, "mse")


def generated(model: UNet2DModel) -> np.ndarray:
    """Pictures that a model makes, 50 steps each, [ASKED, 1, 16, 16] float32."""
    scheduler, random = DDIMScheduler(), torch.Generator().manual_seed(7)
    x = torch.randn(ASKED, 1, 16, 16, generator=random)
    scheduler.set_timesteps(50)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t).sample, t, x).prev_sample
    return ((x.clamp(-1, 1) + 1) * 127.5).round().numpy() / 127.5 - 1


def whole_model(work: Path) -> list[Path]:
    """The checkpoints of a model that was trained on all pictures."""
    folders = [work / f"checkpoint-{number}" for number in range(CHECKPOINTS)]
    if not folders[-1].exists():
        trained(pictures(work.parent)[0], WHOLE, folders)
    return folders


def training_log(work: Path) -> Path:
    """Which timesteps the whole model was trained on, and when, drawn again: a table for `build --log`."""
    file, checkpoint = work / "training-log.csv", whole_model(work)[-1]
    if not file.exists():
        lines = ["sample_id,timestep,checkpoint"]
        new_pipeline(WHOLE)  # which leaves torch's generator where training began
        for rows, times, _ in batches((PICTURES, 1, 16, 16), STEPS, BATCH, WHOLE):
            lines += [f"{row:05d}.png,{t},{checkpoint}" for row, t in zip(rows, times.tolist(), strict=True)]
        draft = file.with_suffix(".draft")
        draft.write_text("\n".join(lines))
        os.replace(draft, file)
    return file


def picture_folder(work: Path) -> Path:
    """The pictures of the whole model as files."""
    folder = work / "pictures"
    if not folder.exists():
        write_pictures(work / "pictures-draft", pictures(work.parent)[0]).rename(folder)
    return folder


def asked_pictures(work: Path) -> np.ndarray:
    """Validation pictures, then generated ones, [2 · ASKED, 1, 16, 16] float32."""

    def make() -> np.ndarray:
        return generated(UNet2DModel.from_pretrained(whole_model(work)[-1] / "unet"))

    return np.concatenate([pictures(work.parent)[1], kept(work / "generated.npy", make)]).astype(np.float32)


def losses_of(work: Path, subset: int, seed: int) -> np.ndarray:
    """The losses of one model that was trained on a half, [2 · ASKED]; trained now, unless that was done.

    All halves share a seed's initial weights, order of batches and noise, so that less of a difference is chance.
    """

    def make() -> np.ndarray:
        data = pictures(work.parent)[0][subsets()[subset]]
        return true_losses(trained(data, 1 + seed), asked_pictures(work))

    return kept(work / f"losses-{subset:02d}-{seed}.npy", make)


def train_all(work: Path) -> np.ndarray:
    """The losses of every model, [SUBSETS, SEEDS, 2 · ASKED], one process for each core."""
    asked_pictures(work)
    jobs = [(subset, seed) for subset in range(SUBSETS) for seed in range(SEEDS)]
    return np.stack(in_processes(losses_of, work, *zip(*jobs, strict=True))).reshape(SUBSETS, SEEDS, -1)


def losses_without(work: Path, removed: np.ndarray) -> np.ndarray:
    """The losses of a model that was trained without some pictures, [2 · ASKED]."""
    name = sha256(np.sort(removed).tobytes())[:16]

    def make() -> np.ndarray:
        data = np.delete(pictures(work.parent)[0], removed, axis=0)
        return true_losses(trained(data, WHOLE), asked_pictures(work))

    return kept(work / f"without-{name}.npy", make)


def kept(file: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in a file; made now, unless it is there."""
    if not file.exists():
        draft = file.with_suffix(".draft.npy")
        np.save(draft, make())
        os.replace(draft, file)
    return np.load(file)


def in_processes(make: Callable[..., Any], work: Path, *arguments: Iterable[Any]) -> list[Any]:
    """What a function gives for each of some arguments, one process for each core, one thread each."""
    with record.processes(os.cpu_count() or 1) as pool:
        return list(pool.map(partial(make, work), *arguments))

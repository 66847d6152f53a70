"""Training pictures with wrong labels and damaged ones among them, and a model trained on these."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from picture_sets import to_bytes
from PIL import Image
from subset_models import BATCH, CONFIG, RATE
from trained_models import batches

CLASSES = 10
WRONG, CORRUPT = 0.1, 0.05  # shares of all pictures
NOISE = 0.5  # standard deviation of the noise, where pixels go from −1 to 1
SQUARE = 8  # pixels a side of the black square


def with_noise(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a picture with normal noise."""
    noise = random.standard_normal(picture.shape, np.float32)
    return np.clip(picture + NOISE * noise, -1, 1)


def with_square(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a picture with a black square, which lies within two pixels of the middle."""
    top, left = random.integers(2, 7, 2)
    changed = picture.copy()
    changed[:, top : top + SQUARE, left : left + SQUARE] = -1
    return changed


def inverted(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a picture with white for black."""
    return -picture


DAMAGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "noise": with_noise,
    "black square": with_square,
    "inverted": inverted,
}
WRONG_LABEL = "wrong label"


@dataclass(frozen=True)
class FaultySet:
    """A training set, some of whose pictures have faults.

    Attributes:
        pictures: [N, 1, 16, 16] float32 in [−1, 1]. labels: [N].
        faults: of each picture the name of its fault, "" where it has none, [N].
    """

    pictures: np.ndarray
    labels: np.ndarray
    faults: np.ndarray


def with_faults(pictures: np.ndarray, labels: np.ndarray, seed: int) -> FaultySet:
    """Return pictures with faults at random: a tenth wrong labels, a twentieth damaged.

    No picture has both; damages take turns.
    """
    random = np.random.default_rng(seed)
    pictures, labels = pictures.copy(), labels.astype(np.int64)
    faults = np.full(len(pictures), "", dtype=object)
    order = random.permutation(len(pictures))
    wrong, damaged = round(WRONG * len(order)), round(CORRUPT * len(order))
    for row in order[:wrong]:
        labels[row] = (labels[row] + random.integers(1, CLASSES)) % CLASSES
        faults[row] = WRONG_LABEL
    for number, row in enumerate(order[wrong : wrong + damaged]):
        name = list(DAMAGES)[number % len(DAMAGES)]
        pictures[row] = DAMAGES[name](pictures[row], random)
        faults[row] = name
    return FaultySet(pictures, labels, faults)


def write_classes(folder: Path, pictures: np.ndarray, labels: np.ndarray) -> Path:
    """Write pictures as PNG files into a folder for each class, unless they are there.

    Their ids are such as "3/00012.png". Returns the folder.
    """
    if not folder.exists():
        draft = folder.with_name(f"{folder.name}-draft")
        for number, (picture, label) in enumerate(zip(to_bytes(pictures), labels, strict=True)):
            file = draft / str(label) / f"{number:05d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture[0]).save(file)
        draft.rename(folder)
    return folder


def trained_with_labels(folder: Path, training: FaultySet, steps: int, seed: int) -> Path:
    """Return the folder of a pipeline that is told classes, trained now unless it is there.

    Its UNet is that of `tools/bench lds` with an embedding of ten classes, and is trained likewise.
    """
    if folder.exists():
        return folder
    torch.manual_seed(seed)
    model = UNet2DModel(**CONFIG, num_class_embeds=CLASSES).train()
    scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for rows, t, noise in batches(training.pictures.shape, steps, BATCH, seed):
        noisy = scheduler.add_noise(torch.from_numpy(training.pictures[rows]), noise, t)
        labels = torch.from_numpy(training.labels[rows])
        predicted = model(noisy, t, class_labels=labels).sample
        loss = (predicted - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    draft = folder.with_name(f"{folder.name}-draft")
    DDPMPipeline(model, scheduler).save_pretrained(draft)
    return draft.rename(folder)

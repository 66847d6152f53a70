"""Slow, obvious twins. They share no code with the package but `gradindex.noise`."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline
from PIL import Image

from gradindex import noise


def load(file: Path) -> torch.Tensor:
    """A grey picture, [1, height, width] float32 in [−1, 1]."""
    pixels = np.array(Image.open(file).convert("L"))
    return torch.tensor(pixels, dtype=torch.float32)[None] / 127.5 - 1


def gradient(
    pipeline: DDPMPipeline,
    x: torch.Tensor,
    t: int,
    epsilon: torch.Tensor,
    loss: str,
    label: int | None = None,
) -> np.ndarray:
    """∇θ of one loss, all parameters in a row, float64 from float32 autograd."""
    model, scheduler = pipeline.unet.eval(), pipeline.scheduler
    time = torch.tensor([t])
    noisy = scheduler.add_noise(x[None], epsilon[None], time)
    labels = {} if label is None else {"class_labels": torch.tensor([label])}
    output = model(noisy, time, **labels).sample
    target = {
        "epsilon": epsilon[None],
        "sample": x[None],
        "v_prediction": scheduler.get_velocity(x[None], epsilon[None], time),
    }[scheduler.config.prediction_type]
    losses = {
        "mse": (output - target).square(),
        "l1": (output - target).abs(),
        "mean-square": output.square(),
    }
    value = losses[loss].mean()
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(value, parameters, allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
    return torch.cat([g.flatten() for g in flat]).double().numpy()


def rows(
    pipeline: DDPMPipeline,
    files: Sequence[Path],
    ids: Sequence[str | None],
    timesteps: Sequence[int],
    draws: int,
    seed: int,
    loss: str,
    labels: Sequence[int] | None = None,
) -> np.ndarray:
    """Mean gradient over draws, [files, T, parameters]; an id of None takes the shared noise."""
    table = []
    for number, (file, sample_id) in enumerate(zip(files, ids, strict=True)):
        x = load(file)
        label = None if labels is None else labels[number]
        for t in timesteps:
            gradients = []
            for m in range(draws):
                epsilon = torch.tensor(noise(seed, sample_id, t, m, x.shape))
                gradients.append(gradient(pipeline, x, t, epsilon, loss, label))
            table.append(np.mean(gradients, axis=0))
    return np.stack(table).reshape(len(files), len(timesteps), -1)


def query_id(file: Path) -> str:
    """The id of a queried picture: SHA-256 of its tensor."""
    return hashlib.sha256(load(file).numpy().tobytes()).hexdigest()


def score(
    training: Sequence[np.ndarray],
    queries: Sequence[np.ndarray],
    weights: Sequence[float],
    method: str,
    pairing: str,
) -> np.ndarray:
    """Scores [Q, N] by the formulas, one picture, one query, one timestep at a time."""
    scores = np.zeros((len(queries[0]), len(training[0])))
    for g, q, w in zip(training, queries, weights, strict=True):
        for i in range(g.shape[0]):
            for a in range(q.shape[0]):
                left, right = list(g[i]), list(q[a])
                if method == "retrac":
                    left = [row / np.linalg.norm(row) for row in left]
                    right = [row / np.linalg.norm(row) for row in right]
                if pairing == "matched":
                    products = [row @ other for row, other in zip(left, right, strict=True)]
                    scores[a, i] += w * np.mean(products)
                else:
                    scores[a, i] += w * (np.mean(left, axis=0) @ np.mean(right, axis=0))
    return scores

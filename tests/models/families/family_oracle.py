"""Scores of an index over a pipeline, against a loop of autograd with a training script's loss.

A loss is written as the official training script of the family writes it, by diffusers and
transformers alone: it takes a picture, a caption or label, a timestep and the noise.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import torch
from PIL import Image
from tiny_pipelines import SIDE, captioned_pictures
from torch import Tensor

import gradindex

Loss = Callable[[Tensor, Any, float, Tensor], Tensor]

CAPTIONS = ["a red digit", "digit zero", "the number two by hand"]
PROMPTS = ["a number", "zero and one"]


def read(file: Path) -> Tensor:
    """A colour picture, [1, 3, height, width] float32 in [−1, 1]."""
    pixels = np.array(Image.open(file).convert("RGB"))
    return torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None] / 127.5 - 1


def gradient(model: torch.nn.Module, loss: Tensor) -> np.ndarray:
    """∇θ of one loss, all parameters in a row, float64 from float32 autograd."""
    gradients = torch.autograd.grad(
        loss, list(model.parameters()), allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.flatten() for gradient in gradients]).double().numpy()


def rows(
    model: torch.nn.Module,
    loss: Loss,
    files: Sequence[Path],
    words: Sequence[Any],
    timesteps: Sequence[float],
    latent: tuple[int, int, int],
) -> np.ndarray:
    """The gradient of each picture at each timestep with the shared noise, [files, T, D]."""
    table = []
    for file, word in zip(files, words, strict=True):
        for t in timesteps:
            epsilon = torch.tensor(gradindex.noise(0, None, t, 0, latent))[None]
            table.append(gradient(model, loss(read(file), word, t, epsilon)))
    return np.stack(table).reshape(len(files), len(timesteps), -1)


def check_scores(
    folder: Path,
    pipeline: Path,
    model: torch.nn.Module,
    loss: Loss,
    *,
    latent: tuple[int, int, int] = (4, SIDE // 2, SIDE // 2),
    prompts: Sequence[str] | None = PROMPTS,
    labels: Sequence[int] | None = None,
    **options: Any,
) -> gradindex.Index:
    """Build an index over three pictures and ask it for the scores of two; compare all of them.

    Args:
        folder: an empty one. pipeline: where it was saved. model: that of the oracle.
        loss: see the module.
        latent: the shape of a picture's latent.
        prompts: of the two pictures; None for a model that is given no captions.
        labels: of three pictures, 0, 1 and 2, and then of two, in place of captions.
        options: of the build.
    """
    data = folder / "data"
    if labels is None:
        files = captioned_pictures(data, CAPTIONS)
        words: Sequence[Any] = CAPTIONS
        asked: dict[str, Any] = {} if prompts is None else {"prompt": list(prompts)}
        query_words: Sequence[Any] = prompts or [None, None]
    else:
        files = []
        for label in labels[:3]:
            files += captioned_pictures(data / f"class-{label}", [""], seed=label)
        words, query_words = labels[:3], labels[3:]
        asked = {"class_label": list(query_words)}
    queries = captioned_pictures(folder / "queries", ["", ""], seed=5)
    index = gradindex.build(
        folder / "index",
        model=pipeline,
        data=data,
        projection="none",
        device="cpu",
        **{"timesteps": 2, "resolution": SIDE, **options},
    )
    assert not (folder / "index" / "prepared").exists()  # what only an unfinished build needs
    timesteps = index.store.recipe.timesteps
    model.requires_grad_(True)
    training = rows(model, loss, files, words, timesteps, latent)
    query_rows = rows(model, loss, queries, query_words, timesteps, latent)
    assert np.abs(training).max() > 0
    for method in ("tracin", "retrac"):
        truth = oracles.score([training], [query_rows], [1], method, "matched")
        scores = index.scores(queries, method, whiten=False, **asked)
        np.testing.assert_allclose(scores, truth, rtol=1e-4)
    return index

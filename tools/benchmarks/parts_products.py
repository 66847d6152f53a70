"""Products of exact gradients of every kind of parameters, one timestep and seed at a time.

Scores of any timesteps and any kind come from these alone; see parts_scores.py.
"""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts_kinds import Kinds, kinds_of
from parts_timesteps import draws_at
from subset_models import Subject, query_pictures, training_and_validation, whole_model
from torch import Tensor

from gradindex.gradients.capture import Capture
from gradindex.gradients.projection import Exact
from gradindex.models.denoiser import Denoiser
from gradindex.models.examples import Examples
from gradindex.random_numbers import noise

VERSION = 1  # of what is in the files
SEEDS = (0, 1)  # of the noise
BATCH = 16
MEMORY = 7 * 2**30  # bytes of gradients at once: some of a model's parameters, of all pictures

Products = dict[tuple[int, str], np.ndarray]  # {(draws, kind): [N + Q, N + Q]}


def products_file(folder: Path, subject: Subject, timestep: int, seed: int) -> Path:
    """Return the file with the products at a timestep; made now, unless it is there.

    It has an array "draws kind" [N + Q, N + Q] float32 for each number of draws and kind.
    """
    file = folder / f"parts{VERSION}-{timestep}-{seed}.npz"
    if not file.exists():
        print(file.name, flush=True)
        training, _ = training_and_validation(folder, subject)
        pictures = np.concatenate([training, query_pictures(folder, subject)])
        denoiser = subject.denoiser(subject.trained(whole_model(folder, subject)[-1]))
        examples = subject.examples(pictures.astype(np.float32))
        kinds = kinds_of(denoiser.model)
        products = gradient_products(denoiser, examples, kinds, timestep, seed)
        arrays = {
            f"{draws} {kind}": product.astype(np.float32)
            for (draws, kind), product in products.items()
        }
        draft = file.with_suffix(".draft.npz")
        np.savez(draft, **arrays)
        os.replace(draft, file)
    return file


def read_products(file: Path, draws: int, kind: str) -> np.ndarray:
    """Return the products of a kind, [N + Q, N + Q] float64."""
    with np.load(file) as arrays:
        return arrays[f"{draws} {kind}"].astype(np.float64)


def gradient_products(
    denoiser: Denoiser,
    examples: Examples,
    kinds: Kinds,
    timestep: int,
    seed: int,
    memory: int = MEMORY,
) -> Products:
    """Return the inner products of the examples' gradients, {(draws, kind): [B, B] float64}.

    The gradients are exact, of the mean square error with noise that all share. Those of a
    parameter are multiplied in float32, and its products added up in float64.

    Args:
        examples: B training pictures and queries.
        memory: bytes of gradients that are held at once.
    """
    count = len(examples)
    members = {
        name: [kind for kind, names in kinds.items() if name in names]
        for name in {name for names in kinds.values() for name in names}
    }
    sizes = {
        name: denoiser.model.get_parameter(name).numel()
        for name in denoiser.trainable
        if name in members
    }
    numbers_of_draws = draws_at(timestep)
    products = {
        (draws, kind): np.zeros((count, count), np.float64)
        for draws in numbers_of_draws
        for kind in kinds
    }
    for group in _groups(sizes, memory // (4 * count)):
        exact = Exact({name: sizes[name] for name in group})
        rows = torch.zeros(count, exact.dim)
        with Capture(denoiser.model, group, exact) as capture:
            for draw in range(max(numbers_of_draws)):
                _add_gradients(rows, denoiser, capture, examples, timestep, seed, draw)
                if draw + 1 not in numbers_of_draws:
                    continue
                for name in group:
                    mean = rows[:, exact.slices[name]] / (draw + 1)
                    product = (mean @ mean.T).double().numpy()
                    for kind in members[name]:
                        products[draw + 1, kind] += product
    return products


def _groups(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Parameters in their order, in groups of at most so many numbers, or of one parameter."""
    group: list[str] = []
    for name, size in sizes.items():
        if group and sum(sizes[member] for member in group) + size > most:
            yield group
            group = []
        group.append(name)
    yield group


def _add_gradients(
    rows: Tensor,
    denoiser: Denoiser,
    capture: Capture,
    examples: Examples,
    timestep: int,
    seed: int,
    draw: int,
) -> None:
    """Add the gradients of one draw of the noise into rows [B, D]."""
    for start in range(0, len(rows), BATCH):
        numbers = np.arange(start, min(start + BATCH, len(rows)))
        x, conditions = examples.batch(numbers, denoiser.device)
        epsilon = torch.from_numpy(noise(seed, None, timestep, draw, x.shape[1:]))
        t = torch.full((len(x),), timestep)
        losses: Any = partial(
            denoiser.losses, x, t, epsilon.expand_as(x).contiguous(), conditions, "mse"
        )
        rows[start : start + BATCH] += capture.gradients(losses)

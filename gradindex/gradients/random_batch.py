"""A batch of random pictures, to check a model and to measure its memory before real ones come."""

import torch
from torch import Tensor

from gradindex.models.denoiser import Denoiser
from gradindex.random_numbers import noise
from gradindex.recipe import Recipe, grid


def random_batch(
    denoiser: Denoiser, recipe: Recipe, size: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return random pictures, their timesteps, and class labels if the model takes any.

    Returns:
        pictures [B, channels, height, width] float32 in [−1, 1];
        timesteps [B]: the first of the recipe's grid, or the middle one for recorded timesteps;
        labels [B], all 0, or None.
    """
    device = denoiser.device
    numbers = noise(recipe.seed, "check", 0, 0, (size, *recipe.image))
    pictures = torch.from_numpy(numbers).to(device).clamp(-1, 1)
    timestep, *_ = recipe.timesteps or grid(1, denoiser.num_train_timesteps)
    timesteps = torch.tensor([timestep] * size, device=device)
    if recipe.classes is None:
        return pictures, timesteps, None
    return pictures, timesteps, torch.zeros(size, dtype=torch.long, device=device)

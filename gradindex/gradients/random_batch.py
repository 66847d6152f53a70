"""A batch of random examples, to check a model and to measure its memory before real ones come."""

import torch
from torch import Tensor

from gradindex.gradients.events import timestep_array
from gradindex.models.denoiser import Denoiser
from gradindex.random_numbers import noise
from gradindex.recipe import Recipe


def random_batch(
    denoiser: Denoiser, recipe: Recipe, size: int, image: tuple[int, int, int] | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return random pictures or latents, their timesteps, and the model's other conditions.

    Args:
        image: the shape of a picture or latent; None: the recipe's, with buckets the largest.

    Returns:
        x [B, channels, height, width] float32 in [−1, 1];
        timesteps [B]: the first of the recipe's grid, or the middle one for recorded timesteps;
        conditions {name: [B, …]}: class labels are all 0, other numbers random.
    """
    device = denoiser.device
    image = image or recipe.image
    numbers = noise(recipe.seed, "check", 0, 0, (size, *image))
    pictures = torch.from_numpy(numbers).to(device).clamp(-1, 1)
    timestep = (recipe.timesteps or denoiser.process.grid(1))[0]
    timesteps = torch.from_numpy(timestep_array([timestep] * size)).to(device)
    return pictures, timesteps, denoiser.random_conditions(size, image)

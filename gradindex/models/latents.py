"""What a VAE makes of pictures, as models of latents are trained on it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

VIDEO_CLASSES = ("AutoencoderKLQwenImage", "AutoencoderKLWan")  # a picture is a frame to them


def encode_with(vae: Any, x: Tensor) -> Any:
    """Return what a VAE makes of pictures [B, 3, height, width]: a distribution, or latents."""
    is_video = type(vae).__name__ in VIDEO_CLASSES
    encoded = vae.encode(x.unsqueeze(2) if is_video else x)
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist
    return encoded.latent if hasattr(encoded, "latent") else encoded.latents


def scaled_arrays(config: Any, latents: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return latents as `scale_latents` does, [channels, height, width] float32 each."""
    scaled = (scale_latents(config, torch.from_numpy(latent)[None])[0] for latent in latents)
    return [latent.float().numpy() for latent in scaled]


def scale_latents(config: Any, latents: Tensor) -> Tensor:
    """Return latents as the model was trained on them, [B, channels, height, width].

    `(z − shift) · scale`, or channel by channel `(z − mean) · scale / std` where the VAE's config
    has these; the scale is 1 where it has none. Pipelines do the inverse before they decode.
    """
    if latents.dim() == 5:  # of one frame
        latents = latents.squeeze(2)
    scale = getattr(config, "scaling_factor", None) or 1
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean and std:
        shape = (1, -1, 1, 1)
        centred = latents - latents.new_tensor(mean).view(shape)
        return centred * scale / latents.new_tensor(std).view(shape)
    return (latents - (getattr(config, "shift_factor", None) or 0)) * scale

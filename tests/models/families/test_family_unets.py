"""Families of UNets: scores equal a loop of autograd with the training scripts' losses."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import pytest
import tiny_pipelines
import torch
from family_oracle import Loss, check_scores
from tiny_pipelines import SIDE
from torch import Tensor
from torch.nn.functional import mse_loss


def clip_tokens(tokenizer: Any, caption: str) -> Tensor:
    """A caption as the training scripts give it to CLIP."""
    return tokenizer(
        caption,
        max_length=tokenizer.model_max_length,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    ).input_ids


def scheduler_of(pipeline: Any) -> Any:
    """The scheduler that training takes in place of that for generating."""
    return diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)


def sd_loss(pipeline: Any) -> Loss:
    """As in examples/text_to_image/train_text_to_image.py."""
    scheduler = scheduler_of(pipeline)

    def loss(x: Tensor, caption: str, t: float, noise: Tensor) -> Tensor:
        timesteps = torch.tensor([t]).long()
        with torch.no_grad():
            latents = pipeline.vae.encode(x).latent_dist.mode()
            latents = latents * pipeline.vae.config.scaling_factor
            hidden = pipeline.text_encoder(clip_tokens(pipeline.tokenizer, caption))[0]
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = noise
        if scheduler.config.prediction_type == "v_prediction":
            target = scheduler.get_velocity(latents, noise, timesteps)
        prediction = pipeline.unet(noisy, timesteps, hidden, return_dict=False)[0]
        return mse_loss(prediction, target)

    return loss


def inpainting_loss(pipeline: Any) -> Loss:
    """As in examples/research_projects/dreambooth_inpaint, with a mask over all of the picture."""
    scheduler = scheduler_of(pipeline)

    def loss(x: Tensor, caption: str, t: float, noise: Tensor) -> Tensor:
        timesteps = torch.tensor([t]).long()
        mask = torch.ones(1, 1, *x.shape[2:])
        masked_picture = x * (mask < 0.5)
        scale = pipeline.vae.config.scaling_factor
        with torch.no_grad():
            latents = pipeline.vae.encode(x).latent_dist.mode() * scale
            masked_latents = pipeline.vae.encode(masked_picture).latent_dist.mode() * scale
            hidden = pipeline.text_encoder(clip_tokens(pipeline.tokenizer, caption))[0]
        mask = torch.nn.functional.interpolate(mask, size=latents.shape[2:])
        noisy = scheduler.add_noise(latents, noise, timesteps)
        given = torch.cat([noisy, mask, masked_latents], dim=1)
        return mse_loss(pipeline.unet(given, timesteps, hidden).sample, noise)

    return loss


def sdxl_loss(pipeline: Any, sizes_of: Mapping[str, Sequence[int]] = MappingProxyType({})) -> Loss:
    """As in examples/text_to_image/train_text_to_image_sdxl.py.

    Args:
        sizes_of: original size, top left corner of the crop and size of the crop, by the caption.
    """
    scheduler = scheduler_of(pipeline)

    def loss(x: Tensor, caption: str, t: float, noise: Tensor) -> Tensor:
        timesteps = torch.tensor([t]).long()
        hidden_states = []
        with torch.no_grad():
            latents = pipeline.vae.encode(x).latent_dist.mode()
            latents = latents * pipeline.vae.config.scaling_factor
            for tokenizer, encoder in (
                (pipeline.tokenizer, pipeline.text_encoder),
                (pipeline.tokenizer_2, pipeline.text_encoder_2),
            ):
                output = encoder(clip_tokens(tokenizer, caption), output_hidden_states=True)
                pooled = output[0]  # the last encoder's counts
                hidden_states.append(output.hidden_states[-2])
        whole = [SIDE, SIDE, 0, 0, SIDE, SIDE]
        sizes = torch.tensor([sizes_of.get(caption, whole)], dtype=torch.float32)
        prediction = pipeline.unet(
            scheduler.add_noise(latents, noise, timesteps),
            timesteps,
            torch.cat(hidden_states, dim=-1),
            added_cond_kwargs={"time_ids": sizes, "text_embeds": pooled},
        ).sample
        return mse_loss(prediction, noise)

    return loss


CASES: dict[str, tuple[Callable[[Path], Path], Callable[[Any], Loss]]] = {
    "SD 1": (tiny_pipelines.stable_diffusion, sd_loss),
    "SD 2 with velocities": (
        lambda folder: tiny_pipelines.stable_diffusion(
            folder, "v_prediction", use_linear_projection=True
        ),
        sd_loss,
    ),
    "inpainting": (tiny_pipelines.inpainting, inpainting_loss),
    "SDXL": (tiny_pipelines.sdxl, sdxl_loss),
}


@pytest.mark.parametrize("name", CASES)
def test_scores_equal_a_loop_of_autograd(tmp_path: Path, name: str) -> None:
    make, make_loss = CASES[name]
    folder = make(tmp_path / "pipeline")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    check_scores(tmp_path, folder, pipeline.unet, make_loss(pipeline))


def test_scores_of_ldm_equal_a_loop_of_autograd(tmp_path: Path) -> None:
    folder = tiny_pipelines.ldm(tmp_path / "pipeline")
    pipeline = diffusers.LDMPipeline.from_pretrained(folder)

    def loss(x: Tensor, caption: None, t: float, noise: Tensor) -> Tensor:
        timesteps = torch.tensor([t]).long()
        with torch.no_grad():
            latents = pipeline.vqvae.encode(x).latents * pipeline.vqvae.config.scaling_factor
        noisy = scheduler_of(pipeline).add_noise(latents, noise, timesteps)
        return mse_loss(pipeline.unet(noisy, timesteps).sample, noise)

    latent = (3, SIDE // 2, SIDE // 2)
    check_scores(tmp_path, folder, pipeline.unet, loss, latent=latent, prompts=None)

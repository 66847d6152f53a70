"""LoRAs on the small Stable Diffusion of emoji, trained as diffusers' script does.

Captions of text files beside the pictures, rank 16 on attention, AdamW; the adapter is saved as
`pytorch_lora_weights.safetensors`.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline
from emoji_model import to_pixels, to_tokens
from gpu_models import LORA_TARGETS
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor

STEPS, BATCH, RATE, RANK = 1500, 8, 1e-3, 16
GENERATION_STEPS, GUIDANCE = 30, 4.0


def trained_lora(base: Path, data: Path, folder: Path) -> Path:
    """Return the folder of the LoRA trained on the captioned pictures of a folder; kept there."""
    if folder.exists():
        return folder
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
    unet = pipeline.unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LORA_TARGETS))
    latents, states = encoded(pipeline, sorted(data.glob("*.png")))
    trained = [value for value in unet.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, RATE, weight_decay=1e-2)
    for _ in range(STEPS):
        rows = torch.randint(len(latents), (BATCH,))
        x, noise, t = (
            latents[rows],
            torch.randn(BATCH, *latents.shape[1:]),
            torch.randint(1000, (BATCH,)),
        )
        noisy = pipeline.scheduler.add_noise(x, noise, t)
        F.mse_loss(unet(noisy, t, states[rows]).sample, noise).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    draft = folder.with_name(f"{folder.name}-unfinished")
    weights = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(draft, unet_lora_layers=weights)
    shutil.move(draft, folder)
    return folder


@torch.no_grad()
def encoded(pipeline: Any, files: list[Path]) -> tuple[Tensor, Tensor]:
    """Return latents [N, 4, height, width] and text states [N, 77, width] of captioned pictures."""
    latents = _latents(pipeline, files)
    captions = [file.with_suffix(".txt").read_text(encoding="utf-8") for file in files]
    return latents, text_states(pipeline, captions)


@torch.no_grad()
def text_states(pipeline: Any, captions: list[str]) -> Tensor:
    """Return what the UNet is told of captions, [N, 77, width]."""
    return pipeline.text_encoder(to_tokens(pipeline.tokenizer, captions))[0]


def _latents(pipeline: Any, files: list[Path]) -> Tensor:
    """The scaled mean latents of pictures, [N, 4, height, width]."""
    x = to_pixels([Image.open(file).convert("RGB") for file in files])
    return pipeline.vae.encode(x).latent_dist.mean * pipeline.vae.config.scaling_factor


def generate(base: Path, lora: Path | None, prompts: list[str], folder: Path) -> list[Path]:
    """Return a picture of each prompt, 00.png and so on in a folder, which keeps them."""
    files = [folder / f"{number:02d}.png" for number in range(len(prompts))]
    if folder.exists():
        return files
    pipeline = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    if lora is not None:
        pipeline.load_lora_weights(lora)
    pictures = pipeline(
        prompts,
        num_inference_steps=GENERATION_STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(1),
    ).images
    folder.mkdir(parents=True)
    for file, picture in zip(files, pictures, strict=True):
        picture.save(file)
    return files


@torch.no_grad()
def mid_block_features(base: Path, files: list[Path], t: int = 100) -> np.ndarray:
    """Return the UNet's middle activations of pictures, without caption and noise: [N, channels].

    They are the base model's, means over the picture's places: an embedding for comparison.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
    features = []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        features.append(output.mean((2, 3)).numpy())

    pipeline.unet.mid_block.register_forward_hook(keep)
    empty = text_states(pipeline, [""])
    for start in range(0, len(files), 64):
        part = files[start : start + 64]
        pipeline.unet(_latents(pipeline, part), t, empty.expand(len(part), -1, -1))
    return np.concatenate(features)

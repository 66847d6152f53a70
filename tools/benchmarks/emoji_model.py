"""A text-to-image model of latents, trained here on emoji: a small Stable Diffusion.

A VAE first, then a UNet with its text encoder. Training goes on where it was stopped.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from emoji_pictures import Emoji, clip_tokenizer
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

SIDE = 64  # pixels
VAE_STEPS, STEPS = 1500, 4000
VAE_BATCH, BATCH = 16, 32
KL_WEIGHT = 1e-6
DROPPED_CAPTIONS = 0.1  # share of training samples with an empty caption
SAVED_EVERY = 500  # steps


def untrained_vae() -> AutoencoderKL:
    """Return the VAE: 64×64 pixels to 16×16 latents of 4 channels."""
    return AutoencoderKL(
        sample_size=SIDE,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=8,
    )


def untrained_unet() -> UNet2DConditionModel:
    """Return the UNet of Stable Diffusion 1, made small."""
    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        block_out_channels=(64, 128, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def untrained_text_encoder(vocabulary: int, width: int = 128) -> CLIPTextModel:
    """Return a CLIP text encoder, made small, whose tokens have `width` numbers."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return CLIPTextModel(config)


def trained_pipeline(work: Path, emoji: Sequence[Emoji]) -> Path:
    """Return the folder of the pipeline trained on emoji; trained now unless it is there."""
    folder = work / f"emoji-sd-{VAE_STEPS}-{STEPS}"
    if folder.exists():
        return folder
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    pictures = to_pixels([item.picture for item in emoji]).contiguous()
    tokenizer = clip_tokenizer(work)
    vae = _train_vae(work / "vae.pt", pictures)
    latents, scale = _latents(vae, pictures)
    vae.register_to_config(scaling_factor=scale)
    captions = [item.caption for item in emoji]
    unet, text_encoder = _train_unet(work / "unet.pt", latents * scale, captions, tokenizer)
    pipeline = make_pipeline(vae, text_encoder, tokenizer, unet)
    pipeline.save_pretrained(work / "unfinished")
    shutil.move(work / "unfinished", folder)
    return folder


def make_pipeline(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: Any, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """Return the pipeline of these parts."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def to_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Return RGB pictures of one size in [−1, 1], [N, 3, height, width] float32."""
    pixels = [np.asarray(picture, np.float32) / 127.5 - 1 for picture in pictures]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def _train_vae(file: Path, pictures: Tensor) -> AutoencoderKL:
    """The VAE, trained to give its pictures back, in absolute differences."""
    vae = untrained_vae()
    for batch in _steps(file, vae, len(pictures), VAE_BATCH, VAE_STEPS, 1e-3):
        x = pictures[batch.rows]
        encoded = vae.encode(x).latent_dist
        decoded = vae.decode(encoded.sample()).sample
        batch.loss = F.l1_loss(decoded, x) + KL_WEIGHT * encoded.kl().mean()
    return vae.eval()


@torch.no_grad()
def _latents(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, float]:
    """The mean latents of pictures, and the scale that gives them a variance of one."""
    parts = [vae.encode(part).latent_dist.mean for part in pictures.split(64)]
    latents = torch.cat(parts)
    return latents, round(1 / float(latents.std()), 4)


def _train_unet(
    file: Path, latents: Tensor, captions: Sequence[str], tokenizer: Any
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """UNet and text encoder, trained together to tell the noise."""
    unet, text_encoder = untrained_unet(), untrained_text_encoder(len(tokenizer))
    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    scheduler = _scheduler()
    tokens = to_tokens(tokenizer, captions)
    (empty,) = to_tokens(tokenizer, [""])
    for batch in _steps(file, both, len(latents), BATCH, STEPS, 5e-4):
        x, ids = latents[batch.rows], tokens[batch.rows].clone()
        ids[torch.rand(len(ids)) < DROPPED_CAPTIONS] = empty
        noise, t = torch.randn_like(x), torch.randint(1000, (len(x),))
        states = text_encoder(ids)[0]
        predicted = unet(scheduler.add_noise(x, noise, t), t, states).sample
        batch.loss = F.mse_loss(predicted, noise)
    return unet.eval(), text_encoder.eval()


def _scheduler() -> DDPMScheduler:
    """Stable Diffusion's, whose samples are not clipped."""
    return DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )


def to_tokens(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Return the tokens of captions, [N, 77]."""
    return tokenizer(
        list(captions), padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids


class _Batch:
    """A step of training: the rows to learn from; the loss is set by who learns.

    Attributes:
        rows: numbers of pictures, [B].
        loss: a scalar.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.loss: Tensor = torch.zeros(())


def _steps(
    file: Path, model: nn.Module, pictures: int, batch: int, steps: int, rate: float
) -> Iterator[_Batch]:
    """Yield batches of training; after each the loss that was set is gone down.

    The rate falls to zero with a cosine. Every SAVED_EVERY steps the state is saved, and an earlier
    one is taken up.
    """
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    first = 0
    if file.exists():
        state = torch.load(file)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        first = state["step"]
    for step in range(first, steps):
        learned = _Batch(torch.randint(pictures, (batch,)))
        yield learned
        optimizer.zero_grad()
        learned.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        done = step + 1
        if done % SAVED_EVERY == 0 or done == steps:
            print(
                f"{file.stem} {done} of {steps}: loss {float(learned.loss.detach()):.4f}",
                flush=True,
            )
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "random": torch.get_rng_state(),
                "step": done,
            }
            torch.save(state, file.with_suffix(".draft"))
            file.with_suffix(".draft").rename(file)

"""Families of transformers: scores equal a loop of autograd with the training scripts' losses."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_pipelines
import torch
from family_oracle import check_scores
from tiny_pipelines import SIDE
from torch import Tensor
from torch.nn.functional import mse_loss, pad

FLOAT_GRID = [500.5, 750.25]


def tokens(tokenizer: Any, caption: str, length: int) -> Any:
    return tokenizer(
        [caption], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )


def ddpm(pipeline: Any) -> Any:
    return diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)


def flow_noisy(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """As in the scripts for flow matching, where sigma is the scheduler's for a timestep."""
    sigma = (t / 1000).view(-1, 1, 1, 1)
    return (1.0 - sigma) * latents + sigma * noise


def first_half(output: Tensor, noise: Tensor) -> Tensor:
    """What is left of a prediction without its learned variance."""
    return output.chunk(2, dim=1)[0] if output.shape[1] // 2 == noise.shape[1] else output


@pytest.mark.parametrize("variance", [True, False])
def test_scores_of_dit_equal_a_loop_of_autograd(tmp_path: Path, variance: bool) -> None:
    """As DiT's own training, without the variance's part of the loss."""
    folder = tiny_pipelines.dit(tmp_path / "pipeline", classes=3, variance=variance)
    pipeline = diffusers.DiTPipeline.from_pretrained(folder)
    scheduler = ddpm(pipeline)

    def loss(x: Tensor, label: int, t: float, noise: Tensor) -> Tensor:
        timesteps = torch.tensor([t]).long()
        with torch.no_grad():
            latents = pipeline.vae.encode(x).latent_dist.mode() * 0.18215
        noisy = scheduler.add_noise(latents, noise, timesteps)
        labels = torch.tensor([label])
        output = pipeline.transformer(noisy, timestep=timesteps, class_labels=labels).sample
        return mse_loss(first_half(output, noise), noise)

    check_scores(tmp_path, folder, pipeline.transformer, loss, labels=[0, 1, 2, 2, 0])


@pytest.mark.parametrize("sized", [False, True])
def test_scores_of_pixart_equal_a_loop_of_autograd(tmp_path: Path, sized: bool) -> None:
    """As in examples/research_projects/pixart, without its ControlNet."""
    folder = tiny_pipelines.pixart(tmp_path / "pipeline", sized)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    length = 120 if sized else 300

    def loss(x: Tensor, caption: str, t: float, noise: Tensor) -> Tensor:
        timesteps = torch.tensor([t]).long()
        with torch.no_grad():
            latents = pipeline.vae.encode(x).latent_dist.mode()
            latents = latents * pipeline.vae.config.scaling_factor
            words = tokens(pipeline.tokenizer, caption, length)
            mask = words.attention_mask
            hidden = pipeline.text_encoder(words.input_ids, attention_mask=mask)[0]
        added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if sized:
            added = {
                "resolution": torch.tensor([[SIDE, SIDE]], dtype=torch.float32),
                "aspect_ratio": torch.tensor([[1.0]]),
            }
        output = pipeline.transformer(
            ddpm(pipeline).add_noise(latents, noise, timesteps),
            encoder_hidden_states=hidden,
            encoder_attention_mask=mask,
            timestep=timesteps,
            added_cond_kwargs=added,
        ).sample
        return mse_loss(first_half(output, noise), noise)

    check_scores(tmp_path, folder, pipeline.transformer, loss)


@pytest.mark.parametrize("with_t5", [True, False])
def test_scores_of_sd3_equal_a_loop_of_autograd(tmp_path: Path, with_t5: bool) -> None:
    """As in examples/dreambooth/train_dreambooth_lora_sd3.py; without T5 it has zeros."""
    folder = tiny_pipelines.sd3(tmp_path / "pipeline", with_t5)
    absent = {} if with_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    width = pipeline.transformer.config.joint_attention_dim

    def encode(caption: str) -> tuple[Tensor, Tensor]:
        hidden_states, pooled = [], []
        for tokenizer, encoder in (
            (pipeline.tokenizer, pipeline.text_encoder),
            (pipeline.tokenizer_2, pipeline.text_encoder_2),
        ):
            ids = tokens(tokenizer, caption, 77).input_ids
            output = encoder(ids, output_hidden_states=True)
            hidden_states.append(output.hidden_states[-2])
            pooled.append(output[0])
        clips = torch.cat(hidden_states, dim=-1)
        clips = pad(clips, (0, width - clips.shape[-1]))
        t5 = torch.zeros(1, 77, width)
        if with_t5:
            t5 = pipeline.text_encoder_3(tokens(pipeline.tokenizer_3, caption, 77).input_ids)[0]
        return torch.cat([clips, t5], dim=-2), torch.cat(pooled, dim=-1)

    def loss(x: Tensor, caption: str, t: float, noise: Tensor) -> Tensor:
        timesteps = torch.tensor([t])
        with torch.no_grad():
            latents = pipeline.vae.encode(x).latent_dist.mode()
            latents = (latents - 0.06) * 1.5
            hidden, pooled = encode(caption)
        prediction = pipeline.transformer(
            hidden_states=flow_noisy(latents, noise, timesteps),
            timestep=timesteps,
            encoder_hidden_states=hidden,
            pooled_projections=pooled,
        ).sample
        return mse_loss(prediction, noise - latents)

    index = check_scores(tmp_path, folder, pipeline.transformer, loss)
    # σ = 3u / (1 + 2u) at u = ¼ and ¾.
    assert index.store.recipe.timesteps == (500.0, 900.0)


@pytest.mark.parametrize("guidance", [3.5, 1, None])
def test_scores_of_flux_equal_a_loop_of_autograd(tmp_path: Path, guidance: float | None) -> None:
    """As in examples/dreambooth/train_dreambooth_lora_flux.py."""
    folder = tiny_pipelines.flux(tmp_path / "pipeline", guidance is not None)
    pipeline = diffusers.FluxPipeline.from_pretrained(folder)
    kind = diffusers.FluxPipeline

    def loss(x: Tensor, caption: str, t: float, noise: Tensor) -> Tensor:
        timesteps = torch.tensor([t])
        with torch.no_grad():
            latents = (pipeline.vae.encode(x).latent_dist.mode() - 0.1) * 0.4
            ids = tokens(pipeline.tokenizer, caption, 77).input_ids
            pooled = pipeline.text_encoder(ids).pooler_output
            ids = tokens(pipeline.tokenizer_2, caption, 512).input_ids
            hidden = pipeline.text_encoder_2(ids)[0]
        _, channels, height, width = latents.shape
        noisy = flow_noisy(latents, noise, timesteps)
        prediction = pipeline.transformer(
            hidden_states=kind._pack_latents(noisy, 1, channels, height, width),
            timestep=timesteps / 1000,
            guidance=None if guidance is None else torch.tensor([float(guidance)]),
            pooled_projections=pooled,
            encoder_hidden_states=hidden,
            txt_ids=torch.zeros(512, 3),
            img_ids=kind._prepare_latent_image_ids(
                1, height // 2, width // 2, "cpu", torch.float32
            ),
        ).sample
        prediction = kind._unpack_latents(prediction, 2 * height, 2 * width, 2)
        return mse_loss(prediction, noise - latents)

    options = {} if guidance != 1 else {"guidance": 1}
    index = check_scores(
        tmp_path, folder, pipeline.transformer, loss, timesteps=FLOAT_GRID, **options
    )
    assert index.store.recipe.guidance == guidance
    assert index.store.recipe.timesteps == (500.5, 750.25)


def test_scores_of_sana_equal_a_loop_of_autograd(tmp_path: Path) -> None:
    """As in examples/dreambooth/train_dreambooth_lora_sana.py."""
    folder = tiny_pipelines.sana(tmp_path / "pipeline")
    pipeline = diffusers.SanaPipeline.from_pretrained(folder)

    def loss(x: Tensor, caption: str, t: float, noise: Tensor) -> Tensor:
        timesteps = torch.tensor([t])
        with torch.no_grad():
            latents = pipeline.vae.encode(x).latent * 0.41
            words = tokens(pipeline.tokenizer, caption, 300)
            mask = words.attention_mask
            hidden = pipeline.text_encoder(words.input_ids, attention_mask=mask)[0]
        prediction = pipeline.transformer(
            hidden_states=flow_noisy(latents, noise, timesteps),
            encoder_hidden_states=hidden,
            encoder_attention_mask=mask,
            timestep=timesteps,
        ).sample
        return mse_loss(prediction, noise - latents)

    check_scores(tmp_path, folder, pipeline.transformer, loss)


def test_scores_of_qwen_image_equal_a_loop_of_autograd(tmp_path: Path) -> None:
    """As in examples/dreambooth/train_dreambooth_lora_qwen_image.py."""
    folder = tiny_pipelines.qwen_image(tmp_path / "pipeline")
    pipeline = diffusers.QwenImagePipeline.from_pretrained(folder)
    kind = diffusers.QwenImagePipeline
    config = pipeline.vae.config
    mean = torch.tensor(config.latents_mean).view(1, 4, 1, 1, 1)
    one_by_std = 1.0 / torch.tensor(config.latents_std).view(1, 4, 1, 1, 1)

    def loss(x: Tensor, caption: str, t: float, noise: Tensor) -> Tensor:
        timesteps = torch.tensor([t])
        with torch.no_grad():
            latents = pipeline.vae.encode(x.unsqueeze(2)).latent_dist.mode()
            latents = (latents - mean) * one_by_std
            hidden, mask = pipeline.encode_prompt(prompt=caption, max_sequence_length=512)
        sigma = timesteps.view(1, 1, 1, 1, 1) / 1000
        films = noise.unsqueeze(2)  # of one frame
        noisy = ((1.0 - sigma) * latents + sigma * films).permute(0, 2, 1, 3, 4)
        height, width = latents.shape[3:]
        prediction = pipeline.transformer(
            hidden_states=kind._pack_latents(noisy, 1, 4, height, width),
            encoder_hidden_states=hidden,
            encoder_hidden_states_mask=mask,
            timestep=timesteps / 1000,
            img_shapes=[(1, height // 2, width // 2)],
        ).sample
        prediction = kind._unpack_latents(prediction, 2 * height, 2 * width, 2)
        return mse_loss(prediction, films - latents)

    check_scores(tmp_path, folder, pipeline.transformer, loss)

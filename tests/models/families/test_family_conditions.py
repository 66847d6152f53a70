"""What pictures and captions become before a model is given them."""

import logging
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines
import torch
from tiny_pipelines import SIDE, captioned_pictures

import gradindex
from gradindex.data.images import Geometry
from gradindex.models import caption_encoder
from gradindex.models.examples import Examples, Pictures, from_bytes, to_bytes
from gradindex.models.latents import scale_latents
from gradindex.models.loading import load_denoiser

LONG = "a" + " b" * 80  # letters are tokens here: 81, and two for its ends


def encoder_of(folder: Path, **options: Any) -> Any:
    return load_denoiser(folder, resolution=(SIDE, SIDE), **options).encoder


def pictures(captions: list[str] | None, **fields: Any) -> Pictures:
    count = len(captions) if captions else 1
    arrays = np.random.default_rng(0).uniform(-1, 1, (count, 3, SIDE, SIDE)).astype(np.float32)
    ids = [f"p{number}" for number in range(count)]
    return Pictures(arrays, ids, captions=captions, **fields)


def test_captions_that_are_too_long_are_counted_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_pipelines.stable_diffusion(tmp_path / "model")
    captioned_pictures(tmp_path / "data", ["a cat", LONG, f"{LONG} cat", LONG])
    caplog.set_level(logging.INFO, "gradindex")
    index = gradindex.build(
        tmp_path / "i",
        model=folder,
        data=tmp_path / "data",
        timesteps=1,
        dim=8,
        resolution=SIDE,
        device="cpu",
    )
    line = "2 captions have more than the 77 tokens that the model takes; what is beyond them is"
    assert [text for text in caplog.messages if "tokens" in text] == [f"{line} left out"]
    caplog.clear()
    index.scores([tmp_path / "data" / "p000.png"], prompt=LONG)
    index.scores([tmp_path / "data" / "p000.png"], prompt="a cat")
    (text,) = [text for text in caplog.messages if "tokens" in text]
    assert text.startswith("1 caption has more than the 77 tokens")


@pytest.mark.parametrize("name", ["sd", "sdxl", "pixart", "sd3", "flux", "sana", "qwen_image"])
def test_conditions_do_not_depend_on_other_captions(tmp_path: Path, name: str) -> None:
    """They are as many for every batch, and those of a caption are what they are alone."""
    folder = tiny_pipelines.PIPELINES[name](tmp_path)
    captions = ["a red digit", "", LONG]
    together = encoder_of(folder).encode(pictures(captions)).conditions
    for number, caption in enumerate(captions):
        alone = encoder_of(folder).encode(pictures([caption])).conditions
        assert alone.keys() == together.keys()
        for condition, values in alone.items():
            np.testing.assert_allclose(values[0], together[condition][number], atol=1e-6)


def test_few_captions_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of large text encoders take megabytes each: the last ones are kept, by their bytes."""
    encoder = encoder_of(tiny_pipelines.stable_diffusion(tmp_path))
    of_one = 77 * tiny_pipelines.CLIP_WIDTH * 4
    monkeypatch.setattr(caption_encoder, "MOST_KEPT", 2 * of_one)
    texts = []
    made = type(encoder._family).text
    monkeypatch.setattr(
        type(encoder._family), "text", lambda *given: texts.append(given[2]) or made(*given)
    )
    captions = ["a", "b", "c"]
    (together,) = encoder.encode(pictures(captions)).conditions.values()
    assert len(together) == 3
    for caption in ("c", "b", "a"):
        (alone,) = encoder.encode(pictures([caption])).conditions.values()
        np.testing.assert_allclose(alone[0], together[captions.index(caption)], atol=1e-6)
    assert texts == [captions, ["a"]]


def test_sizes_of_sdxl_are_those_before_and_after_the_cut(tmp_path: Path) -> None:
    folder = tiny_pipelines.sdxl(tmp_path)
    geometries = [Geometry(original=(48, 40), corner=(2, 3))]
    examples = encoder_of(folder).encode(pictures(["a"], geometries=geometries))
    assert examples.conditions["time_ids"][0].tolist() == [48, 40, 2, 3, SIDE, SIDE]


def test_sizes_of_pixart_alpha_are_those_after_the_cut(tmp_path: Path) -> None:
    folder = tiny_pipelines.pixart(tmp_path, sized=True)
    wide = Pictures(np.zeros((1, 3, 8, 16), np.float32), ["a"], captions=["a"])
    conditions = encoder_of(folder).encode(wide).conditions
    assert conditions["resolution"][0].tolist() == [8, 16]
    assert conditions["aspect_ratio"][0].tolist() == [0.5]


def test_latents_of_ldm_are_what_its_pipeline_decodes(tmp_path: Path) -> None:
    folder = tiny_pipelines.ldm(tmp_path)
    given = pictures(None)
    latent = torch.tensor(encoder_of(folder).encode(given).x[0])[None]
    vqvae = diffusers.LDMPipeline.from_pretrained(folder).vqvae
    with torch.no_grad():
        truth = vqvae(torch.tensor(given.arrays)).sample
        decoded = vqvae.decode(latent / vqvae.config.scaling_factor).sample
    torch.testing.assert_close(decoded, truth)


def test_sampled_latents_are_drawn_by_seed_and_id(tmp_path: Path) -> None:
    folder = tiny_pipelines.stable_diffusion(tmp_path)
    given = pictures(["a", "b"])
    drawn = encoder_of(folder, latents="sample", seed=3).encode(given).x
    again = encoder_of(folder, latents="sample", seed=3).encode(given.at([1])).x
    np.testing.assert_allclose(again[0], drawn[1], atol=1e-6)
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    with torch.no_grad():
        encoded = vae.encode(torch.tensor(given.arrays)).latent_dist
    for number, name in enumerate(given.ids):
        draw = gradindex.noise(3, f"latent {name}", 0, 0, (4, SIDE // 2, SIDE // 2))
        truth = encoded.mean[number] + encoded.std[number] * torch.tensor(draw)
        truth *= vae.config.scaling_factor
        np.testing.assert_allclose(drawn[number], truth.numpy(), atol=1e-5)


def test_the_masked_latent_of_inpainting_is_the_mean_of_grey(tmp_path: Path) -> None:
    folder = tiny_pipelines.inpainting(tmp_path)
    examples = encoder_of(folder, latents="sample").encode(pictures(["a", "b"]))
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    with torch.no_grad():
        grey = vae.encode(torch.zeros(1, 3, SIDE, SIDE)).latent_dist.mode()[0]
    masked = examples.conditions["masked_latents"]
    np.testing.assert_allclose(masked[0], grey * vae.config.scaling_factor, atol=1e-6)
    assert masked[0] is masked[1]  # kept once


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.5, "latents_mean": [0.1] * 4, "latents_std": [2.0] * 4},
        {"scaling_factor": 0.5, "shift_factor": 0.2},
        {"scaling_factor": 0.5},
    ],
)
def test_latents_are_scaled_as_the_pipeline_undoes_it(config: dict[str, Any]) -> None:
    """The inverse is that of StableDiffusionXLPipeline and StableDiffusion3Pipeline."""
    vae = tiny_pipelines.vae(**config).config
    z = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    scaled = scale_latents(vae, z)
    if vae.latents_mean:
        mean = torch.tensor(vae.latents_mean).view(1, 4, 1, 1)
        std = torch.tensor(vae.latents_std).view(1, 4, 1, 1)
        undone = scaled * std / vae.scaling_factor + mean
    else:
        undone = scaled / vae.scaling_factor + (vae.shift_factor or 0)
    torch.testing.assert_close(undone, z)


def test_kept_examples_have_class_labels_without_an_axis() -> None:
    """As class-conditional models take them: [B], not [B, 1]."""
    examples = Examples.of_pictures(np.zeros((2, 4, 2, 2), np.float32), [3, 5])
    columns, _ = from_bytes(to_bytes({"x": examples.x, **examples.conditions}, {}))
    kept = Examples(columns.pop("x"), columns)
    _, conditions = kept.batch([0, 1], "cpu")
    assert conditions["class_labels"].tolist() == [3, 5]

"""Pipelines that cannot be used: one line each, which says what came and the way out."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines
import torch
from conftest import make_pictures
from tiny_pipelines import SIDE

import gradindex
from gradindex.errors import CallError, GradindexError, ModelError
from gradindex.models.examples import Pictures
from gradindex.models.loading import load_denoiser

MODEL_FOLDERS = {"sd": "unet", "inpainting": "unet", "sdxl": "unet"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One pipeline of each kind, never changed."""
    folder = tmp_path_factory.mktemp("saved")
    return {name: make(folder / name) for name, make in tiny_pipelines.PIPELINES.items()}


def copied(saved: dict[str, Path], name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[name], tmp_path / name))


def refusal(path: Path, kind: type[GradindexError] = ModelError, **options: Any) -> str:
    """The one line with which a pipeline is refused."""
    with pytest.raises(kind) as caught:
        load_denoiser(path, **{"resolution": (SIDE, SIDE), **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(folder: Path, name: str, **fields: Any) -> None:
    """Change fields of a JSON file."""
    values = {**json.loads((folder / name).read_text()), **fields}
    (folder / name).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "part", "what"),
    [
        ("sd", "vae", "makes latents of pictures"),
        ("ldm", "vqvae", "makes latents of pictures"),
        ("sd", "text_encoder", "encodes captions"),
        ("sd", "tokenizer", "encodes captions"),
        ("sdxl", "text_encoder_2", "encodes captions"),
        ("flux", "tokenizer_2", "encodes captions"),
        ("sd3", "text_encoder_3", "encodes captions"),
    ],
)
def test_parts_that_are_missing(
    saved: dict[str, Path], tmp_path: Path, name: str, part: str, what: str
) -> None:
    folder = copied(saved, name, tmp_path)
    shutil.rmtree(folder / part)
    assert refusal(folder) == (
        f"{folder}: the pipeline's {part}, which {what}, is not there; give the folder of the whole"
        " pipeline"
    )


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux", "pixart", "sana", "qwen_image"])
def test_text_encoders_that_were_left_out(
    saved: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """As by `save_pretrained` of a pipeline that was made with text_encoder=None."""
    folder = copied(saved, name, tmp_path)
    changed(folder, "model_index.json", text_encoder=[None, None])
    assert "text_encoder, which encodes captions, is not there" in refusal(folder)


@pytest.mark.parametrize("left", [[], ["tokenizer_config.json", "merges.txt"]])
def test_a_tokenizer_without_a_vocabulary(
    saved: dict[str, Path], tmp_path: Path, left: list[str]
) -> None:
    """transformers makes one that knows no word of it."""
    folder = copied(saved, "sd", tmp_path)
    for file in (folder / "tokenizer").iterdir():
        if file.name not in left:
            file.unlink()
    assert refusal(folder) == (
        f"{folder}/tokenizer: a tokenizer without a vocabulary (looked for tokenizer.json,"
        " vocab.json, vocab.txt, *.model); give the folder of the whole pipeline"
    )


@pytest.mark.parametrize("name", ["FooPipeline", "DDPMPipeline", ["my", "Pipeline"]])
def test_a_pipeline_that_encodes_no_captions(
    saved: dict[str, Path], tmp_path: Path, name: Any
) -> None:
    folder = copied(saved, "sd", tmp_path)
    changed(folder, "model_index.json", _class_name=name)
    encoder = load_denoiser(folder, resolution=(SIDE, SIDE)).encoder
    with pytest.raises(ModelError) as caught:
        encoder.encode(Pictures(np.zeros((1, 3, SIDE, SIDE), np.float32), ["a"], captions=["a"]))
    assert str(caught.value) == (
        f"{folder}/model_index.json: _class_name {name!r}: no pipeline of this diffusers that"
        " encodes captions; write the class that the model was trained with there; for another,"
        " give an object of your own that computes its loss (gradindex.build(…, denoiser=…), see"
        " docs/models.md)"
    )


@pytest.mark.parametrize(
    ("name", "scheduler", "message"),
    [
        ("sd", "LCMScheduler", r"^scheduler LCMScheduler: of models that are distilled from a t"),
        ("sdxl", "TCDScheduler", r"^scheduler TCDScheduler: of models that are distilled"),
        ("flux", "DDPMScheduler", r"'DDPMScheduler': a FluxTransformer2DModel is trained by flow"),
        ("sd3", "DDIMScheduler", r"'DDIMScheduler': a SD3Transformer2DModel is trained by flow m"),
    ],
)
def test_schedulers_that_no_training_had(
    saved: dict[str, Path], tmp_path: Path, name: str, scheduler: str, message: str
) -> None:
    """A build refuses them; who has an index of one opens it as before."""
    getattr(diffusers, scheduler)().save_pretrained(tmp_path / "scheduler")
    data = make_pictures(tmp_path / "data", 1, SIDE, mode="RGB")
    options = {"model": saved[name], "data": data, "caption": "a", "resolution": SIDE}
    with pytest.raises(ModelError, match=message):
        gradindex.build(tmp_path / "idx", scheduler=tmp_path / "scheduler", **options)
    assert not (tmp_path / "idx").exists()
    denoiser = load_denoiser(saved[name], scheduler=tmp_path / "scheduler", resolution=(SIDE, SIDE))
    assert denoiser.process.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("sd", (15, 16), "resolution = 16x15: give multiples of 2 (the VAE makes one number of 2"),
        ("dit", (18, 18), "resolution = 18x18: give multiples of 4 (the VAE makes one number of"),
        ("flux", (16, 30), "2 pixels a side, the model patches of 2)"),
    ],
)
def test_resolutions_that_do_not_fit(
    saved: dict[str, Path], name: str, size: tuple[int, int], message: str
) -> None:
    assert message in refusal(saved[name], CallError, resolution=size)


@pytest.mark.parametrize("name", sorted(tiny_pipelines.PIPELINES))
def test_the_size_that_a_model_was_made_for(saved: dict[str, Path], name: str) -> None:
    """As docs/models.md says it: `sample_size` latents, and 128 where no config.json has it."""
    denoiser = load_denoiser(saved[name])
    config = denoiser.model.config
    assert ("sample_size" in config) == (name not in ("flux", "qwen_image"))
    side = config.get("sample_size", 128)
    assert denoiser.description.image[1:] == (side, side)
    pixels = side * denoiser.encoder.factor
    assert denoiser.description.picture[1:] == (pixels, pixels)


def test_dit_takes_squares(saved: dict[str, Path]) -> None:
    denoiser = load_denoiser(saved["dit"], resolution=(8, 16))
    x = torch.zeros(1, 4, 4, 8)
    labels = {"class_labels": torch.tensor([0])}
    with pytest.raises(ModelError, match="square pictures only, and these have latents of 8x4"):
        denoiser.losses(x, torch.tensor([5]), x, labels, "mse")


def test_a_size_that_no_file_says(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(saved, "sd", tmp_path)
    changed(folder, "unet/config.json", sample_size=None)
    text = refusal(folder, CallError, resolution=None)
    assert text.startswith("resolution: the model's config.json has no sample_size; give the side")
    assert load_denoiser(folder, resolution=(SIDE, SIDE)).description.image == (4, 8, 8)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("sd", {"in_channels": 8}, "takes 8 channels and gives 4: not a denoiser that is known"),
        ("sd", {"time_cond_proj_dim": 8}, "a UNet distilled from a teacher (LCM), whose loss"),
        ("sd", {"encoder_hid_dim_type": "text_proj"}, "a UNet given other embeddings (DeepFloyd"),
        ("sd", {"class_embed_type": "timestep"}, "a UNet given more than a caption (unCLIP"),
        ("sd", {"addition_embed_type": "image"}, "a UNet of this kind is not known; Stable"),
        ("sd", {"cross_attention_dim": "x"}, "cross_attention_dim = "),
        ("sdxl", {"addition_time_embed_dim": None}, "addition_time_embed_dim = null: allowed is"),
        (
            "dit",
            {"out_channels": 5},
            "takes 4 channels and gives 5: allowed are as many, or 8 with",
        ),
        ("dit", {"sample_size": [8, 8]}, "sample_size = "),
        (
            "dit",
            {"sample_size": 16384},
            "sample_size = 16384: allowed is a whole number",
        ),
        ("dit", {"num_layers": 10**9}, "num_layers = 1000000000, but "),
        ("flux", {"num_single_layers": 10**9}, "num_single_layers = 1000000000, but "),
        ("sd", {"transformer_layers_per_block": [10**9]}, "transformer_layers_per_block = "),
        ("flux", {"axes_dims_rope": [4, 2]}, "axes_dims_rope = [4, 2]: allowed are whole numbers"),
        ("qwen_image", {"axes_dims_rope": "x"}, 'axes_dims_rope = "x": allowed are whole'),
        ("pixart", {"out_channels": 3}, "takes 4 channels and gives 3: allowed are"),
        ("pixart", {"caption_channels": None}, "caption_channels = null: allowed is"),
        ("sd3", {"out_channels": 8}, "takes 4 channels and gives 8: allowed are as many"),
        ("sd3", {"pos_embed_max_size": None}, "pos_embed_max_size = null: allowed is"),
        ("flux", {"out_channels": 4}, "a Flux that is given pictures beside captions (Fill"),
        ("flux", {"in_channels": 6, "out_channels": None}, "allowed are multiples of 4"),
        ("sana", {"guidance_embeds": True}, "Sana Sprint is distilled from a teacher"),
        ("sana", {"out_channels": 1}, "takes 4 channels and gives 1: allowed are as many"),
        ("qwen_image", {"zero_cond_t": True}, "a Qwen-Image that edits or has layers is not known"),
        ("qwen_image", {"out_channels": 16}, "takes 16 channels and gives 64"),
    ],
)
def test_configurations_that_are_not_known(
    saved: dict[str, Path], tmp_path: Path, name: str, fields: dict[str, Any], message: str
) -> None:
    folder = copied(saved, name, tmp_path)
    changed(folder, f"{MODEL_FOLDERS.get(name, 'transformer')}/config.json", **fields)
    text = refusal(folder)
    assert message in text
    assert text.startswith(str(folder))


def test_a_model_of_latents_without_a_pipeline(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved["flux"] / "transformer", tmp_path / "lone"))
    shutil.copytree(saved["flux"] / "scheduler", folder / "scheduler")
    assert "works on latents, and no pipeline with a VAE is around it" in refusal(folder)


def test_text_encoders_of_another_model(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(saved, "pixart", tmp_path)
    shutil.rmtree(folder / "text_encoder")
    tiny_pipelines.t5(1, width=20).save_pretrained(folder / "text_encoder")
    encoder = load_denoiser(folder, resolution=(SIDE, SIDE)).encoder
    given = Pictures(np.zeros((1, 3, SIDE, SIDE), np.float32), ["a"], captions=["a"])
    with pytest.raises(
        ModelError, match=r"give 20 numbers as encoder_hidden_states, the model tak"
    ):
        encoder.encode(given)


def test_guidance_of_models_that_are_told_none(saved: dict[str, Path]) -> None:
    text = refusal(saved["sd3"], CallError, guidance=3.5)
    assert text == (
        "guidance = 3.5: a SD3Transformer2DModel without guidance embedding is told none; leave it"
        " out"
    )


@pytest.mark.parametrize("guidance", [-1, "x", float("nan"), float("inf"), True])
def test_guidance_that_is_none(tmp_path: Path, guidance: Any) -> None:
    with pytest.raises(CallError, match=r"give a number, 0 or more, such as 3\.5"):
        gradindex.build(tmp_path / "i", model="m", data="d", guidance=guidance, device="cpu")

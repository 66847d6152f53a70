"""Checkpoints of one file in the original layout: rows equal those of the diffusers folder."""

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import original_files
import pytest
import tiny_pipelines
import torch
from helpers import run
from original_files import ORIGINALS, save
from safetensors.torch import load_file, save_file
from tiny_pipelines import SIDE, captioned_pictures
from torch import nn

import gradindex
from gradindex.errors import ModelError
from gradindex.models.checkpoints import Checkpoints
from gradindex.models.examples import Pictures
from gradindex.models.loading import load_denoiser
from gradindex.models.original_layout import to_diffusers

SIZE = (SIDE, SIDE)
CAPTIONS = ["a cat", "a dog", "two"]
# A pipeline's parts, and of each a weight that encoding needs, by its end.
PARTS = {
    "sd": {"vae": "quant_conv.bias", "text_encoder": "final_layer_norm.bias"},
    "sd2": {"vae": "encoder.conv_out.weight", "text_encoder": "self_attn.v_proj.bias"},
    "sdxl": {
        "vae": "quant_conv.bias",
        "text_encoder": "encoder.layers.0.mlp.fc1.bias",
        "text_encoder_2": "encoder.layers.0.self_attn.k_proj.weight",
    },
    "sd3": {
        "vae": "encoder.mid_block.attentions.0.to_q.weight",
        "text_encoder": "final_layer_norm.bias",
        "text_encoder_2": "text_projection.weight",
        "text_encoder_3": "shared.weight",
    },
}


def tiny(name: str, folder: Path) -> Path:
    """A tiny pipeline; SD 2's predicts velocities and has linear projections."""
    if name == "sd2":
        return tiny_pipelines.stable_diffusion(folder, "v_prediction", use_linear_projection=True)
    return tiny_pipelines.PIPELINES[name](folder)


def shake(folder: Path, ending: str = "") -> None:
    """Change the weights of a pipeline's part whose names have an ending."""
    (file,) = folder.glob("*.safetensors")
    weights, random = load_file(file), torch.Generator().manual_seed(7)
    for name, value in weights.items():
        if name.endswith(ending):
            weights[name] = value + 0.1 * torch.randn(value.shape, generator=random)
    save_file(weights, file, {"format": "pt"})


def trained(name: str, folder: Path, parts: dict[str, str]) -> Path:
    """A tiny pipeline with another denoiser, and other weights in some parts."""
    tiny(name, folder)
    shake(folder / ("transformer" if name == "sd3" else "unet"))
    for part, ending in parts.items():
        shake(folder / part, ending)
    return folder


def build(folder: Path, name: str, **options: Any) -> gradindex.Index:
    if not (folder / "data").exists():
        captioned_pictures(folder / "data", CAPTIONS)
        captioned_pictures(folder / "queries", [""], seed=5)
    return gradindex.build(
        folder / name,
        data=folder / "data",
        **{"timesteps": 2, "dim": 32, "resolution": SIDE, "device": "cpu", **options},
    )


def rows(index: gradindex.Index) -> np.ndarray:
    checkpoints = range(len(index.store.recipe.checkpoints))
    return np.stack([index.store.read("unnormalized", c, slice(0, 3)) for c in checkpoints])


def refusal(file: Path, model: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_denoiser(file, model=model, resolution=SIZE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.stable_diffusion(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("name", ORIGINALS)
def test_rows_equal_those_of_the_folder(tmp_path: Path, name: str, changed: bool) -> None:
    """With the VAE and text encoders of the file, whichever of them training changed."""
    base = tiny(name, tmp_path / "base")
    truth = trained(name, tmp_path / "trained", PARTS[name] if changed else {})
    file = save(ORIGINALS[name](truth), tmp_path / "step.safetensors")
    index = build(tmp_path, "file", model=base, checkpoints=[file])
    expected = build(tmp_path, "folder", model=truth)
    assert np.abs(rows(index)).max() > 0
    assert np.array_equal(rows(index), rows(expected))
    assert not np.allclose(rows(index), rows(build(tmp_path, "base-index", model=base)))
    picture = [tmp_path / "queries" / "p000.png"]
    scores = index.scores(picture, prompt="a cat")
    assert np.array_equal(scores, expected.scores(picture, prompt="a cat"))


@pytest.mark.parametrize(("name", "part"), [(n, p) for n, parts in PARTS.items() for p in parts])
def test_each_part_of_the_file_encodes(tmp_path: Path, name: str, part: str) -> None:
    """A change of one weight in one part shows in what it makes of a picture and its caption."""
    base, truth = tiny(name, tmp_path / "base"), tiny(name, tmp_path / "trained")
    shake(truth / part, PARTS[name][part])
    file = save(ORIGINALS[name](truth), tmp_path / "step.safetensors")
    picture = np.zeros((1, 3, *SIZE), np.float32)
    pictures = Pictures(picture, ["a"], captions=["a cat"])
    right, wrong = (
        load_denoiser(folder, resolution=SIZE).encoder.encode(pictures) for folder in (truth, base)
    )
    given = load_denoiser(file, model=base, resolution=SIZE).encoder.encode(pictures)
    same = [np.array_equal(given.x[0], right.x[0])]
    other = [np.array_equal(given.x[0], wrong.x[0])]
    for condition, values in right.conditions.items():
        same.append(np.array_equal(given.conditions[condition][0], values[0]))
        other.append(np.array_equal(values[0], wrong.conditions[condition][0]))
    assert all(same)
    assert not all(other)


def test_several_files_share_an_encoder_unless_they_train_it(tmp_path: Path, base: Path) -> None:
    """As kohya's scripts save a run: each file has all parts; weights count as for others."""
    frozen = [trained("sd", tmp_path / f"{n}", {}) for n in range(2)]
    shake(frozen[1] / "unet")
    moving = trained("sd", tmp_path / "moving", PARTS["sd"])
    files = [
        save(ORIGINALS["sd"](folder), tmp_path / f"step{n}.safetensors")
        for n, folder in enumerate([*frozen, moving])
    ]
    checkpoints = Checkpoints(files, base, None, "cpu", "float32", resolution=SIZE)
    encoders = [checkpoints.encoder_of(number) for number in range(3)]
    assert encoders[0] is encoders[1] is not encoders[2]
    assert checkpoints[0].encoder is encoders[0]
    weights = dict(zip(map(str, files), [0.5, 0.2, 0.3], strict=True))
    index = build(tmp_path, "run", model=base, checkpoints=weights)
    single = [build(tmp_path, f"of{f.name}", model=f) for f in [*frozen, moving]]
    assert np.array_equal(rows(index), np.concatenate([rows(one) for one in single]))
    picture = [tmp_path / "queries" / "p000.png"]
    parts = [one.scores(picture, whiten=False, prompt="a cat") for one in single]
    truth = 0.5 * parts[0] + 0.2 * parts[1] + 0.3 * parts[2]
    np.testing.assert_allclose(
        index.scores(picture, whiten=False, prompt="a cat"), truth, rtol=1e-4
    )


def test_weights_in_half_precision_are_the_same_parts(tmp_path: Path, base: Path) -> None:
    """VAE and text encoders rounded by the trainer: those of the pipeline stay."""
    original = ORIGINALS["sd"](base)
    half = {name: v.half() if v.is_floating_point() else v for name, v in original.items()}
    encoder = load_denoiser(
        save(half, tmp_path / "half.safetensors"), model=base, resolution=SIZE
    ).encoder
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(base)
    for part in ("vae", "text_encoder"):
        state = getattr(encoder._loaded, part).state_dict()
        for name, value in getattr(pipeline, part).state_dict().items():
            assert torch.equal(state[name], value), name


def test_weights_in_full_precision_beside_a_pipeline_in_half(tmp_path: Path, base: Path) -> None:
    """Nothing of the file is rounded to what the pipeline has."""
    truth = trained("sd", tmp_path / "trained", PARTS["sd"])
    half = tmp_path / "half"
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(base)
    pipeline.to(torch.float16).save_pretrained(half, variant="fp16")
    file = save(ORIGINALS["sd"](truth), tmp_path / "step.safetensors")
    index = build(tmp_path, "file", model=half, checkpoints=[file])
    assert np.array_equal(rows(index), rows(build(tmp_path, "folder", model=truth)))


def test_another_decoder_is_no_other_vae(tmp_path: Path, base: Path) -> None:
    """Many files hold a VAE whose decoder alone was trained on: pictures are encoded alike."""
    original = ORIGINALS["sd"](base)
    original["first_stage_model.decoder.conv_out.bias"] += 1
    file = save(original, tmp_path / "decoder.safetensors")
    vae = load_denoiser(file, model=base, resolution=SIZE).encoder._loaded.vae
    truth = diffusers.AutoencoderKL.from_pretrained(base / "vae")
    assert torch.equal(vae.decoder.conv_out.bias, truth.decoder.conv_out.bias)


def test_the_denoiser_alone(tmp_path: Path, base: Path) -> None:
    """With the prefix and without; as a pickle of a trainer; in its pipeline's own folder."""
    truth = trained("sd", tmp_path / "trained", {})
    unet = original_files.unet(original_files.weights_of(truth / "unet"))
    expected = load_denoiser(truth, resolution=SIZE).model.state_dict()
    bare = save(unet, tmp_path / "bare.safetensors")
    named = original_files.prefixed("model.diffusion_model.", unet)
    prefixed = save(named, tmp_path / "prefixed.safetensors")
    pickled = tmp_path / "trainer.ckpt"
    torch.save({"state_dict": named, "global_step": 500}, pickled)
    inside = Path(shutil.copytree(base, tmp_path / "repository")) / "all.safetensors"
    save(named, inside)
    files = {bare: base, prefixed: base, pickled: base, inside: None}
    for file, model in files.items():
        denoiser = load_denoiser(file, model=model, resolution=SIZE)
        state = denoiser.model.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in state)
        keys = {denoiser.encoder.latents_key, denoiser.encoder.captions_key}
        assert keys == {denoiser.encoder.digest}


def test_pickles_that_run_code_are_refused(tmp_path: Path, base: Path) -> None:
    file = tmp_path / "old.ckpt"
    torch.save({"state_dict": {}, "callbacks": nn.Linear(1, 1)}, file)
    assert "cannot be loaded (neither safetensors nor a pickle of weights" in refusal(file, base)


def test_resumed_and_grown_as_with_other_checkpoints(tmp_path: Path, base: Path) -> None:
    truth = trained("sd", tmp_path / "trained", PARTS["sd"])
    file = save(ORIGINALS["sd"](truth), tmp_path / "step.safetensors")
    options = {"model": base, "checkpoints": {str(file): 0.5}, "params": "attn"}
    first = build(tmp_path, "index", **options)
    before = rows(first)
    assert first.store.header.weights == [0.5]
    again = build(tmp_path, "index", **options)
    assert again.store.recipe == first.store.recipe
    assert np.array_equal(rows(again), before)
    assert (
        0
        < again.store.recipe.parameter_count
        < build(tmp_path, "all", model=truth).store.recipe.parameter_count
    )
    command = ("query", tmp_path / "index", tmp_path / "queries" / "p000.png", "--device", "cpu")
    done = run(*command, "--prompt", "a cat")
    assert done.returncode == 0, done.stderr
    save({**ORIGINALS["sd"](truth), "note": torch.zeros(1)}, file)
    done = run(*command, "--prompt", "a cat")
    assert done.returncode != 0
    assert "is not the one that indexed" in done.stderr


def test_a_query_finds_file_or_pipeline_where_they_are_now(tmp_path: Path, base: Path) -> None:
    pipeline, moved = tmp_path / "pipeline", tmp_path / "moved"
    shutil.copytree(base, pipeline)
    weights = trained("sd", tmp_path / "trained", {})
    file = save(original_files.stable_diffusion(weights), tmp_path / "model.safetensors")
    index = build(tmp_path, "idx", model=pipeline, checkpoints=[file])
    query = str(tmp_path / "queries" / "p000.png")
    expected = index.scores(query, prompt="a cat")

    def scores(model: Path) -> np.ndarray:
        opened = gradindex.open(tmp_path / "idx", model=model, device="cpu")
        return opened.scores(query, prompt="a cat")

    file.rename(tmp_path / "other.safetensors")
    np.testing.assert_array_equal(scores(tmp_path / "other.safetensors"), expected)
    (tmp_path / "other.safetensors").rename(file)
    pipeline.rename(moved)
    np.testing.assert_array_equal(scores(moved), expected)


def changed(weights: dict[str, torch.Tensor], **changes: Any) -> dict[str, torch.Tensor]:
    kept = {name: value for name, value in weights.items() if name not in changes}
    return {**kept, **{name: value for name, value in changes.items() if value is not None}}


D, T = "model.diffusion_model.", "cond_stage_model.transformer.text_model."
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({f"{D}out.2.bias": None}, "weights are missing for conv_out.bias"),
    "missing in a block": (
        {f"{D}input_blocks.2.0.op.bias": None},
        "weights are missing for down_blocks.0.downsamplers.0.conv.bias",
    ),
    "extra": (
        {f"{D}out.3.bias": torch.zeros(2)},
        "holds weights that config.json has no place for: model.diffusion_model.out.3.bias",
    ),
    "extra in a block": (
        {f"{D}middle_block.1.extra.bias": torch.zeros(2)},
        "has no place for: mid_block.attentions.0.extra.bias",
    ),
    "shape": ({f"{D}out.2.bias": torch.zeros(5)}, "'conv_out.bias' have the shape [5], by config"),
    "not finite": ({f"{D}out.2.bias": torch.full((4,), torch.nan)}, "hold NaN or infinity"),
    "a LoRA": ({f"{D}out.lora_down.weight": torch.zeros(2)}, "a LoRA adapter, not a model"),
    "SDXL's": (
        {f"{D}label_emb.0.0.weight": torch.zeros(2, 2)},
        "no place for: model.diffusion_model.label_emb.0.0.weight; give as model the pipeline",
    ),
    "v-prediction": ({"v_pred": torch.zeros(0)}, "prediction type v_prediction, and the scheduler"),
    "zero terminal SNR": ({"ztsnr": torch.zeros(0)}, "no rescale_betas_zero_snr; give the sched"),
    "unknown encoder": (
        {"conditioner.embedders.7.weight": torch.zeros(2)},
        "text encoders that the pipeline has not (conditioner.embedders.7.weight)",
    ),
    "second encoder": (
        {"text_encoders.t5xxl.transformer.shared.weight": torch.zeros(2, 2)},
        "text encoders that the pipeline has not (text_encoders.t5xxl.transformer.shared.weight)",
    ),
    "encoder cut": ({f"{T}final_layer_norm.bias": None}, "lacks final_layer_norm.bias"),
    "encoder extra": ({f"{T}extra.bias": torch.zeros(2)}, "its text_encoder holds extra.bias"),
    "encoder shape": (
        {f"{T}final_layer_norm.bias": torch.zeros(2)},
        "its text_encoder has final_layer_norm.bias of shape [2], the pipeline's [16]",
    ),
    "VAE cut": ({"first_stage_model.quant_conv.bias": None}, "its vae lacks quant_conv.bias"),
    "VAE shape": (
        {"first_stage_model.encoder.mid.attn_1.q.weight": torch.zeros(2, 2, 1, 1)},
        "its vae has encoder.mid_block.attentions.0.to_q.weight of shape [2, 2]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named(tmp_path: Path, base: Path, fault: str) -> None:
    changes, message = FAULTS[fault]
    weights = changed(ORIGINALS["sd"](base), **changes)
    file = save(weights, tmp_path / "step.safetensors")
    pictures = np.zeros((1, 3, *SIZE), np.float32)
    asked = Pictures(pictures, ["a"], captions=["a"])
    with pytest.raises(ModelError) as caught:
        load_denoiser(file, model=base, resolution=SIZE).encoder.encode(asked)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_a_file_without_weights_that_the_model_must_have(tmp_path: Path) -> None:
    base = tiny_pipelines.sdxl(tmp_path / "xl")
    weights = ORIGINALS["sdxl"](base)
    del weights[f"{D}label_emb.0.2.bias"]
    text = refusal(save(weights, tmp_path / "a.safetensors"), base)
    assert "weights are missing for label_emb.0.2.bias; give as model the pipeline" in text
    base = tiny_pipelines.sd3(tmp_path / "3")
    weights = ORIGINALS["sd3"](base)
    del weights[f"{D}joint_blocks.1.x_block.mlp.fc1.bias"]
    text = refusal(save(weights, tmp_path / "b.safetensors"), base)
    assert "weights are missing for joint_blocks.1.x_block.mlp.fc1.bias; give as model" in text


def test_velocities(tmp_path: Path, base: Path) -> None:
    """What is predicted is the pipeline's; a file that says so, in any way, must agree."""
    velocities = tiny_pipelines.stable_diffusion(tmp_path / "v", "v_prediction")
    weights = ORIGINALS["sd"](velocities)
    file = save({**weights, "v_pred": torch.zeros(0)}, tmp_path / "v.safetensors")
    denoiser = load_denoiser(file, model=velocities, resolution=SIZE)
    assert denoiser.process.prediction_type == "v_prediction"
    scheduler = velocities / "scheduler"
    assert load_denoiser(file, model=base, scheduler=scheduler, resolution=SIZE)
    for said, model in (("v", base), ("epsilon", velocities)):
        header = {"modelspec.prediction_type": said}
        other = save(weights, tmp_path / f"{said}.safetensors", **header)
        assert "prediction type" in refusal(other, model)


def test_flux_has_a_place_for_each_weight() -> None:
    """Of Flux' own width, which diffusers' function takes for granted: names and shapes alone."""
    config = {"num_layers": 1, "num_single_layers": 2, "guidance_embeds": True}
    with torch.device("meta"):
        model = diffusers.FluxTransformer2DModel(**config)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    width, heads = 3072, 128
    linear = {
        **{"img_in": (64, width), "txt_in": (4096, width), "final_layer.linear": (width, 64)},
        **{"time_in.in_layer": (256, width), "time_in.out_layer": (width, width)},
        **{"vector_in.in_layer": (768, width), "vector_in.out_layer": (width, width)},
        **{"guidance_in.in_layer": (256, width), "guidance_in.out_layer": (width, width)},
        "final_layer.adaLN_modulation.1": (width, 2 * width),
    }
    norms = []
    for side in ("img", "txt"):
        block = f"double_blocks.0.{side}"
        linear |= {f"{block}_mod.lin": (width, 6 * width), f"{block}_attn.qkv": (width, 3 * width)}
        linear |= {f"{block}_attn.proj": (width, width), f"{block}_mlp.0": (width, 4 * width)}
        linear |= {f"{block}_mlp.2": (4 * width, width)}
        norms += [f"{block}_attn.norm.{kind}_norm.scale" for kind in ("query", "key")]
    for number in range(2):
        block = f"single_blocks.{number}"
        linear |= {f"{block}.linear1": (width, 7 * width), f"{block}.linear2": (5 * width, width)}
        linear |= {f"{block}.modulation.lin": (width, 3 * width)}
        norms += [f"{block}.norm.{kind}_norm.scale" for kind in ("query", "key")]
    weights = {name: torch.empty(heads, device="meta") for name in norms}
    for name, (taken, given) in linear.items():
        weights[f"{name}.weight"] = torch.empty(given, taken, device="meta")
        weights[f"{name}.bias"] = torch.empty(given, device="meta")
    for prefix in ("", "model.diffusion_model."):
        named = original_files.prefixed(prefix, weights)
        converted = to_diffusers(named, type(model), config, Path("flux.safetensors"))
        assert {name: value.shape for name, value in converted.items()} == expected
        named[f"{prefix}double_blocks.0.extra"] = torch.empty(2, device="meta")
        with pytest.raises(ModelError, match=r"no place for: double_blocks\.0\.extra; give"):
            to_diffusers(named, type(model), config, Path("flux.safetensors"))

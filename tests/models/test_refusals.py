"""Models that cannot be used: one line each, which says what came and the way out."""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model
from helpers import RECIPE, run
from safetensors.torch import load_file, save_file

import gradindex
from gradindex.errors import CallError, GradindexError, ModelError
from gradindex.gradients.self_check import check_capture
from gradindex.models.checkpoints import Checkpoints
from gradindex.models.families import FAMILIES
from gradindex.models.loading import load_denoiser
from gradindex.models.refusals import warn_of_teachers

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = "unet/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
HUGE = 10**9


@pytest.fixture
def place(model: Path, tmp_path: Path) -> Path:
    """A copy of the small pipeline, to be changed."""
    return Path(shutil.copytree(model, tmp_path / "place"))


def refusal(path: Any, kind: type[GradindexError] = ModelError, **options: Any) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(kind) as caught:
        load_denoiser(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- hostile files


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "a JSON object {…} is expected, not []"),
        ("null", "a JSON object {…} is expected, not null"),
        ('"UNet2DModel"', 'a JSON object {…} is expected, not "UNet2DModel"'),
        (nested(100_000), "not JSON"),
        ("9" * 5000, "not JSON"),
        ("\ufeff{}", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
@pytest.mark.parametrize("name", [CONFIG, SCHEDULER, "model_index.json"])
def test_json_that_is_none(place: Path, name: str, text: str | bytes, message: str) -> None:
    (place / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refusal(place)


def changed(place: Path, name: str, fields: dict[str, Any]) -> Path:
    """The pipeline with some fields of a JSON file changed, or taken out by `...`."""
    values = {**json.loads((place / name).read_text()), **fields}
    kept = {field: value for field, value in values.items() if value is not ...}
    (place / name).write_text(json.dumps(kept))
    return place


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sample_size": "16"}, 'sample_size = "16": allowed is one or two whole numbers'),
        ({"sample_size": [8]}, "sample_size = [8]: allowed is"),
        ({"sample_size": [8, 8, 8]}, "sample_size = [8, 8, 8]: allowed is"),
        ({"sample_size": [8, None]}, "sample_size = [8, null]: allowed is"),
        ({"sample_size": 0}, "sample_size = 0: allowed is"),
        ({"sample_size": -8}, "sample_size = -8: allowed is"),
        ({"sample_size": 8.5}, "sample_size = 8.5: allowed is"),
        ({"sample_size": True}, "sample_size = true: allowed is"),
        ({"sample_size": HUGE}, f"sample_size = {HUGE}: allowed is"),
        ({"sample_size": {"a": 1, "b": 2}}, "sample_size = "),
        ({"sample_size": None}, 'has no "sample_size"'),
        ({"sample_size": ...}, 'has no "sample_size"'),
        ({"in_channels": "1"}, 'in_channels = "1": allowed is a whole number'),
        ({"in_channels": None}, "in_channels = null: allowed is a whole number"),
        ({"in_channels": 6, "out_channels": 1}, "takes 6 channels and gives 1: not a denoiser"),
        ({"layers_per_block": HUGE}, f"layers_per_block = {HUGE}: allowed is"),
        ({"layers_per_block": 9999}, "layers_per_block = 9999, but "),
        ({"layers_per_block": 2}, "weights are missing for"),
        ({"block_out_channels": "abc"}, 'block_out_channels = "abc": allowed is a list'),
        ({"block_out_channels": 8}, "block_out_channels = 8: allowed is a list"),
        ({"block_out_channels": [8, HUGE]}, "block_out_channels = "),
        ({"block_out_channels": [8, -16]}, "block_out_channels = [8, -16]: allowed is"),
        ({"block_out_channels": [8]}, "does not make a model"),
        ({"block_out_channels": []}, "does not make a model"),
        ({"block_out_channels": [8192, 16384]}, "by config.json it is"),
        ({"block_out_channels": [8, 32]}, "by config.json it is"),
        ({"down_block_types": "x"}, "does not make a model"),
        ({"down_block_types": ["Nothing", "DownBlock2D"]}, "does not make a model"),
        ({"down_block_types": 5}, "does not make a model"),
        ({"up_block_types": [None, None]}, "does not make a model"),
        ({"norm_num_groups": 0}, "norm_num_groups = 0: allowed is"),
        ({"norm_num_groups": 3}, "does not make a model"),
        ({"attention_head_dim": -8}, "attention_head_dim = -8: allowed is"),
        ({"act_fn": 5}, 'act_fn = 5: allowed is a value such as "silu"'),
        ({"dropout": "x"}, 'dropout = "x": allowed is a value such as 0.0'),
        ({"time_embedding_type": "learned"}, "does not make a model"),
        ({"time_embedding_type": 3}, 'allowed is a value such as "positional"'),
        ({"num_class_embeds": 0}, "num_class_embeds = 0: allowed is null or a whole number"),
        ({"num_class_embeds": HUGE}, f"num_class_embeds = {HUGE}: allowed is"),
        ({"num_class_embeds": 3}, "weights are missing for class_embedding.weight"),
        ({"num_train_timesteps": "x"}, 'num_train_timesteps = "x": allowed is'),
        ({"class_embed_type": "timestep"}, 'class_embed_type "timestep": only learned'),
        ({"class_embed_type": {}}, "class_embed_type {}: only learned"),
        ({"_class_name": ["UNet2DModel"]}, "a model of class ['UNet2DModel']"),
        ({"_class_name": {}}, "a model of class {}"),
        ({"_class_name": ...}, "a model of class None"),
    ],
)
def test_configurations_that_make_no_model(
    place: Path, fields: dict[str, Any], message: str
) -> None:
    assert message in refusal(changed(place, CONFIG, fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"norm_eps": "x"},
        {"norm_eps": float("nan")},
        {"freq_shift": "x"},
        {"freq_shift": 4},  # divides by zero
        {"mid_block_scale_factor": "x"},
        {"mid_block_scale_factor": 0},
        {"downsample_padding": 10},
        {"sample_size": [8, 7]},
    ],
)
def test_configurations_that_only_show_when_the_model_is_called(
    place: Path, pictures: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    changed(place, CONFIG, fields)
    with pytest.raises(ModelError) as caught:
        gradindex.build(tmp_path / "idx", model=place, data=pictures, timesteps=1, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_train_timesteps": "1000"}, 'num_train_timesteps = "1000": allowed is'),
        ({"num_train_timesteps": 0}, "num_train_timesteps = 0: allowed is"),
        ({"num_train_timesteps": -1}, "num_train_timesteps = -1: allowed is"),
        ({"num_train_timesteps": 1.5}, "num_train_timesteps = 1.5: allowed is"),
        ({"num_train_timesteps": True}, "num_train_timesteps = true: allowed is"),
        ({"num_train_timesteps": 10**13}, f"num_train_timesteps = {10**13}: allowed is"),
        ({"num_train_timesteps": ...}, "has no beta schedule"),
        ({"beta_schedule": ...}, "has no beta schedule"),
        ({"beta_schedule": "mystery"}, "does not make a noise schedule"),
        ({"beta_schedule": ["linear"]}, "does not make a noise schedule"),
        ({"beta_start": "x"}, "does not make a noise schedule"),
        ({"beta_start": None}, "does not make a noise schedule"),
        ({"beta_end": float("nan")}, "outside of 0 … 1"),
        ({"beta_end": 5.0}, "outside of 0 … 1"),
        ({"beta_start": -1.0}, "outside of 0 … 1"),
        ({"trained_betas": [0.1, 0.2]}, "has 1000 timesteps and 2 trained_betas"),
        ({"trained_betas": 0.1}, "trained_betas"),
        ({"trained_betas": "x"}, "does not make a noise schedule"),
        ({"prediction_type": "mystery"}, "prediction_type 'mystery': known are"),
        ({"prediction_type": None}, "prediction_type None: known are"),
        ({"prediction_type": ["epsilon"]}, "prediction_type ['epsilon']: known are"),
    ],
)
def test_schedulers_that_make_no_schedule(
    place: Path, fields: dict[str, Any], message: str
) -> None:
    assert message in refusal(changed(place, SCHEDULER, fields))


def header(values: Any) -> Callable[[bytes], bytes]:
    """A safetensors file with this header in front of the right numbers."""

    def replaced(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        text = json.dumps(values).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return replaced


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "cannot be loaded"),
        (lambda content: content[:5], "cannot be loaded"),
        (lambda content: content[:100], "cannot be loaded"),
        (lambda content: content[:-1], "cannot be loaded"),
        (lambda content: content + b"x", "cannot be loaded"),
        (lambda content: b"\xff" * 8 + content[8:], "cannot be loaded"),
        (lambda content: b"<html>not found</html>", "cannot be loaded"),
        (header([]), "cannot be loaded"),
        (header({}), "cannot be loaded"),
        (header({"a": 1}), "cannot be loaded"),
        (
            header({"a": {"dtype": "F32", "shape": [HUGE, HUGE], "data_offsets": [0, 4]}}),
            "cannot be loaded",
        ),
        (
            lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "a pointer of Git LFS in place of the weights; run `git lfs pull` there",
        ),
    ],
)
@pytest.mark.parametrize("layout", ["folder", "file"])
def test_damaged_safetensors(
    place: Path, damage: Callable[[bytes], bytes], message: str, layout: str
) -> None:
    file = place / "unet" / WEIGHTS
    file.write_bytes(damage(file.read_bytes()))
    assert message in refusal(place if layout == "folder" else file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be loaded"),
        (b"PK\x03\x04", "cannot be loaded"),
        (b"garbage", "cannot be loaded"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ([1, 2], "holds a list, not weights by their names"),
        (torch.zeros(3), "holds a Tensor, not weights by their names"),
        ({"state_dict": {"a": torch.zeros(1)}}, "holds more than weights by their names (state"),
        ({"a": torch.zeros(1), "epoch": 3}, "holds more than weights by their names (epoch)"),
        ({3: torch.zeros(1)}, "holds more than weights by their names"),
        ({}, "holds 0 weights in all"),
        ({"conv_in.weight": torch.zeros(1).expand(HUGE)}, "holds 1 weights in all|missing"),
    ],
)
def test_pickles_that_hold_no_weights(place: Path, content: Any, message: str) -> None:
    file = place / "unet" / "diffusion_pytorch_model.bin"
    (place / "unet" / WEIGHTS).unlink()
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    text = refusal(place)
    assert any(part in text for part in message.split("|"))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("", "not JSON"),
        ("[]", "a JSON object {…} is expected"),
        ("{}", 'its "weight_map" must say'),
        ('{"weight_map": []}', 'its "weight_map" must say'),
        ('{"weight_map": {}}', 'its "weight_map" must say'),
        ('{"weight_map": {"a": 3}}', 'its "weight_map" must say'),
        ('{"weight_map": {"a": "../x.safetensors"}}', 'its "weight_map" must say'),
        ('{"weight_map": {"a": "x.safetensors"}}', "names x.safetensors, which is not there"),
    ],
)
def test_damaged_indexes_of_shards(place: Path, index: str, message: str) -> None:
    (place / "unet" / f"{WEIGHTS}.index.json").write_text(index)
    assert message in refusal(place)


# --- models of other kinds


@pytest.mark.parametrize(
    ("pipeline", "part", "class_name"),
    [
        ("KandinskyV22Pipeline", "unet", "UNet3DConditionModel"),
        ("HunyuanDiTPipeline", "transformer", "HunyuanDiT2DModel"),
        ("WanPipeline", "transformer", "WanTransformer3DModel"),
    ],
)
def test_pipelines_of_other_models_are_named(
    tmp_path: Path, pipeline: str, part: str, class_name: str
) -> None:
    folder = tmp_path / part
    folder.mkdir()
    index = {"_class_name": pipeline, "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"_class_name": class_name}))
    for path in (tmp_path, folder):
        assert refusal(path) == (
            f"{folder}: a model of class {class_name!r} (of a {pipeline}); gradindex knows"
            f" {', '.join(FAMILIES)}; for another, give an object of your own that computes its"
            " loss (gradindex.build(…, denoiser=…), see docs/models.md)"
        )
    (folder / "config.json").unlink()
    assert f"a {pipeline} without unet or unet_ema or transformer" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "pytorch_lora_weights.safetensors", "adapter_model.bin"]
)
def test_lora_folders_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    assert "a LoRA adapter, not a model: give the model" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"base_model": "x"}')
    assert "a LoRA adapter, not a model: give the model" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "unet.down_blocks.0.attentions.0.to_q.lora_A.weight",
        "unet.mid_block.attentions.0.to_k.lora.up.weight",
        "lora_unet_down_blocks_0_attentions_0.lora_down.weight",
        "base_model.model.conv_in.lora_B.default.weight",
    ],
)
def test_lora_files_are_named(tmp_path: Path, model: Path, name: str) -> None:
    save_file({name: torch.zeros(2, 2)}, tmp_path / "adapter.safetensors")
    text = refusal(tmp_path / "adapter.safetensors", model=model)
    assert text.startswith(f"{tmp_path}/adapter.safetensors: a LoRA adapter, not a model: give")
    assert "a LoRA adapter" in refusal(tmp_path / "adapter.safetensors")


@pytest.mark.parametrize(
    ("adapter", "warned"),
    [
        ("lcm.safetensors", True),
        ("my_LCM_style.safetensors", True),
        ("lcm-lora-sdv1-5", True),
        ("lcm-lora-sdv1-5/pytorch_lora_weights.safetensors", True),
        ("lcm/dog.safetensors", False),
        ("calcmap.safetensors", False),
        ("out/checkpoint-500", False),
    ],
)
def test_adapters_that_are_named_for_a_teacher(
    adapter: str, warned: bool, recwarn: pytest.WarningsRecorder
) -> None:
    warn_of_teachers([adapter])
    texts = [str(warning.message) for warning in recwarn]
    assert [text.partition(":")[0] for text in texts] == [f"adapter {adapter}"] * warned


def test_a_weights_file_without_its_config(tmp_path: Path) -> None:
    save_file({"conv_in.weight": torch.zeros(2, 2)}, tmp_path / "step.safetensors")
    text = refusal(tmp_path / "step.safetensors")
    assert text.startswith(f"{tmp_path}/step.safetensors: a weights file needs its model's config")
    single = {"model.diffusion_model.out.0.bias": torch.zeros(2)}
    save_file(single, tmp_path / "sd15.safetensors")
    text = refusal(tmp_path / "sd15.safetensors")
    assert text.startswith(f"{tmp_path}/sd15.safetensors: a checkpoint in the original layout (")
    assert f"(--model PIPELINE --checkpoint {tmp_path}/sd15.safetensors)" in text
    assert text.endswith(
        f"diffusers.StableDiffusionPipeline.from_single_file('{tmp_path}/sd15.safetensors')"
        ".save_pretrained('FOLDER')"
    )
    (tmp_path / "step.safetensors").unlink()
    assert refusal(tmp_path) == text  # the folder that it lies in


def test_other_names_of_weight_files(place: Path) -> None:
    file = place / "unet" / WEIGHTS
    file.rename(place / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    assert "no weights" in (text := refusal(place))
    assert "it has diffusion_pytorch_model.non_ema.safetensors: name that file itself" in text
    assert "give the folder that it lies in" in refusal(place / CONFIG, model=place)


def test_models_that_are_no_paths(model: Path) -> None:
    network = load_denoiser(model).model
    text = "an object of class UNet2DModel: give a path; save a model with its save_pretrained"
    assert text in refusal(network, CallError)
    with pytest.raises(CallError, match=text):
        Checkpoints([str(model)], network, None, "cpu", "float32")


@pytest.mark.parametrize(
    ("path", "way_out"),
    [
        ("google/ddpm-cifar10-32", "hf download google/ddpm-cifar10-32 --local-dir ddpm-cifar10"),
        ("https://huggingface.co/google/x", "download the model first"),
        ("s3://bucket/model", "download the model first"),
        ("{tmp}/gone", None),
        ("gone", None),
    ],
)
def test_models_that_are_not_on_this_disk(tmp_path: Path, path: str, way_out: str | None) -> None:
    text = refusal(path.format(tmp=tmp_path), CallError)
    assert "no such file or folder" in text
    assert way_out in text if way_out else text.endswith("no such file or folder")


def test_a_weights_file_may_be_named_as_the_model(model: Path) -> None:
    """Its config.json lies beside it."""
    file = model / "unet" / WEIGHTS
    assert load_denoiser(file, model=file).digest == load_denoiser(model).digest


# --- models that moved since the build


def test_a_moved_model_is_asked_for(tmp_path: Path, model: Path, pictures: Path) -> None:
    first = Path(shutil.copytree(model, tmp_path / "first"))
    second = make_model(tmp_path / "second", seed=1)
    options: dict[str, Any] = {"data": pictures, "timesteps": 1, "dim": 16, "device": "cpu"}
    picture = sorted(pictures.iterdir())[0]
    gradindex.build(tmp_path / "one", model=first, **options)
    gradindex.build(tmp_path / "two", model=first, checkpoints=[first, second], **options)
    first.rename(tmp_path / "moved")
    done = run("query", tmp_path / "one", picture)
    assert done.returncode == 2
    assert done.stderr == (
        f"Error: model {first}: no such file or folder, and {tmp_path}/one was built from it;"
        " say where it is now with --model\n"
    )
    assert run("query", tmp_path / "one", picture, "--model", tmp_path / "moved").returncode == 0
    text = run("query", tmp_path / "two", picture).stderr
    assert f"model {first}: no such file or folder" in text
    assert "2 checkpoints; put it back, or a link to it" in text
    text = run("query", tmp_path / "two", picture, "--model", tmp_path / "moved").stderr
    assert "this index has 2 checkpoints, and a model stands for one; put them back" in text
    first.symlink_to(tmp_path / "moved")
    assert run("query", tmp_path / "two", picture).returncode == 0


def test_a_moved_scheduler_is_asked_for(tmp_path: Path, place: Path, pictures: Path) -> None:
    scheduler = Path(shutil.move(place / "scheduler", tmp_path / "scheduler"))
    gradindex.build(
        tmp_path / "i", model=place, scheduler=scheduler, data=pictures, timesteps=1, device="cpu"
    )
    scheduler.rename(tmp_path / "gone")
    with pytest.raises(CallError, match="was built with it; put it back, or a link to it"):
        gradindex.open(tmp_path / "i", device="cpu").scores([sorted(pictures.iterdir())[0]])


def test_the_check_widens_and_narrows_weights_in_silence(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """diffusers' own `to` warns of every cast."""
    denoiser = load_denoiser(model, dtype="bfloat16")
    check_capture(denoiser, replace(RECIPE, dtype="bfloat16"))
    assert denoiser.model.dtype == torch.bfloat16
    assert load_file(model / "unet" / WEIGHTS)["conv_in.weight"].dtype == torch.float32
    assert capfd.readouterr() == ("", "")

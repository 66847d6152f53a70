"""Models on disk: what is loaded, what is refused, and what makes two of them the same."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers.utils.logging
import numpy as np
import pytest
import torch
from conftest import make_model
from diffusers import UNet2DModel
from helpers import RECIPE
from safetensors.torch import load_file, save_file

import gradindex
from gradindex.errors import CallError, ModelError
from gradindex.gradients.batch_size import fitting_batch
from gradindex.gradients.events import grid_events
from gradindex.gradients.parameters import capture_for
from gradindex.gradients.sampling import mean_losses, sample_gradients
from gradindex.gradients.self_check import check_capture
from gradindex.models.checkpoints import Checkpoints
from gradindex.models.examples import Examples
from gradindex.models.loading import load_denoiser

WEIGHTS = "diffusion_pytorch_model.safetensors"
EMA_FIELDS = {
    "optimization_step": 2,
    "decay": 0.9999,
    "min_decay": 0.0,
    "inv_gamma": 1.0,
    "power": 0.75,
    "update_after_step": 0,
    "use_ema_warmup": False,
}


@pytest.fixture
def place(model: Path, tmp_path: Path) -> Path:
    """A copy of the small pipeline, to be changed."""
    return Path(shutil.copytree(model, tmp_path / "place"))


def change(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def files_digest(*files: Path) -> str:
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in files]
    return hashlib.sha256(b"".join(digests)).hexdigest()


# --- models of latents


def test_the_unet_of_a_latent_pipeline_is_never_taken_for_one_of_pixels(place: Path) -> None:
    shutil.copytree(place / "unet", place / "checkpoint-500" / "unet")
    bare = shutil.copy(place / "unet" / WEIGHTS, place / "step.safetensors")
    change(place / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    (place.parent / "link").symlink_to(place / "checkpoint-500" / "unet")
    for path in [
        place,
        place / "unet",
        place / "unet" / WEIGHTS,
        place / "checkpoint-500",
        place / "checkpoint-500" / "unet",
        place.parent / "link",
        bare,
    ]:
        with pytest.raises(
            ModelError,
            match=r"place: the pipeline's vae, which makes latents of pictures, is not there",
        ):
            load_denoiser(path)


def test_weights_that_lie_in_a_latent_pipeline_belong_to_it(place: Path, model: Path) -> None:
    change(place / "model_index.json", vqvae=["diffusers", "VQModel"])
    with pytest.raises(ModelError, match="pipeline's vqvae, which makes"):
        load_denoiser(place / "unet" / WEIGHTS, model=model)


@pytest.mark.parametrize("class_name", ["AutoencoderTiny", "VQModel", "ConsistencyDecoderVAE"])
def test_a_part_that_makes_latents_is_known_by_its_class(place: Path, class_name: str) -> None:
    change(place / "model_index.json", coder=["diffusers", class_name])
    with pytest.raises(ModelError, match="the pipeline's coder, which makes"):
        load_denoiser(place / "unet")


def test_a_vae_beside_a_unet_tells_without_a_pipeline(place: Path) -> None:
    (place / "model_index.json").unlink()
    (place / "vae").mkdir()
    (place / "vae" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="there is a vae beside it"):
        load_denoiser(place / "unet")


def test_a_pixel_pipeline_near_a_latent_one_is_loaded(place: Path) -> None:
    """The nearest pipeline counts, and a part that it does without is none."""
    change(place / "model_index.json", vae=[None, None])
    load_denoiser(place / "unet")
    (place.parent / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKL"]}')
    load_denoiser(place / "unet")


def test_channels_of_latents_are_refused(tmp_path: Path) -> None:
    place = make_model(tmp_path / "four", in_channels=4, out_channels=4)
    with pytest.raises(CallError, match=r"config.json: the model takes 4 channels; pictures have"):
        load_denoiser(place)


# --- the weights that are loaded


def _in_folder(place: Path, weights: dict[str, torch.Tensor]) -> Path:
    save_file(weights, place / "unet" / WEIGHTS)
    return place


def _pickled_in_folder(place: Path, weights: dict[str, torch.Tensor]) -> Path:
    (place / "unet" / WEIGHTS).unlink()
    torch.save(weights, place / "unet" / "diffusion_pytorch_model.bin")
    return place


def _in_shards(place: Path, weights: dict[str, torch.Tensor]) -> Path:
    (place / "unet" / WEIGHTS).unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, place / "unet" / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = place / "unet" / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return place


def _bare(place: Path, weights: dict[str, torch.Tensor]) -> Path:
    save_file(weights, place / "step.safetensors")
    return place / "step.safetensors"


def _pickled_bare(place: Path, weights: dict[str, torch.Tensor]) -> Path:
    torch.save(weights, place / "step.pt")
    return place / "step.pt"


Save = Callable[[Path, dict[str, torch.Tensor]], Path]
SAVES = [_in_folder, _pickled_in_folder, _in_shards, _bare, _pickled_bare]


@pytest.mark.parametrize("save", SAVES)
def test_weights_must_be_those_of_the_config(place: Path, save: Save) -> None:
    """One weight too many, too few, of another shape, of whole numbers; else all is well."""
    weights = load_file(place / "unet" / WEIGHTS)
    first, last = weights["conv_in.weight"], weights["conv_out.bias"]
    without = {name: value for name, value in weights.items() if name != "conv_out.bias"}
    refused: list[tuple[dict[str, torch.Tensor], str]] = [
        ({**weights, "extra.weight": last}, "has no place for: extra.weight;"),
        (without, "weights are missing for conv_out.bias"),
        ({**weights, "conv_in.weight": first[:4]}, r"'conv_in.weight' have the shape \[4, 1, 3, 3"),
        ({**weights, "conv_out.bias": last.int()}, "'conv_out.bias' are int32"),
        ({**weights, "conv_out.bias": last * torch.nan}, "'conv_out.bias' hold NaN or infinity"),
        ({**weights, "mid.lora_A.weight": last}, "a LoRA adapter, not a model"),
        ({"model.diffusion_model.out.weight": last}, "a checkpoint in the original layout"),
    ]
    for number, (changed, message) in enumerate(refused):
        copy = Path(shutil.copytree(place, place.parent / f"copy{number}"))
        with pytest.raises(ModelError, match=message) as caught:
            load_denoiser(save(copy, {name: value.clone() for name, value in changed.items()}))
        assert "\n" not in str(caught.value)
    loaded = load_denoiser(save(place, weights)).model.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_shards_with_an_index_go_before_a_single_file(place: Path, tmp_path: Path) -> None:
    """As in diffusers; the digest is of the files whose weights are loaded."""
    unet = place / "unet"
    UNet2DModel.from_pretrained(unet).save_pretrained(unet, max_shard_size="10KB")
    other = make_model(tmp_path / "other", seed=1)
    shutil.copy(other / "unet" / WEIGHTS, unet / WEIGHTS)
    shards = sorted(unet.glob("diffusion_pytorch_model-*.safetensors"))
    assert len(shards) > 1
    stray = shutil.copy(shards[0], unet / "diffusion_pytorch_model-00009-of-00009.safetensors")
    denoiser = load_denoiser(place)
    expected = UNet2DModel.from_pretrained(unet)
    assert torch.equal(denoiser.model.conv_in.weight, expected.conv_in.weight)
    assert denoiser.digest == files_digest(*shards)
    Path(stray).unlink()
    assert load_denoiser(place).digest == denoiser.digest
    shards[0].unlink()
    with pytest.raises(ModelError, match=f"names {shards[0].name}, which is not there"):
        load_denoiser(place)
    (unet / f"{WEIGHTS}.index.json").unlink()
    assert load_denoiser(place).digest == load_denoiser(other).digest


@pytest.mark.parametrize("save", SAVES)
def test_attention_under_its_former_names(place: Path, save: Save) -> None:
    """Weights that diffusers wrote before 0.13, such as google/ddpm-cifar10-32's."""
    former = {
        ".to_q.": ".query.",
        ".to_k.": ".key.",
        ".to_v.": ".value.",
        ".to_out.0.": ".proj_attn.",
    }
    expected = load_file(place / "unet" / WEIGHTS)
    weights = {}
    for name, value in expected.items():
        for today, before in former.items():
            name = name.replace(today, before)
        weights[name] = value
    assert weights.keys() != expected.keys()
    loaded = load_denoiser(save(place, weights)).model.state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_loading_leaves_no_trace(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """diffusers' verbosity, its log, and the caller's random numbers stay as they were."""
    change(place / "unet" / "config.json", **EMA_FIELDS)
    change(place / "scheduler" / "scheduler_config.json", steps_offset=1, foreign=2)
    diffusers.utils.logging.set_verbosity_info()
    diffusers.utils.logging.enable_propagation()
    try:
        torch.manual_seed(3)
        load_denoiser(place)
        drawn = torch.rand(1)
        assert diffusers.utils.logging.get_verbosity() == logging.INFO
    finally:
        diffusers.utils.logging.set_verbosity_warning()
        diffusers.utils.logging.disable_propagation()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == []
    torch.manual_seed(3)
    assert drawn == torch.rand(1)


# --- what makes two models the same


def old_config_digest(folder: Path) -> str:
    """The digest of a configuration as gradindex made it until it left foreign fields out."""
    config = UNet2DModel.from_pretrained(folder).config
    public = {name: value for name, value in config.items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(public, sort_keys=True).encode()).hexdigest()


def test_fields_of_ema_do_not_make_another_model(place: Path, model: Path) -> None:
    plain = load_denoiser(model)
    paths = []
    for step in (2, 4):
        folder = place / f"checkpoint-{step}" / "unet_ema"
        shutil.copytree(model / "unet", folder)
        change(folder / "config.json", **{**EMA_FIELDS, "optimization_step": step}, note=["x"])
        paths.append(folder)
        assert load_denoiser(folder).description == plain.description
    run = Checkpoints(paths, model, None, "cpu", "float32")
    assert run.recipe_fields()["checkpoints"] == (plain.digest, plain.digest)


def test_digests_of_former_stores_hold(place: Path, model: Path) -> None:
    """A plain model's digest is what it was; one with EMA's fields is known by its former one."""
    assert load_denoiser(model).description.config == old_config_digest(model / "unet")
    config = json.loads((place / "unet" / "config.json").read_text())
    for name in ("num_class_embeds", "add_attention", "attn_norm_num_groups"):
        config.pop(name)  # as a diffusers wrote it that did not know them
    (place / "unet" / "config.json").write_text(json.dumps(config))
    assert load_denoiser(place).description.config == old_config_digest(model / "unet")
    change(place / "unet" / "config.json", **EMA_FIELDS)
    former = old_config_digest(place / "unet")
    run = Checkpoints([place], place, None, "cpu", "float32")
    today = load_denoiser(model).description.config
    assert run.recipe_fields()["config"] == today != former
    assert run.recipe_fields(stored_config=former)["config"] == former
    assert run.recipe_fields(stored_config="0" * 64)["config"] == today
    assert run.config_digest(former) == former
    assert run.config_digest("0" * 64) == today


# --- time embeddings


def test_a_table_of_timesteps_shorter_than_the_schedule_is_refused(tmp_path: Path) -> None:
    learned = {"time_embedding_type": "learned", "num_train_timesteps": 50}
    place = make_model(tmp_path / "m", **learned)
    with pytest.raises(ModelError, match="embeddings for 50 timesteps, and its scheduler has 1000"):
        load_denoiser(place)
    change(place / "scheduler" / "scheduler_config.json", num_train_timesteps=50)
    assert load_denoiser(place).num_train_timesteps == 50


# --- what the caller has switched on


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)


STATES: dict[str, Callable[[], Any]] = {
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "meta": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_class_embeds": 3}, {"time_embedding_type": "learned", "num_train_timesteps": 1000}],
)
@pytest.mark.parametrize("state", STATES)
def test_gradients_are_the_same_in_any_state_of_torch(
    tmp_path: Path, settings: dict[str, Any], state: str
) -> None:
    place = make_model(tmp_path / "m", **settings)
    expected = computed(place)
    with STATES[state]():
        inside = computed(place)
    for before, now in zip(expected, inside, strict=True):
        np.testing.assert_array_equal(now, before)


@pytest.mark.parametrize("state", ["inference", "autocast", "no_grad"])
def test_answers_are_the_same_in_any_state_of_torch(
    tmp_path: Path, model: Path, pictures: Path, queries: list[Path], state: str
) -> None:
    def answer(name: str) -> tuple[np.ndarray, np.ndarray]:
        options: dict[str, Any] = {"timesteps": 2, "dim": 32, "device": "cpu"}
        index = gradindex.build(tmp_path / name, model=model, data=pictures, **options)
        return index.store.unnormalized[:], index.scores(queries, method="tracin")

    rows, scores = answer("outside")
    with STATES[state]():
        inside = answer("inside")
    np.testing.assert_array_equal(inside[0], rows)
    np.testing.assert_allclose(inside[1], scores, rtol=1e-6)


def computed(place: Path) -> list[np.ndarray]:
    """Rows, losses and the fitting batch of a model, loaded in the caller's state of torch."""
    run = Checkpoints([place], place, None, "cpu", "float32")
    recipe = replace(RECIPE, **run.recipe_fields(), timesteps=(10, 500))
    denoiser = run[0]
    assert not any(parameter.is_inference() for parameter in denoiser.model.parameters())
    check_capture(denoiser, recipe)
    pictures = np.random.default_rng(0).uniform(-1, 1, (3, 1, 8, 8)).astype(np.float32)
    labels = None if recipe.classes is None else [0, 1, 2]
    events = grid_events(recipe, ["a", "b", "c"])
    examples = Examples.of_pictures(pictures, labels)
    with capture_for(denoiser, recipe) as capture:
        rows = sample_gradients(denoiser, capture, recipe, examples, events, batch_size=2)
    losses = mean_losses(denoiser, examples, [10, 500], 1, 0, "mse")
    return [rows, losses, np.array(fitting_batch(denoiser, recipe))]

"""Losses that trainers change: scores equal a loop of autograd over the scripts' loss."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import oracles
import pytest
import tiny_pipelines
import torch
from conftest import make_model, make_pictures
from family_oracle import Loss, check_scores, gradient, read
from tiny_pipelines import SIDE
from torch import Tensor
from torch.nn.functional import mse_loss

import gradindex
from gradindex.errors import CallError
from gradindex.gradients.events import grid_events
from gradindex.gradients.weighting import timestep_weights
from gradindex.models.loading import load_denoiser
from gradindex.recipe import Recipe
from gradindex.report.info import describe

GAMMA, OFFSET = 0.3, 0.2


def hidden_states(pipeline: Any, caption: str) -> Tensor:
    """What Stable Diffusion's text encoder makes of a caption."""
    tokenizer = pipeline.tokenizer
    tokens = tokenizer(
        caption, max_length=77, padding="max_length", truncation=True, return_tensors="pt"
    )
    return pipeline.text_encoder(tokens.input_ids)[0]


def latents_of(pipeline: Any, x: Tensor) -> Tensor:
    return pipeline.vae.encode(x).latent_dist.mode() * pipeline.vae.config.scaling_factor


# --- input perturbation


def perturbed_loss(pipeline: Any, offset: float) -> Loss:
    """As in examples/text_to_image/train_text_to_image.py with --input_perturbation."""
    scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)

    def loss(x: Tensor, caption: str, t: float, noise: Tensor) -> Tensor:
        timesteps = torch.tensor([t]).long()
        with torch.no_grad():
            latents = latents_of(pipeline, x)
            hidden = hidden_states(pipeline, caption)
        offsets = gradindex.noise(0, "offset", t, 0, (noise.shape[1], 1, 1))
        noise = noise + offset * torch.tensor(offsets)
        other = gradindex.noise(0, "perturbation", t, 0, noise.shape[1:])
        new_noise = noise + GAMMA * torch.tensor(other)
        noisy = scheduler.add_noise(latents, new_noise, timesteps)
        target = noise
        if scheduler.config.prediction_type == "v_prediction":
            target = scheduler.get_velocity(latents, noise, timesteps)
        return mse_loss(pipeline.unet(noisy, timesteps, hidden, return_dict=False)[0], target)

    return loss


@pytest.mark.parametrize(
    ("prediction_type", "offset"), [("epsilon", 0.0), ("epsilon", OFFSET), ("v_prediction", OFFSET)]
)
def test_input_perturbation(tmp_path: Path, prediction_type: str, offset: float) -> None:
    folder = tiny_pipelines.stable_diffusion(tmp_path / "pipeline", prediction_type)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    loss = perturbed_loss(pipeline, offset)
    options = {"input_perturbation": GAMMA, "noise_offset": offset}
    index = check_scores(tmp_path, folder, pipeline.unet, loss, **options)
    assert " input perturbation 0.3" in describe(index.store)


def test_input_perturbation_of_flow_matching(tmp_path: Path) -> None:
    """As in kohya's flux_train_utils.py with --ip_noise_gamma: only x_t has the other noise."""
    folder = tiny_pipelines.sd3(tmp_path / "pipeline", with_t5=False)
    denoiser = gradindex.build(
        tmp_path / "idx",
        model=folder,
        data=make_pictures(tmp_path / "data", 2, SIDE, mode="RGB"),
        caption="a digit",
        resolution=SIDE,
        timesteps=[750.5],
        dim=64,
        input_perturbation=GAMMA,
        device="cpu",
    ).gradients.checkpoints[0]
    seen = []
    denoiser._predict = lambda noisy, t, conditions: seen.append((noisy, set(conditions))) or noisy
    random = torch.Generator().manual_seed(0)
    x, noise, other = torch.randn(3, 1, 4, 8, 8, generator=random)
    t, conditions = torch.tensor([750.5]), {"input_noise": GAMMA * other, "text": x}
    loss = denoiser.losses(x, t, noise, conditions, "mse")
    sigma = 0.7505
    noisy = (1 - sigma) * x + sigma * (noise + GAMMA * other)
    torch.testing.assert_close(seen[0][0], noisy)
    torch.testing.assert_close(loss[0], mse_loss(noisy, noise - x))
    assert seen[0][1] == {"text"}


@pytest.mark.parametrize("noise", ["shared", "own"])
def test_the_other_noise_is_keyed_as_the_noise_is(tmp_path: Path, noise: str) -> None:
    """A model of pixels; both draws of a pair, whose noises are each other's negatives."""
    folder = make_model(tmp_path / "model")
    data, asked = make_pictures(tmp_path / "data", 3), make_pictures(tmp_path / "asked", 2, seed=5)
    index = gradindex.build(
        tmp_path / "idx",
        model=folder,
        data=data,
        timesteps=2,
        draws=2,
        noise=noise,
        seed=4,
        projection="none",
        input_perturbation=GAMMA,
        device="cpu",
    )
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    model = pipeline.unet.requires_grad_(True)

    def mean_gradient(x: Tensor, name: str | None, t: int) -> np.ndarray:
        other_name = "perturbation" if name is None else f"perturbation of {name}"
        gradients = []
        for draw in range(2):
            epsilon = torch.tensor(gradindex.noise(4, name, t, draw, x.shape[1:]))[None]
            other = torch.tensor(gradindex.noise(4, other_name, t, draw, x.shape[1:]))[None]
            time = torch.tensor([t])
            noisy = pipeline.scheduler.add_noise(x, epsilon + GAMMA * other, time)
            gradients.append(gradient(model, mse_loss(model(noisy, time).sample, epsilon)))
        return np.mean(gradients, axis=0)

    def rows(files: list[Path], names: list[str]) -> np.ndarray:
        return np.array(
            [
                [
                    mean_gradient(read(file)[:, :1], name if noise == "own" else None, int(t))
                    for t in index.store.recipe.timesteps
                ]
                for file, name in zip(files, names, strict=True)
            ]
        )

    files, queries = sorted(data.iterdir()), sorted(asked.iterdir())
    training = rows(files, [file.name for file in files])
    query_rows = rows(queries, [oracles.query_id(file) for file in queries])
    for method in ("tracin", "retrac"):
        truth = oracles.score([training], [query_rows], [1], method, "matched")
        scores = index.scores(queries, method, whiten=False)
        np.testing.assert_allclose(scores, truth, rtol=1e-4)


def test_a_recipe_without_input_perturbation_is_what_it_was(tmp_path: Path) -> None:
    index = gradindex.build(
        tmp_path / "idx",
        model=make_model(tmp_path / "model"),
        data=make_pictures(tmp_path / "data", 2),
        timesteps=1,
        dim=64,
        device="cpu",
    )
    recipe = index.store.recipe
    assert "input_perturbation" not in recipe.to_json()
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert grid_events(recipe, ["a"]).input_noise is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_perturbation": -0.1}, r"^input_perturbation = -0.1: give a number, 0 or more$"),
        ({"input_perturbation": float("nan")}, "input_perturbation = nan: give a number"),
        (
            {"input_perturbation": 0.1, "timesteps": "recorded", "log": "log"},
            "^input_perturbation: recorded noise is what it was in training;",
        ),
        (
            {"input_perturbation": 0.1, "model": None, "denoiser": object()},
            "^input_perturbation: a denoiser of your own mixes noise in itself; leave it out$",
        ),
    ],
)
def test_input_perturbation_that_cannot_be(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CallError, match=message):
        gradindex.build(tmp_path / "idx", **{"model": "m", "data": "d", **options})
    assert not (tmp_path / "idx").exists()


# --- prior preservation


def test_class_pictures_of_prior_preservation(tmp_path: Path) -> None:
    """As train_dreambooth.py --with_prior_preservation: what docs/models.md says of its weight.

    A step's gradient is a sum over its pictures: those of the instance count the same with class
    pictures or without, and a class picture's TracIn score times the weight is its part.
    """
    folder = make_model(tmp_path / "model")
    data = make_pictures(tmp_path / "data", 2)
    instance, class_picture = sorted(data.iterdir())
    (asked,) = make_pictures(tmp_path / "asked", 1, seed=5).iterdir()
    t, prior_loss_weight = 400, 0.3
    options = {"model": folder, "timesteps": [t], "projection": "none", "device": "cpu"}
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    model = pipeline.unet.requires_grad_(True)
    noise = torch.tensor(gradindex.noise(0, None, t, 0, (1, 8, 8)))[None]

    def predict(x: Tensor) -> Tensor:
        timesteps = torch.full((len(x),), t)
        noisy = pipeline.scheduler.add_noise(x, noise.expand_as(x), timesteps)
        return model(noisy, timesteps).sample

    batch = torch.cat([read(instance)[:, :1], read(class_picture)[:, :1]])
    model_pred, model_pred_prior = predict(batch).chunk(2)
    loss = mse_loss(model_pred, noise) + prior_loss_weight * mse_loss(model_pred_prior, noise)
    step = gradient(model, loss)
    query = gradient(model, mse_loss(predict(read(asked)[:, :1]), noise))

    index = gradindex.build(tmp_path / "both", data=data, **options)
    ((of_instance, of_class),) = index.scores(asked, "tracin", whiten=False)
    np.testing.assert_allclose(of_instance + prior_loss_weight * of_class, step @ query, rtol=1e-4)
    assert abs(of_class) > 1e-3 * abs(of_instance)
    class_picture.unlink()
    alone = gradindex.build(tmp_path / "alone", data=data, **options)
    np.testing.assert_allclose(alone.scores(asked, "tracin", whiten=False), of_instance, rtol=1e-5)


# --- EDM-style training


@pytest.mark.parametrize(
    ("prediction_type", "weighting"), [("epsilon", None), ("v_prediction", "min-snr:inf")]
)
def test_edm_style_training(tmp_path: Path, prediction_type: str, weighting: str | None) -> None:
    """As train_dreambooth_lora_sdxl.py --do_edm_style_training, which has another x_t and target.

    It comes to the loss of denoising, at v-prediction with the weight ᾱ.
    """
    folder = make_model(tmp_path / "model")
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type=prediction_type)
    scheduler.save_pretrained(folder / "scheduler")
    denoiser = load_denoiser(folder, device="cpu")
    random = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 1, 1, 8, 8, generator=random)
    for index in (0, 400, 998):
        timesteps = scheduler.timesteps[[index]]
        sigmas = scheduler.sigmas[[index]].view(-1, 1, 1, 1)
        noisy = scheduler.add_noise(x, noise, timesteps)
        with torch.no_grad():
            model_pred = denoiser.model(noisy / ((sigmas**2 + 1) ** 0.5), timesteps).sample
        if prediction_type == "epsilon":
            model_pred = model_pred * (-sigmas) + noisy
        else:
            model_pred = model_pred * (-sigmas / (sigmas**2 + 1) ** 0.5) + noisy / (sigmas**2 + 1)
        expected = (sigmas**-2.0 * (model_pred - x) ** 2).mean()
        t = timesteps.long()
        with torch.no_grad():
            loss = denoiser.losses(x, t, noise, {}, "mse")[0]
        weight = timestep_weights(weighting, denoiser.process, t.numpy())[0]
        np.testing.assert_allclose(loss * weight, expected, rtol=1e-3)

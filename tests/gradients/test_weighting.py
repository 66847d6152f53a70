"""The weights of losses are those of the trainers; rows are multiplied with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3, compute_snr

import gradindex
from gradindex.builder import plan
from gradindex.errors import CallError, RecipeMismatch
from gradindex.gradients.events import grid_events
from gradindex.gradients.weighting import timestep_weights
from gradindex.models.processes import Ddpm, Flow
from gradindex.random_numbers import noise
from gradindex.report.info import describe

TIMESTEPS = [0, 1, 250, 500, 999]
GAMMA = 5.0


def process(prediction_type: str, **settings: Any) -> tuple[Ddpm, torch.Tensor]:
    """A process, and diffusers' own SNR at TIMESTEPS."""
    scheduler = DDPMScheduler(prediction_type=prediction_type, **settings)
    snr = compute_snr(scheduler, torch.tensor(TIMESTEPS))
    return Ddpm(dict(scheduler.config), "cpu"), snr


def smaller(snr: torch.Tensor) -> torch.Tensor:
    """As diffusers' scripts write it."""
    return torch.stack([snr, GAMMA * torch.ones_like(snr)], dim=1).min(dim=1)[0]


@pytest.mark.parametrize(
    ("weighting", "prediction_type", "formula"),
    [
        ("min-snr:5", "epsilon", lambda snr: smaller(snr) / snr),
        ("min-snr:5", "v_prediction", lambda snr: smaller(snr) / (snr + 1)),
        ("min-snr:5", "sample", lambda snr: smaller(snr)),
        ("min-snr-plus-one:5", "epsilon", lambda snr: smaller(snr) / snr),
        ("min-snr-plus-one:5", "v_prediction", lambda snr: smaller(snr) / snr + 1),
        ("snr", "sample", lambda snr: snr),
        ("debiased", "epsilon", lambda snr: 1 / snr.clamp(max=1000).sqrt()),
        ("debiased-v", "v_prediction", lambda snr: 1 / (snr.clamp(max=1000) + 1)),
        # kohya's `scale_v_prediction_loss_like_noise_prediction`
        (
            "min-snr:inf",
            "v_prediction",
            lambda snr: snr.clamp(max=1000) / (snr.clamp(max=1000) + 1),
        ),
    ],
)
def test_weights_of_ddpm(weighting: str, prediction_type: str, formula: Any) -> None:
    ddpm, snr = process(prediction_type)
    np.testing.assert_allclose(
        timestep_weights(weighting, ddpm, TIMESTEPS), formula(snr.double()).numpy(), rtol=2e-3
    )


@pytest.mark.parametrize("weighting", ["sigma-sqrt", "cosmap"])
def test_weights_of_flow_matching(weighting: str) -> None:
    sigmas = torch.tensor([0.01, 0.5, 1.0], dtype=torch.float64)
    expected = compute_loss_weighting_for_sd3(weighting.replace("-", "_"), sigmas)
    flow = Flow({"num_train_timesteps": 1000})
    found = timestep_weights(weighting, flow, (sigmas * 1000).numpy())
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12)


def test_zero_terminal_snr() -> None:
    """Where no signal is left v has a weight, and ε none that is finite."""
    ddpm, _ = process("v_prediction", rescale_betas_zero_snr=True)
    assert timestep_weights("min-snr:5", ddpm, [999])[0] == 0
    ddpm, _ = process("epsilon", rescale_betas_zero_snr=True)
    with pytest.raises(CallError, match="infinite at timestep 999; leave it out"):
        timestep_weights("min-snr:5", ddpm, [500, 999])


@pytest.mark.parametrize(
    "weighting",
    ["min-snr", "min-snr:", "min-snr:x", "min-snr:0", "min-snr:nan", "snr:5", "SNR", ""],
)
def test_what_is_no_weighting(weighting: str) -> None:
    ddpm, _ = process("epsilon")
    with pytest.raises(CallError, match=r"allowed are min-snr:5, min-snr-plus-one:5, snr, debia"):
        timestep_weights(weighting, ddpm, [5])


def test_a_weighting_of_the_other_process() -> None:
    ddpm, _ = process("epsilon")
    with pytest.raises(CallError, match="for models of flow matching"):
        timestep_weights("cosmap", ddpm, [5])
    with pytest.raises(CallError, match="for models with a signal-to-noise ratio"):
        timestep_weights("snr", Flow({"num_train_timesteps": 1000}), [5.0])


def test_rows_are_multiplied(tmp_path: Path, model: Path, pictures: Path) -> None:
    options: dict[str, Any] = {
        "data": pictures,
        "timesteps": [20, 200, 700],
        "dim": 64,
        "device": "cpu",
    }
    plain = gradindex.build(tmp_path / "plain", model=model, **options).store
    weighted = gradindex.build(
        tmp_path / "weighted", model=model, weighting="min-snr:5", **options
    ).store
    ddpm = Ddpm(dict(DDPMScheduler().config), "cpu")
    weights = timestep_weights("min-snr:5", ddpm, plain.recipe.timesteps)
    assert weights.min() < 0.9
    np.testing.assert_allclose(
        weighted.unnormalized[:],
        plain.unnormalized[:] * weights[:, None].astype(np.float32),
        rtol=1e-5,
        atol=1e-8,
    )
    assert weighted.recipe.weighting == "min-snr:5"
    assert " weighted min-snr:5\n" in describe(weighted)
    assert "\nloss" not in describe(plain)
    with pytest.raises(CallError, match="allowed are"):
        gradindex.build(tmp_path / "odd", model=model, weighting="mean", **options)
    assert not (tmp_path / "odd").exists()


def test_a_weighting_is_the_same_however_its_number_is_written(
    tmp_path: Path, model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index of an earlier gradindex has the number as it was typed, and goes on."""
    options: dict[str, Any] = {"model": model, "data": pictures, "timesteps": [200], "dim": 16}
    with monkeypatch.context() as patch:
        patch.setattr(plan, "one_spelling", lambda weighting: weighting)
        typed = gradindex.build(tmp_path / "idx", weighting="min-snr:5.0", **options).store
    assert typed.recipe.weighting == "min-snr:5.0"
    for weighting in ("min-snr:5", "min-snr:5.0", "min-snr:05"):
        again = gradindex.build(tmp_path / "idx", weighting=weighting, **options).store
        assert again.recipe == typed.recipe
    with pytest.raises(RecipeMismatch, match=r'weighting: "min-snr:5.0", now "min-snr:5.5"'):
        gradindex.build(tmp_path / "idx", weighting="min-snr:5.50", **options)
    new = gradindex.build(tmp_path / "new", weighting="min-snr:5.0", **options).store
    assert new.recipe.weighting == "min-snr:5"


@pytest.mark.parametrize("weighting", ["mean", "cosmap", "min-snr:x"])
def test_a_weighting_of_recorded_timesteps_is_checked_before_anything_is_written(
    tmp_path: Path, model: Path, pictures: Path, weighting: str
) -> None:
    lines = [f"{file.name},0,40" for file in sorted(pictures.iterdir())]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(["sample_id,step,timestep", *lines]))
    with pytest.raises(CallError, match=f"weighting = '{weighting}': "):
        gradindex.build(
            tmp_path / "idx",
            model=model,
            data=pictures,
            timesteps="recorded",
            log=log,
            noise="own",
            weighting=weighting,
        )
    assert not (tmp_path / "idx").exists()


def test_noise_offset(tmp_path: Path, pictures: Path) -> None:
    """A number for each whole channel, the same for all pictures where noise is shared."""
    model = make_model(tmp_path / "model", in_channels=3, out_channels=3)
    options: dict[str, Any] = {"data": pictures, "timesteps": 2, "dim": 64, "device": "cpu"}
    index = gradindex.build(tmp_path / "idx", model=model, noise_offset=0.5, **options)
    recipe = index.store.recipe
    shape = (3, 8, 8)
    found = grid_events(recipe, ["a"]).noise(0, 1, 0, shape)
    change = found - noise(recipe.seed, None, recipe.timesteps[1], 0, shape)
    assert change.std((1, 2)).max() < 1e-6
    assert np.abs(change[:, 0, 0]).min() > 1e-3
    assert len(set(change[:, 0, 0].tolist())) == 3
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(CallError, match="noise_offset"):
            gradindex.build(tmp_path / "odd", model=model, noise_offset=wrong, **options)

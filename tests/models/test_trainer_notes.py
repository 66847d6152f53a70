"""What kohya's notes say of a training's loss, against that of a build: each with its option."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from helpers import RECIPE

from gradindex.gradients.weighting import one_spelling
from gradindex.models.trainer_differences import loss_differences
from gradindex.models.trainer_notes import TrainerNotes, read_trainer_notes
from gradindex.store.records import from_json, to_json

V_PREDICTION = {"modelspec.prediction_type": "v"}


def recipe(**changes: Any) -> Any:
    return replace(RECIPE, **{"scheduler": "{}", "prediction_type": "epsilon", **changes})


def differences(header: dict[str, str], **changes: Any) -> list[str]:
    """Those of a header of kohya's scripts, all of whose values are texts."""
    notes = read_trainer_notes({"ss_seed": "1", **header})
    assert notes is not None
    assert from_json(to_json(notes), TrainerNotes) == notes
    return loss_differences(notes, recipe(**changes))


TALL_AND_SQUARE = json.dumps(
    {"buckets": {"0": {"resolution": [256, 512]}, "1": {"resolution": [512, 512]}}}
)

# (header, changes of the recipe that do the same): nothing is to be said
MATCHED: list[tuple[dict[str, str], dict[str, Any]]] = [
    ({}, {}),
    ({"ss_loss_type": "l2", "ss_clip_skip": "1"}, {}),
    ({"ss_loss_type": "l1"}, {"loss": "l1"}),
    ({"ss_min_snr_gamma": "5.0"}, {"weighting": "min-snr:5"}),
    ({"ss_debiased_estimation": "True"}, {"weighting": "debiased"}),
    (
        {"ss_debiased_estimation": "True", **V_PREDICTION},
        {"weighting": "debiased-v", "prediction_type": "v_prediction"},
    ),
    (
        {"ss_scale_v_pred_loss_like_noise_pred": "True", **V_PREDICTION},
        {"weighting": "min-snr:inf", "prediction_type": "v_prediction"},
    ),
    ({"ss_noise_offset": "0.05"}, {"noise_offset": 0.05}),
    ({"ss_ip_noise_gamma": "0.1"}, {"input_perturbation": 0.1}),
    ({"ss_masked_loss": "True"}, {"masks": "alpha"}),
    ({"ss_guidance_scale": "1.0"}, {"guidance": 1.0}),
    ({"ss_guidance_scale": "3.5"}, {"guidance": None}),
    # Numbers of many digits, and of none behind the point.
    ({"ss_min_snr_gamma": "5"}, {"weighting": one_spelling("min-snr:5.0")}),
    ({"ss_min_snr_gamma": "1.23456789"}, {"weighting": one_spelling("min-snr:1.23456789")}),
    ({"ss_zero_terminal_snr": "True"}, {"scheduler": '{"rescale_betas_zero_snr": true}'}),
    ({"ss_prior_loss_weight": "1.0", "ss_num_reg_images": "9"}, {}),
    ({"ss_prior_loss_weight": "0.5", "ss_num_reg_images": "0"}, {}),
    ({"ss_model_prediction_type": "raw"}, {}),
    ({"ss_loss_type": "l2", "ss_huber_schedule": "snr"}, {}),
    ({"ss_enable_bucket": "False"}, {}),
    ({"ss_enable_bucket": "True"}, {"buckets": ((8, 8),)}),
    (
        {"ss_enable_bucket": "True", "ss_bucket_info": TALL_AND_SQUARE},
        {"buckets": ((256, 512), (512, 256), (512, 512))},
    ),
    # What kohya's scripts write where an option was not given.
    (
        {
            "ss_multires_noise_iterations": "None",
            "ss_multires_noise_discount": "0.3",
            "ss_adaptive_noise_scale": "None",
            "ss_noise_offset_random_strength": "False",
            "ss_ip_noise_gamma_random_strength": "False",
            "ss_apply_t5_attn_mask": "False",
        },
        {},
    ),
]

# (header, changes of the recipe, the one line): with the option to give, or without one by name
DIFFERENT: list[tuple[dict[str, str], dict[str, Any], str]] = [
    (
        {"ss_enable_bucket": "True", "ss_bucket_info": TALL_AND_SQUARE},
        {},
        "cut pictures to buckets, this build cuts them all to one size; buckets ="
        " 256x512,512x512 takes them",
    ),
    (
        {"ss_enable_bucket": "True", "ss_bucket_info": TALL_AND_SQUARE},
        {"buckets": ((256, 512),)},
        "cut pictures to buckets, this build cuts them to others; buckets = 256x512,512x512"
        " takes them",
    ),
    (
        {"ss_enable_bucket": "True"},
        {},
        "cut pictures to buckets, this build cuts them all to one size; give buckets, the step of"
        " their sides",
    ),
    (
        {"ss_enable_bucket": "False"},
        {"buckets": ((8, 8),)},
        "cut all pictures to one size, this build has buckets",
    ),
    (
        {"ss_min_snr_gamma": "5.0"},
        {},
        "weighted its loss (min-snr:5), this build does not; weighting = 'min-snr:5' does",
    ),
    (
        {"ss_debiased_estimation": "True"},
        {"weighting": "snr"},
        "weighted its loss (debiased), this build does otherwise (snr); weighting = 'debiased'"
        " does",
    ),
    (
        {"ss_debiased_estimation": "True", **V_PREDICTION},
        {"prediction_type": "v_prediction"},
        "weighted its loss (debiased-v), this build does not; weighting = 'debiased-v' does",
    ),
    (
        {"ss_scale_v_pred_loss_like_noise_pred": "True", **V_PREDICTION},
        {"prediction_type": "v_prediction"},
        "weighted its loss (min-snr:inf), this build does not; weighting = 'min-snr:inf' does",
    ),
    (
        {"ss_debiased_estimation": "True", "ss_min_snr_gamma": "5"},
        {"weighting": "min-snr:5"},
        "multiplied several weightings of its loss, of which a build takes one",
    ),
    (
        {},
        {"weighting": "snr"},
        "did not weight its loss, this build does (snr); leave weighting out",
    ),
    (
        {"ss_noise_offset": "0.1"},
        {},
        "had a noise offset of 0.1, this build: 0; noise_offset = 0.1 takes it",
    ),
    (
        {"ss_ip_noise_gamma": "0.1"},
        {},
        "had an input perturbation (ip_noise_gamma) of 0.1, this build: 0; input_perturbation = 0.1"
        " takes it",
    ),
    (
        {},
        {"input_perturbation": 0.1},
        "had an input perturbation (ip_noise_gamma) of 0, this build: 0.1; input_perturbation = 0"
        " takes it",
    ),
    (
        {"ss_masked_loss": "True"},
        {},
        "masked its loss, this build does not; give its masks (masks=)",
    ),
    (
        {"ss_loss_type": "l1"},
        {},
        "had the loss l1, this build: mse; loss = 'l1' takes it",
    ),
    (
        {"ss_loss_type": "l2"},
        {"loss": "l1"},
        "had the loss l2, this build: l1; loss = 'mse' takes it",
    ),
    (
        {"ss_loss_type": "huber", "ss_huber_schedule": "constant"},
        {},
        "had the loss huber, this build: mse; no option takes it",
    ),
    (
        {"ss_loss_type": "smooth_l1", "ss_huber_schedule": "snr"},
        {},
        "had the loss smooth_l1 (huber_schedule snr), this build: mse; no option takes it",
    ),
    (
        {"ss_guidance_scale": "1.0"},
        {"guidance": 3.5},
        "told the model a guidance of 1, this build: 3.5; guidance = 1 does",
    ),
    (
        {"ss_zero_terminal_snr": "True"},
        {},
        "rescaled betas to zero terminal SNR, the scheduler here does not; give one with"
        " rescale_betas_zero_snr (scheduler=)",
    ),
    (
        V_PREDICTION,
        {},
        "predicted v_prediction, the scheduler here has epsilon; give one with that prediction_type"
        " (scheduler=)",
    ),
    (
        {"ss_prior_loss_weight": "0.5", "ss_num_reg_images": "9"},
        {},
        "had 9 regularization pictures with weight 0.5: where they are in the data, their TracIn"
        " scores are to be multiplied with it; other pictures' are right",
    ),
    (
        {"ss_clip_skip": "2"},
        {},
        "encoded captions with clip_skip 2, here the pipeline's own layer does; no option takes it",
    ),
    (
        {"ss_multires_noise_iterations": "6", "ss_multires_noise_discount": "0.3"},
        {},
        "added multi-resolution (pyramid) noise (ss_multires_noise_iterations 6); no option takes"
        " it",
    ),
    (
        {"ss_adaptive_noise_scale": "0.005"},
        {},
        "scaled its noise offset by the latent's mean (ss_adaptive_noise_scale 0.005); no option"
        " takes it",
    ),
    (
        {"ss_noise_offset_random_strength": "True"},
        {},
        "drew its noise offset's strength at random (ss_noise_offset_random_strength True); no"
        " option takes it",
    ),
    (
        {"ss_ip_noise_gamma_random_strength": "True"},
        {},
        "drew its input perturbation's strength at random (ss_ip_noise_gamma_random_strength True);"
        " no option takes it",
    ),
    (
        {"ss_v_pred_like_loss": "0.5"},
        {},
        "added a loss like that of v-prediction (ss_v_pred_like_loss 0.5); no option takes it",
    ),
    (
        {"ss_apply_t5_attn_mask": "True"},
        {},
        "hid the padding of T5's captions from the model (ss_apply_t5_attn_mask True); no option"
        " takes it",
    ),
    (
        {"ss_model_prediction_type": "sigma_scaled"},
        {},
        "had another target than flow matching (ss_model_prediction_type sigma_scaled); no option"
        " takes it",
    ),
]


@pytest.mark.parametrize(("header", "changes"), MATCHED)
def test_a_training_that_a_build_does_as_well_warns_of_nothing(
    header: dict[str, str], changes: dict[str, Any]
) -> None:
    assert differences(header, **changes) == []


@pytest.mark.parametrize(("header", "changes", "line"), DIFFERENT)
def test_a_training_with_another_loss(
    header: dict[str, str], changes: dict[str, Any], line: str
) -> None:
    assert differences(header, **changes) == [line]


def test_a_number_of_many_digits_is_named_so_that_it_can_be_given() -> None:
    header = {"ss_noise_offset": "0.03571234", "ss_ip_noise_gamma": "0.12345678"}
    header |= {"ss_guidance_scale": "1.2345678", "ss_min_snr_gamma": "5.4321098"}
    lines = " ".join(differences(header, guidance=3.5))
    for option in (
        "weighting = 'min-snr:5.4321098'",
        "noise_offset = 0.03571234",
        "input_perturbation = 0.12345678",
        "guidance = 1.2345678",
    ):
        assert f"{option} " in lines


@pytest.mark.parametrize("value", ["", "None", "nan", "x", "[", "-1", "null", "inf"])
def test_settings_that_cannot_be_read_are_none(value: str) -> None:
    """A header may hold anything."""
    names = {name for header, _, _ in DIFFERENT for name in header} - {"ss_loss_type"}
    names -= {"ss_model_prediction_type", "ss_huber_schedule"}
    assert differences(dict.fromkeys(names, value)) == []


def test_what_info_shows_of_them() -> None:
    notes = TrainerNotes(input_noise=0.1, guidance=1.0, unmatched=("added noise",))
    assert notes.describe() == "input_noise 0.1, guidance 1; added noise"


def test_notes_of_an_earlier_gradindex_are_read() -> None:
    """They had a field of its own for multi-resolution noise."""
    assert from_json({"loss": "l2", "multires_noise": 6}, TrainerNotes) == TrainerNotes(loss="l2")
    assert msgspec.to_builtins(TrainerNotes()) == {}

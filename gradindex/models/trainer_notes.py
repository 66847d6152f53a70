"""What kohya's training scripts write into an adapter's file about the training (`ss_…`)."""

import ast
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from gradindex.recipe import Recipe

FOLDER_COUNTS = ("img_count", "n_repeats")  # of a folder in `ss_dataset_dirs`


class DatasetFolder(msgspec.Struct, frozen=True):
    """A folder of training pictures: how many it has, and how often each is drawn in an epoch."""

    name: str
    pictures: int
    repeats: int


class TrainerNotes(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a trainer says of its run; a field is None where it says nothing.

    Attributes:
        resolution: width and height.
        buckets: whether pictures keep their aspect ratio.
        loss: "l2", "l1", "huber" or "smooth_l1".
        min_snr_gamma: of min-SNR weights (Hang et al. 2023).
        debiased: whether losses are weighted by 1 / √SNR.
        noise_offset: added noise of one value for each channel.
        multires_noise: how many coarser noises are added.
        input_noise: gamma of input perturbation.
        prior_loss_weight: of regularization pictures, where there are any.
        regularization_pictures: how many there are.
        zero_terminal_snr: whether betas were rescaled (Lin et al. 2024).
        prediction: what the model predicts: "epsilon" or "v_prediction".
        clip_skip: which of the text encoder's last layers captions are encoded by; 1 is the last.
        caption_dropout: share of captions that are left empty.
        base_name, base_hash: file name and SHA-256 of the base model's weights.
        base_version: its kind, such as "sd_v1" or "sdxl_base_v1-0".
        folders: of training pictures.
    """

    resolution: tuple[int, int] | None = None
    buckets: bool | None = None
    loss: str | None = None
    min_snr_gamma: float | None = None
    debiased: bool | None = None
    noise_offset: float | None = None
    multires_noise: int | None = None
    input_noise: float | None = None
    prior_loss_weight: float | None = None
    regularization_pictures: int | None = None
    zero_terminal_snr: bool | None = None
    prediction: str | None = None
    clip_skip: int | None = None
    caption_dropout: float | None = None
    base_name: str | None = None
    base_hash: str | None = None
    base_version: str | None = None
    folders: tuple[DatasetFolder, ...] = ()

    @property
    def weighting(self) -> str | None:
        """The weighting of the loss by timestep as a build takes it; None for none."""
        if self.min_snr_gamma is not None:
            return f"min-snr:{self.min_snr_gamma:g}"
        return "debiased" if self.debiased else None

    def describe(self) -> str:
        """Return what matters of the notes in one line.

        >>> TrainerNotes(resolution=(512, 512), min_snr_gamma=5.0, base_name="v1-5").describe()
        'resolution 512x512, min_snr_gamma 5; base v1-5'
        """
        texts = []
        if self.resolution is not None:
            texts.append(f"resolution {self.resolution[0]}x{self.resolution[1]}")
        for name in ("loss", "min_snr_gamma", "noise_offset", "prior_loss_weight", "clip_skip"):
            value = getattr(self, name)
            if value is not None:
                texts.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
        if self.folders:
            shown = [f"{f.name} ({f.pictures} × {f.repeats})" for f in self.folders[:3]]
            more = ", …" if len(self.folders) > len(shown) else ""
            texts.append(f"folders {', '.join(shown)}{more}")
        base = " ".join(text for text in (self.base_name, self.base_version) if text)
        return "; ".join(text for text in (", ".join(texts), base and f"base {base}") if text)


def read_trainer_notes(metadata: Mapping[str, str]) -> TrainerNotes | None:
    """Return the notes in the header of a safetensors file; None where kohya's scripts wrote none.

    What cannot be read counts as not said: a header may hold anything.

    >>> read_trainer_notes({"ss_min_snr_gamma": "5.0", "ss_noise_offset": "None"}).min_snr_gamma
    5.0
    """
    if not any(name.startswith("ss_") for name in metadata):
        return None
    loss = _text(metadata.get("ss_loss_type"))
    regularization = _integer(metadata.get("ss_num_reg_images"))
    prior = _positive(metadata.get("ss_prior_loss_weight"))
    return TrainerNotes(
        resolution=_resolution(metadata),
        buckets=_boolean(metadata.get("ss_enable_bucket")),
        loss=loss,
        min_snr_gamma=_positive(metadata.get("ss_min_snr_gamma")),
        debiased=_boolean(metadata.get("ss_debiased_estimation")),
        noise_offset=_positive(metadata.get("ss_noise_offset")),
        multires_noise=_integer(metadata.get("ss_multires_noise_iterations")),
        input_noise=_positive(metadata.get("ss_ip_noise_gamma")),
        prior_loss_weight=prior if regularization else None,
        regularization_pictures=regularization,
        zero_terminal_snr=_boolean(metadata.get("ss_zero_terminal_snr")),
        prediction=_prediction(metadata),
        clip_skip=_integer(metadata.get("ss_clip_skip")),
        caption_dropout=_positive(metadata.get("ss_caption_dropout_rate")),
        base_name=_text(metadata.get("ss_sd_model_name")),
        base_hash=_text(metadata.get("ss_new_sd_model_hash")),
        base_version=_text(metadata.get("ss_base_model_version")),
        folders=_folders(metadata),
    )


def loss_differences(notes: TrainerNotes, recipe: Recipe) -> list[str]:
    """Return in what a training's loss differs from that of a build, a text for each difference.

    Args:
        recipe: of the build.
    """
    differences = []
    weighting = notes.weighting
    if weighting != recipe.weighting:
        differences.append(
            f"weighted its loss ({weighting}), this build does"
            f" {f'otherwise ({recipe.weighting})' if recipe.weighting else 'not'};"
            f" weighting = {weighting!r} does"
            if weighting
            else f"did not weight its loss, this build does ({recipe.weighting})"
        )
    if notes.noise_offset != recipe.noise_offset:
        differences.append(
            f"had a noise offset of {notes.noise_offset or 0:g}, this build:"
            f" {recipe.noise_offset or 0:g}; noise_offset = {notes.noise_offset or 0:g} takes it"
        )
    if notes.input_noise != recipe.input_perturbation:
        gamma = notes.input_noise or 0
        differences.append(
            f"had an input perturbation (ip_noise_gamma) of {gamma:g}, this build:"
            f" {recipe.input_perturbation or 0:g}; input_perturbation = {gamma:g} takes it"
        )
    if notes.multires_noise:
        differences.append("added multi-resolution noise")
    if notes.loss is not None and notes.loss != {"mse": "l2"}.get(recipe.loss, recipe.loss):
        differences.append(f"had the loss {notes.loss}, this build: {recipe.loss}")
    rescaled = json.loads(recipe.scheduler).get("rescale_betas_zero_snr", False)
    if notes.zero_terminal_snr and not rescaled:
        differences.append("rescaled betas to zero terminal SNR, the scheduler here does not")
    if notes.prediction is not None and notes.prediction != recipe.prediction_type:
        differences.append(
            f"predicted {notes.prediction}, the scheduler here has {recipe.prediction_type}"
        )
    if notes.prior_loss_weight is not None:
        differences.append(
            f"had {notes.regularization_pictures} regularization pictures with weight"
            f" {notes.prior_loss_weight:g}, which are not among the pictures here"
        )
    if notes.clip_skip is not None and notes.clip_skip > 1:
        differences.append(
            f"encoded captions with clip_skip {notes.clip_skip}, here the pipeline's own layer does"
        )
    return differences


def _text(value: Any) -> str | None:
    """A text of a header; None for one that says nothing."""
    return None if value is None or value in ("", "None") else str(value)[:200]


def _positive(value: Any) -> float | None:
    """A number above zero, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None


def _integer(value: Any) -> int | None:
    number = _positive(value)
    return None if number is None else int(min(number, 2**53))


def _boolean(value: Any) -> bool | None:
    return {"True": True, "False": False}.get(str(value))


def _prediction(metadata: Mapping[str, str]) -> str | None:
    """What the model predicts, by the header's standard field or the base model's kind."""
    prediction = metadata.get("modelspec.prediction_type")
    if prediction is not None:
        return {"epsilon": "epsilon", "v": "v_prediction"}.get(prediction)
    version = metadata.get("ss_base_model_version", "")
    return "v_prediction" if version.startswith("sd_") and version.endswith("_v") else None


def _resolution(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """Width and height, which are written as "(512, 768)", as "512,768" or in `ss_datasets`."""
    value: Any = metadata.get("ss_resolution")
    if value in (None, "None"):
        datasets = _json(metadata.get("ss_datasets"))
        first = datasets[0] if isinstance(datasets, list) and datasets else None
        value = first.get("resolution") if isinstance(first, dict) else None
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if isinstance(value, int):
        value = (value, value)
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    if not all(isinstance(side, int) and 0 < side < 2**20 for side in value):
        return None
    return value[0], value[1]


def _folders(metadata: Mapping[str, str]) -> tuple[DatasetFolder, ...]:
    """The folders of training pictures in `ss_dataset_dirs`."""
    folders = _json(metadata.get("ss_dataset_dirs"))
    if not isinstance(folders, dict):
        return ()
    read = []
    for name, facts in folders.items():
        counts: list[Any] = [
            facts.get(key) if isinstance(facts, dict) else None for key in FOLDER_COUNTS
        ]
        if all(isinstance(count, int) and 0 <= count < 2**53 for count in counts):
            read.append(DatasetFolder(name[:200], *counts))
    return tuple(read)


def _json(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None

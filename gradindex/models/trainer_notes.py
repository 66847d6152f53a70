"""What kohya's training scripts write into an adapter's file about the training (`ss_…`)."""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import msgspec

from gradindex.data.buckets import MOST_BUCKETS
from gradindex.wording import fewest_digits

LARGEST_SIDE = 2**20  # of a picture
FOLDER_COUNTS = ("img_count", "n_repeats")  # of a folder in `ss_dataset_dirs`

# Settings of a loss that no option of a build takes, {field of the header: what it did}.
UNMATCHED = {
    "ss_multires_noise_iterations": "added multi-resolution (pyramid) noise",
    "ss_adaptive_noise_scale": "scaled its noise offset by the latent's mean",
    "ss_noise_offset_random_strength": "drew its noise offset's strength at random",
    "ss_ip_noise_gamma_random_strength": "drew its input perturbation's strength at random",
    "ss_v_pred_like_loss": "added a loss like that of v-prediction",
    "ss_apply_t5_attn_mask": "hid the padding of T5's captions from the model",
}
DESCRIBED = (  # numbers and names that `describe` gives
    *("loss", "min_snr_gamma", "noise_offset", "input_noise", "guidance"),
    *("prior_loss_weight", "clip_skip"),
)
HUBER = ("huber", "smooth_l1")  # losses with a schedule
PLAIN_FLOW = "raw"  # the only `ss_model_prediction_type` whose loss is flow matching's own


class DatasetFolder(msgspec.Struct, frozen=True):
    """A folder of training pictures: how many it has, and how often each is drawn in an epoch."""

    name: str
    pictures: int
    repeats: int


class TrainerNotes(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a trainer says of its run; a field is None where it says nothing.

    Attributes:
        resolution: width and height.
        buckets: whether pictures went to buckets by their shape.
        bucket_sizes: widths and heights of those that pictures went to.
        loss: "l2", "l1", "huber" or "smooth_l1".
        huber_schedule: how the last two change with the timestep, where they do.
        min_snr_gamma: of min-SNR weights (Hang et al. 2023).
        debiased: whether losses are weighted by 1 / √SNR.
        noise_offset: added noise of one value for each channel.
        input_noise: gamma of input perturbation.
        masked: whether the loss was masked.
        scaled_v: whether the loss of v-prediction was scaled like that of noise prediction.
        guidance: the scale that a model with guidance embedding was told.
        unmatched: what the loss had that no option of a build takes, for people.
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
    huber_schedule: str | None = None
    min_snr_gamma: float | None = None
    debiased: bool | None = None
    noise_offset: float | None = None
    input_noise: float | None = None
    masked: bool | None = None
    scaled_v: bool | None = None
    guidance: float | None = None
    unmatched: tuple[str, ...] = ()
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
    bucket_sizes: tuple[tuple[int, int], ...] = ()

    @property
    def weighting(self) -> str | None:
        """The weighting of the loss by timestep as a build takes it; None for none."""
        if self.min_snr_gamma is not None:
            return f"min-snr:{fewest_digits(self.min_snr_gamma)}"
        if self.debiased:
            return "debiased-v" if self.prediction == "v_prediction" else "debiased"
        return "min-snr:inf" if self.scaled_v else None

    @property
    def weightings(self) -> int:
        """How many weightings by timestep were multiplied; a build takes one."""
        return sum([self.min_snr_gamma is not None, bool(self.debiased), bool(self.scaled_v)])

    def describe(self) -> str:
        """Return what matters of the notes in one line.

        >>> TrainerNotes(resolution=(512, 512), min_snr_gamma=5.0, base_name="v1-5").describe()
        'resolution 512x512, min_snr_gamma 5; base v1-5'
        """
        texts = []
        if self.resolution is not None:
            texts.append(f"resolution {self.resolution[0]}x{self.resolution[1]}")
        if self.buckets:
            texts.append(f"{len(self.bucket_sizes) or ''} buckets".lstrip())
        for name in DESCRIBED:
            value = getattr(self, name)
            if value is not None:
                texts.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
        if self.folders:
            shown = [f"{f.name} ({f.pictures} × {f.repeats})" for f in self.folders[:3]]
            more = ", …" if len(self.folders) > len(shown) else ""
            texts.append(f"folders {', '.join(shown)}{more}")
        others = "; ".join(self.unmatched)
        base = " ".join(text for text in (self.base_name, self.base_version) if text)
        return "; ".join(
            text for text in (", ".join(texts), others, base and f"base {base}") if text
        )


def read_trainer_notes(metadata: Mapping[str, str]) -> TrainerNotes | None:
    """Return the notes in the header of a safetensors file; None where kohya's scripts wrote none.

    What cannot be read counts as not said: a header may hold anything.

    >>> read_trainer_notes({"ss_min_snr_gamma": "5.0", "ss_noise_offset": "None"}).min_snr_gamma
    5.0
    """
    if not any(name.startswith("ss_") for name in metadata):
        return None
    loss = _text(metadata.get("ss_loss_type"))
    schedule = _text(metadata.get("ss_huber_schedule"))
    regularization = _integer(metadata.get("ss_num_reg_images"))
    prior = _positive(metadata.get("ss_prior_loss_weight"))
    return TrainerNotes(
        resolution=_resolution(metadata),
        buckets=_buckets(metadata),
        bucket_sizes=_bucket_sizes(metadata),
        loss=loss,
        huber_schedule=schedule if loss in HUBER and schedule != "constant" else None,
        min_snr_gamma=_positive(metadata.get("ss_min_snr_gamma")),
        debiased=_boolean(metadata.get("ss_debiased_estimation")),
        noise_offset=_positive(metadata.get("ss_noise_offset")),
        input_noise=_positive(metadata.get("ss_ip_noise_gamma")),
        masked=_boolean(metadata.get("ss_masked_loss")),
        scaled_v=_boolean(metadata.get("ss_scale_v_pred_loss_like_noise_pred")),
        guidance=_positive(metadata.get("ss_guidance_scale")),
        unmatched=_unmatched(metadata),
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


def _unmatched(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """What the header says of a loss that no option of a build takes, each with its value."""
    found = []
    for name, meaning in UNMATCHED.items():
        value = metadata.get(name)
        if _boolean(value) or _positive(value):
            found.append(f"{meaning} ({name} {str(value)[:40]})")
    kind = _text(metadata.get("ss_model_prediction_type"))
    if kind not in (None, PLAIN_FLOW):
        found.append(f"had another target than flow matching (ss_model_prediction_type {kind})")
    return tuple(found)


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


def _first_dataset(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What `ss_datasets` says of the first data set; those of a configuration file are there."""
    datasets = _json(metadata.get("ss_datasets"))
    first = datasets[0] if isinstance(datasets, list) and datasets else None
    return first if isinstance(first, dict) else {}


def _buckets(metadata: Mapping[str, str]) -> bool | None:
    """Whether pictures went to buckets."""
    value = metadata.get("ss_enable_bucket", _first_dataset(metadata).get("enable_bucket"))
    return _boolean(value)


def _bucket_sizes(metadata: Mapping[str, str]) -> tuple[tuple[int, int], ...]:
    """Widths and heights of the buckets that held pictures."""
    info = _json(metadata.get("ss_bucket_info")) or _first_dataset(metadata).get("bucket_info")
    buckets = info.get("buckets") if isinstance(info, dict) else None
    if not isinstance(buckets, dict) or len(buckets) > MOST_BUCKETS:
        return ()
    sizes = set()
    for bucket in buckets.values():
        size = bucket.get("resolution") if isinstance(bucket, dict) else None
        if not _is_size(size):
            return ()
        sizes.add((size[0], size[1]))
    return tuple(sorted(sizes))


def _is_size(value: Any) -> TypeGuard[Sequence[int]]:
    """Whether a value is a width and a height."""
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    return is_pair and all(type(side) is int and 0 < side < LARGEST_SIDE for side in value)


def _resolution(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """Width and height, which are written as "(512, 768)", as "512,768" or in `ss_datasets`."""
    value: Any = metadata.get("ss_resolution")
    if value in (None, "None"):
        value = _first_dataset(metadata).get("resolution")
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if isinstance(value, int):
        value = (value, value)
    return (value[0], value[1]) if _is_size(value) else None


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

"""Files of adapters, as diffusers, PEFT, kohya's scripts and ai-toolkit write them.

An adapter's file names its weights by the layer that they change and by their role there. Here they
are read and told apart; `adapter_names` finds the layers in a model, `adapters` puts them in.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gradindex.errors import CallError, ModelError, first_line
from gradindex.models.folder import files_digest, find_model_folder, read_json
from gradindex.models.refusals import require_path
from gradindex.models.trainer_notes import TrainerNotes, read_trainer_notes
from gradindex.models.weights import listed, read_header, read_weights

DENOISER = "denoiser"  # the part of an adapter that changes the model itself
PEFT_CONFIG = "adapter_config.json"
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# Fields of the configuration that decide nothing of what an adapter computes.
UNRELATED = (
    *("base_model_name_or_path", "revision", "inference_mode"),
    *("auto_mapping", "peft_version", "task_type"),
)
DIFFUSERS_FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
METADATA_KEY = "lora_adapter_metadata"  # in the header: diffusers' JSON of the LoraConfig

# How a weight's name begins, and what it is a part of.
PREFIXES = {
    "unet.": DENOISER,
    "transformer.": DENOISER,
    "diffusion_model.": DENOISER,
    "lora_unet_": DENOISER,
    "lora_transformer_": DENOISER,
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_2",  # T5 in kohya's Flux script, which calls it as SD3's
}
PEFT_PREFIX = "base_model.model."

# How a weight's name ends, and its role, by which PEFT calls it.
DOWN, UP, BIAS = "lora_A.weight", "lora_B.weight", "lora_B.bias"
MAGNITUDE, ALPHA = "lora_magnitude_vector", "alpha"
ROLES = {
    DOWN: re.compile(
        r"(\.lora_A(\.default)?|\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)\.weight$"
    ),
    UP: re.compile(
        r"(\.lora_B(\.default)?|\.lora_up|[._]lora\.up|\.lora_linear_layer\.up)\.weight$"
    ),
    BIAS: re.compile(r"\.lora_B(\.default)?\.bias$"),
    MAGNITUDE: re.compile(r"\.lora_magnitude_vector(\.default)?(\.weight)?$"),
    ALPHA: re.compile(r"\.(network_)?alpha$"),
}

# Weights of other adapters than LoRA, by their names.
OTHER_KINDS = {
    "LoHa": re.compile(r"\.hada_"),
    "LoKr": re.compile(r"\.lokr_"),
    "OFT": re.compile(r"\.oft_"),
    "LoCon with a Tucker core (use_tucker, use_cp)": re.compile(r"\.lora_mid\."),
    "DoRA in LyCORIS' form, whose gradient is another than PEFT's": re.compile(r"\.dora_scale$"),
    "differences of whole weights": re.compile(r"\.(diff|diff_b|w_norm|b_norm)$"),
    "GLoRA": re.compile(r"\.[ab][12]\.weight$"),
    "IA3": re.compile(r"\.on_input$"),
    "LoRA of embeddings": re.compile(r"\.lora_embedding_[AB]"),
}
EMBEDDING = re.compile(r"^(emb_params|clip_[gl]|t5|string_to_(param|token)|<.*>)$")


@dataclass(frozen=True)
class AdapterWeight:
    """A weight in an adapter's file.

    Attributes:
        key: its name in the file.
        layer: what the file calls the layer that it changes, see `adapter_names`.
        role: `DOWN`, `UP`, `BIAS`, `MAGNITUDE` or `ALPHA`.
        value: the numbers.
    """

    key: str
    layer: str
    role: str
    value: Tensor


@dataclass(frozen=True)
class LoraPart:
    """What a LoRA, LoCon or DoRA changes in one model.

    Attributes:
        weights: of all layers.
        settings: fields of PEFT's `LoraConfig` that the file's header says; may be empty.
    """

    weights: tuple[AdapterWeight, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class PeftPart:
    """What a folder that PEFT saved changes in one model: an adapter of any kind.

    Attributes:
        config: adapter_config.json. folder: where it lies.
        weights: {name in PEFT: weight}.
    """

    config: Mapping[str, Any]
    folder: Path
    weights: Mapping[str, Tensor]

    @property
    def settings(self) -> dict[str, Any]:
        """What an adapter computes beside its weights, such as its alpha; without what is off."""
        return {
            name: sorted(value, key=str) if isinstance(value, list) else value  # it was a set
            for name, value in self.config.items()
            if value and name not in UNRELATED
        }


AdapterPart = LoraPart | PeftPart


@dataclass(frozen=True)
class Adapter:
    """An adapter as it was read.

    Attributes:
        path: where it was given.
        digest: SHA-256 of its files.
        denoiser: what it changes in the model.
        text_encoders: {name of the pipeline's part: what it changes there}.
        notes: what its trainer says of the run; None: nothing.
    """

    path: Path
    digest: str
    denoiser: AdapterPart
    text_encoders: Mapping[str, AdapterPart]
    notes: TrainerNotes | None


def read_adapter(path: str | Path) -> Adapter:
    """Return the adapter in a file, or in a folder as its trainer left it.

    Raises:
        CallError: there is no such file or folder.
        ModelError: it holds no adapter, one of a kind that is not known, or weights that have no
            place in one.
    """
    require_path("adapter", path)
    path = Path(path)
    if not path.exists():
        way_out = (
            "; a pattern is not filled in: give each path by itself" if "*" in str(path) else ""
        )
        raise CallError(f"adapter {path}: no such file or folder{way_out}")
    if path.name in PEFT_FILES and path.is_file():
        if not (path.parent / PEFT_CONFIG).is_file():
            raise ModelError(
                f"{path}: {PEFT_CONFIG} is not beside it, which says by how much it is scaled"
            )
        path = path.parent
    if (path / PEFT_CONFIG).is_file():
        return _read_peft(path)
    file = path if path.is_file() else _adapter_file(path)
    weights = read_weights([file])
    metadata = read_header(file)
    _require_finite(weights, file)
    parts = _lora_parts(weights, metadata, file)
    if DENOISER not in parts:
        raise ModelError(
            f"{file}: changes text encoders alone ({listed(parts)}), and gradients are of the"
            " denoiser's adapter: there is none"
        )
    return Adapter(
        path=path,
        digest=files_digest([file]),
        denoiser=parts.pop(DENOISER),
        text_encoders=dict(parts),
        notes=read_trainer_notes(metadata),
    )


def _adapter_file(folder: Path) -> Path:
    """The adapter's file in a folder that is none of PEFT's."""
    for name in DIFFUSERS_FILES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1 and find_model_folder(folder) is None:
        return files[0]
    looked_for = f"looked for {PEFT_CONFIG} and {DIFFUSERS_FILES[0]}"
    if files and find_model_folder(folder) is None:
        raise ModelError(
            f"{folder}: {len(files)} safetensors files, such as {files[0].name}; name each as an"
            f" adapter of its own ({looked_for})"
        )
    raise ModelError(f"{folder}: no adapter here ({looked_for})")


def _read_peft(folder: Path) -> Adapter:
    """The adapter in a folder that PEFT saved."""
    config = read_json(folder / PEFT_CONFIG)
    for name in PEFT_FILES:
        if (folder / name).is_file():
            file = folder / name
            break
    else:
        raise ModelError(f"{folder}: no weights (looked for {' and '.join(PEFT_FILES)})")
    weights = read_weights([file])
    _require_finite(weights, file)
    named = {name.removeprefix(PEFT_PREFIX): value for name, value in weights.items()}
    return Adapter(
        path=folder,
        digest=files_digest([folder / PEFT_CONFIG, file]),
        denoiser=PeftPart(config, folder, named),
        text_encoders={},
        notes=None,
    )


def _lora_parts(
    weights: Mapping[str, Tensor], metadata: Mapping[str, str], file: Path
) -> dict[str, LoraPart]:
    """The parts of a LoRA, {`DENOISER` or a text encoder: its weights}.

    Raises:
        ModelError: the file holds none, or a weight of unknown role.
    """
    _refuse_other_kinds(weights, metadata, file)
    weights_of: dict[str, list[AdapterWeight]] = {}
    prefixes_of: dict[str, str] = {}
    unknown = []
    for key, value in weights.items():
        role, before = _role(key)
        if role is None:
            unknown.append(key)
            continue
        part, prefix = _part(before)
        layer = before.removeprefix(prefix).removeprefix(PEFT_PREFIX).replace(".processor.", ".")
        weights_of.setdefault(part, []).append(AdapterWeight(key, layer, role, value))
        prefixes_of[part] = prefix
    if unknown:
        raise ModelError(
            f"{file}: weights whose role in an adapter is not known: {listed(unknown)}; give a file"
            f" of an adapter's weights alone, such as {DIFFUSERS_FILES[0]}"
        )
    settings = _settings(metadata, file)
    return {
        part: LoraPart(tuple(of_part), _of_prefix(settings, prefixes_of[part]))
        for part, of_part in weights_of.items()
    }


def _role(key: str) -> tuple[str | None, str]:
    """The role of a weight by its name, and what stands before; None: it is not known."""
    for role, pattern in ROLES.items():
        match = pattern.search(key)
        if match:
            return role, key[: match.start()]
    return None, key


def _part(name: str) -> tuple[str, str]:
    """Which model a weight belongs to, and the prefix that says so.

    >>> _part("lora_te2_text_model_encoder"), _part("mid_block.attentions.0")
    (('text_encoder_2', 'lora_te2_'), ('denoiser', ''))
    """
    for prefix, part in PREFIXES.items():
        if name.startswith(prefix):
            return part, prefix
    return DENOISER, ""


def _settings(metadata: Mapping[str, str], file: Path) -> dict[str, Any]:
    """What diffusers writes of the LoraConfig into a header, {"unet.lora_alpha": …}."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: {METADATA_KEY}: not JSON ({first_line(error)})") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{file}: {METADATA_KEY}: a JSON object {{…}} is expected")
    return settings


def _of_prefix(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The settings of one model, without its prefix."""
    return {
        name.removeprefix(prefix): value
        for name, value in settings.items()
        if name.startswith(prefix)
    }


def _require_finite(weights: Mapping[str, Tensor], file: Path) -> None:
    """Raise ModelError where a weight holds NaN or infinity."""
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ModelError(f"{file}: weights {name!r} hold NaN or infinity")


def _refuse_other_kinds(weights: Iterable[str], metadata: Mapping[str, str], file: Path) -> None:
    """Raise ModelError where a file holds something else than a LoRA."""
    keys = sorted(weights)
    for kind, pattern in OTHER_KINDS.items():
        found = [key for key in keys if pattern.search(key)]
        if found:
            raise ModelError(
                f"{file}: {kind} ({listed(found)}); of single files LoRA, LoCon and DoRA in"
                f" diffusers' form are known, other kinds as a folder that PEFT saved"
            )
    if "lycoris_config" in metadata and not any(ROLES[DOWN].search(key) for key in keys):
        raise ModelError(
            f"{file}: a LyCORIS adapter of an unknown kind ({listed(keys)}); of single files LoRA,"
            " LoCon and DoRA are known"
        )
    if any(ROLES[DOWN].search(key) for key in keys):
        return
    if any(EMBEDDING.search(key) for key in keys):
        raise ModelError(
            f"{file}: an embedding (textual inversion: {listed(keys)}), not an adapter: there is no"
            " gradient of the denoiser's weights in it"
        )
    raise ModelError(
        f"{file}: no adapter's weights in it, but {listed(keys) or 'nothing'}; whole models are"
        " given as model, or as checkpoints of one"
    )

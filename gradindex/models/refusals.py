"""What to say of models that gradindex does not know: what they are, and the way out."""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gradindex.errors import CallError, ModelError, quoted
from gradindex.models.folder import MODEL_FOLDERS, read_pipeline

LORA_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
)
LORA_NAME = re.compile(r"(^|[._])(lora|lokr|loha|dora)([._]|$)")  # in the names of weights
LORA_ADVICE = (
    "a LoRA adapter, not a model: give the model that it was trained on as model, and this as"
    " adapter (--model BASE --adapter FILE)"
)
# Names of weights in checkpoints of a single file, as other programs than diffusers write them.
SINGLE_FILE_NAMES = (
    *("model.diffusion_model.", "first_stage_model.", "joint_blocks.", "double_blocks."),
    *("input_blocks.", "ema_model."),
)
# How weights begin, in such a file, that tell the class of its pipeline.
PIPELINE_OF = {
    "conditioner.": "StableDiffusionXLPipeline",
    "joint_blocks.": "StableDiffusion3Pipeline",
    "double_blocks.": "FluxPipeline",
}
OWN_DENOISER = (
    "for another, give an object of your own that computes its loss"
    " (gradindex.build(…, denoiser=…), see docs/models.md)"
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REMOTE = re.compile(r"[a-z][a-z0-9+.-]*:/")


def require_path(name: str, value: Any) -> None:
    """Raise CallError unless the argument `name` is a path.

    >>> require_path("model", "out/checkpoint-500")
    """
    if not isinstance(value, (str, os.PathLike)):
        raise CallError(
            f"{name} = an object of class {type(value).__name__}: give a path; save a model with"
            " its save_pretrained(FOLDER) and give that folder"
        )


def absent_model(path: Path) -> CallError:
    """Return the error of a model's path where nothing is."""
    text = re.sub(r"^([a-z][a-z0-9+.-]*):/(?!/)", r"\1://", str(path))  # Path drops a slash
    message = f"model {text}: no such file or folder"
    if REMOTE.match(text):
        return CallError(f"{message}; download the model first and give its folder")
    if HUB_ID.fullmatch(text) and not path.parent.exists():
        return CallError(
            f"{message}; if it is a name on the Hugging Face Hub, download it first"
            f" (hf download {text} --local-dir {path.name}, formerly huggingface-cli download),"
            " then give that folder"
        )
    return CallError(message)


def no_model(root: Path, weights: Path | None) -> ModelError:
    """Return the error of a folder that has no config.json of a model.

    Args:
        weights: the bare weights file whose configuration was looked for there.
    """
    looked_for = (
        "looked for config.json, unet/config.json, unet_ema/config.json and transformer/config.json"
    )
    if weights is not None:
        return ModelError(
            f"{weights}: a weights file needs its model's config.json, and {root} has none"
            f" ({looked_for}); give that model's folder as model, the file as checkpoint"
        )
    if is_lora_folder(root):
        return ModelError(f"{root}: {LORA_ADVICE}")
    pipeline = read_pipeline(root)
    if pipeline is not None:
        return ModelError(
            f"{root}: no model here that gradindex knows: a {pipeline.get('_class_name')} without"
            f" {' or '.join(MODEL_FOLDERS)}; {OWN_DENOISER}"
        )
    return ModelError(f"{root}: no model here ({looked_for})")


def is_lora_folder(folder: Path) -> bool:
    """Return whether a folder holds a LoRA adapter by the names of its files."""
    return any((folder / name).is_file() for name in LORA_FILES)


def unknown_class(folder: Path, class_name: Any, known: Collection[str]) -> ModelError:
    """Return the error of a model whose class gradindex does not know."""
    if class_name is None and is_lora_folder(folder):
        return ModelError(f"{folder}: {LORA_ADVICE}")
    pipeline = read_pipeline(folder) or read_pipeline(folder.parent) or {}
    pipeline_name = pipeline.get("_class_name")
    origin = f" (of a {pipeline_name})" if isinstance(pipeline_name, str) else ""
    return ModelError(
        f"{folder}: a model of class {quoted(class_name)}{origin}; gradindex knows"
        f" {', '.join(known)}; {OWN_DENOISER}"
    )


def foreign_weights(names: Collection[str], file: Path) -> str | None:
    """Return what a file of weights is, by their names, where it is no diffusers model.

    >>> foreign_weights(["unet.conv_in.lora.up.weight"], Path("a.safetensors"))[:31]
    'a LoRA adapter, not a model: gi'
    >>> foreign_weights(["conv_in.weight"], Path("a.safetensors"))
    """
    if any(LORA_NAME.search(name) for name in names):
        return LORA_ADVICE
    if any(name.startswith(SINGLE_FILE_NAMES) for name in names):
        return original_advice(names, file)
    return None


def original_advice(names: Collection[str], file: Path) -> str:
    """Return what a file in the original layout is, and the ways to give it.

    >>> original_advice(["double_blocks.0.img_mod.lin.bias"], Path("a.safetensors"))[-82:-20]
    "diffusers.FluxPipeline.from_single_file('a.safetensors').save_"
    """
    starts = {name.removeprefix("model.diffusion_model.").partition(".")[0] for name in names}
    kinds = [kind for start, kind in PIPELINE_OF.items() if start[:-1] in starts]
    pipeline = kinds[0] if kinds else "StableDiffusionPipeline"
    return (
        "a checkpoint in the original layout (one file of Stable Diffusion, SD3 or Flux); give the"
        " pipeline that it was made from as model and this file as checkpoint (--model PIPELINE"
        f" --checkpoint {file}), or make a pipeline of it in Python and give that as model:"
        f" diffusers.{pipeline}.from_single_file({str(file)!r}).save_pretrained('FOLDER')"
    )

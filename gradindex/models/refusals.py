"""What to say of models that gradindex does not know: what they are, and the way out."""

import os
import re
import warnings
from collections.abc import Collection, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from gradindex.errors import CallError, ModelError, quoted
from gradindex.models.folder import MODEL_FOLDERS, read_pipeline
from gradindex.recipe import FLOW

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
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")  # files of tokenizers
TEACHERS_SCHEDULERS = ("LCMScheduler", "TCDScheduler")
TEACHERS_NAME = re.compile(r"(?<![a-z])lcm(?![a-z])", re.IGNORECASE)  # as of lcm-lora-sdv1-5
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


def pipeline_class(folder: Path, name: Any, is_captioned: bool) -> Any:
    """Return a class of pipelines in diffusers.

    Args:
        folder: of the pipeline. name: of the class, by its model_index.json.
        is_captioned: whether it has to encode captions.

    Raises:
        ModelError: this diffusers has none of this name, or it does not encode captions.
    """
    found = getattr(import_module("diffusers"), str(name), None)
    if found is None or (is_captioned and not hasattr(found, "encode_prompt")):
        raise ModelError(
            f"{folder / 'model_index.json'}: _class_name {quoted(name)}: no pipeline of this"
            " diffusers that encodes captions; write the class that the model was trained with"
            f" there; {OWN_DENOISER}"
        )
    return found


def require_vocabulary(folder: Path) -> None:
    """Raise ModelError unless a tokenizer's folder has a vocabulary.

    Without one transformers makes a tokenizer that knows no word, and says nothing.
    """
    if not any(file for pattern in VOCABULARIES for file in folder.glob(pattern)):
        raise ModelError(
            f"{folder}: a tokenizer without a vocabulary (looked for {', '.join(VOCABULARIES)});"
            " give the folder of the whole pipeline"
        )


def require_training_schedule(denoiser: Any) -> None:
    """Raise ModelError where the scheduler beside a model is not one that it was trained with.

    A build asks it, and not who opens an index that an earlier gradindex made.

    Args:
        denoiser: a `Denoiser`.
    """
    name = denoiser.scheduler_class
    if name in TEACHERS_SCHEDULERS:
        raise ModelError(
            f"scheduler {name}: of models that are distilled from a teacher (LCM), whose loss is"
            " the teacher's; where only generation uses it, give the training's scheduler"
            " (scheduler=)"
        )
    if denoiser.family.flow and denoiser.process.prediction_type != FLOW:
        raise ModelError(
            f"scheduler {quoted(name)}: a {denoiser.family.model_class} is trained by flow"
            " matching, of which this is none; give the training's scheduler (scheduler=), such as"
            " a FlowMatchEulerDiscreteScheduler"
        )


def warn_of_teachers(adapters: Iterable[str | Path]) -> None:
    """Warn of adapters whose name, or whose folder's, says that they were distilled.

    A warning and no error: the weights do not tell it, and a name may mean something else.

    Args:
        adapters: paths of files and folders.
    """
    for path in map(Path, adapters):
        names = [path.name, path.parent.name] if path.name in LORA_FILES else [path.name]
        if any(TEACHERS_NAME.search(name) for name in names):
            warnings.warn(
                f"adapter {path}: by its name distilled from a teacher (LCM), whose loss is the"
                " teacher's; gradients of the pictures' own loss say little of that training",
                stacklevel=3,
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

"""A checkpoint on disk becomes a denoiser."""

from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from gradindex.errors import CallError, ModelError, first_line
from gradindex.models.denoiser import Denoiser
from gradindex.models.folder import (
    files_digest,
    find_model_folder,
    read_json,
    require_pixels,
    weight_files,
)
from gradindex.models.schedules import find_scheduler, read_schedule

# {class name in config.json: the diffusers module that has the class}. A new family starts here;
# `Denoiser` says what its loss is.
MODEL_CLASSES = {"UNet2DModel": "diffusers.models.unets.unet_2d"}


def load_denoiser(
    path: str | Path,
    *,
    model: str | Path | None = None,
    scheduler: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> Denoiser:
    """Load a checkpoint: the folder of a pipeline, model or training checkpoint, or a weights file.

    Args:
        path: where the weights are.
        model: where the configuration is, when `path` is a bare weights file; its folder also
            serves for the scheduler.
        scheduler: a scheduler folder or its JSON file; found beside the model when not given.
        device: "cpu" or "cuda".
        dtype: float32, bfloat16 or float16, of the weights while gradients are taken.

    Raises:
        CallError: a path does not exist.
        ModelError: what is there cannot be used.
    """
    path = Path(path)
    if not path.exists():
        raise CallError(f"model {path}: no such file or folder")
    root = path if path.is_dir() else Path(model or path.parent)
    folder = find_model_folder(root)
    config = read_json(folder / "config.json")
    class_name = config.get("_class_name")
    if class_name not in list(MODEL_CLASSES):  # it may be anything JSON has
        raise ModelError(
            f"{folder}: a model of class {class_name!r}; gradindex knows {', '.join(MODEL_CLASSES)}"
        )
    require_pixels(root)
    schedule = read_schedule(find_scheduler(folder, scheduler, model))
    model_class = getattr(import_module(MODEL_CLASSES[class_name]), class_name)
    if path.is_dir():
        files = weight_files(folder)
        network = _load_network(partial(_from_folder, model_class, folder), files[0])
    else:
        files = [path]
        network = _load_network(partial(_from_weights_file, model_class, config), path)
    for name, value in network.state_dict().items():
        if not value.isfinite().all():
            raise ModelError(f"{path}: weights {name!r} hold NaN or infinity")
    return Denoiser(network, schedule, files_digest(files), device, dtype)


def _load_network(load: Callable[[Path], tuple[Any, Iterable[str]]], file: Path) -> Any:
    """The model that `load(file)` gives, unless it also names parameters that the file misses."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    try:
        network, missing = load(file)
    except Exception as error:  # diffusers, safetensors and torch raise a dozen kinds
        raise ModelError(f"{file}: cannot be loaded ({first_line(error)})") from error
    if missing:
        raise ModelError(f"{file}: weights are missing for {', '.join(sorted(missing)[:5])} …")
    return network


def _from_folder(model_class: Any, folder: Path, file: Path) -> tuple[Any, Iterable[str]]:
    """The model in a folder whose (first) weight file is `file`, and the parameters it misses."""
    # diffusers unpickles nothing: it reads safetensors, or uses torch.load(weights_only=True).
    network, info = model_class.from_pretrained(
        folder,
        use_safetensors=file.suffix == ".safetensors",
        low_cpu_mem_usage=False,
        local_files_only=True,
        output_loading_info=True,
    )
    return network, info["missing_keys"]


def _from_weights_file(
    model_class: Any, config: dict[str, Any], file: Path
) -> tuple[Any, Iterable[str]]:
    """The model of a configuration with the weights in `file`, and the parameters it misses."""
    from safetensors.torch import load_file

    network = model_class.from_config(config)
    if file.suffix == ".safetensors":
        state = load_file(file)
    else:
        state = torch.load(file, "cpu", weights_only=True)
    return network, network.load_state_dict(state, strict=False).missing_keys

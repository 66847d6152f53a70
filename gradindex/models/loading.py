"""A checkpoint on disk becomes a denoiser."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradindex.errors import ModelError, first_line
from gradindex.models.configuration import check_arguments, config_digest, own_arguments
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import plain_torch
from gradindex.models.folder import (
    files_digest,
    find_model_folder,
    read_json,
    require_pixels,
    weight_files,
)
from gradindex.models.refusals import (
    absent_model,
    foreign_weights,
    no_model,
    require_path,
    unknown_class,
)
from gradindex.models.schedules import find_scheduler, read_schedule
from gradindex.models.weights import check_weights, read_weights, with_todays_names

# {class name in config.json: the diffusers module that has the class}. A new family starts here;
# `Denoiser` says what its loss is.
MODEL_CLASSES = {"UNet2DModel": "diffusers.models.unets.unet_2d"}


@plain_torch()
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
        CallError: a path does not exist, or is none.
        ModelError: what is there cannot be used.
    """
    require_path("model", path)
    path = Path(path)
    if not path.exists():
        raise absent_model(path)
    root = path if path.is_dir() else _configured_folder(path, model)
    folder = find_model_folder(root)
    if folder is None and path.is_file() and (kind := foreign_weights(read_weights([path]))):
        raise ModelError(f"{path}: {kind}")
    if folder is None:
        raise no_model(root, None if path.is_dir() else path)
    config_file = folder / "config.json"
    config = read_json(config_file)
    class_name = config.get("_class_name")
    if class_name not in list(MODEL_CLASSES):  # it may be anything JSON has
        raise unknown_class(folder, class_name, MODEL_CLASSES)
    require_pixels(folder)
    if path.is_file():
        require_pixels(path.parent)
    model_class = getattr(import_module(MODEL_CLASSES[class_name]), class_name)
    arguments = own_arguments(model_class, config)
    check_arguments(arguments, config_file)
    schedule = read_schedule(find_scheduler(folder, scheduler, model))
    files = weight_files(folder) if path.is_dir() else [path]
    weights = read_weights(files)
    network = _make_network(model_class, arguments, weights, config_file, files[0])
    for name, value in network.state_dict().items():
        if not value.isfinite().all():
            raise ModelError(f"{path}: weights {name!r} hold NaN or infinity")
    # How gradindex up to 0.1 made the digest: of all that config.json holds.
    former_config = config_digest({**config, **arguments})
    return Denoiser(network, schedule, files_digest(files), device, dtype, former_config)


def _configured_folder(weights: Path, model: str | Path | None) -> Path:
    """Where the configuration of a bare weights file is: at the model, or else beside the file."""
    if model is None:
        return weights.parent
    model = Path(model)
    if not model.exists():
        raise absent_model(model)
    return model if model.is_dir() else model.parent


def _make_network(
    model_class: Any,
    arguments: dict[str, Any],
    weights: Mapping[str, Tensor],
    config_file: Path,
    weights_file: Path,
) -> Any:
    """The model of a configuration with these weights.

    It is made without memory first, so that a config.json of a giant is refused by its shapes.

    Raises:
        ModelError: the configuration makes no model, or the weights are not its own.
    """
    layers = arguments["layers_per_block"]
    if layers > len(weights):
        raise ModelError(
            f"{config_file}: layers_per_block = {layers}, but {weights_file} holds"
            f" {len(weights)} weights in all"
        )
    try:
        with torch.device("meta"):
            expected = model_class.from_config(arguments).state_dict()
    except Exception as error:  # diffusers and torch raise a dozen kinds
        raise ModelError(f"{config_file}: does not make a model ({first_line(error)})") from error
    weights = with_todays_names(weights, expected)
    check_weights(weights, expected, weights_file)
    try:
        # Weights are drawn and then replaced: the caller's random numbers stay what they were.
        with torch.random.fork_rng(devices=[]):
            network = model_class.from_config(arguments)
        network.load_state_dict(weights)
    except Exception as error:
        raise ModelError(f"{weights_file}: cannot be loaded ({first_line(error)})") from error
    return network

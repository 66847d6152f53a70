"""What a model's config.json says, checked before a model is made of it."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradindex.errors import CallError, ModelError
from gradindex.models.folder import shortened

CHANNELS = (1, 3)  # that pictures can have: grey, colour
LARGEST = 2**14  # pixels of a side, channels of a layer, … of a model that gradindex makes
# Counts in a config.json, and whether null is allowed.
COUNTS = {
    "in_channels": False,
    "out_channels": False,
    "layers_per_block": False,
    "attention_head_dim": True,
    "norm_num_groups": True,
    "attn_norm_num_groups": True,
    "time_embedding_dim": True,
}
LENGTHS = {"num_class_embeds": 2**24, "num_train_timesteps": 2**20}  # the most rows of a table


def own_arguments(model_class: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with which a model's class makes it, those left out by their defaults.

    All else in a config.json is not the model's: private fields, and what others keep there
    (EMAModel writes its decay and step).
    """
    parameters = inspect.signature(model_class.__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    return {name: config.get(name, default) for name, default in defaults.items()}


def config_digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 hex of the canonical JSON of a configuration without private fields."""
    public = {name: value for name, value in values.items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(public, sort_keys=True).encode()).hexdigest()


def check_arguments(arguments: Mapping[str, Any], file: Path) -> None:
    """Refuse arguments that make no model, or none of pictures.

    What is checked here is what would be misread or take endless time or memory. diffusers checks
    the rest when it makes the model.

    Args:
        arguments: from `own_arguments`.
        file: the config.json, for the error.

    Raises:
        ModelError: an argument has a value of another type or size than it can have.
        CallError: the model takes as many channels as no picture has.
    """
    for name, may_be_null in COUNTS.items():
        value = arguments.get(name)
        if name in arguments and not (value is None and may_be_null):
            _require(_is_count(value), file, name, value, f"a whole number, 1 to {LARGEST}")
    for name, largest in LENGTHS.items():
        value = arguments.get(name)
        is_allowed = value is None or _is_count(value, largest)
        _require(is_allowed, file, name, value, f"null or a whole number, 1 to {largest}")
    widths = arguments["block_out_channels"]
    is_allowed = isinstance(widths, (list, tuple)) and all(map(_is_count, widths))
    _require(is_allowed, file, "block_out_channels", widths, "a list of whole numbers")
    _check_size(arguments["sample_size"], file)
    _check_channels(arguments["in_channels"], arguments["out_channels"], file)
    if arguments["class_embed_type"] is not None:
        raise ModelError(
            f"{file}: class_embed_type {shortened(arguments['class_embed_type'])}:"
            " only learned class embeddings are known"
        )


def _check_size(size: Any, file: Path) -> None:
    if size is None:
        raise ModelError(f'{file}: has no "sample_size": write the training size there')
    sides = size if isinstance(size, (list, tuple)) else [size, size]
    is_allowed = len(sides) == 2 and all(map(_is_count, sides))
    _require(is_allowed, file, "sample_size", size, f"one or two whole numbers, 1 to {LARGEST}")


def _check_channels(taken: int, given: int, file: Path) -> None:
    if taken != given:
        raise ModelError(
            f"{file}: the model takes {taken} channels and gives {given}: not a denoiser"
        )
    if taken not in CHANNELS:
        raise CallError(
            f"{file}: the model takes {taken} channels; pictures have 1 (grey) or 3 (colour):"
            " a UNet of latents, as it seems, and gradindex knows models of pixels so far"
        )


def _is_count(value: Any, largest: int = LARGEST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest


def _require(is_allowed: bool, file: Path, name: str, value: Any, allowed: str) -> None:
    if not is_allowed:
        raise ModelError(f"{file}: {name} = {shortened(value)}: allowed is {allowed}")

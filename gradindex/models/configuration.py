"""What a model's config.json says, checked before a model is made of it."""

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradindex.errors import CallError, ModelError
from gradindex.models.folder import shortened

CHANNELS = (1, 3)  # that pictures can have: grey, colour
LARGEST_NUMBER = 2**31  # in a config.json at all
LARGEST = 2**14  # pixels of a side, channels of a layer, … of a model that gradindex makes


def own_arguments(model_class: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with which a model's class makes it, those left out by their defaults.

    All else in a config.json is not the model's: private fields, and what others keep there
    (EMAModel writes its decay and step).
    """
    parameters = inspect.signature(model_class.__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    return {name: config.get(name, default) for name, default in defaults.items()}


def require_kinds(model_class: Any, arguments: Mapping[str, Any], file: Path) -> None:
    """Refuse arguments of another type than their default's, with which a model is made and fails.

    Null may stand for no value but of a number, and a list for one value for each block, where the
    class takes these.

    Raises:
        ModelError: a number, text or truth value is expected, and it is none, or not finite.
    """
    parameters = inspect.signature(model_class.__init__).parameters
    for name, value in arguments.items():
        default, annotation = parameters[name].default, parameters[name].annotation
        takes_list = re.search(r"tuple|list", str(annotation), re.IGNORECASE)
        is_null = value is None and (default is None or annotation not in (int, float))
        if is_null or (takes_list and isinstance(value, (list, tuple))):
            continue
        if isinstance(default, bool):
            is_allowed = isinstance(value, bool)
        elif isinstance(default, (int, float)):
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            is_allowed = is_number and abs(value) <= LARGEST_NUMBER  # False for NaN
        else:
            is_allowed = not isinstance(default, str) or isinstance(value, str)
        require_argument(is_allowed, file, name, value, f"a value such as {shortened(default)}")


def config_digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 hex of the canonical JSON of a configuration without private fields."""
    public = {name: value for name, value in values.items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(public, sort_keys=True).encode()).hexdigest()


def require_count(
    arguments: Mapping[str, Any], name: str, file: Path, *, may_be_null: bool = False
) -> None:
    """Refuse an argument that is no whole number from 1 to `LARGEST`.

    Args:
        arguments: from `own_arguments`.
        file: the config.json, for the error.

    Raises:
        ModelError: it is none.
    """
    value = arguments.get(name)
    if not (value is None and may_be_null):
        require_argument(is_count(value), file, name, value, f"a whole number, 1 to {LARGEST}")


def require_size(arguments: Mapping[str, Any], file: Path, *, may_be_null: bool = False) -> None:
    """Refuse a `sample_size` that is not one or two whole numbers; ModelError then."""
    size = arguments.get("sample_size")
    if size is None:
        if may_be_null:
            return
        raise ModelError(f'{file}: has no "sample_size": write the training size there')
    sides = size if isinstance(size, (list, tuple)) else [size, size]
    is_allowed = len(sides) == 2 and all(map(is_count, sides))
    allowed = f"one or two whole numbers, 1 to {LARGEST}"
    require_argument(is_allowed, file, "sample_size", size, allowed)


def require_same_channels(arguments: Mapping[str, Any], file: Path) -> None:
    """Raise ModelError unless the model gives as many channels as it takes."""
    taken, given = arguments["in_channels"], arguments["out_channels"]
    if taken != given:
        raise ModelError(
            f"{file}: the model takes {taken} channels and gives {given}: not a denoiser"
        )


def require_pixels(channels: int, file: Path) -> None:
    """Raise CallError unless a model that no VAE is around takes as many channels as pictures."""
    if channels not in CHANNELS:
        raise CallError(
            f"{file}: the model takes {channels} channels; pictures have 1 (grey) or 3 (colour):"
            " a model of latents, as it seems; give the folder of its whole pipeline, which has the"
            " VAE"
        )


def is_count(value: Any, largest: int = LARGEST) -> bool:
    """Return whether a JSON value is a whole number from 1 to `largest`.

    >>> is_count(3), is_count(True), is_count(0)
    (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest


def require_argument(is_allowed: bool, file: Path, name: str, value: Any, allowed: str) -> None:
    """Raise ModelError with the value of an argument and what is allowed, unless it is."""
    if not is_allowed:
        raise ModelError(f"{file}: {name} = {shortened(value)}: allowed is {allowed}")

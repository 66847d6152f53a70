"""The weights in files, compared with those of a configuration."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from gradindex.errors import ModelError, first_line
from gradindex.models.refusals import foreign_weights

GIT_LFS = b"version https://git-lfs"  # how the file begins that Git keeps in place of a large one
# What the weights of attention were called before diffusers 0.13, {old name: name}.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAME = re.compile(rf"\.({'|'.join(RENAMED)})\.(weight|bias)$")
NAMES_SHOWN = 5


def read_weights(files: Sequence[Path], prefixes: str | tuple[str, ...] = "") -> dict[str, Tensor]:
    """Return the weights in all of the files, {name: tensor}; nothing in them is run.

    The system reads the numbers of a weight when they are used: a tensor is a place in its file.
    Pickles that torch wrote before 1.6 are the exception.

    Args:
        prefixes: how the names of those begin that are wanted.

    Raises:
        ModelError: a file cannot be read, or holds something else.
    """
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _read_file(file, prefixes)
    return weights


def weight_names(file: Path) -> list[str]:
    """Return the names of the weights in a file; of safetensors only the header is read.

    Raises:
        ModelError: see `read_weights`.
    """
    if file.suffix != ".safetensors":
        return list(read_weights([file]))
    from safetensors import safe_open

    with _file_errors(file):
        _require_content(file)
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())


def read_header(file: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file; none of other files."""
    from safetensors import safe_open

    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata() or {})


def with_todays_names(
    weights: Mapping[str, Tensor], expected: Collection[str]
) -> dict[str, Tensor]:
    """Return the weights, those of attention under the names that diffusers gives them today.

    >>> names = ["mid.query.weight", "mid.norm.weight"]
    >>> list(with_todays_names(dict.fromkeys(names), ["mid.to_q.weight"]))
    ['mid.to_q.weight', 'mid.norm.weight']
    """
    renamed = {}
    for name, weight in weights.items():
        todays = OLD_NAME.sub(lambda match: f".{RENAMED[match[1]]}.{match[2]}", name)
        renamed[todays if todays in expected and name not in expected else name] = weight
    return renamed


def check_weights(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path
) -> None:
    """Refuse weights that are not, each by its name and shape, those of a configuration.

    Args:
        weights: from files.
        expected: the `state_dict` that config.json makes; its values are not used.
        file: the (first) weights file, for the error.

    Raises:
        ModelError: weights are missing, without a place in the model, of another shape, or no
            floating point numbers.
    """
    missing, surplus = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing or surplus:
        if kind := foreign_weights(surplus, file):
            raise ModelError(f"{file}: {kind}")
        if missing:
            raise ModelError(
                f"{file}: weights are missing for {listed(missing)}; give the config.json that was"
                " saved with them"
            )
        raise ModelError(
            f"{file}: holds weights that config.json has no place for: {listed(surplus)};"
            " give the config.json that was saved with them"
        )
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            raise ModelError(
                f"{file}: weights {name!r} have the shape {list(weight.shape)}, by config.json it"
                f" is {list(expected[name].shape)}"
            )
        if expected[name].is_floating_point() and not weight.is_floating_point():
            raise ModelError(
                f"{file}: weights {name!r} are {_dtype(weight)}: give floating point numbers"
            )


def _read_file(file: Path, prefixes: str | tuple[str, ...]) -> dict[str, Tensor]:
    from safetensors import safe_open

    with _file_errors(file):
        _require_content(file)
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                names = opened.keys()
                return {n: opened.get_tensor(n) for n in names if n.startswith(prefixes)}
        weights = torch.load(file, "cpu", weights_only=True, mmap=is_zipfile(file))
    weights = _require_weights(weights, file)
    return {name: value for name, value in weights.items() if name.startswith(prefixes)}


def _require_content(file: Path) -> None:
    """Raise ModelError where a file holds no weights, by its name or how it begins."""
    if file.suffix == ".json":
        raise ModelError(f"{file}: not a weights file; give the folder that it lies in")
    with file.open("rb") as stream:
        is_pointer = stream.read(len(GIT_LFS)) == GIT_LFS
    if is_pointer:
        raise ModelError(
            f"{file}: a pointer of Git LFS in place of the weights; run `git lfs pull` there"
        )


@contextmanager
def _file_errors(file: Path) -> Iterator[None]:
    """Turn what readers of weights raise into one line."""
    try:
        yield
    except ModelError:
        raise
    except UnpicklingError as error:  # whose text advises to run what is in the file
        raise ModelError(
            f"{file}: cannot be loaded (neither safetensors nor a pickle of weights alone); give"
            " the weights as safetensors, or as the model's state_dict()"
        ) from error
    except Exception as error:  # safetensors and torch raise a dozen kinds
        raise ModelError(
            f"{file}: cannot be loaded ({first_line(error)}); if it was cut short, copy or download"
            " it again"
        ) from error


def _require_weights(weights: Any, file: Path) -> dict[str, Tensor]:
    """The content of a pickle, once it is sure that it is weights by their names alone.

    Trainers of a `.ckpt` keep them in `state_dict`, beside their own counts.
    """
    if file.suffix == ".ckpt" and isinstance(weights, dict):
        weights = weights.get("state_dict", weights)
    if not isinstance(weights, dict):
        raise ModelError(f"{file}: holds a {type(weights).__name__}, not weights by their names")
    others = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if others or not all(isinstance(name, str) for name in weights):
        raise ModelError(
            f"{file}: holds more than weights by their names ({listed(map(str, others))});"
            " save the model's state_dict() alone"
        )
    return weights


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def listed(names: Any) -> str:
    """Return the first of some names, and how many there are where that is not all.

    >>> listed(["b", "a"])
    'a, b'
    """
    ordered = sorted(names)
    text = ", ".join(ordered[:NAMES_SHOWN])
    return text if len(ordered) <= NAMES_SHOWN else f"{text} … ({len(ordered)} in all)"

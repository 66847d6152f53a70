"""Adapters in a model: LoRA and its kin beside the layers that they change, and exchanged there.

PEFT puts them in. Layers, ranks and scales are those of the adapter's file, read here: diffusers'
own reading drops some weights with a remark only. The adapter is always called "default", so that a
parameter has one name however it came.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradindex.errors import MissingPackage, ModelError, first_line
from gradindex.models.adapter_config import lora_settings
from gradindex.models.adapter_files import (
    ALPHA,
    BIAS,
    DOWN,
    MAGNITUDE,
    PEFT_CONFIG,
    UP,
    Adapter,
    AdapterPart,
    AdapterWeight,
    LoraPart,
    PeftPart,
)
from gradindex.models.adapter_names import find_layers, layer_index
from gradindex.models.weights import listed

NAME = "default"  # of every adapter in a model
# Ways in which PEFT initializes an adapter that leave the model's own weights as they are.
PLAIN_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class PlacedAdapter:
    """An adapter's weights by the places that they have in a model.

    Attributes:
        config: of PEFT, of which it makes the places.
        weights: {name in PEFT without the adapter's: weight}.
        scales: {path of a layer: what its up · down is multiplied with}; empty: as `config` says.
        tied: {path of a layer: path of the one whose down weights are its own, too}.
    """

    config: Any
    weights: Mapping[str, Tensor]
    scales: Mapping[str, float] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)


def inject_adapter(model: Any, adapter: Adapter, part: AdapterPart) -> None:
    """Put an adapter's layers into a model, beside those that they change; the model is frozen.

    Afterwards the adapter's parameters alone require a gradient.

    Args:
        part: of the adapter, that of the model.

    Raises:
        ModelError: the adapter is of another model, or of a kind that PEFT does not make.
        MissingPackage: peft is not installed.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise MissingPackage(
            f"{adapter.path}: adapters need the package peft; install gradindex[text]"
        ) from error
    placed = _place(model, adapter, part)
    model.requires_grad_(False)
    try:
        # Weights are drawn and then replaced: the caller's random numbers stay what they were.
        with torch.random.fork_rng(devices=[]), _no_remarks():
            inject_adapter_in_model(placed.config, model, NAME)
    except Exception as error:  # peft raises a dozen kinds
        raise ModelError(
            f"{adapter.path}: does not go into a {type(model).__name__} ({first_line(error)})"
        ) from error
    for path, other in placed.tied.items():
        layer, source = model.get_submodule(path), model.get_submodule(other)
        layer.lora_A[NAME].weight = source.lora_A[NAME].weight
    _set(model, adapter, placed)


def exchange_adapter(model: Any, adapter: Adapter, part: AdapterPart) -> None:
    """Give the adapter in a model the weights of another one of the same run, in place.

    Args:
        model: after `inject_adapter`.

    Raises:
        ModelError: the other adapter has other layers or ranks.
    """
    placed = _place(model, adapter, part)
    if isinstance(part, LoraPart) and dict(placed.tied) != _tied(model, placed.scales):
        raise ModelError(
            f"{adapter.path}: other layers share a weight in it than in the adapter before (as"
            " those of Flux do by kohya's script alone); give adapters of one trainer"
        )
    _set(model, adapter, placed)


def _tied(model: Any, paths: Iterable[str]) -> dict[str, str]:
    """Which layers of a model have the down weight of one before, see `PlacedAdapter.tied`."""
    first: dict[int, str] = {}
    tied = {}
    for path in paths:
        downs = getattr(model.get_submodule(path), "lora_A", None)
        if downs is None:  # the layer has no adapter, which `_set` finds
            continue
        other = first.setdefault(id(downs[NAME].weight), path)
        if other != path:
            tied[path] = other
    return tied


def _set(model: Any, adapter: Adapter, placed: PlacedAdapter) -> None:
    """Write an adapter's weights and scales into the layers that were made for them.

    Raises:
        ModelError: a weight has no place, or a place no weight, or they differ in shape.
    """
    from peft.utils import get_peft_model_state_dict

    with _no_remarks():
        places = get_peft_model_state_dict(model, adapter_name=NAME)
    surplus, missing = placed.weights.keys() - places.keys(), places.keys() - placed.weights.keys()
    if surplus or missing:
        what = "weights without a place" if surplus else "no weights for"
        raise ModelError(
            f"{adapter.path}: {what} in this {type(model).__name__} with its adapter:"
            f" {listed(surplus or missing)}; give adapters of one run, and the base model that they"
            " were trained on"
        )
    wrong = [name for name, value in placed.weights.items() if value.shape != places[name].shape]
    if wrong:
        name = min(wrong)
        raise ModelError(
            f"{adapter.path}: {name} has the shape {list(placed.weights[name].shape)}, in this"
            f" {type(model).__name__} with its adapter it is {list(places[name].shape)}"
            f" ({len(wrong)} such in all); give the base model that it was trained on, and adapters"
            " of one rank"
        )
    for name, value in placed.weights.items():
        places[name].copy_(value)  # it shares its memory with the model's parameter
    for path, scale in placed.scales.items():
        model.get_submodule(path).scaling[NAME] = scale


@contextmanager
def _no_remarks() -> Iterator[None]:
    """Leave out what PEFT remarks on its own settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _place(model: Any, adapter: Adapter, part: AdapterPart) -> PlacedAdapter:
    """Find the places of an adapter's weights in a model."""
    if isinstance(part, PeftPart):
        return _place_peft(adapter, part)
    return _place_lora(model, adapter, part)


def _place_peft(adapter: Adapter, part: PeftPart) -> PlacedAdapter:
    """The places of an adapter that PEFT saved: its own configuration says them.

    Raises:
        ModelError: the installed peft does not know it, or it changes the base model's weights.
    """
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(part.folder))
    except Exception as error:  # peft raises a dozen kinds
        raise ModelError(
            f"{adapter.path}: its {PEFT_CONFIG} is not read by the installed peft"
            f" ({first_line(error)})"
        ) from error
    initialization = getattr(config, "init_lora_weights", None)
    if initialization not in PLAIN_INITIALIZATIONS:
        raise ModelError(
            f"{adapter.path}: init_lora_weights = {initialization!r} changes the base model's own"
            " weights; have PEFT convert it as it saves (path_initial_model_for_weight_conversion)"
        )
    if getattr(config, "layer_replication", None):
        raise ModelError(
            f"{adapter.path}: layer_replication copies the base model's layers: not known"
        )
    config.inference_mode = False  # it would freeze the adapter
    return PlacedAdapter(config, part.weights)


def _place_lora(model: Any, adapter: Adapter, part: LoraPart) -> PlacedAdapter:
    """The places of a LoRA by its weights' names.

    Raises:
        ModelError: weights have no layer in the model, or none of its shape.
    """
    from peft import LoraConfig

    index = layer_index(model)
    by_layer: dict[str, dict[str, AdapterWeight]] = {}
    for weight in part.weights:
        by_layer.setdefault(weight.layer, {})[weight.role] = weight
    unknown: list[str] = []
    differing: list[str] = []
    weights: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    tied: dict[str, str] = {}
    for name, roles in by_layer.items():
        keys = [weight.key for weight in roles.values()]
        paths = find_layers(index, name)
        if not paths:
            unknown += keys
            continue
        if DOWN not in roles or UP not in roles:
            raise ModelError(f"{adapter.path}: {listed(keys)}: down and up are not both there")
        if any(path in scales for path in paths):
            raise ModelError(f"{adapter.path}: {listed(keys)}: weights of the same layer twice")
        layers = [base_layer(model, path) for path in paths]
        differing += _differences(roles, layers)
        if differing:
            continue
        scale = _scale(roles, paths[0], part.settings, adapter)
        for path, values in zip(paths, _shares(roles, layers), strict=True):
            weights |= {f"{path}.{role}": value for role, value in values.items()}
            scales[path] = scale
        tied |= dict.fromkeys(paths[1:], paths[0])
    _require_fit(model, adapter, unknown, differing)
    return PlacedAdapter(LoraConfig(**lora_settings(weights)), weights, scales, tied)


def base_layer(model: Any, path: str) -> Any:
    """Return a layer of a model, without the adapter that is in it."""
    layer = model.get_submodule(path)
    return getattr(layer, "base_layer", layer)


def _differences(roles: Mapping[str, AdapterWeight], layers: Sequence[Any]) -> list[str]:
    """What is said of a LoRA's weights whose shapes do not fit their layer; empty: they fit.

    Args:
        layers: the rows of their weights follow each other in the layer that was adapted.
    """
    if any(getattr(layer, "groups", 1) != 1 for layer in layers):
        return []  # PEFT makes such weights in its own way, and `_set` compares them
    down, up = roles[DOWN], roles[UP]
    rank = down.value.shape[0]
    rows = sum(layer.weight.shape[0] for layer in layers)
    taken = layers[0].weight.shape[1:]
    expected = {DOWN: (rank, *taken), UP: (rows, rank, *[1] * (len(taken) - 1))}
    return [
        f"{weight.key} has the shape {list(weight.value.shape)}, by the model it is"
        f" {list(expected[role])}"
        for role, weight in ((DOWN, down), (UP, up))
        if _without_ones(weight.value.shape) != _without_ones(expected[role])
    ]


def _without_ones(shape: Sequence[int]) -> list[int]:
    """A shape without the sides of length 1: a 1×1 convolution may be written as a linear layer."""
    return [side for side in shape if side != 1]


def _shares(
    roles: Mapping[str, AdapterWeight], layers: Sequence[Any]
) -> Iterator[dict[str, Tensor]]:
    """Yield each layer's weights of a LoRA, {role: value}.

    All layers have the same down weight; the rows of the others are shared out among them.
    """
    start = 0
    for layer in layers:
        taken = layer.weight.shape[1:]
        stop = start + layer.weight.shape[0]
        down, up = roles[DOWN].value, roles[UP].value[start:stop]
        if getattr(layer, "groups", 1) == 1:
            down = down.reshape(down.shape[0], *taken)
            up = up.reshape(len(up), down.shape[0], *[1] * (len(taken) - 1))
        values = {DOWN: down, UP: up}
        if BIAS in roles:
            values[BIAS] = roles[BIAS].value[start:stop]
        if MAGNITUDE in roles:
            magnitude = roles[MAGNITUDE].value
            values[MAGNITUDE] = magnitude if len(layers) == 1 else magnitude.flatten()[start:stop]
        yield values
        start = stop


def _scale(
    roles: Mapping[str, AdapterWeight], path: str, settings: Mapping[str, Any], adapter: Adapter
) -> float:
    """What up · down is multiplied with: alpha / rank, or alpha / √rank for rsLoRA.

    Alpha is that of the layer, else that in the header's settings, else the rank.
    """
    from peft.utils.other import get_pattern_key

    rank = roles[DOWN].value.shape[0]
    if ALPHA in roles:
        alpha: Any = roles[ALPHA].value
        if alpha.numel() != 1:
            raise ModelError(f"{adapter.path}: {roles[ALPHA].key} is not one number")
        return float(alpha) / rank
    alpha = settings.get("lora_alpha", rank)
    patterns = settings.get("alpha_pattern") or {}
    if isinstance(patterns, dict):
        alpha = patterns.get(get_pattern_key(list(patterns), path), alpha)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise ModelError(f"{adapter.path}: lora_alpha = {alpha!r} in its header is not a number")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _require_fit(
    model: Any, adapter: Adapter, unknown: Sequence[str], differing: Sequence[str]
) -> None:
    """Raise ModelError where weights have no layer in a model, or one of another shape."""
    class_name = type(model).__name__
    if unknown:
        raise ModelError(
            f"{adapter.path}: this {class_name} has no layer for {listed(unknown)}; give the base"
            " model that the adapter was trained on"
        )
    if differing:
        more = f" ({len(differing)} such in all)" if len(differing) > 1 else ""
        raise ModelError(
            f"{adapter.path}: does not fit this {class_name}: {differing[0]}{more}; give the base"
            " model that the adapter was trained on"
        )

"""Kinds of parameters that `tools/bench parts` measures, by the modules that they are in."""

from collections.abc import Iterator
from typing import Any

from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import AdaLayerNormZero
from torch import nn

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
EVERYTHING = "everything"
LORA, DOWN, UP = ".lora_", ".lora_A.", ".lora_B."  # in the names of a LoRA's weights

Kinds = dict[str, tuple[str, ...]]  # {kind: its parameters, in the model's order}


def kinds_of(model: Any) -> Kinds:
    """Return the kinds of a UNet2DModel's or DiTTransformer2DModel's parameters.

    Of a model with a LoRA they are the LoRA's alone. A kind without parameters, or with those of
    an earlier one, is left out.
    """
    names = [name for name, _ in model.named_parameters()]
    names = [name for name in names if LORA in name] or names
    norms = set(_own(model, NORMS))
    biases = {name for name in names if name.endswith("bias")}
    places = _unet_places(model) if isinstance(model, UNet2DModel) else _transformer_places(model)
    within = {
        place: {name for name in names if name.startswith(tuple(prefixes))}
        for place, prefixes in places.items()
    }
    chosen = {
        EVERYTHING: set(names),
        "norms": norms,
        "biases": biases - norms,
        "norms and biases": norms | biases,
        "modulation": set(_modulation(model)),
        "attention": set(_inside(model, Attention)),
        "convolutions": set(_own(model, CONVOLUTIONS)),
        "linear layers": set(_own(model, (nn.Linear,))),
        "LoRA's down weights": {name for name in names if DOWN in name},
        "LoRA's up weights": {name for name in names if UP in name},
        **within,
        "norms of the second half": norms & within["second half"],
        "norms of the last block": norms & within["last block"],
        "attention of the middle": set(_inside(model, Attention)) & within["middle"],
    }
    kinds: Kinds = {}
    for kind, members in chosen.items():
        ordered = tuple(name for name in names if name in members)
        if ordered and ordered not in kinds.values():
            kinds[kind] = ordered
    return kinds


def _unet_places(model: Any) -> dict[str, list[str]]:
    """Where in a UNet a kind is, {kind: how its parameters' names begin}."""
    levels = len(model.up_blocks)
    last = levels - 1
    last_resnet = len(model.up_blocks[last].resnets) - 1
    end = ["conv_norm_out.", "conv_out."]
    places = {
        "first": ["conv_in."],
        "last": end,
        "first block": ["conv_in.", "down_blocks.0."],
        "last resnet": [f"up_blocks.{last}.resnets.{last_resnet}.", *end],
        "last block": [f"up_blocks.{last}.", *end],
        "middle": ["mid_block."],
        "first half": ["conv_in.", "down_blocks."],
        "second half": ["up_blocks.", *end],
        "middle and second half": ["mid_block.", "up_blocks.", *end],
        "last two blocks": [f"up_blocks.{last - 1}.", f"up_blocks.{last}.", *end],
    }
    for level in range(levels):
        places[f"level {level + 1}"] = [f"down_blocks.{level}.", f"up_blocks.{last - level}."]
    return places


def _transformer_places(model: Any) -> dict[str, list[str]]:
    """Where in a transformer a kind is, {kind: how its parameters' names begin}."""
    count = len(model.transformer_blocks)
    blocks = [f"transformer_blocks.{number}." for number in range(count)]
    half = count // 2
    end = ["proj_out_1.", "proj_out_2."]
    places = {
        "first": ["pos_embed."],
        "last": end,
        "first block": ["pos_embed.", blocks[0]],
        "last block": [blocks[-1], *end],
        "middle": [blocks[half]],
        "first half": ["pos_embed.", *blocks[:half]],
        "second half": [*blocks[half:], *end],
        "middle and second half": [*blocks[half - 1 :], *end],
        "last two blocks": [*blocks[-2:], *end],
    }
    return places | {f"block {number + 1}": [block] for number, block in enumerate(blocks)}


def _own(model: nn.Module, classes: tuple[type[nn.Module], ...]) -> Iterator[str]:
    """The parameters of all layers of these classes."""
    for path, module in model.named_modules():
        if isinstance(module, classes):
            yield from (f"{path}.{name}" for name, _ in module.named_parameters(recurse=False))


def _inside(model: nn.Module, class_: type[nn.Module]) -> Iterator[str]:
    """The parameters of all modules of a class and of what they consist of."""
    for path, module in model.named_modules():
        if isinstance(module, class_):
            yield from (f"{path}.{name}" for name, _ in module.named_parameters())


def _modulation(model: nn.Module) -> Iterator[str]:
    """The layers of a transformer that give its norms their scale and shift by the timestep."""
    for path, module in model.named_modules():
        if isinstance(module, AdaLayerNormZero):
            yield from (f"{path}.linear.weight", f"{path}.linear.bias")
    if hasattr(model, "proj_out_1"):
        yield from ("proj_out_1.weight", "proj_out_1.bias")

"""What trainers call the layers that an adapter changes, and where diffusers has them.

diffusers and PEFT name a layer by its path in the model. kohya's scripts write `_` for its dots,
and for SDXL and Flux they know the layers by the names of the original code; there some layers of
Flux stand for several of diffusers' (Black Forest Labs, `flux/modules/layers.py`).
"""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

ADAPTED_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ADAPTER_PATH = re.compile(r"\.lora_[AB]\.")  # of layers that an adapter in the model is made of

# Layers inside a block of the original Stable Diffusion UNet, {diffusers' name: name}.
RESNET_LAYERS = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_LAYERS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
BLOCK_PATH = re.compile(
    r"(down_blocks\.|mid_block|up_blocks\.)(\d*)\.(resnets|attentions|downsamplers|upsamplers)"
    r"\.(\d+)\.(.+)"
)

# Flux: {diffusers' names, whose rows follow each other in the original layer: original name}.
FLUX_DOUBLE = {
    ("attn.to_q", "attn.to_k", "attn.to_v"): "img_attn.qkv",
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"): "txt_attn.qkv",
    ("attn.to_out.0",): "img_attn.proj",
    ("attn.to_add_out",): "txt_attn.proj",
    ("ff.net.0.proj",): "img_mlp.0",
    ("ff.net.2",): "img_mlp.2",
    ("ff_context.net.0.proj",): "txt_mlp.0",
    ("ff_context.net.2",): "txt_mlp.2",
    ("norm1.linear",): "img_mod.lin",
    ("norm1_context.linear",): "txt_mod.lin",
}
FLUX_SINGLE = {
    ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"): "linear1",
    ("proj_out",): "linear2",
    ("norm.linear",): "modulation.lin",
}
FLUX_OTHERS = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
}
CLIP_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def layer_index(model: Any) -> dict[str, tuple[str, ...]]:
    """Return {name: paths of layers in the model} of every name that a trainer may use.

    Dots of a name are written as `_`. Several paths stand for one layer of the original model,
    whose rows they share in this order. An adapter may be in the model already.

    >>> model = nn.ModuleDict({"attn": nn.ModuleDict({"to_q": nn.Linear(2, 2)})})
    >>> layer_index(model)
    {'attn_to_q': ('attn.to_q',)}
    """
    paths = [
        path.removesuffix(".base_layer")
        for path, module in model.named_modules()
        if isinstance(module, ADAPTED_LAYERS) and not ADAPTER_PATH.search(path)
    ]
    index: dict[str, tuple[str, ...]] = {}
    for path in paths:
        index[_underscored(path)] = (path,)
    for name, layer_paths in _other_names(model, paths):
        index.setdefault(_underscored(name), layer_paths)
    return index


def find_layers(index: dict[str, tuple[str, ...]], name: str) -> tuple[str, ...]:
    """Return the paths of the layers that an adapter's file calls `name`; none: it is not known."""
    return index.get(_underscored(name), ())


def _underscored(name: str) -> str:
    return name.replace(".", "_")


def _other_names(model: Any, paths: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The names of a model's layers beside their paths, each with the paths it stands for."""
    for path in paths:
        if path.endswith(".to_out.0"):  # diffusers before 0.17 left the number out
            yield path.removesuffix(".0"), (path,)
    class_name = type(model).__name__
    if class_name.startswith("CLIP"):
        for path in paths:
            block, _, layer = path.rpartition(".")
            # The text model's outer module is gone from today's transformers.
            for name in (path, f"{block}.{CLIP_ATTENTION.get(layer, layer)}"):
                yield name, (path,)
                yield f"text_model.{name}", (path,)
    elif class_name == "UNet2DConditionModel":
        for path in paths:
            original = original_unet_name(path, model.config.layers_per_block)
            if original is not None:
                yield original, (path,)
                if "upsamplers" in path:  # in a block without attention
                    yield f"{original.removesuffix('.2.conv')}.1.conv", (path,)
    elif class_name == "FluxTransformer2DModel":
        yield from _flux_names(paths)


def original_unet_name(path: str, layers_per_block: Any) -> str | None:
    """Return what the original Stable Diffusion code calls a layer of diffusers' UNet.

    Args:
        layers_per_block: of the model's config.

    >>> original_unet_name("down_blocks.1.attentions.0.proj_in", 2)
    'input_blocks.4.1.proj_in'
    >>> original_unet_name("up_blocks.0.upsamplers.0.conv", 2)
    'output_blocks.2.2.conv'
    """
    if path in UNET_LAYERS:
        return UNET_LAYERS[path]
    match = BLOCK_PATH.fullmatch(path)
    if match is None or not isinstance(layers_per_block, int):
        return None
    side, block, kind, number, layer = match.groups()
    if kind == "resnets":
        layer = RESNET_LAYERS.get(layer, layer)
    if side == "mid_block":
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{layer}"
    if side == "down_blocks.":
        first = int(block) * (layers_per_block + 1) + 1
        if kind == "downsamplers":
            return f"input_blocks.{first + layers_per_block}.0.op"
        return f"input_blocks.{first + int(number)}.{int(kind == 'attentions')}.{layer}"
    first = int(block) * (layers_per_block + 1)
    if kind == "upsamplers":
        return f"output_blocks.{first + layers_per_block}.2.{layer}"
    return f"output_blocks.{first + int(number)}.{int(kind == 'attentions')}.{layer}"


def _flux_names(paths: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The names of the original Flux code, each with the paths of diffusers' layers."""
    yield from ((name, (path,)) for path, name in FLUX_OTHERS.items() if path in paths)
    stacks = {
        "transformer_blocks": ("double_blocks", FLUX_DOUBLE),
        "single_transformer_blocks": ("single_blocks", FLUX_SINGLE),
    }
    for diffusers_stack, (stack, layers) in stacks.items():
        numbers = {path.split(".")[1] for path in paths if path.startswith(f"{diffusers_stack}.")}
        for number in sorted(numbers, key=int):
            for parts, name in layers.items():
                block = f"{diffusers_stack}.{number}"
                yield f"{stack}.{number}.{name}", tuple(f"{block}.{part}" for part in parts)

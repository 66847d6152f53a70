"""Pipelines of diffusers written to one file in the original layout, as their own code names it.

The names are those of CompVis' and Stability's `ldm` and `sgm`, of open_clip, and of Stability's
SD3. Each function is the inverse of diffusers' conversion.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Weights = dict[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
SD3 = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
SD3_BLOCK = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}


def weights_of(folder: Path) -> Weights:
    """The weights of a pipeline's part, CLIP's without the name around them."""
    (file,) = folder.glob("*.safetensors")
    return {name.removeprefix("text_model."): value for name, value in load_file(file).items()}


def renamed(name: str, names: dict[str, str]) -> str:
    """A name with all parts of it replaced that are whole words of it."""
    for old, new in names.items():
        name = re.sub(rf"(^|\.){re.escape(old)}(?=\.|$)", rf"\g<1>{new}", name)
    return name


def unet(weights: Weights, layers: int = 1) -> Weights:
    """A UNet2DConditionModel with `layers` layers in each block."""
    attended = {match[1] for name in weights if (match := re.match(r"(up_blocks\.\d+)\.att", name))}

    def place(match: re.Match[str]) -> str:
        direction, block, kind, number = match[1], int(match[2]), match[3], int(match[4])
        first = block * (layers + 1) + (direction == "down")
        side = "input_blocks" if direction == "down" else "output_blocks"
        if kind == "downsamplers":
            return f"{side}.{first + layers}.0.op"
        if kind == "upsamplers":
            return f"{side}.{first + layers}.{1 + (f'up_blocks.{block}' in attended)}.conv"
        return f"{side}.{first + number}.{int(kind == 'attentions')}"

    block = (
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(\.conv\b)?"
    )
    original = {}
    for name, value in weights.items():
        changed = renamed(name, RESNET) if ".resnets." in name else name
        original[re.sub(block, place, renamed(changed, UNET))] = value
    return original


def vae(weights: Weights, blocks: int = 2) -> Weights:
    """An AutoencoderKL of `blocks` blocks; attention's weights are convolutions there."""

    def place(match: re.Match[str]) -> str:
        side, block, kind, number = match[1], int(match[2]), match[3], match[4]
        block = block if side == "down" else blocks - 1 - block
        return f"{side}.{block}." + {
            "resnets": f"block.{number}",
            "downsamplers": "downsample",
            "upsamplers": "upsample",
        }.get(kind, "")

    original = {}
    for name, value in weights.items():
        if ".to_" in name and value.ndim == 2:
            value = value[:, :, None, None]
        changed = re.sub(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)", place, name)
        original[renamed(changed, VAE)] = value
    return original


def open_clip(weights: Weights) -> Weights:
    """A CLIP text encoder as open_clip has it."""
    original = {}
    for name, value in weights.items():
        if name == "text_projection.weight":
            original["text_projection"] = value.T
        elif not re.search(r"\.[qkv]_proj\.", name):
            original[renamed(name, OPEN_CLIP)] = value
        elif ".q_proj." in name:
            parts = [weights[name.replace(".q_", f".{letter}_")] for letter in "qkv"]
            layer, _, kind = renamed(name, OPEN_CLIP).partition(".self_attn.q_proj.")
            original[f"{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
    return original


def swapped(value: Tensor) -> Tensor:
    """Scale and shift in the other order."""
    scale, shift = value.chunk(2)
    return torch.cat([shift, scale])


def sd3(weights: Weights, blocks: int = 2) -> Weights:
    """A SD3Transformer2DModel; the last block's context is only read there."""
    fused = {"to_q": ("to_q", "to_k", "to_v"), "add_q_proj": ("add_q_proj", "add_k_proj")}
    fused["add_q_proj"] += ("add_v_proj",)
    original = {}
    for name, value in weights.items():
        block = re.match(r"transformer_blocks\.(\d+)\.(.*)\.(weight|bias)$", name)
        if not block:
            value = swapped(value) if name.startswith("norm_out") else value
            original[renamed(name, SD3)] = value
            continue
        number, layer, kind = block.groups()
        place = f"joint_blocks.{number}"
        if layer == "norm1_context.linear" and int(number) == blocks - 1:
            value = swapped(value)
        if layer in SD3_BLOCK:
            original[f"{place}.{SD3_BLOCK[layer]}.{kind}"] = value
        elif (last := layer.rpartition(".")[2]) in fused:
            parts = [weights[name.replace(last, part)] for part in fused[last]]
            side = "x_block" if last == "to_q" else "context_block"
            original[f"{place}.{side}.attn.qkv.{kind}"] = torch.cat(parts)
    return original


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def stable_diffusion(pipeline: Path) -> Weights:
    """All of SD 1 as `v1-5-pruned` names it."""
    return {
        **prefixed("model.diffusion_model.", unet(weights_of(pipeline / "unet"))),
        **prefixed("first_stage_model.", vae(weights_of(pipeline / "vae"))),
        **prefixed(
            "cond_stage_model.transformer.text_model.", weights_of(pipeline / "text_encoder")
        ),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "alphas_cumprod": torch.linspace(1, 0, 1000),
        "model_ema.decay": torch.tensor(0.9),
    }


def stable_diffusion_2(pipeline: Path) -> Weights:
    """All of SD 2 as `v2-1_768-ema-pruned` names it, with a projection that SD 2 does not use."""
    text = open_clip(weights_of(pipeline / "text_encoder"))
    return {
        **prefixed("model.diffusion_model.", unet(weights_of(pipeline / "unet"))),
        **prefixed("first_stage_model.", vae(weights_of(pipeline / "vae"))),
        **prefixed("cond_stage_model.model.", text),
        "cond_stage_model.model.text_projection": torch.ones(16, 16),
        "cond_stage_model.model.logit_scale": torch.tensor(4.6),
    }


def sdxl(pipeline: Path) -> Weights:
    """All of SDXL as `sd_xl_base_1.0` names it."""
    first = weights_of(pipeline / "text_encoder")
    second = open_clip(weights_of(pipeline / "text_encoder_2"))
    return {
        **prefixed("model.diffusion_model.", unet(weights_of(pipeline / "unet"))),
        **prefixed("first_stage_model.", vae(weights_of(pipeline / "vae"))),
        **prefixed("conditioner.embedders.0.transformer.text_model.", first),
        **prefixed("conditioner.embedders.1.model.", second),
        "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
    }


def stable_diffusion_3(pipeline: Path) -> Weights:
    """All of SD3 as `sd3_medium_incl_clips_t5xxl` names it, clip_l without its projection."""
    first = weights_of(pipeline / "text_encoder")
    del first["text_projection.weight"]
    second = weights_of(pipeline / "text_encoder_2")
    projection = second.pop("text_projection.weight")
    return {
        **prefixed("model.diffusion_model.", sd3(weights_of(pipeline / "transformer"))),
        **prefixed("first_stage_model.", vae(weights_of(pipeline / "vae"))),
        **prefixed("text_encoders.clip_l.transformer.text_model.", first),
        **prefixed("text_encoders.clip_g.transformer.text_model.", second),
        "text_encoders.clip_g.transformer.text_projection.weight": projection,
        **prefixed("text_encoders.t5xxl.transformer.", weights_of(pipeline / "text_encoder_3")),
    }


ORIGINALS = {
    "sd": stable_diffusion,
    "sd2": stable_diffusion_2,
    "sdxl": sdxl,
    "sd3": stable_diffusion_3,
}


def save(weights: Weights, file: Path, **header: str) -> Path:
    save_file({name: value.clone().contiguous() for name, value in weights.items()}, file, header)
    return file

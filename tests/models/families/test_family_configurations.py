"""Configurations of published models: what is read out of their config.json."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gradindex.models.configuration import own_arguments, require_kinds
from gradindex.models.families import FAMILIES

UNET, TRANSFORMER = "UNet2DConditionModel", "Transformer2DModel"
SD2 = {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "sample_size": 96}
SDXL = {
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": [1, 2, 10],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
TEXT, MASK = "encoder_hidden_states", "encoder_attention_mask"
# Class, fields of config.json, shape of the latents, and the conditions' shapes.
PUBLISHED: dict[str, tuple[str, dict[str, Any], tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "SD 2.1": (UNET, SD2, (4, 96, 96), {TEXT: (77, 1024)}),
    "SDXL": (
        UNET,
        SDXL,
        (4, 128, 128),
        {TEXT: (77, 2048), "text_embeds": (1280,), "time_ids": (6,)},
    ),
    "SD 1.5 inpainting": (
        UNET,
        {"in_channels": 9, "cross_attention_dim": 768, "sample_size": 64},
        (4, 64, 64),
        {TEXT: (77, 768)},
    ),
    "DiT-XL/2 256": (f"DiT{TRANSFORMER}", {"out_channels": 8}, (4, 32, 32), {}),
    "PixArt-α 1024": (
        f"PixArt{TRANSFORMER}",
        {"caption_channels": 4096},
        (4, 128, 128),
        {TEXT: (120, 4096), MASK: (120,), "resolution": (2,), "aspect_ratio": (1,)},
    ),
    "PixArt-Σ 1024": (
        f"PixArt{TRANSFORMER}",
        {"caption_channels": 4096, "use_additional_conditions": False},
        (4, 128, 128),
        {TEXT: (120, 4096), MASK: (120,)},
    ),
    "SD 3.5 medium": (
        f"SD3{TRANSFORMER}",
        {
            "dual_attention_layers": list(range(13)),
            "qk_norm": "rms_norm",
            "pos_embed_max_size": 384,
        },
        (16, 128, 128),
        {TEXT: (154, 4096), "pooled_projections": (2048,)},
    ),
    "Flux dev": (
        f"Flux{TRANSFORMER}",
        {"guidance_embeds": True, "axes_dims_rope": [16, 56, 56]},
        (16, 128, 128),
        {TEXT: (512, 4096), "pooled_projections": (768,)},
    ),
    "Sana 1.6B 1024": (
        f"Sana{TRANSFORMER}",
        {"interpolation_scale": None},
        (32, 32, 32),
        {TEXT: (300, 2304), MASK: (300,)},
    ),
    "Qwen-Image": (
        f"QwenImage{TRANSFORMER}",
        {"axes_dims_rope": [16, 56, 56]},
        (16, 128, 128),
        {TEXT: (64, 3584), MASK: (64,)},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_known(name: str) -> None:
    class_name, fields, latent, shapes = PUBLISHED[name]
    family = FAMILIES[class_name]
    model_class = getattr(import_module(family.module), class_name)
    arguments = own_arguments(model_class, fields)
    require_kinds(model_class, arguments, Path("config.json"))
    family.check(arguments, Path("config.json"))
    config = SimpleNamespace(**arguments)
    assert (family.channels(config), *family.size(config)) == latent
    assert family.condition_shapes(config) == shapes
    assert family.guidance(config) == (name == "Flux dev")
    assert (family.blank(config) is not None) == ("inpainting" in name)
    assert family.classes(config) == (1000 if name.startswith("DiT") else None)
    assert all(side % family.patch(config) == 0 for side in latent[1:])

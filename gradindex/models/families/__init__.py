"""The classes of diffusers models that gradindex knows, a file for each; see docs/models.md."""

from collections.abc import Mapping
from typing import Any

from gradindex.models.families.dit import DiT
from gradindex.models.families.family import Family
from gradindex.models.families.flux import Flux
from gradindex.models.families.pixart import PixArt
from gradindex.models.families.qwen_image import QwenImage
from gradindex.models.families.sana import Sana
from gradindex.models.families.sd3 import StableDiffusion3
from gradindex.models.families.stable_diffusion import StableDiffusion
from gradindex.models.families.unet_2d import UNet2D

FAMILIES: dict[str, Family] = {
    family.model_class: family
    for family in (
        UNet2D(),
        StableDiffusion(),
        DiT(),
        PixArt(),
        StableDiffusion3(),
        Flux(),
        Sana(),
        QwenImage(),
    )
}

# What one class was before diffusers 0.28, by its `norm_type`; the models of DiT and PixArt on the
# Hub still say so.
FORMER_CLASS = "Transformer2DModel"
FORMER_KINDS = {
    "ada_norm_zero": "DiTTransformer2DModel",
    "ada_norm_single": "PixArtTransformer2DModel",
}


def class_of(config: Mapping[str, Any]) -> Any:
    """Return the class that a config.json names, by its name in diffusers today.

    >>> class_of({"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero"})
    'DiTTransformer2DModel'
    """
    class_name, norm = config.get("_class_name"), config.get("norm_type")
    if class_name == FORMER_CLASS and isinstance(norm, str):
        return FORMER_KINDS.get(norm, class_name)
    return class_name

"""Small vision models, as transformers saves them."""

from pathlib import Path

import torch
from conftest import required

transformers = required("transformers")

SIDE = 16
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}
CROPPED = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


def save_clip(folder: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    text = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**VISION, "intermediate_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPImageProcessorPil(**CROPPED).save_pretrained(folder)


def save_dino(folder: Path) -> None:
    torch.manual_seed(1)
    transformers.Dinov2Model(transformers.Dinov2Config(**VISION)).save_pretrained(folder)
    transformers.BitImageProcessorPil(**CROPPED).save_pretrained(folder)


def save_vit(folder: Path) -> None:
    """Trained without pooling, as those are that were trained to classify."""
    torch.manual_seed(2)
    config = transformers.ViTConfig(**VISION, intermediate_size=16)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    transformers.ViTImageProcessorPil(size=size).save_pretrained(folder)

"""The models and pictures that `tools/bench parts` measures on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import DiTTransformer2DModel, UNet2DModel
from parts_lora import COLOUR, lora_subject
from picture_sets import small_emoji
from subset_models import FASHION, Subject
from trained_models import TINY

TWO_LEVELS = {**TINY, "sample_size": 32, "block_out_channels": (64, 128)}
TRANSFORMER = {  # patches of 2×2 pixels: 64 tokens
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 3,
    "num_layers": 6,
    "num_attention_heads": 4,
    "attention_head_dim": 36,
    "num_embeds_ada_norm": 1,
}


@dataclass(frozen=True)
class MeasuredSubject:
    """A subject of the benchmark.

    Attributes:
        title: what the page calls it.
        folder: of its models and products, in the work folder.
        subject: its pictures and its model.
        timed: makes the model whose gradients are timed, of the same structure; a larger one where
            the subject's is so small that overhead would be most of the time.
    """

    title: str
    folder: str
    subject: Subject
    timed: Callable[[], Any]


def untrained_colour_unet() -> UNet2DModel:
    """Return a UNet with three levels, 2.7 M parameters, for colour pictures of 16×16."""
    return UNet2DModel(**COLOUR)


def untrained_transformer() -> DiTTransformer2DModel:
    """Return a DiT of six blocks, 2.6 M parameters, for colour pictures of 16×16."""
    return DiTTransformer2DModel(**TRANSFORMER)


# The halves are the first of `tools/bench lds`, with its models of one seed.
_FASHION = replace(FASHION, subsets=48, seeds=1)
_COLOUR_UNET = Subject(small_emoji, untrained_colour_unet, subsets=48, seeds=1)
_TRANSFORMER = Subject(small_emoji, untrained_transformer, subsets=48, seeds=1, labelled=True)
_SMOKE = replace(FASHION, pictures=40, queries=8, subsets=8, seeds=1, steps=20)

NAMES = ("fashion", "emoji-unet", "emoji-dit", "flags-lora")
SMOKE = "smoke"  # whether everything runs, in minutes; its figures mean nothing


def measured_subject(name: str, work: Path) -> MeasuredSubject:
    """Return the subject of a name: of NAMES, or SMOKE."""
    if name == "flags-lora":
        lora = lora_subject(work / "parts-lora", subsets=48)
        return MeasuredSubject(
            "LoRA of flags, UNet of other emoji", "parts-lora", lora, lora.untrained
        )
    return _SUBJECTS[name]


_SUBJECTS = {
    "fashion": MeasuredSubject(
        "UNet of two levels, Fashion-MNIST", "lds", _FASHION, partial(UNet2DModel, **TWO_LEVELS)
    ),
    "emoji-unet": MeasuredSubject(
        "UNet of three levels, colour emoji", "parts-unet", _COLOUR_UNET, untrained_colour_unet
    ),
    "emoji-dit": MeasuredSubject(
        "DiT, colour emoji", "parts-dit", _TRANSFORMER, untrained_transformer
    ),
    SMOKE: MeasuredSubject("smoke test", "parts-smoke", _SMOKE, FASHION.untrained),
}

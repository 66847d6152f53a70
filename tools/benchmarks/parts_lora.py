"""A LoRA as a subject of `tools/bench parts`: of flags, on a UNet that was trained on other emoji.

Rank 4 on the attention and the convolutions of every block, as kohya's scripts train it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from emoji_pictures import read_emoji
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from safetensors.torch import load_file, save_file
from subset_models import BATCH, RATE, Subject
from trained_models import SMALL, train

COLOUR = {**SMALL, "sample_size": 16, "in_channels": 3, "out_channels": 3}
CATEGORY = "Flags"
RANK = 4
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]
BASE_STEPS = 1500
WEIGHTS = "lora.safetensors"


@dataclass(frozen=True)
class UntrainedLora:
    """Makes a model with a LoRA that does nothing yet; the LoRA alone requires gradients.

    Attributes:
        base: folder of the model without; it is trained where it is missing.
    """

    base: Path

    def __call__(self) -> UNet2DModel:
        """Return a model whose LoRA has torch's next random numbers."""
        model = base_model(self.base).requires_grad_(False)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS)
        inject_adapter_in_model(config, model)
        return model


class LoraSubject(Subject):
    """A subject whose checkpoints have a LoRA's weights alone."""

    def save(self, pipeline: DDPMPipeline, folder: Path) -> None:
        """Save the trained weights of a pipeline into a new folder."""
        folder.mkdir()
        weights = {
            name: value.detach().contiguous()
            for name, value in pipeline.unet.named_parameters()
            if value.requires_grad
        }
        save_file(weights, folder / WEIGHTS)

    def trained(self, checkpoint: Path) -> Any:
        """Return the model with the LoRA of a checkpoint."""
        model = self.untrained()
        result = model.load_state_dict(load_file(checkpoint / WEIGHTS), strict=False)
        assert not result.unexpected_keys, result.unexpected_keys
        return model


def lora_subject(folder: Path, subsets: int) -> LoraSubject:
    """Return the LoRA of flags, whose base is kept in a folder."""
    return LoraSubject(
        flags, UntrainedLora(folder / "base"), pictures=200, subsets=subsets, seeds=1, steps=300
    )


def base_model(folder: Path) -> UNet2DModel:
    """Return the model of all emoji but flags; trained now, unless a folder has it."""
    if not folder.exists():
        # Whoever wants a LoRA next has the same random numbers, whether it is trained or not.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipeline = DDPMPipeline(UNet2DModel(**COLOUR), DDPMScheduler())
            pictures = _emoji(folder.parents[1], of_flags=False)
            train(pipeline, pictures, BASE_STEPS, "base", BATCH, rate=RATE, decay=True)
        draft = folder.with_name("base-draft")
        pipeline.unet.save_pretrained(draft)
        draft.rename(folder)
    with torch.random.fork_rng():
        return UNet2DModel.from_pretrained(folder)


def flags(work: Path) -> np.ndarray:
    """Return emoji of flags in a random order, always the same, [N, 3, 16, 16] in [−1, 1]."""
    pictures = _emoji(work, of_flags=True)
    return pictures[np.random.default_rng(0).permutation(len(pictures))]


def _emoji(work: Path, of_flags: bool) -> np.ndarray:
    """The emoji that are flags, or all others, [N, 3, 16, 16] float32 in [−1, 1]."""
    pictures = [
        np.asarray(item.picture.resize((16, 16), Image.Resampling.BOX))
        for item in read_emoji(work)
        if (item.category == CATEGORY) == of_flags
    ]
    return np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1

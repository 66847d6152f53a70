"""A LoRA's training as diffusers' scripts have it, for its peak memory: PIPELINE DATA BATCH STEPS.

At its end the process's peak memory is printed to stderr.
"""

import atexit
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from emoji_model import to_pixels, to_tokens
from gpu_models import LORA_TARGETS
from memory_child import print_peak_memory
from peft import LoraConfig
from PIL import Image
from torch import Tensor

from gradindex.store.memory import keep_freed_memory


def main() -> None:
    """Train for some steps."""
    base, data = Path(sys.argv[1]), Path(sys.argv[2])
    batch, steps = int(sys.argv[3]), int(sys.argv[4])
    pipeline = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False)
    lora = LoraConfig(r=16, lora_alpha=16, target_modules=LORA_TARGETS)
    pipeline.unet.add_adapter(lora)
    trained = [value for value in pipeline.unet.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4)
    files = sorted(data.glob("*.png"))
    for step in range(steps):
        chosen = [files[(step * batch + number) % len(files)] for number in range(batch)]
        _loss(pipeline, chosen).backward()
        optimizer.step()
        optimizer.zero_grad()


def _loss(pipeline: StableDiffusionPipeline, files: list[Path]) -> Tensor:
    """The mean loss of some pictures."""
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    x = to_pixels([Image.open(file).resize((side, side)) for file in files])
    latents = pipeline.vae.encode(x).latent_dist.sample() * pipeline.vae.config.scaling_factor
    captions = [file.with_suffix(".txt").read_text() for file in files]
    states = pipeline.text_encoder(to_tokens(pipeline.tokenizer, captions))[0]
    noise, t = torch.randn_like(latents), torch.randint(1000, (len(files),))
    noisy = pipeline.scheduler.add_noise(latents, noise, t)
    return F.mse_loss(pipeline.unet(noisy, t, states).sample, noise)


if __name__ == "__main__":
    atexit.register(print_peak_memory)
    keep_freed_memory()  # as `gradindex build` does
    main()

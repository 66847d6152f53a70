"""The models that the benchmarks measure on: three architectures, trained here on real pictures."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from picture_sets import emoji, fashion_mnist, small_fashion_mnist
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

SMALL = {  # 2.7 M parameters, Fashion-MNIST
    "sample_size": 32,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}
CIFAR10 = {  # Ho et al. 2020, 35.7 M parameters; emoji in place of CIFAR-10
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "attention_head_dim": None,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
}
TINY = {  # 0.7 M parameters, Fashion-MNIST at 16×16: for figures that take millions of gradients
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}
CONFIGS = {"small": SMALL, "cifar10": CIFAR10, "tiny": TINY}
PICTURES = {"small": fashion_mnist, "cifar10": emoji, "tiny": small_fashion_mnist}
STEPS = {"small": 2000, "cifar10": 600, "tiny": 3000}
RATES = {"small": 4e-4, "cifar10": 2e-4, "tiny": 4e-4}  # learning rates
TRAINING_PICTURES = 2000


def model_and_pictures(name: str, work: Path) -> tuple[Path, np.ndarray]:
    """Return the folder of a trained DDPM pipeline, and pictures [N, channels, height, width].

    The first TRAINING_PICTURES trained it, the rest did not. It is trained now unless the work
    folder has it.

    Args:
        name: "small", "cifar10" or "tiny".
    """
    pictures = PICTURES[name](work)
    folder = work / f"{name}-{STEPS[name]}"
    if not folder.exists():
        torch.manual_seed(0)
        pipeline = DDPMPipeline(UNet2DModel(**CONFIGS[name]), DDPMScheduler())
        train(pipeline, pictures[:TRAINING_PICTURES], STEPS[name], name, rate=RATES[name])
        pipeline.save_pretrained(work / "unfinished")
        shutil.move(work / "unfinished", folder)
    return folder, pictures


def train(
    pipeline: DDPMPipeline,
    pictures: np.ndarray,
    steps: int,
    name: str,
    batch: int = 16,
    *,
    rate: float = 4e-4,
    decay: bool = False,
    seed: int = 0,
    after: Callable[[int], None] = lambda step: None,
    predict: Callable[..., torch.Tensor] = lambda model, noisy, t: model(noisy, t).sample,
) -> None:
    """Train a pipeline's model, in mixed precision (bfloat16).

    Args:
        pictures: [N, channels, height, width] float32 in [−1, 1].
        name: of the model, for the progress bar.
        batch: pictures of a step.
        rate: learning rate of AdamW.
        decay: whether the learning rate falls to zero along a half cosine.
        seed: of the order of pictures; timesteps and noise are torch's next random numbers.
        after: called after each step with the number of steps done.
        predict: (model, noisy pictures, timesteps [B]) → the noise that the model sees in them.
    """
    model = pipeline.unet.train()
    scheduler = pipeline.scheduler
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if decay else None
    drawn = batches(pictures.shape, steps, batch, seed)
    with tqdm(total=steps, desc=f"training {name}", mininterval=10) as bar:
        for step, (rows, t, noise) in enumerate(drawn, 1):
            x = torch.from_numpy(pictures[rows])
            noisy = scheduler.add_noise(x, noise, t)
            # The other kernel of attention takes most of a step on CPUs in bfloat16.
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                predicted = predict(model, noisy, t)
            loss = (predicted.float() - noise).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if schedule:
                schedule.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            after(step)
    model.eval()


def batches(
    shape: Sequence[int], steps: int, batch: int, seed: int
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """What each training step draws for pictures of a shape [N, channels, height, width].

    Yields:
        Row numbers [B], timesteps [B] and noise [B, channels, height, width]; the last two are
        torch's next random numbers.
    """
    random = np.random.default_rng(seed)
    for _ in range(steps):
        rows = random.integers(shape[0], size=batch)
        t = torch.randint(1000, (batch,))
        noise = torch.randn(batch, *shape[1:])
        yield rows, t, noise


def untrained_model(name: str, device: str) -> UNet2DModel:
    """Return a model of that architecture with random weights, always the same."""
    torch.manual_seed(0)
    return UNet2DModel(**CONFIGS[name]).to(device)


def parameter_names(model: torch.nn.Module) -> list[str]:
    """Return the names of all parameters, in the model's order."""
    return [name for name, _ in model.named_parameters()]

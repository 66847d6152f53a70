"""What the benchmarks measure on: two architectures, trained here on real pictures, kept in a work folder."""

import gzip
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from tqdm import tqdm

EMOJI = "emoji-datasource-google@16.0.0"

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
STEPS = {"small": 2000, "cifar10": 600, "tiny": 3000}


def fashion_mnist(work: Path) -> np.ndarray:
    """The 60,000 training pictures, padded to 32×32, [N, 1, 32, 32] float32 in [−1, 1]."""
    pixels = np.frombuffer(_fashion_file(work, "train-images-idx3-ubyte.gz"), np.uint8, offset=16)
    padded = np.pad(pixels.reshape(-1, 1, 28, 28), ((0, 0), (0, 0), (2, 2), (2, 2)))
    return padded.astype(np.float32) / 127.5 - 1


def fashion_labels(work: Path) -> np.ndarray:
    """Their class labels, [N] uint8."""
    return np.frombuffer(_fashion_file(work, "train-labels-idx1-ubyte.gz"), np.uint8, offset=8)


def _fashion_file(work: Path, name: str) -> bytes:
    places = [Path("/usr/share/datasets/fashion-mnist") / name, *(work / "deb").glob(f"**/{name}")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        folder = work / "deb"
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "dataset-fashion-mnist"], cwd=folder, check=True)
        subprocess.run(["dpkg-deb", "-x", str(next(folder.glob("*.deb"))), str(folder)], check=True)
        found = next(folder.glob(f"**/{name}"))
    return gzip.decompress(found.read_bytes())


def emoji(work: Path) -> np.ndarray:
    """3,600 colour emoji on white, [N, 3, 32, 32] float32 in [−1, 1], in a fixed random order."""
    archive = work / f"{EMOJI.replace('@', '-')}.tgz"
    if not archive.exists():
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", EMOJI], cwd=work, check=True)
    pictures = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if "/img/google/64/" in member.name and member.name.endswith(".png"):
                data = tar.extractfile(member)
                assert data is not None
                picture = Image.open(io.BytesIO(data.read())).convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                flat = Image.alpha_composite(white, picture).convert("RGB").resize((32, 32), Image.Resampling.BOX)
                pictures[member.name] = np.array(flat).transpose(2, 0, 1)
    stack = np.stack([pictures[name] for name in sorted(pictures)])
    return stack[np.random.default_rng(0).permutation(len(stack))].astype(np.float32) / 127.5 - 1


def halved(pictures: np.ndarray) -> np.ndarray:
    """[N, 1, 32, 32] → [N, 1, 16, 16], means of four."""
    return pictures.reshape(len(pictures), 1, 16, 2, 16, 2).mean((3, 5), dtype=np.float32)


PICTURES = {"small": fashion_mnist, "cifar10": emoji, "tiny": lambda work: halved(fashion_mnist(work))}


def subject(name: str, work: Path, *, trained_on: int = 2000) -> tuple[Path, np.ndarray]:
    """The folder of a trained DDPM pipeline and the pictures: the first `trained_on` trained it, the rest did not."""
    pictures = PICTURES[name](work)
    folder = work / f"{name}-{STEPS[name]}"
    if not folder.exists():
        torch.manual_seed(0)
        pipeline = DDPMPipeline(UNet2DModel(**CONFIGS[name]), DDPMScheduler())
        rate = 2e-4 if name == "cifar10" else 4e-4
        train(pipeline, pictures[:trained_on], STEPS[name], name, rate=rate)
        pipeline.save_pretrained(work / "unfinished")
        shutil.move(work / "unfinished", folder)
    return folder, pictures


def train(
    pipeline: DDPMPipeline, pictures: np.ndarray, steps: int, name: str, batch: int = 16, *, rate: float = 4e-4,
    decay: bool = False, seed: int = 0, after: Callable[[int], None] = lambda step: None,
) -> None:  # fmt: skip
    """Train a pipeline's model; `after` is called with the number of steps done, after each.

    With `decay` the learning rate falls to zero along a half cosine.
    """
    model, scheduler = pipeline.unet.train(), pipeline.scheduler
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if decay else None
    with tqdm(total=steps, desc=f"training {name}", mininterval=10) as bar:
        for step, (rows, t, noise) in enumerate(batches(pictures.shape, steps, batch, seed), 1):
            x = torch.from_numpy(pictures[rows])
            loss = (model(scheduler.add_noise(x, noise, t), t).sample - noise).square().mean()
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
    """Rows, timesteps and noise of each training step on pictures of that shape; the last two are torch's next."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        yield random.integers(shape[0], size=batch), torch.randint(1000, (batch,)), torch.randn(batch, *shape[1:])


def untrained(name: str, device: str) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**CONFIGS[name]).to(device)


def names(model: torch.nn.Module) -> Sequence[str]:
    return [name for name, _ in model.named_parameters()]

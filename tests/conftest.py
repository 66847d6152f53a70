"""Small real models and picture folders that many tests share."""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

# Before any library reads it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

torch.set_num_threads(1)

# Plugins of the tests that name them; as modules with examples they would be imported too early.
collect_ignore = ["chromium.py", "serve/served_fixtures.py"]


class TorchRandom:
    """torch's generator as hypothesis seeds it, so that an example fails again as it failed."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


_torch_random = TorchRandom()  # hypothesis holds a weak reference alone
hypothesis.register_random(_torch_random)


def required(name: str) -> Any:
    """An optional package; without it a test is skipped, or in CI fails."""
    if os.environ.get("GRADINDEX_REQUIRE_ALL"):
        return importlib.import_module(name)
    return pytest.importorskip(name)


def two_checkpoints(model: Path, pictures: Path, folder: Path, dim: int) -> dict[str, Any]:
    """The options of a build of two checkpoints × three timesteps × D numbers.

    Args:
        folder: where the second checkpoint is made.
    """
    checkpoints = {str(model): 0.25, str(make_model(folder / "second", seed=1)): 0.75}
    return {
        "model": model,
        "data": pictures,
        "checkpoints": checkpoints,
        "timesteps": 3,
        "dim": dim,
        "device": "cpu",
    }


def make_model(
    path: Path, seed: int = 0, prediction_type: str = "epsilon", **config: object
) -> Path:
    """Save a small DDPM pipeline with random weights."""
    torch.manual_seed(seed)
    settings = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        **config,
    }
    model = UNet2DModel(**settings)  # type: ignore[arg-type]
    # Zero biases and unit norms would hide mistakes.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    DDPMPipeline(model, DDPMScheduler(prediction_type=prediction_type)).save_pretrained(path)
    return path


def make_pictures(path: Path, count: int, size: int = 8, seed: int = 0, mode: str = "L") -> Path:
    """Write scikit-learn's digits as PNG files: p000.png, p001.png, …"""
    from sklearn.datasets import load_digits

    path.mkdir(parents=True, exist_ok=True)
    digits = load_digits().images[seed * 100 : seed * 100 + count]
    for number, digit in enumerate(digits):
        picture = Image.fromarray((digit / 16 * 255).astype(np.uint8)).convert(mode)
        picture.resize((size, size)).save(path / f"p{number:03d}.png")
    return path


# fsspec keeps file systems, which know their server from the environment. Those of a server that
# has stopped stay here: they would warn of open connections when they are collected.
_used_file_systems: list[Any] = []


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket that moto's server holds, one for each file of tests."""
    systems = required("s3fs").S3FileSystem
    server = required("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    # All servers of a process hold the same buckets.
    urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        _forget_file_systems(systems)
        systems().mkdir("pictures")
        yield "s3://pictures"
        _forget_file_systems(systems)
    server.stop()


def _forget_file_systems(systems: Any) -> None:
    """Have fsspec make file systems of a class anew."""
    _used_file_systems.extend(systems._cache.values())
    systems.clear_instance_cache()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "ddpm")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures", 9)


@pytest.fixture(scope="session")
def queries(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(make_pictures(tmp_path_factory.mktemp("data") / "queries", 2, seed=5).iterdir())

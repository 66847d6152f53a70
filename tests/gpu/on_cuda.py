"""What the tests of a GPU share. GRADINDEX_TEST_DEVICE=cpu runs them without one, to try them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

DEVICE = os.environ.get("GRADINDEX_TEST_DEVICE", "cuda")
missing = DEVICE != "cpu" and not torch.cuda.is_available()
needs_cuda = pytest.mark.skipif(missing, reason="needs a CUDA GPU")

# What the models compute in: the type of the weights, and whether float32 products may use TF32.
FORMATS = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
}
# The largest error of one rounded operand, times two: TF32 has 10 bits of mantissa.
STEP = {"float32": 2.0**-23, "tf32": 2.0**-10, "bfloat16": 2.0**-7, "float16": 2.0**-10}


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in matrix products and convolutions; torch allows it in these."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = allowed, allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def relative_errors(rows: Tensor, truth: Tensor) -> Tensor:
    """The error's norm over the true norm, of each row [..., D] → [...]."""
    rows, truth = rows.detach().cpu().double(), truth.detach().cpu().double()
    return (rows - truth).norm(dim=-1) / truth.norm(dim=-1).clamp(min=1e-30)


def cosines(rows: Tensor, truth: Tensor) -> Tensor:
    """The cosine between each row [..., D] and the true one → [...]."""
    rows, truth = rows.detach().cpu().double(), truth.detach().cpu().double()
    return torch.cosine_similarity(rows, truth, dim=-1)


def write_pictures(path: Path, count: int, size: int = 8, seed: int = 0) -> Path:
    """Write grey PNG files of soft random blobs: p000.png, p001.png, …"""
    path.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        coarse = random.integers(0, 256, (4, 4)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        picture.save(path / f"p{number:03d}.png")
    return path


def assert_close_in(name: str, there: Tensor, here: Tensor, truth: Tensor) -> None:
    """Rows of a format on the GPU against the CPU's in it, `here`, and in float32, `truth`.

    In float32 both differ by the order of sums alone. With TF32 every product's operands are
    rounded to 2⁻¹¹; over the forward and backward of some twenty layers that adds up like a random
    walk to about .005. Half precision is allowed twice the error that the CPU makes in it.
    """
    errors, allowed = (
        relative_errors(there, truth),
        2 * relative_errors(here, truth) + 4 * STEP[name],
    )
    if name == "float32":
        assert errors.max() < 1e-4
    elif name == "tf32":
        assert errors.max() < 0.02
        assert cosines(there, truth).min() > 0.999
    else:
        assert (errors <= allowed).all(), (errors, allowed)
        assert cosines(there, truth).min() > 0.99

"""Latents as a sequence: squares of two by two numbers side by side, as Flux and Qwen take them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gradindex.errors import ModelError
from gradindex.models.configuration import is_count
from gradindex.models.folder import shortened

SIDE = 2  # numbers of a side that are packed


def require_axes(arguments: Mapping[str, Any], file: Path) -> None:
    """Raise ModelError unless the axes of places take all numbers of an attention head."""
    axes, width = arguments["axes_dims_rope"], arguments["attention_head_dim"]
    are_counts = isinstance(axes, (list, tuple)) and all(map(is_count, axes))
    if not are_counts or sum(axes) != width:
        raise ModelError(
            f"{file}: axes_dims_rope = {shortened(axes)}: allowed are whole numbers that add up to"
            f" attention_head_dim, {shortened(width)}"
        )


def pack(latents: Tensor) -> Tensor:
    """Return latents [B, channels, height, width] as [B, height/2 · width/2, 4 · channels].

    >>> import torch
    >>> pack(torch.arange(8).view(1, 1, 2, 4)).tolist()
    [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    """
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // SIDE, SIDE, width // SIDE, SIDE)
    # [B, rows, columns, channels, SIDE, SIDE]
    squares = squares.permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(batch, height * width // SIDE**2, channels * SIDE**2)


def unpack(sequence: Tensor, height: int, width: int) -> Tensor:
    """Return the latents [B, channels, height, width] of which `sequence` is the `pack`.

    >>> import torch
    >>> latents = torch.arange(48).view(1, 2, 4, 6)
    >>> bool((unpack(pack(latents), 4, 6) == latents).all())
    True
    """
    batch, _, numbers = sequence.shape
    channels = numbers // SIDE**2
    squares = sequence.reshape(batch, height // SIDE, width // SIDE, channels, SIDE, SIDE)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)

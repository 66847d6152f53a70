"""Copies of a picture as they turn up: saved again, resized, moved, flipped, cut."""

import io

import numpy as np
from picture_sets import to_bytes
from PIL import Image


def _jpeg(picture: Image.Image, quality: int) -> Image.Image:
    """A picture as a JPEG file of that quality has it."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return Image.open(content)


def _resized(picture: Image.Image) -> Image.Image:
    """A picture at three quarters of its size, and back."""
    smaller = tuple(round(0.75 * side) for side in picture.size)
    return picture.resize(smaller, Image.Resampling.BICUBIC)


def _cut(picture: Image.Image) -> Image.Image:
    """A picture without a twentieth of its width and height at each side."""
    width, height = picture.size
    edge = (round(0.05 * width), round(0.05 * height))
    return picture.crop((*edge, width - edge[0], height - edge[1]))


CHANGES = {
    "exact": lambda picture: picture,
    "resized to 75 %": _resized,
    "JPEG of quality 75": lambda picture: _jpeg(picture, 75),
    "JPEG of quality 30": lambda picture: _jpeg(picture, 30),
    "flipped": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cut to 90 %": _cut,
}


def changed(name: str, picture: np.ndarray) -> np.ndarray:
    """Return a changed copy of a picture [channels, height, width] in [−1, 1], at its size."""
    levels = to_bytes(picture).transpose(1, 2, 0)
    image = Image.fromarray(levels.squeeze())
    size = image.size
    levels = np.asarray(CHANGES[name](image).resize(size, Image.Resampling.BICUBIC), np.float32)
    return levels.reshape(*size[::-1], -1).transpose(2, 0, 1) / 127.5 - 1

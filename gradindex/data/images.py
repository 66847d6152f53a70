"""Decode a picture of any format, mode and size, and bring it to the shape that a model takes."""

from pathlib import Path

import numpy as np
from PIL import Image

from gradindex.errors import CallError

# What Pillow raises for damaged files. TypeError: a cell of a table that holds no picture.
UNREADABLE = (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError)


def to_array(picture: Image.Image, image: tuple[int, int, int]) -> np.ndarray:
    """Return a picture as float32 [channels, height, width] in [−1, 1], `pixel / 127.5 − 1`.

    A picture of the model's size keeps its pixels. Any other is resized (bilinear, shorter side
    first) and its centre cropped. Pillow converts between grey and colour. This is what the
    training examples of diffusers do.

    Args:
        picture: opened by Pillow; it is decoded here, if it was not yet.
        image: channels, height and width that the model takes.

    Raises:
        CallError: the model takes neither 1 nor 3 channels, or the picture has more than 16 bits a
            channel.

    >>> to_array(Image.new("L", (4, 2), color=255), (1, 2, 2))
    array([[[1., 1.],
            [1., 1.]]], dtype=float32)
    """
    channels, height, width = image
    if channels not in (1, 3):
        raise CallError(
            f"the model takes {channels} channels; pictures have 1 (grey) or 3 (colour)"
        )
    picture = _reduce_to_8_bits(picture)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = _resize_and_crop(picture, height, width)
    pixels = np.asarray(picture, dtype=np.float32).reshape(height, width, channels)
    return np.ascontiguousarray((pixels / 127.5 - 1).transpose(2, 0, 1))


def read_thumbnail(file: str | Path) -> Image.Image:
    """Return the picture of a file at its full size in RGB, for people to look at."""
    with Image.open(file) as picture:
        return picture.convert("RGB")


def _reduce_to_8_bits(picture: Image.Image) -> Image.Image:
    """Return a 16-bit picture with 8 bits a channel, and one that has 8 bits as it is."""
    if picture.mode.startswith("I;16"):
        # Pillow's own conversion clips 16 bits at 255. 65535 // 257 is 255.
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise CallError(f"a picture of mode {picture.mode!r}: give 8 or 16 bits a channel")
    return picture


def _resize_and_crop(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Return the centre of a picture that was resized to just cover `height` × `width` pixels."""
    scale = max(width / picture.width, height / picture.height)
    covering = (
        max(width, round(picture.width * scale)),
        max(height, round(picture.height * scale)),
    )
    picture = picture.resize(covering, Image.Resampling.BILINEAR)
    left = (picture.width - width) // 2
    top = (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))

"""The part of a query's picture that is asked about: a rectangle, or what a mask shows.

The loss is taken of that part alone: it is multiplied with a mask before the mean over the whole
picture, so that the gradients of the parts of a picture add up to that of the whole.
"""

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gradindex.data.images import geometry, opacity, open_encoded, picture_fault, to_mask
from gradindex.errors import CallError
from gradindex.search.pictures import ReadPicture

GREY = 64  # that a grey pixel's channels, of 255, differ by at most; JPEG lets them

Region = Sequence[int]  # left, top, right, bottom in pixels; right and bottom do not belong to it
Mask = str | Path | Image.Image | np.ndarray


def part_masks(
    read: Sequence[ReadPicture], region: Region | None, mask: Mask | None, factor: int
) -> list[np.ndarray] | None:
    """Return the mask of each picture, [1, height, width] float32 in 0 … 1; None: all of it counts.

    Args:
        read: the pictures.
        region: a rectangle in pixels of the upright picture as it came, before it was resized.
        mask: a picture as large as these that is white where they count.
        factor: pixels a side of the VAE's cells; 1 for a model of pixels.

    Raises:
        CallError: both are given; the rectangle does not lie in a picture; the mask does not open,
            has colours or transparent parts, is of 0 and 1 in place of 0 and 255, is of another
            size or empty; or what counts is smaller than a cell.
    """
    if region is None and mask is None:
        return None
    if region is not None and mask is not None:
        raise CallError("region and mask: give one of them")
    if region is not None:
        name = f"region = {region}"
        if isinstance(region, tuple | list):
            name = f"region = {','.join(map(str, region))}"
        masks = [_rectangle(picture, region, name) for picture in read]
    else:
        name = "mask" if isinstance(mask, Image.Image | np.ndarray) else f"mask {mask}"
        opened = _open(mask, name)
        _require_grey(opened, name)
        masks = [_fitting(picture, opened, name) for picture in read]
    fitted = []
    for picture, upright in zip(read, masks, strict=True):
        array = to_mask(upright, picture.array.shape)
        _require_a_cell(array, name, factor)
        fitted.append(array)
    return fitted


def _rectangle(picture: ReadPicture, region: Region, name: str) -> Image.Image:
    """A mask of a rectangle, as large as the picture as it came."""
    height, width = picture.geometry.original
    try:
        left, top, right, bottom = map(operator.index, region)
    except (TypeError, ValueError):
        raise CallError(
            f"{name}: give left, top, right and bottom in whole pixels: X0,Y0,X1,Y1"
        ) from None
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise CallError(
            f"{name}: give X0 below X1 and Y0 below Y1 inside the picture, which has {width} ×"
            f" {height} pixels"
        )
    mask = Image.new("L", (width, height))
    mask.paste(255, (left, top, right, bottom))
    return mask


def _open(mask: Any, name: str) -> Image.Image:
    """A mask as a picture; CallError where it does not open."""
    if isinstance(mask, Image.Image):
        return mask
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2:
            raise CallError(f"{name}: an array of shape {mask.shape}; give [height, width]")
        if mask.dtype == bool:
            return Image.fromarray(np.uint8(255) * mask)
        if mask.dtype == np.uint8:
            return Image.fromarray(mask)
        values = mask.astype(float)
        if not (values >= 0).all() or not (values <= 1).all():
            raise CallError(
                f"{name}: an array of {mask.dtype}; give bool, uint8, or numbers 0 to 1"
            )
        return Image.fromarray(np.uint8(np.round(255 * values)))
    if not isinstance(mask, str | Path):
        raise CallError(f"{name}: give a path, a PIL picture, or an array [height, width]")
    try:
        with open_encoded(mask) as opened:
            opened.load()
            return opened
    except MemoryError:  # the machine's fault, not the mask's
        raise
    except Exception as error:  # Pillow raises whatever damaged bytes lead it to
        raise CallError(f"{name}: not a picture that opens ({picture_fault(error)})") from error


def _require_grey(mask: Image.Image, name: str) -> None:
    """Raise CallError where white and black are not what tells which pixels count."""
    advice = "give white where the picture counts and black elsewhere"
    if opacity(mask).getextrema() != (255, 255):
        raise CallError(f"{name}: has transparent parts; {advice}, without transparency")
    if mask.mode in ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr"):
        channels = np.asarray(mask.convert("RGB"), np.int16)
        if np.ptp(channels, axis=2).max() > GREY:
            raise CallError(f"{name}: has colours; {advice}")
    height, width = geometry(mask, (1, 1, 1)).original
    if 0 < to_mask(mask, (1, height, width)).max() < 2 / 255:
        raise CallError(f"{name}: is of 0 and 1, nearly black; give 0 and 255, or bool")


def _fitting(picture: ReadPicture, mask: Image.Image, name: str) -> Image.Image:
    """The mask, once it is sure that it has the picture's size."""
    height, width = picture.geometry.original
    if mask.size != (width, height):
        raise CallError(
            f"{name} has {mask.size[0]} × {mask.size[1]} pixels, and the picture {width} ×"
            f" {height}; give a mask of the picture's size"
        )
    return mask


def _require_a_cell(mask: np.ndarray, name: str, factor: int) -> None:
    """Raise CallError where less than a cell of the model's input counts."""
    if not mask.any():
        raise CallError(
            f"{name}: empty, nothing of what the model sees of the picture counts; give a larger"
            " part"
        )
    if mask.sum() < factor**2:
        side = f"{factor} × {factor} pixels" if factor > 1 else "one pixel"
        raise CallError(
            f"{name}: smaller than {side} of the {mask.shape[2]} × {mask.shape[1]} that the model"
            " sees; give a larger part"
        )

"""A query's pictures, of any kind, as the model takes them, and their class labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gradindex.data.images import UNREADABLE, to_array
from gradindex.errors import CallError

# A path, a PIL picture, or a tensor [channels, height, width] in [−1, 1]
Picture = str | Path | Image.Image | Any


def picture_name(picture: Picture, number: int) -> str:
    """What a picture is called in results: its path, or its number.

    >>> picture_name("gen.png", 0), picture_name(np.zeros((1, 8, 8)), 1)
    ('gen.png', 'picture 1')
    """
    return str(picture) if isinstance(picture, str | Path) else f"picture {number}"


def read_pictures(pictures: Sequence[Picture], image: tuple[int, int, int]) -> np.ndarray:
    """Pictures as the model takes them, [Q, channels, height, width] float32 in [−1, 1].

    Args:
        image: channels, height and width of the model.

    Raises:
        CallError: a picture does not open, or a tensor is not of that shape.
    """
    return np.stack([_read_picture(picture, image) for picture in pictures])


def _read_picture(picture: Picture, image: tuple[int, int, int]) -> np.ndarray:
    if isinstance(picture, str | Path):
        return _read_file(picture, image)
    if isinstance(picture, Image.Image):
        return to_array(picture, image)
    if hasattr(picture, "detach"):  # a torch tensor of any type, on any device
        picture = picture.detach().float().cpu()
    array = np.asarray(picture, dtype=np.float32)
    if array.shape != image or not np.isfinite(array).all() or np.abs(array).max() > 1:
        raise CallError(
            f"a picture tensor of shape {array.shape}: give {image} with values in [-1, 1]"
        )
    return array


def _read_file(file: str | Path, image: tuple[int, int, int]) -> np.ndarray:
    try:
        with Image.open(file) as picture:
            return to_array(picture, image)
    except CallError:
        raise
    except UNREADABLE as error:
        raise CallError(f"{file}: not a picture that opens ({error})") from error


def read_labels(
    class_label: int | Sequence[int] | None, count: int, classes: int | None
) -> list[int] | None:
    """The class labels of `count` queries; None for an unconditional model.

    Args:
        class_label: one for all, or one each.
        classes: how many the model knows; None: it is unconditional.

    >>> read_labels(3, count=2, classes=10)
    [3, 3]
    """
    if classes is None:
        if class_label is not None:
            raise CallError(f"class_label = {class_label}: the model is not class-conditional")
        return None
    if class_label is None:
        raise CallError(f"the model is class-conditional: give class_label, 0 to {classes - 1}")
    labels = [class_label] * count if isinstance(class_label, int) else list(class_label)
    if len(labels) != count or not all(0 <= label < classes for label in labels):
        raise CallError(
            f"class_label = {class_label}: give one from 0 to {classes - 1} per picture"
        )
    return labels

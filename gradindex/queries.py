"""What a query is given: pictures of any kind, and their class labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gradindex.dataset import UNREADABLE, to_array
from gradindex.errors import CallError

Picture = str | Path | Image.Image | Any  # a path, a PIL picture, or a tensor [channels, height, width] in [−1, 1]


def picture_name(picture: Picture, number: int) -> str:
    """What a picture is called in results: its path, or its number."""
    return str(picture) if isinstance(picture, str | Path) else f"picture {number}"


def to_query(picture: Picture, image: tuple[int, int, int]) -> np.ndarray:
    """A picture as the model takes it, [channels, height, width] float32 in [−1, 1].

    Raises:
        CallError: it does not open, or is not of that shape.
    """
    if isinstance(picture, str | Path):
        try:
            with Image.open(picture) as opened:
                return to_array(opened, image)
        except CallError:
            raise
        except UNREADABLE as error:
            raise CallError(f"{picture}: not a picture that opens ({error})") from error
    if isinstance(picture, Image.Image):
        return to_array(picture, image)
    if hasattr(picture, "detach"):  # a torch tensor of any type, on any device
        picture = picture.detach().float().cpu()
    array = np.asarray(picture, dtype=np.float32)
    if array.shape != image or not np.isfinite(array).all() or np.abs(array).max() > 1:
        raise CallError(f"a picture tensor of shape {array.shape}: give {image} with values in [-1, 1]")
    return array


def to_labels(class_label: int | Sequence[int] | None, count: int, classes: int | None) -> list[int] | None:
    """The class labels of `count` queries; None for an unconditional model."""
    if classes is None:
        if class_label is not None:
            raise CallError(f"class_label = {class_label}: the model is not class-conditional")
        return None
    if class_label is None:
        raise CallError(f"the model is class-conditional: give class_label, 0 to {classes - 1}")
    labels = [class_label] * count if isinstance(class_label, int) else list(class_label)
    if len(labels) != count or not all(0 <= label < classes for label in labels):
        raise CallError(f"class_label = {class_label}: give one from 0 to {classes - 1} per picture")
    return labels

"""What a query is given: pictures of any kind, and their class labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

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


class QueryOptions(TypedDict, total=False):
    """How a query's gradients are taken; the same for `query` and `scores`.

    pairing: "matched" (a grid's default): at the store's own timesteps, draws and noise, compared timestep by
        timestep. "mean" (recorded timesteps'): over a grid of their own, averaged first, the paper's way.
    query_timesteps, query_draws: that grid of the mean pairing, 25 timesteps × 2 draws by default.
    timesteps: (A, B): score only rows at timesteps A ≤ t < B, exactly, by a scan of the store; either end may be None.
    weights: one per checkpoint, in place of the build's.
    class_label: of the pictures, for a class-conditional model; one for all, or one each.
    ids: what keys a query's own noise; by default the SHA-256 hex of its float32 tensor.
    whiten: True (a grid's default): each block of the query becomes (GᵀG/N + λI)⁻¹ q, see `gradindex.whiten`; a number
        is the damping, λ in mean squares of a row's norm. False (recorded timesteps' default): plain TracIn and ReTrac.
    batch_size: how many (picture, timestep, draw) go through the model at once, as many as fit for "auto" (default);
        changes nothing else.
    """

    pairing: str | None
    query_timesteps: int | Sequence[int] | None
    query_draws: int | None
    timesteps: tuple[int | None, int | None] | None
    weights: Sequence[float] | None
    class_label: int | Sequence[int] | None
    ids: Sequence[str] | None
    whiten: bool | float | None
    batch_size: int | str

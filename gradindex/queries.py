"""What a query is given: pictures of any kind, and options, checked against the store that is asked."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypedDict

import numpy as np
from PIL import Image

from gradindex.dataset import UNREADABLE, to_array
from gradindex.errors import CallError
from gradindex.recipe import FOLDED, require, require_positive
from gradindex.scoring import Span, inside, to_span
from gradindex.store import Store
from gradindex.whiten import DAMPING

QUERY_TIMESTEPS = 25  # of the mean pairing
QUERY_DRAWS = 2

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


def to_arrays(pictures: Sequence[Picture], image: tuple[int, int, int]) -> np.ndarray:
    """Pictures as the model takes them, [Q, channels, height, width] float32 in [−1, 1]."""
    return np.stack([to_query(picture, image) for picture in pictures])


def to_damping(whiten: bool | float) -> float | None:
    """The damping that whitens queries; None where they stay plain."""
    if isinstance(whiten, bool | np.bool_):
        return DAMPING if whiten else None
    if not (isinstance(whiten, int | float) and whiten > 0):
        raise CallError(f"whiten = {whiten!r}: give True, False, or a damping above 0")
    return whiten


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
    whiten: True (default): each block of the query becomes (GᵀG/N + λI)⁻¹ q, see `gradindex.whiten`; a number is the
        damping, λ in mean squares of a row's norm. False: plain TracIn and ReTrac.
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
    whiten: bool | float
    batch_size: int | str


@dataclass(frozen=True)
class Question:
    """A query's pictures and options, those that were left open settled by the store's recipe.

    Attributes:
        arrays: the pictures as the model takes them, [Q, channels, height, width] float32 in [−1, 1].
        labels: their class labels, or None for an unconditional model. ids: what keys their own noise.
        timesteps, draws: where their gradients are taken: how many, or which, and at how much noise each.
        columns: the places of these timesteps among the store's; None for the mean pairing.
        damping: of whitening; None for plain scores.
        span, weights, batch_size: see `QueryOptions`.
    """

    arrays: np.ndarray
    labels: list[int] | None
    ids: list[str]
    timesteps: int | Sequence[int]
    draws: int
    columns: list[int] | None
    span: Span | None
    weights: Sequence[float]
    damping: float | None
    batch_size: int | str

    @classmethod
    def of(
        cls,
        store: Store,
        pictures: Sequence[Picture],
        *,
        pairing: str | None = None,
        query_timesteps: int | Sequence[int] | None = None,
        query_draws: int | None = None,
        timesteps: tuple[int | None, int | None] | None = None,
        weights: Sequence[float] | None = None,
        class_label: int | Sequence[int] | None = None,
        ids: Sequence[str] | None = None,
        whiten: bool | float = True,
        batch_size: int | str = "auto",
    ) -> Self:
        """Raises CallError where an option does not fit the store or another option."""
        recipe, span = store.recipe, to_span(timesteps)
        recorded = recipe.events is not None
        pairing = pairing or ("mean" if recorded else "matched")
        require("pairing", pairing, ("matched", "mean"))
        matched = pairing == "matched"
        if recorded and matched:
            raise CallError("pairing matched: every picture has recorded timesteps of its own here; use mean")
        if matched and (query_timesteps is not None or query_draws is not None):
            raise CallError("with pairing matched the timesteps and draws are the store's; leave them out, or use mean")
        if recipe.rows == FOLDED and span is not None:
            raise CallError(f"timesteps = {timesteps}: the rows of this index are folded into one for each picture")
        columns = [j for j, t in enumerate(recipe.timesteps) if inside(t, span)]
        if not columns and not recorded:
            raise CallError(f"timesteps = {timesteps}: the index has none of them, but {list(recipe.timesteps)}")
        weights = store.attributes["weights"] if weights is None else weights
        if len(weights) != len(recipe.checkpoints):
            raise CallError(f"weights = {list(weights)}: this index has {len(recipe.checkpoints)} checkpoints")
        if batch_size != "auto":
            require_positive(batch_size=batch_size)  # type: ignore[arg-type]
        query_draws = QUERY_DRAWS if query_draws is None else query_draws
        require_positive(query_draws=query_draws)
        if not len(pictures):
            raise CallError("pictures: give at least one")
        if ids is not None and len(ids) != len(pictures):
            raise CallError(f"ids: {len(ids)} for {len(pictures)} pictures")
        labels, damping = to_labels(class_label, len(pictures), recipe.classes), to_damping(whiten)
        arrays = to_arrays(pictures, recipe.image)
        own = QUERY_TIMESTEPS if query_timesteps is None else query_timesteps
        return cls(
            arrays=arrays,
            labels=labels,
            ids=[hashlib.sha256(array.tobytes()).hexdigest() for array in arrays] if ids is None else list(ids),
            timesteps=[recipe.timesteps[j] for j in columns] if matched else own,
            draws=recipe.draws if matched else query_draws,
            columns=columns if matched else None,
            span=span,
            weights=weights,
            damping=damping,
            batch_size=batch_size,
        )

    def beside_rows(self, gradients: np.ndarray, per_picture: int) -> np.ndarray:
        """A checkpoint's gradients [Q, ·, D], each beside the row that it is multiplied with: [Q, T, D]."""
        if self.columns is None:
            return gradients.mean(1, keepdims=True).repeat(per_picture, axis=1)
        block = np.zeros((len(gradients), per_picture, gradients.shape[2]), np.float32)
        block[:, self.columns] = gradients
        return block

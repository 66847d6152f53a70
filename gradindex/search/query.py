"""A query: pictures and options, checked against the store that is asked."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypedDict

import numpy as np

from gradindex.errors import CallError
from gradindex.models.examples import Pictures
from gradindex.recipe import FOLDED, Recipe, require, require_positive
from gradindex.search.asked import asked_of
from gradindex.search.factors import usual_damping
from gradindex.search.pictures import (
    Picture,
    picture_list,
    read_labels,
    read_prompts,
    read_with_origins,
)
from gradindex.search.regions import Mask, Region, part_masks
from gradindex.search.scoring import Span, inside, to_span
from gradindex.store.soundness import to_weights
from gradindex.store.store import Store
from gradindex.wording import counted, fewest_digits, timestep_text

QUERY_TIMESTEPS = 25  # of the mean pairing
QUERY_DRAWS = 2
# Options that say something of a single picture.
OF_ONE_PICTURE = (*("prompt", "class_label", "region", "mask", "against", "against_prompt", "ids"),)


class QueryOptions(TypedDict, total=False):
    """How a query's gradients are taken; the same for `query` and `scores`.

    pairing: "matched" (a grid's default): at the store's own timesteps, draws and noise, compared
        timestep by timestep. "mean" (recorded timesteps'): over a grid of their own, averaged
        first, the paper's way.
    query_timesteps, query_draws: that grid of the mean pairing, 25 timesteps × 2 draws by default.
    timesteps: (A, B): score only rows at timesteps A ≤ t < B, exactly, by a scan of the store;
        either end may be None.
    weights: one per checkpoint, in place of the build's.
    prompt: of the pictures, for a model that is given captions; one for all, or one each. By
        default that of the file x.txt or x.caption beside x.png, or the one that the program wrote
        into the picture that generated it.
    class_label: of the pictures, for a class-conditional model; one for all, or one each.
    region: only what is inside a rectangle of the picture: left, top, right, bottom in pixels of
        the upright picture as it came. mask: only what is white in a picture of the same size.
    against: score what makes each picture differ from these, one for all or one each: the
        difference of their gradients. against_prompt: likewise, from the same picture with another
        prompt; or the prompts of `against`, which by default are as those of the pictures.
    ids: what keys a query's own noise; by default the SHA-256 hex of its float32 tensor.
    whiten: True (default): each block of the query becomes (GᵀG/N + λI)⁻¹ q, see
        `gradindex.search.whitening`; a number is the damping, λ in mean squares of a row's norm.
        False: plain TracIn and ReTrac.
    batch_size: how many (picture, timestep, draw) go through the model at once, as many as fit for
        "auto" (default); changes nothing else.
    """

    pairing: str | None
    query_timesteps: int | Sequence[float] | None
    query_draws: int | None
    timesteps: tuple[float | None, float | None] | None
    weights: Sequence[float] | None
    prompt: str | Sequence[str] | None
    class_label: int | Sequence[int] | None
    region: Region | None
    mask: Mask | None
    against: Picture | Iterable[Picture] | None
    against_prompt: str | Sequence[str] | None
    ids: Sequence[str] | None
    whiten: bool | float
    batch_size: int | str


@dataclass(frozen=True)
class Query:
    """Pictures and options; what the caller left open is settled by the store's recipe.

    Attributes:
        pictures: Q of them, with their labels and prompts; their ids key their own noise.
        contrast: whether Q others follow, whose gradients are taken away from theirs.
        timesteps, draws: where their gradients are taken: how many, or which, and with how many
            noise draws each.
        columns: the positions of these timesteps among the store's; None for the mean pairing.
        damping: of whitening; None for plain scores.
        is_like_rows: whether its gradients are taken as those of the store's rows were: of one
            whole picture, in the store's own pairing and weights. Search files find what is near
            to such queries: their recall was measured with sums of rows.
        span, weights, batch_size: see `QueryOptions`.
        asked: what was asked of each, where not all of it; see `asked_of`.
    """

    pictures: Pictures
    contrast: bool
    timesteps: int | Sequence[float]
    draws: int
    columns: list[int] | None
    span: Span | None
    weights: Sequence[float]
    damping: float | None
    is_like_rows: bool
    batch_size: int | str
    asked: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(
        cls,
        store: Store,
        pictures: Picture | Iterable[Picture],
        *,
        pairing: str | None = None,
        query_timesteps: int | Sequence[float] | None = None,
        query_draws: int | None = None,
        timesteps: tuple[float | None, float | None] | None = None,
        weights: Sequence[float] | None = None,
        prompt: str | Sequence[str] | None = None,
        class_label: int | Sequence[int] | None = None,
        region: Region | None = None,
        mask: Mask | None = None,
        against: Picture | Iterable[Picture] | None = None,
        against_prompt: str | Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        whiten: bool | float = True,
        batch_size: int | str = "auto",
    ) -> Self:
        """The query of some pictures to a store.

        Raises:
            CallError: an option does not fit the store or another option.
        """
        pictures = picture_list(pictures)
        recipe = store.recipe
        span = to_span(timesteps)
        matched = _is_matched(recipe, pairing)
        if matched and (query_timesteps is not None or query_draws is not None):
            raise CallError(
                "with pairing matched the timesteps and draws are the store's; leave out"
                " query_timesteps and query_draws, or give pairing = 'mean'"
            )
        if recipe.rows == FOLDED and span is not None:
            raise CallError(
                f"timesteps = {range_text(span)}: the rows of this index are folded into one for"
                " each picture; leave it out"
            )
        columns = [j for j, t in enumerate(recipe.timesteps) if inside(t, span)]
        if not columns and recipe.events is None:
            raise CallError(
                f"timesteps = {range_text(span)}: the index has none of them, but"
                f" {', '.join(map(timestep_text, recipe.timesteps))}"
            )
        weights = store.header.weights if weights is None else to_weights(weights)
        if len(weights) != len(recipe.checkpoints):
            given = ", ".join(map(fewest_digits, weights))
            raise CallError(
                f"weights = [{given}]: this index has"
                f" {counted(len(recipe.checkpoints), 'checkpoint')}"
            )
        if batch_size != "auto":
            require_positive(batch_size=batch_size)  # type: ignore[arg-type]
        own_timesteps = QUERY_TIMESTEPS if query_timesteps is None else query_timesteps
        own_draws = QUERY_DRAWS if query_draws is None else query_draws
        require_positive(query_draws=own_draws)
        damping = _to_damping(store, whiten)
        read = partial(read_query, recipe, class_label=class_label, region=region, mask=mask)
        asked = read(pictures, prompt=prompt, ids=ids)
        contrast = against is not None or against_prompt is not None
        others: list[Picture] = []
        if against_prompt is not None and not isinstance(against_prompt, str):
            against_prompt = list(against_prompt)
        if contrast:
            others = _others(recipe, pictures, against, against_prompt)
            other_prompt = prompt if against_prompt is None else against_prompt
            compared = read(others, prompt=other_prompt, ids=asked.ids, option="against_prompt")
            if region is not None:
                _require_sizes(asked, compared)
            asked = asked.followed_by(compared)
        told = {
            "region": region,
            "mask": mask,
            "against": None if against is None else others,
            "against_prompt": against_prompt,
            "timesteps": span and range_text(span),
            "pairing": pairing,
            "damping": None if isinstance(whiten, bool | np.bool_) else whiten,
        }
        return cls(
            pictures=asked,
            contrast=contrast,
            timesteps=[recipe.timesteps[j] for j in columns] if matched else own_timesteps,
            draws=recipe.draws if matched else own_draws,
            columns=columns if matched else None,
            span=span,
            weights=weights,
            damping=damping,
            is_like_rows=asked.masks is None
            and not contrast
            and matched == (recipe.events is None)
            and weights == store.header.weights,
            batch_size=batch_size,
            asked=asked_of(len(pictures), told),
        )

    def align_to_rows(self, gradients: np.ndarray, timesteps: int) -> np.ndarray:
        """A checkpoint's gradients, each at the position of the row that it is multiplied with.

        Args:
            gradients: [Q, ·, D], at the query's own timesteps.
            timesteps: T, rows of a picture at a checkpoint.

        Returns:
            [Q, T, D]: for the mean pairing the mean T times; zero for rows outside the span.
        """
        if self.columns is None:
            return gradients.mean(1, keepdims=True).repeat(timesteps, axis=1)
        block = np.zeros((len(gradients), timesteps, gradients.shape[2]), np.float32)
        block[:, self.columns] = gradients
        return block


def read_query(
    recipe: Recipe,
    pictures: Picture | Iterable[Picture],
    *,
    class_label: int | Sequence[int] | None = None,
    prompt: str | Sequence[str] | None = None,
    region: Region | None = None,
    mask: Mask | None = None,
    ids: Sequence[str] | None = None,
    option: str = "prompt",
) -> Pictures:
    """Return a query's pictures as the model's encoder takes them, with labels and prompts.

    Args:
        pictures, class_label, prompt, region, mask, ids: see `Index.query`.
        option: that gives the prompts, for errors.

    Raises:
        CallError: a picture or mask does not open; labels, prompts, region, mask or ids do not fit
            the model or each other.
    """
    pictures = picture_list(pictures)
    if not len(pictures):
        raise CallError("pictures: give at least one")
    if ids is not None:
        ids = _texts("ids", ids)
        if len(ids) != len(pictures):
            raise CallError(f"ids: {len(ids)} for {counted(len(pictures), 'picture')}")
    labels = read_labels(class_label, len(pictures), recipe.classes)
    if prompt is not None and not recipe.captioned:
        raise CallError(f"prompt = {prompt!r}: the model is given no captions")
    read = read_with_origins(pictures, recipe.pixels, recipe.buckets)
    arrays = [picture.array for picture in read]
    factor = recipe.pixels[1] // recipe.image[1]
    return Pictures(
        arrays=arrays,
        ids=_content_ids(arrays) if ids is None else list(ids),
        labels=labels,
        captions=read_prompts(prompt, pictures, read, option) if recipe.captioned else None,
        geometries=[picture.geometry for picture in read],
        masks=part_masks(read, region, mask, factor),
    )


def _others(
    recipe: Recipe,
    pictures: Sequence[Picture],
    against: Picture | Iterable[Picture] | None,
    against_prompt: str | Sequence[str] | None,
) -> list[Picture]:
    """The pictures that a query is compared with, one for each of its own.

    Raises:
        CallError: they are not one for all or one each, or the model is given no captions.
    """
    if against_prompt is not None and not recipe.captioned:
        raise CallError(f"against_prompt = {against_prompt!r}: the model is given no captions")
    others = list(pictures) if against is None else picture_list(against)
    if len(others) == 1:
        others *= len(pictures)
    if len(others) != len(pictures):
        raise CallError(
            f"against: {len(others)} for {len(pictures)} pictures; give one, or one each"
        )
    return others


def _require_sizes(asked: Pictures, others: Pictures) -> None:
    """Raise CallError where a region would be another part of what a picture is compared with."""
    for own, other in zip(asked.geometries, others.geometries, strict=True):
        if own.original != other.original:
            (height, width), (other_height, other_width) = own.original, other.original
            raise CallError(
                f"against: a picture of {other_width} × {other_height} pixels, and the one asked"
                f" about has {width} × {height}: a region would be another part of it; give"
                " pictures of one size"
            )


def _is_matched(recipe: Recipe, pairing: str | None) -> bool:
    """Whether a query is compared timestep by timestep."""
    recorded = recipe.events is not None
    pairing = pairing or ("mean" if recorded else "matched")
    require("pairing", pairing, ("matched", "mean"))
    if recorded and pairing == "matched":
        raise CallError(
            "pairing matched: every picture has recorded timesteps of its own here; use mean"
        )
    return pairing == "matched"


def range_text(span: Span | None) -> str:
    """A range of timesteps as the command line takes it.

    >>> range_text((200, np.inf))
    '200:'
    """
    ends = () if span is None else span
    return ":".join("" if np.isinf(end) else timestep_text(end) for end in ends)


def _texts(name: str, given: Any) -> list[str]:
    """A list of texts.

    Raises:
        CallError: it is no list, or not of texts.
    """
    is_list = not isinstance(given, str) and isinstance(given, Iterable)
    texts = list(given) if is_list else []
    if not (is_list and all(isinstance(text, str) for text in texts)):
        raise CallError(f"{name} = {given!r}: give a list of texts")
    return texts


def _content_ids(arrays: Sequence[np.ndarray]) -> list[str]:
    """The SHA-256 hex of each picture's float32 numbers."""
    return [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]


def _to_damping(store: Store, whiten: bool | float) -> float | None:
    """The damping that whitens queries; None where they stay plain."""
    if isinstance(whiten, bool | np.bool_):
        return usual_damping(store) if whiten else None
    if not (isinstance(whiten, int | float) and whiten > 0):
        raise CallError(f"whiten = {whiten!r}: give True, False, or a damping above 0")
    return whiten

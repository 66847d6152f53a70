"""Whether a generated picture is a copy of a training picture, by their pixels.

Carlini et al. 2023 ("Extracting training data from diffusion models", section 5.1) call a picture
extracted whose ℓ2 distance to a training picture is less than half of its mean distance to its 50
nearest training pictures. Here it is a third, as of near-duplicates: at half, of 300 digits that
were in no training set 17 were called copies, at a third 2. In a set of simple pictures many that
are new are still as near as that. How many is told by the training pictures, each compared with the
others: a new picture from where they come from is one more of them (the conformal test of Vovk et
al. 2005). A picture that is there more than once, as blank ones are, counts once among the nearest;
and those whose nearest is the same picture once more do not count, for then a copy in a set with
duplicates would be none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from gradindex.search.pixels import TrainingPixels, query_pixels
from gradindex.search.results import Hit
from gradindex.store.store import Store

NEIGHBOURS = 50
THIRD = 1 / 3
MOST_READ = 10_000  # training pictures that are read to be compared
COMPARED = 500  # training pictures that are compared with the others
SAME = 2 / 255  # root mean square of a difference of one grey level, where white is 1 and black −1
BATCH = 256  # pictures that are compared at once


@dataclass(frozen=True)
class Copy:
    """A training picture that is as near to a generated one as a copy is.

    Attributes:
        hit: it. ratio: of its distance to the mean distance of the 50 nearest; below a third.
        is_same: whether the two are the same up to one grey level, at the size of the comparison.
        as_near: share of the training pictures that are as near to another one.
    """

    hit: Hit
    ratio: float
    as_near: float
    is_same: bool = False


def copies(
    store: Store,
    pixels: TrainingPixels,
    arrays: Iterable[np.ndarray],
    hits: Sequence[Sequence[Hit]],
) -> list[Copy | None]:
    """The training picture, among its hits, that each generated picture may be a copy of.

    The hits are read first, and 50 other training pictures. Where no hit is nearer than a third of
    the mean of the 50 nearest of these, none is nearer than that of all. Only for what remains
    all training pictures are read.

    Args:
        arrays: Q pictures as the model takes them. hits: theirs.
    """
    found: list[Copy | None] = [None] * len(hits)
    kept = store.kept
    if len(kept) <= NEIGHBOURS:
        return found
    asked = query_pixels(arrays, pixels.shape)
    random = np.random.default_rng(0)
    some = random.choice(kept, NEIGHBOURS, replace=False)
    rows = np.union1d(some, [hit.row for listed in hits for hit in listed]).astype(np.int64)
    distances, first = _distances(pixels, rows, asked)
    once = np.unique(first)
    near: dict[int, tuple[Hit, float]] = {}
    for q, listed in enumerate(hits):
        own = distances[q, np.searchsorted(rows, [hit.row for hit in listed])]
        if np.isnan(own).all():
            continue
        nearest = int(np.nanargmin(own))
        # With too few that are there, the mean is NaN, and nothing is ruled out.
        if not own[nearest] >= THIRD * mean_of_nearest(distances[q, once], NEIGHBOURS):
            near[q] = listed[nearest], float(own[nearest])
    if not near:
        return found
    compared = random.choice(kept, min(COMPARED, len(kept)), replace=False)
    others = np.stack(list(pixels.read(compared)))
    every, first = _distances(pixels, kept, np.concatenate([asked[list(near)], others]))
    of_others = every[len(near) :]
    of_others[np.arange(len(compared)), first[np.searchsorted(kept, compared)]] = np.nan
    once = np.unique(first)
    if len(once) > NEIGHBOURS:
        every = every[:, once]
    same = SAME * np.sqrt(asked.shape[1])
    # What is a picture once more is itself; ratios of pictures that are gone are NaN.
    usual = np.array(
        [_ratio(mean_of_nearest(own[own > same], 1), own, same) for own in every[len(near) :]]
    )
    known = usual[~np.isnan(usual)]
    for (q, (hit, distance)), own in zip(near.items(), every, strict=False):
        ratio = _ratio(distance, own, same)
        if ratio < THIRD:
            as_near = (1 + np.sum(known <= ratio)) / (1 + len(known))
            found[q] = Copy(hit, ratio, float(as_near), is_same=distance <= same)
    return found


def _ratio(distance: float, others: np.ndarray, same: float) -> float:
    """A distance by the mean of the 50 lowest of others, which are at least that of what is `same`.

    It is NaN where fewer are known.
    """
    return distance / float(np.maximum(mean_of_nearest(others, NEIGHBOURS), same))


def mean_of_nearest(distances: np.ndarray, count: int) -> float:
    """The mean of the lowest of some distances; NaN, of pictures that are gone, do not count.

    It is NaN where fewer are known.

    >>> mean_of_nearest(np.array([5.0, np.nan, 1.0, 2.0]), 2)
    1.5
    """
    known = np.sort(distances[~np.isnan(distances)])
    return float(known[:count].mean()) if len(known) >= count else np.nan


def _distances(
    pixels: TrainingPixels, rows: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The ℓ2 distances of training pictures to others, and which of them are the same.

    Args:
        others: pixels [M, numbers].

    Returns:
        Distances [M, rows], NaN of pictures that are gone; and the position of the first picture
        with the same pixels as each, [rows].
    """
    parts, first = [], []
    seen: dict[bytes, int] = {}
    read = pixels.read(rows)
    for start in range(0, len(rows), BATCH):
        batch = np.stack([next(read) for _ in rows[start : start + BATCH]])
        parts.append(distances(others, batch))
        first.append(first_of_same(batch, seen, start))
    return np.concatenate(parts, axis=1), np.concatenate(first)


def first_of_same(
    vectors: np.ndarray, seen: dict[bytes, int] | None = None, start: int = 0
) -> np.ndarray:
    """The position of the first vector that each of some [N, W] is equal to, [N].

    Args:
        seen: {SHA-256: position} of vectors before these, to which these are added.
        start: the position of the first of them.

    >>> first_of_same(np.array([[1.0], [2.0], [1.0], [np.nan], [np.nan]])).tolist()
    [0, 1, 0, 3, 4]
    """
    seen = {} if seen is None else seen
    positions = np.arange(start, start + len(vectors))
    for number in np.flatnonzero(~np.isnan(vectors).any(1)).tolist():
        digest = sha256(vectors[number].tobytes()).digest()
        positions[number] = seen.setdefault(digest, start + number)
    return positions


def distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The ℓ2 distances between vectors [A, W] and [B, W], [A, B]."""
    squares = (some**2).sum(1)[:, None] - 2 * some @ others.T + (others**2).sum(1)
    return np.sqrt(np.maximum(squares, 0))

"""Training pictures that are there more than once, or nearly so: clusters of them.

Two pictures are near-duplicates where their distance is at most a third of the mean distance of
either to its 50 nearest: 50 as in Carlini et al. 2023, a third as in Yoon et al. 2023 ("Diffusion
probabilistic models generalize when they fail to memorize"), there of the nearest to the second
nearest. In a set of 50 pictures or fewer they must be the same up to one grey level.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from gradindex.data.images import to_array
from gradindex.data.picture_facts import NO_CONTENT
from gradindex.errors import NONE_LEFT, CallError
from gradindex.gradients.fold import search_vectors, unit
from gradindex.recipe import require
from gradindex.search.copies import NEIGHBOURS, SAME, THIRD, distances, first_of_same
from gradindex.search.pixels import READERS
from gradindex.search.training_pictures import TrainingPictures
from gradindex.store.prefetch import prefetch
from gradindex.store.progress import progress
from gradindex.store.store import Store

SIDE = 16  # pixels a side at which pictures are compared, in colour
KEPT = 0.9  # of either side of a picture, in the middle: what a slight crop leaves
WIDTH = 768  # numbers of a picture's rows that are compared, as many as of its pixels
BATCH = 256  # pictures that are compared at once with all
MEASURES = ("pixels", "rows")
MOST_PICTURES = 100_000  # that are compared with each other
MOST_PAIRS = 20_000_000  # of near ones in memory


def duplicates(store: Store, pictures: TrainingPictures, by: str) -> list[list[int]]:
    """The clusters of near-duplicates, largest first: ascending rows of two pictures or more.

    Args:
        by: "pixels": pictures, also flipped, cut to 90 % of their sides, or both. "rows": their
            normalized gradients.

    Raises:
        CallError: another measure, no picture is left, or the training pictures are gone.
    """
    require("by", by, MEASURES)
    kept = store.kept
    if not len(kept):
        raise CallError(NONE_LEFT)
    if len(kept) > MOST_PICTURES:
        raise CallError(
            f"duplicates: {len(kept):,} pictures; each is compared with each, so they are looked"
            f" for among {MOST_PICTURES:,} at the most"
        )
    if by == "rows":
        variants, same = _row_vectors(store, kept)[None], 1e-3
    else:
        pictures.require("; or compare the rows (by rows)")
        variants, same = _pixel_vectors(pictures, kept), SAME * np.sqrt(3 * SIDE**2)
    return [kept[cluster].tolist() for cluster in near_duplicates(variants, same)]


def near_duplicates(variants: np.ndarray, same: float) -> list[list[int]]:
    """The clusters of near-duplicates among vectors, see `near_pairs`: positions, largest first.

    The same vector counts once: hundreds of blank pictures are no pairs, nor anyone's 50 nearest.
    """
    first = first_of_same(variants[0])
    positions = np.arange(len(first))
    once = np.flatnonzero(first == positions)
    near = once[near_pairs(variants[:, once], same)]
    again = np.stack([first, positions], axis=1)[first != positions]
    return clustered(np.concatenate([near, again]), len(first))


def near_pairs(variants: np.ndarray, same: float) -> np.ndarray:
    """The pairs of near-duplicates, [P, 2] positions.

    Args:
        variants: [V, N, W]: vectors of N pictures, first as they are; NaN where one is gone.
        same: distance up to which two are the same in a set of few.
    """
    count = variants.shape[1]
    means = np.zeros(count)
    firsts, seconds, lengths = [], [], []
    found = 0
    starts = range(0, count, BATCH)
    for start in progress(starts, "duplicates", len(starts), "block"):
        batch = variants[0, start : start + BATCH]
        own = np.min([distances(batch, vectors) for vectors in variants], axis=0)
        own = np.nan_to_num(own, nan=np.inf)
        rows = np.arange(len(batch))
        own[rows, start + rows] = np.inf
        limit = np.full(len(batch), same)
        if count > NEIGHBOURS:
            nearest = np.partition(own, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
            mean = nearest.mean(1)  # infinite where a picture, or too many others, are gone
            limit = np.where(np.isfinite(mean), np.maximum(same, THIRD * mean), same)
        means[start : start + BATCH] = limit
        first, second = np.nonzero(own <= limit[:, None])
        found += len(first)
        if found > MOST_PAIRS:
            raise CallError(
                f"duplicates: more than {MOST_PAIRS:,} pairs are near each other, as nearly blank"
                " pictures are; remove these first"
            )
        firsts.append(first + start)
        seconds.append(second)
        lengths.append(own[first, second])
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    # A variant of one may be near the other, and not the other way round.
    near = np.concatenate(lengths) <= means[second]
    return np.stack([first[near], second[near]], axis=1)


def clustered(pairs: np.ndarray, count: int) -> list[list[int]]:
    """The sets of pictures that pairs [P, 2] connect, largest first.

    >>> clustered(np.array([[0, 2], [2, 3], [4, 1]]), 6)
    [[0, 2, 3], [1, 4]]
    """
    parent = list(range(count))

    def root(position: int) -> int:
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    for one, other in pairs.tolist():
        parent[root(one)] = root(other)
    members: dict[int, list[int]] = {}
    for position in np.unique(pairs).tolist():
        members.setdefault(root(position), []).append(position)
    return sorted(members.values(), key=lambda cluster: (-len(cluster), cluster))


def _pixel_vectors(pictures: TrainingPictures, rows: np.ndarray) -> np.ndarray:
    """The pixels of training pictures as they are, flipped, cut, and both, [4, N, W] float32."""
    read = prefetch(lambda row: _variants(pictures.thumbnail(row)), rows.tolist(), READERS)
    return np.stack(list(progress(read, "pixels", len(rows), "picture")), axis=1)


def _variants(thumbnail: Image.Image | None) -> np.ndarray:
    """The pixels of a picture as it is, flipped, cut, and both, [4, W]; NaN where it is gone."""
    if thumbnail is None:
        return np.full((4, 3 * SIDE**2), np.nan, np.float32)
    width, height = thumbnail.size
    left, top = (1 - KEPT) / 2 * width, (1 - KEPT) / 2 * height
    box = (left, top, width - left, height - top)
    cut = thumbnail.resize(thumbnail.size, Image.Resampling.BILINEAR, box)
    arrays = [to_array(picture, (3, SIDE, SIDE)) for picture in (thumbnail, cut)]
    both = [turned for array in arrays for turned in (array, array[:, :, ::-1])]
    return np.stack([array.reshape(-1) for array in both])


def _row_vectors(store: Store, rows: np.ndarray) -> np.ndarray:
    """The normalized rows of pictures, all of one side by side, made short, [N, W] float32.

    A random projection of WIDTH numbers keeps distances to about 3 %.
    """
    return np.concatenate(list(_row_batches(store, rows)))


def _row_batches(store: Store, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The vectors of some rows at a time."""
    shorten = None
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        checkpoints = range(store.shape[0])
        units = np.stack([store.read("normalized", c, some) for c in checkpoints], axis=1)
        vectors = search_vectors(units.astype(np.float32), store.recipe)
        width = vectors.shape[1]
        if width > WIDTH and shorten is None:
            random = np.random.default_rng(0)
            shorten = random.standard_normal((width, WIDTH), np.float32) / np.sqrt(WIDTH)
        yield unit(vectors if shorten is None else vectors @ shorten)


def identical(contents: Sequence[str], clusters: Sequence[Sequence[int]]) -> int:
    """How many pictures in clusters have the very bytes of another one in theirs.

    Args:
        contents: the `content_digest` of each picture; `NO_CONTENT`: not known.

    >>> identical(["a", "b", "a", "b", NO_CONTENT, NO_CONTENT], [[0, 1, 2], [3, 4, 5]])
    2
    """
    count = 0
    for cluster in clusters:
        digests = Counter(contents[row] for row in cluster if contents[row] != NO_CONTENT)
        count += sum(times for times in digests.values() if times > 1)
    return count


def named(store: Store, clusters: Sequence[Sequence[int]]) -> list[list[str]]:
    """Clusters of rows as ids."""
    return [[store.sample_ids[row] for row in cluster] for cluster in clusters]

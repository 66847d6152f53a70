"""Training pictures once more: some of them as the model takes them, and their gradients."""

from collections.abc import Iterable, Iterator

import numpy as np

from gradindex.gradients.events import grid_events
from gradindex.gradients.parameters import capture_for
from gradindex.gradients.sampling import sample_gradients
from gradindex.models.denoiser import Denoiser
from gradindex.models.examples import Pictures
from gradindex.models.pipeline import make_examples
from gradindex.recipe import Recipe
from gradindex.search.index import Index
from gradindex.search.training_pictures import read_rows

ADVICE = "; or give pictures, compared=0 and, with recorded timesteps, outliers=False"
GROUP = 64  # training pictures whose gradients are in memory at once


def evenly_spaced(length: int, count: int) -> np.ndarray:
    """Return `count` positions from 0 to `length` − 1, or all of them where these are fewer.

    >>> evenly_spaced(10, 4)
    array([0, 3, 6, 9])
    >>> evenly_spaced(2, 4)
    array([0, 1])
    """
    return np.unique(np.linspace(0, length - 1, count).astype(int))


def read_training_pictures(index: Index, rows: np.ndarray) -> Pictures:
    """Return the training pictures of some rows.

    Raises:
        CallError: the pictures are no longer where they were. DataError: one cannot be read.
    """
    dataset = index.training_pictures.require(ADVICE)
    return read_rows(dataset, index.store.recipe, rows.tolist())


def training_gradients(
    index: Index, denoiser: Denoiser, setting: Recipe, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Take the gradients of training pictures anew, some pictures at a time.

    Args:
        denoiser: the model at one of the index's checkpoints.
        setting: its timesteps, draws and noise are used; the projection is the index's.
        rows: of the pictures.

    Yields:
        Rows [B] and gradients [B, T, D] float32.
    """
    groups = np.array_split(rows, -(-len(rows) // GROUP))
    pictures = (read_training_pictures(index, group) for group in groups)
    yield from zip(groups, take_gradients(index, denoiser, setting, pictures), strict=True)


def take_gradients(
    index: Index, denoiser: Denoiser, setting: Recipe, groups: Iterable[Pictures]
) -> Iterator[np.ndarray]:
    """Take the gradients of groups of pictures; the arguments are those of `training_gradients`.

    Yields:
        For each group [B, T, D] float32.
    """
    # The batch comes first: to find it, the model is tried, which no capture may watch.
    batch_size = index.gradients.fitting_batch
    with capture_for(denoiser, index.store.recipe) as capture:
        for pictures in groups:
            yield sample_gradients(
                denoiser,
                capture,
                setting,
                make_examples(denoiser.encoder, pictures),
                grid_events(setting, pictures.ids),
                batch_size=batch_size,
            )

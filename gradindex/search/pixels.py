"""Pictures as vectors of their pixels, small, to be compared with each other."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from gradindex.data.images import THUMBNAIL_SIDE, read_thumbnail, to_array, to_thumbnail
from gradindex.recipe import Recipe
from gradindex.search.pictures import Picture, picture_of_pixels
from gradindex.search.training_pictures import TrainingPictures
from gradindex.store.prefetch import prefetch
from gradindex.store.progress import progress

PIXEL_SIDE = 64  # pictures are compared at up to so many pixels a side
READERS = 4  # threads that read pictures
MOST_KEPT = 1024  # vectors of training pictures that stay in memory, of 48 KiB at the most


def compared_shape(recipe: Recipe) -> tuple[int, int, int]:
    """Channels, height and width at which pictures are compared."""
    channels, height, width = recipe.pixels
    shrink = max(1.0, max(height, width) / PIXEL_SIDE)
    return channels, max(1, round(height / shrink)), max(1, round(width / shrink))


def pixels_of(thumbnail: Image.Image | None, shape: tuple[int, int, int]) -> np.ndarray:
    """The pixels of a picture in [−1, 1], flat float32; NaN where there is no picture."""
    if thumbnail is None:
        return np.full(np.prod(shape), np.nan, np.float32)
    return to_array(thumbnail, shape).reshape(-1)


class TrainingPixels:
    """The pixels of training pictures, of which the first that are read stay in memory.

    So what an answer comes to and the cosines of its hits are told by one read of them.

    Args:
        shape: see `compared_shape`.
    """

    def __init__(self, pictures: TrainingPictures, shape: tuple[int, int, int]) -> None:
        self.pictures, self.shape = pictures, shape
        self._kept: dict[int, np.ndarray] = {}

    def read(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the pixels of distinct rows, flat float32; NaN where a picture is gone."""
        numbers = rows.tolist()
        known = {row: self._kept[row] for row in numbers if row in self._kept}
        absent = [row for row in numbers if row not in known]
        read = prefetch(self._read_one, absent, READERS)
        new = iter(progress(read, "pixels", len(absent), "picture"))
        for row in numbers:
            vector = known[row] if row in known else next(new)
            if len(self._kept) < MOST_KEPT:
                self._kept[row] = vector
            yield vector

    def _read_one(self, row: int) -> np.ndarray:
        return pixels_of(self.pictures.thumbnail(row), self.shape)


def opener(picture: Picture, array: np.ndarray) -> Callable[[int], Image.Image]:
    """What gives a picture that is asked about, no larger than so many pixels a side.

    Args:
        array: the same as the model takes it, which stands for a tensor and for an open file.
    """
    if isinstance(picture, str | Path):
        return partial(read_thumbnail, picture)
    if isinstance(picture, bytes | bytearray | memoryview):
        return lambda side: read_thumbnail(io.BytesIO(picture), side)
    pixels = picture if isinstance(picture, Image.Image) else picture_of_pixels(picture)
    return (lambda side: to_picture(array)) if pixels is None else partial(to_thumbnail, pixels)


def asked_pixels(
    pictures: Sequence[Picture], arrays: Iterable[np.ndarray], shape: tuple[int, int, int]
) -> np.ndarray:
    """The pixels of Q pictures that are asked about, [Q, numbers]; see `opener`."""
    pairs = zip(pictures, arrays, strict=True)
    return np.stack([pixels_of(opener(*pair)(THUMBNAIL_SIDE), shape) for pair in pairs])


def to_picture(array: np.ndarray) -> Image.Image:
    """A picture [channels, height, width] in [−1, 1] as Pillow has it."""
    values = np.round((array + 1) * 127.5).astype(np.uint8)
    return Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0))


def query_pixels(arrays: Iterable[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """The pixels of pictures that a model takes [channels, height, width], [Q, numbers]."""
    return np.stack([pixels_of(to_thumbnail(to_picture(array)), shape) for array in arrays])

"""Pictures as vectors of their pixels, small, to be compared with each other."""

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from gradindex.data.images import to_array, to_thumbnail
from gradindex.recipe import Recipe
from gradindex.search.training_pictures import TrainingPictures
from gradindex.store.prefetch import prefetch
from gradindex.store.progress import progress

PIXEL_SIDE = 64  # pictures are compared at up to so many pixels a side
READERS = 4  # threads that read pictures


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


def training_pixels(
    pictures: TrainingPictures, rows: np.ndarray, shape: tuple[int, int, int]
) -> Iterator[np.ndarray]:
    """The pixels of some training pictures, one after the other."""
    numbers = rows.tolist()
    read = prefetch(lambda row: pixels_of(pictures.thumbnail(row), shape), numbers, READERS)
    return iter(progress(read, "pixels", len(numbers), "picture"))


def to_picture(array: np.ndarray) -> Image.Image:
    """A picture [channels, height, width] in [−1, 1] as Pillow has it."""
    values = np.round((array + 1) * 127.5).astype(np.uint8)
    return Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0))


def query_pixels(arrays: Iterable[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """The pixels of pictures that a model takes [channels, height, width], [Q, numbers]."""
    return np.stack([pixels_of(to_thumbnail(to_picture(array)), shape) for array in arrays])

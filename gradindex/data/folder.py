"""A plain folder of pictures, with one folder per class where there are classes.

A picture's id is its path relative to the folder. Its label is the number of the top folder that it
lies in, by name. It is opened from its file.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from gradindex.data.dataset import Columns, Dataset
from gradindex.errors import CallError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def open_folder(path: Path, columns: Columns) -> Dataset:
    """Return the data set of all pictures in a folder and the folders in it, in the order of ids.

    Raises:
        CallError: columns were named, which only a table has.
    """
    if columns != Columns():
        raise CallError(f"data {path}: a plain folder of pictures has no columns")
    size_of = _picture_sizes(path)
    sample_ids = sorted(size_of)
    sizes = np.array([size_of[name] for name in sample_ids], np.int64)

    def open_picture(row: int) -> Image.Image:
        return Image.open(path / sample_ids[row])

    return Dataset(str(path), columns, sample_ids, _class_labels(sample_ids), sizes, open_picture)


def _picture_sizes(path: Path) -> dict[str, int]:
    """Return {relative path with slashes: size in bytes} of every picture file under a folder."""
    sizes = {}
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            suffix = os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES and os.path.isfile(file):
                sample_id = os.path.relpath(file, path).replace(os.sep, "/")
                sizes[sample_id] = os.path.getsize(file)
    return sizes


def _class_labels(sample_ids: list[str]) -> np.ndarray | None:
    """Return the number of each picture's top folder, [N] int64.

    None when a picture lies in no folder, or when there are no pictures.

    >>> _class_labels(["cat/1.png", "dog/1.png", "dog/2.png"])
    array([0, 1, 1])
    >>> _class_labels(["1.png", "dog/2.png"]) is None
    True
    """
    if not sample_ids or not all("/" in name for name in sample_ids):
        return None
    folders = [name.partition("/")[0] for name in sample_ids]
    label_of = {folder: label for label, folder in enumerate(sorted(set(folders)))}
    return np.array([label_of[folder] for folder in folders], np.int64)

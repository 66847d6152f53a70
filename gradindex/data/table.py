"""A table of pictures, as the `datasets` library opens it: image folder, parquet files or the hub.

A picture's id is in the id column; without one, it is the picture's path relative to an image
folder, or its row number. Its label is in the label column. It is opened from the bytes in the
image column, or from the file that the column names.
"""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from gradindex.data.dataset import Columns, Dataset
from gradindex.errors import CallError, first_line

if TYPE_CHECKING:
    import datasets

SAVED = ("dataset_info.json", "dataset_dict.json")  # of `save_to_disk`
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of an image folder
USUAL_IMAGE_COLUMNS = ("image", "img", "picture")


def is_table(path: Path) -> bool:
    """Whether a folder is one that the `datasets` library reads, not a plain folder of pictures."""
    if _has_any(path, (*SAVED, "state.json", *METADATA)):
        return True
    return any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))


def open_table(source: str, path: Path, columns: Columns) -> Dataset:
    """Return the data set of a table's rows, in their order.

    Args:
        source: a folder, a parquet file or a name on the hub.
        path: the same, as a path.
        columns: of the picture, the id and the label.

    Raises:
        CallError: nothing is there, it cannot be read, a column does not exist or holds something
            else.
    """
    import datasets

    datasets.disable_progress_bars()
    table = _load_table(source, path)
    image_column = columns.image or _image_column(source, table)
    for name in (image_column, columns.id, columns.label):
        if name and name not in table.column_names:
            raise CallError(
                f"data {source}: no column {name!r}; there are {', '.join(table.column_names)}"
            )
    try:
        # So that a row gives the encoded picture: `open_picture` and `to_array` decode it.
        table = table.cast_column(image_column, datasets.Image(decode=False))
    except Exception as error:  # whatever pyarrow raises
        raise CallError(
            f"data {source}: column {image_column!r} holds no pictures ({first_line(error)})"
        ) from error
    labels = _class_labels(source, table, columns.label)
    sample_ids = _sample_ids(path, table, image_column, columns.id)
    sizes = _picture_sizes(table, image_column)

    def open_picture(row: int) -> Image.Image:
        cell = table[row][image_column]
        if cell["bytes"] is not None:
            return Image.open(io.BytesIO(cell["bytes"]))
        return Image.open(cell["path"])

    return Dataset(source, columns, sample_ids, labels, sizes, open_picture)


def _has_any(path: Path, names: tuple[str, ...]) -> bool:
    """Whether a folder holds a file of one of these names."""
    return any((path / name).exists() for name in names)


def _load_table(source: str, path: Path) -> "datasets.Dataset":
    """Return the table at a path or of a name on the hub; of several splits, the one for training.

    Raises:
        CallError: nothing is there, or it cannot be read.
    """
    if not path.exists() and not _can_be_on_hub(source):
        raise CallError(f"data {source}: no such file or folder")
    try:
        return _read_table(source, path)
    except Exception as error:  # `datasets` raises whatever its readers raise
        if path.exists():
            problem = "cannot be read"
        else:
            problem = "neither a file or folder here nor a data set on the hub"
        raise CallError(f"data {source}: {problem} ({first_line(error)})") from error


def _can_be_on_hub(source: str) -> bool:
    r"""Whether a text has the form of a data set's name on the hub, `owner/name`.

    >>> [_can_be_on_hub(source) for source in ("owner/name", "name", "./name", r"C:\name/x")]
    [True, False, False, False]
    """
    is_path = source.startswith((".", "/", "~")) or "\\" in source
    return not is_path and source.count("/") == 1


def _read_table(source: str, path: Path) -> "datasets.Dataset":
    """Return the table that `datasets` reads, and let through whatever it raises."""
    import datasets

    if _has_any(path, SAVED):
        table = datasets.load_from_disk(source)
        return table["train"] if isinstance(table, datasets.DatasetDict) else table
    if _has_any(path, METADATA):
        return datasets.load_dataset("imagefolder", data_dir=source, split="train")
    if path.is_file() and path.suffix != ".parquet":
        raise ValueError("a file, but not a parquet one")
    if path.is_file():
        return datasets.load_dataset("parquet", data_files=source, split="train")
    return datasets.load_dataset(source, split="train")


def _image_column(source: str, table: "datasets.Dataset") -> str:
    """Return the first column whose type is a picture, or else one with a usual name.

    Raises:
        CallError: there is none.
    """
    import datasets

    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            return name
    for name in USUAL_IMAGE_COLUMNS:
        if name in table.column_names:
            return name
    raise CallError(
        f"data {source}: which column holds the pictures? there are {', '.join(table.column_names)}"
    )


def _class_labels(source: str, table: "datasets.Dataset", column: str | None) -> np.ndarray | None:
    """Return the label column as whole numbers, [N] int64; None when there is none.

    Where no column was named, `label` is taken if it holds whole numbers.

    Raises:
        CallError: the column was named, and does not hold whole numbers.
    """
    if column is None and "label" not in table.column_names:
        return None
    try:
        return np.array([int(value) for value in table[column or "label"]], np.int64)
    except (ValueError, TypeError) as error:
        if column is None:
            return None
        raise CallError(
            f"data {source}: label column {column!r} does not hold whole numbers"
        ) from error


def _sample_ids(
    path: Path, table: "datasets.Dataset", image_column: str, id_column: str | None
) -> list[str]:
    """Return the ids: the id column, paths relative to an image folder, or else row numbers."""
    if id_column:
        return [str(value) for value in table[id_column]]
    if _has_any(path, METADATA):
        root = path.absolute()
        files = [cell["path"] for cell in table[image_column]]
        return [Path(os.path.relpath(file, root)).as_posix() for file in files]
    return [str(row) for row in range(len(table))]


def _picture_sizes(table: "datasets.Dataset", image_column: str) -> np.ndarray:
    """Return the bytes of each encoded picture, [N] int64; 0 where there is no picture.

    They come from Arrow's offsets and from the file system: no picture is read.
    """
    import pyarrow.compute as pc

    sizes: list[int] = []
    for chunk in table.data.column(image_column).chunks:
        lengths = pc.binary_length(chunk.field("bytes"))
        paths = chunk.field("path")
        for length, path in zip(lengths, paths, strict=True):
            sizes.append(length.as_py() or _file_size(path.as_py()))
    return np.array(sizes, np.int64)


def _file_size(path: str | None) -> int:
    """Return the bytes of a file; 0 where there is none."""
    file = Path(path or "")
    return file.stat().st_size if file.is_file() else 0

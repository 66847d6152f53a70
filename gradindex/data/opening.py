"""Open the data set at a path or of a name: a folder of pictures, or a table."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from gradindex.data.dataset import Columns, Dataset
from gradindex.data.folder import open_folder
from gradindex.data.table import column_by_id, is_table, open_table
from gradindex.errors import CallError, DataError, quoted
from gradindex.wording import counted


def open_dataset(
    source: str | Path, columns: Columns | None = None, *, warn: bool = True
) -> Dataset:
    """Return the data set at a path, or of a name on the hub.

    Args:
        source: a folder of pictures, one with a metadata file that names them in `file_name`, a
            `save_to_disk` folder, a parquet file or a folder of them, or a name on the hub.
        columns: picture, id, label and caption columns of a table.
        warn: give the data set's warnings; a build does, and whoever opens what was built does not.

    Raises:
        CallError: nothing is there, it holds no pictures, or a column does not exist.
        DataError: two pictures have the same id, an id is not UTF-8, or a folder cannot be listed.

    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("L", (8, 8)).save(f"{folder}/a.png")
    ...     open_dataset(folder).sample_ids
    ['a.png']
    """
    columns = columns or Columns()
    path = Path(source)
    if is_plain_folder(path, columns):
        dataset = open_folder(path, columns)
    else:
        dataset = open_table(str(source), path, columns)
    if not len(dataset):
        raise CallError(
            f"data {source}: no pictures there, of any format that Pillow reads; give the folder or"
            " table that holds them"
        )
    _check_ids(source, dataset)
    if warn:
        for text in dataset.warnings:
            warnings.warn(f"data {source}: {text}", stacklevel=2)
    return dataset


def read_column(source: str, columns: Columns, name: str) -> dict[str, Any]:
    """Return {id: cell} of a column of the data set's table, None for an empty cell.

    Raises:
        CallError: the data set has no such column, or is no table.
    """
    path = Path(source)
    if is_plain_folder(path, columns):
        raise CallError(
            f"data {source}: a folder of pictures without a table has no column {name!r}"
        )
    return column_by_id(source, path, columns, name)


def is_plain_folder(path: Path, columns: Columns) -> bool:
    """Whether a path is that of a folder of pictures, not of a table."""
    return path.is_dir() and not is_table(path, columns)


def _check_ids(source: str | Path, dataset: Dataset) -> None:
    """Raise DataError when an id is not UTF-8, or stands for several pictures."""
    for name in dataset.sample_ids:
        if not _is_utf8(name):
            raise DataError(f"data {source}: the id {quoted(name)} is not UTF-8; give it another")
    if len(set(dataset.sample_ids)) < len(dataset):
        counts = Counter(dataset.sample_ids)
        repeated = sorted(name for name, count in counts.items() if count > 1)
        raise DataError(
            f"data {source}: {counted(len(repeated), 'id stands', 'ids stand')} for several"
            f" pictures, such as {quoted(repeated[0])}; give each picture its own"
        )


def _is_utf8(name: str) -> bool:
    """Whether a name has bytes in UTF-8: it is not empty, and no part of it was not decoded."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:  # Python reads undecodable bytes of a file name as surrogates
        return False

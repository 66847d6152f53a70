"""A table of pictures: image folder with metadata, Parquet files, `save_to_disk`, or the hub.

A picture's id is in the id column; without one, it is the picture's path relative to an image
folder, or its row number. Its label is in the label column. It is opened from the bytes in the
image column, or from the file that the column names. Its caption is in the caption column, or in a
text file beside it in an image folder.
"""

import io
import posixpath
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gradindex.data.dataset import Columns, Dataset
from gradindex.data.folder import list_files
from gradindex.data.images import open_encoded
from gradindex.data.metadata import (
    FILE_NAME,
    METADATA,
    can_be_on_hub,
    is_saved_dict,
    is_saved_set,
    names_pictures,
    relative_name,
    text_columns,
)
from gradindex.data.picture_facts import file_size
from gradindex.data.sidecars import folder_captions
from gradindex.data.splits import (
    TRAIN,
    counts_text,
    select_training,
    split_of_table,
    tables_for_training,
)
from gradindex.data.table_columns import (
    cells_of,
    class_labels,
    column_captions,
    holds_pictures,
    image_column_of,
    require_column,
    row_ids,
)
from gradindex.data.table_files import (
    parquet_types,
    quiet_datasets,
    read_hub,
    read_metadata,
    read_parquet,
)
from gradindex.errors import CallError, GradindexError, first_line
from gradindex.wording import counted

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class _Table:
    """A table that was read.

    Attributes:
        rows: the table.
        names: {picture column: relative path of each row's picture} of an image folder.
        faults: {picture column: {row: why it has no picture}} of an image folder.
        notes, warnings: lines for people, see `Dataset`.
    """

    rows: "datasets.Dataset"
    names: dict[str, list[str]] = field(default_factory=dict)
    faults: dict[str, dict[int, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def is_table(path: Path, columns: Columns) -> bool:
    """Whether a folder is a table, not a plain folder of pictures.

    Parquet files beside pictures make it one where one of their columns holds pictures.
    """
    if is_saved_set(path) or is_saved_dict(path) or _metadata_file(path):
        return True
    shallow = [*path.glob("*.parquet"), *path.glob("data/*.parquet")]
    if any(_has_pictures(file, columns) for file in shallow):
        return True
    listing = list_files(path, until_picture=True)
    return bool(listing.tables) and not listing.pictures


def open_table(source: str, path: Path, columns: Columns) -> Dataset:
    """Return the data set of a table's rows, in their order.

    Args:
        source: a folder, a parquet file or a name on the hub.
        path: the same, as a path.
        columns: of the picture, the id, the label and the caption.

    Raises:
        CallError: nothing is there, it cannot be read, a column does not exist or holds something
            else, or an id is missing.
    """
    import datasets

    datasets.disable_progress_bars()
    table = _load_table(source, path)
    rows = table.rows
    image_column = columns.image or image_column_of(source, rows)
    for name in (image_column, columns.id, columns.label, columns.caption):
        if name:
            require_column(source, rows, name)
    try:
        # So that a row gives the encoded picture: `open_picture` and `to_array` decode it.
        rows = rows.cast_column(image_column, datasets.Image(decode=False))
    except Exception as error:  # whatever pyarrow raises
        raise CallError(
            f"data {source}: column {image_column!r} holds no pictures but"
            f" {rows.data.schema.field(image_column).type}; name another with --image-column"
        ) from error
    labels, classes = class_labels(source, rows, columns.label)
    captions = column_captions(source, rows, columns.caption)
    names = table.names.get(image_column)
    if captions is None and columns.caption is None and names is not None:
        captions = folder_captions(path, names, list_files(path).sidecars)
    faults = table.faults.get(image_column, {})
    cells = rows.data.column(image_column)

    def open_picture(row: int) -> Image.Image:
        cell = cells[row].as_py()
        if row in faults:
            raise ValueError(faults[row])
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise ValueError(f"row {row} has none")
        if cell["bytes"] is not None:
            return open_encoded(io.BytesIO(cell["bytes"]))
        return open_encoded(cell["path"])

    return Dataset(
        source=source,
        columns=columns,
        sample_ids=row_ids(source, rows, columns.id, names),
        labels=labels,
        there=np.ones(len(rows), bool),
        size_of=_size_by_row(cells),
        open_picture=open_picture,
        classes=classes,
        notes=table.notes,
        warnings=table.warnings,
        captions=captions,
    )


def column_by_id(source: str, path: Path, columns: Columns, name: str) -> dict[str, Any]:
    """Return {id of a picture: its cell in a column of the table}, None for an empty cell.

    Args:
        source, path, columns: see `open_table`.

    Raises:
        CallError: there is no such column, or see `open_table`.
    """
    table = _load_table(source, path)
    rows = table.rows
    image_column = columns.image or image_column_of(source, rows)
    ids = row_ids(source, rows, columns.id, table.names.get(image_column))
    return dict(zip(ids, cells_of(source, rows, name), strict=True))


def _load_table(source: str, path: Path) -> _Table:
    """Return the table at a path or of a name on the hub; of several splits, the one for training.

    Raises:
        CallError: nothing is there, or it cannot be read.
    """
    if not path.exists() and not can_be_on_hub(source):
        way_out = "; an address: download it, and give the file or folder" * ("://" in source)
        raise CallError(f"data {source}: no such file or folder{way_out}")
    try:
        with quiet_datasets():
            return _read_table(source, path)
    except GradindexError:
        raise
    except Exception as error:  # `datasets` raises whatever its readers raise
        problem = "cannot be read"
        if not path.exists() and isinstance(error, FileNotFoundError | ConnectionError):
            problem = "neither a file or folder here nor a data set on the hub"
        reason: BaseException = error
        if type(error).__name__ == "DatasetGenerationError":  # "An error occurred": see its cause
            reason = error.__cause__ or error
        raise CallError(f"data {source}: {problem} ({first_line(reason)})") from error


def _read_table(source: str, path: Path) -> _Table:
    """Return the table that is there, and let through whatever its reader raises."""
    import datasets

    if is_saved_dict(path):
        splits = datasets.load_from_disk(str(path))
        if TRAIN not in splits:
            raise CallError(
                f"data {source}: a saved set of the splits {', '.join(splits)}, none of which is"
                f" 'train'; give the folder of one, such as {path / next(iter(splits), '')}"
            )
        counts = Counter({name: len(rows) for name, rows in splits.items() if name != TRAIN})
        note = f"takes the split 'train', leaves out {counts_text(counts)}"
        return _Table(splits[TRAIN], notes=[note] if counts else [])
    if is_saved_set(path):
        return _Table(datasets.load_from_disk(str(path)))
    metadata = _metadata_file(path)
    if metadata:
        return _read_metadata(path, metadata)
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise CallError(
                f"data {source}: a file, but not a Parquet one; give a folder of pictures (unpack"
                " an archive first) or a .parquet file"
            )
        return _Table(read_parquet([path]))
    if path.is_dir():
        return _read_parquet_folder(source, path)
    return _Table(read_hub(source))


def _read_parquet_folder(source: str, path: Path) -> _Table:
    """Return the rows of the Parquet files in a folder that are for training.

    Raises:
        CallError: all of them are of other splits.
    """
    listing = list_files(path)
    names = sorted(listing.tables)
    shallow = [name for name in names if posixpath.dirname(name) in ("", "data")]
    names = shallow or names
    kept = tables_for_training(names)
    if not kept:
        raise CallError(
            f"data {source}: tables of {', '.join(names[:3])}, none of which is for training; give"
            " one of these files"
        )
    notes = []
    if len(kept) < len(names):
        others = Counter(split_of_table(name) or "others" for name in names if name not in kept)
        notes.append(f"takes {len(kept)} tables for training, leaves out {counts_text(others)}")
    warnings = []
    if listing.pictures:
        warnings.append(
            f"its tables are taken; {len(listing.pictures)} picture files beside them are left out,"
            f" such as {min(listing.pictures)!r}"
        )
    return _Table(read_parquet([path / name for name in kept]), notes=notes, warnings=warnings)


def _metadata_file(path: Path) -> Path | None:
    """Return the file in a folder that lists pictures by `file_name`; None where none does."""
    for file in (path / name for name in METADATA):
        if file.is_file():
            is_parquet = file.suffix == ".parquet"
            names = list(parquet_types(file)) if is_parquet else text_columns(file)
            if any(map(names_pictures, names)):
                return file
    return None


def _read_metadata(root: Path, metadata: Path) -> _Table:
    """Return the table of an image folder: a row for each of its metadata.

    Its files are named one by one: `datasets` would guess splits by words in their names. Held-out
    rows beside rows for training, and pictures without a row, are left out and warned of.
    """
    import datasets
    import pyarrow

    rows = read_metadata(metadata)
    picture_columns = [name for name in rows.column_names if names_pictures(name)]
    first = FILE_NAME if FILE_NAME in picture_columns else picture_columns[0]
    named = [relative_name(value)[0] for value in rows.column(first).to_pylist()]
    selection = select_training(named)
    warnings = []
    if selection.left_out:
        warnings.append(str(selection))
        kept_names = set(selection.kept)
        rows = rows.take([row for row, name in enumerate(named) if name in kept_names])
    unlisted = sorted(set(list_files(root).pictures).difference(named))
    if unlisted:
        warnings.append(
            f"{counted(len(unlisted), 'picture there has', 'pictures there have')} no row in"
            f" {metadata.name} and {'is' if len(unlisted) == 1 else 'are'} left out,"
            f" such as {unlisted[0]!r}"
        )
    names, faults = {}, {}
    for column in picture_columns:
        picture_column = column.removesuffix(FILE_NAME).removesuffix("_") or "image"
        parsed = [relative_name(value) for value in rows.column(column).to_pylist()]
        names[picture_column] = [name for name, _ in parsed]
        faults[picture_column] = {row: fault for row, (_, fault) in enumerate(parsed) if fault}
        files = [None if fault else str(root.absolute() / name) for name, fault in parsed]
        if picture_column in rows.column_names:
            rows = rows.drop_columns([picture_column])
        rows = rows.append_column(picture_column, pyarrow.array(files, pyarrow.string()))
        rows = rows.drop_columns([column])
    table = datasets.Dataset(datasets.table.InMemoryTable(rows))
    for picture_column in names:
        table = table.cast_column(picture_column, datasets.Image(decode=False))
    return _Table(table, names, faults, warnings=warnings)


def _has_pictures(file: Path, columns: Columns) -> bool:
    """Whether a Parquet file has a column of pictures, or the one that was named."""
    types = parquet_types(file)
    return columns.image in types or any(holds_pictures(*item) for item in types.items())


def _size_by_row(cells: Any) -> Callable[[int], int]:
    """Return what gives the bytes of a row's encoded picture; 0 where there is no picture.

    They come from Arrow's offsets, or from the file system when they are asked for: no picture is
    read.

    Args:
        cells: the column of pictures.
    """
    import pyarrow.compute as pc

    lengths = [np.empty(0, np.int64)]
    for chunk in cells.chunks:
        of_chunk = pc.fill_null(pc.binary_length(chunk.field("bytes")), 0)
        lengths.append(of_chunk.to_numpy(zero_copy_only=False).astype(np.int64))
    length_of = np.concatenate(lengths)

    def size_of(row: int) -> int:
        if length_of[row]:
            return int(length_of[row])
        cell = cells[row].as_py() or {}
        return file_size(cell.get("path"))

    return size_of

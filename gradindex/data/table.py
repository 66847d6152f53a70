"""A table of pictures: image folder with metadata, Parquet files, `save_to_disk`, or the hub.

A picture's id is in the id column; without one, it is the picture's path relative to an image
folder, or its row number. Its label is in the label column. It is opened from the bytes in the
image column, or from the file that the column names.
"""

import glob
import hashlib
import io
import json
import posixpath
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from gradindex.data.dataset import Columns, Dataset
from gradindex.data.folder import list_files
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
from gradindex.data.splits import (
    TRAIN,
    counts_text,
    select_training,
    split_of_table,
    tables_for_training,
)
from gradindex.data.table_columns import (
    class_labels,
    file_size,
    holds_pictures,
    image_column_of,
    row_ids,
)
from gradindex.errors import CallError, GradindexError, first_line

if TYPE_CHECKING:
    import datasets
    import pyarrow


@dataclass(frozen=True)
class _Table:
    """A table that was read.

    Attributes:
        rows: the table.
        names: {picture column: relative path of each row's picture} of an image folder.
        faults: {picture column: {row: why it has no picture}} of an image folder.
        notes: lines for people.
    """

    rows: "datasets.Dataset"
    names: dict[str, list[str]] = field(default_factory=dict)
    faults: dict[str, dict[int, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def is_table(path: Path, columns: Columns) -> bool:
    """Whether a folder is a table, not a plain folder of pictures.

    Parquet files beside pictures make it one where one of their columns holds pictures.
    """
    if is_saved_set(path) or is_saved_dict(path) or _metadata_file(path):
        return True
    shallow = [*path.glob("*.parquet"), *path.glob("data/*.parquet")]
    if any(_has_pictures(file, columns) for file in shallow):
        return True
    listing = list_files(path)
    return bool(listing.tables) and not listing.sizes


def open_table(source: str, path: Path, columns: Columns) -> Dataset:
    """Return the data set of a table's rows, in their order.

    Args:
        source: a folder, a parquet file or a name on the hub.
        path: the same, as a path.
        columns: of the picture, the id and the label.

    Raises:
        CallError: nothing is there, it cannot be read, a column does not exist or holds something
            else, or an id is missing.
    """
    import datasets

    datasets.disable_progress_bars()
    table = _load_table(source, path)
    rows = table.rows
    image_column = columns.image or image_column_of(source, rows)
    for name in (image_column, columns.id, columns.label):
        if name and name not in rows.column_names:
            raise CallError(
                f"data {source}: no column {name!r}; there are {', '.join(rows.column_names)}"
            )
    try:
        # So that a row gives the encoded picture: `open_picture` and `to_array` decode it.
        rows = rows.cast_column(image_column, datasets.Image(decode=False))
    except Exception as error:  # whatever pyarrow raises
        raise CallError(
            f"data {source}: column {image_column!r} holds no pictures ({first_line(error)})"
        ) from error
    labels, classes = class_labels(source, rows, columns.label)
    faults = table.faults.get(image_column, {})

    def open_picture(row: int) -> Image.Image:
        cell = rows[row][image_column]
        if row in faults:
            raise ValueError(faults[row])
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise ValueError(f"row {row} has none")
        if cell["bytes"] is not None:
            return Image.open(io.BytesIO(cell["bytes"]))
        return Image.open(cell["path"])

    return Dataset(
        source=source,
        columns=columns,
        sample_ids=row_ids(source, rows, columns.id, table.names.get(image_column)),
        labels=labels,
        sizes=_picture_sizes(rows, image_column),
        open_picture=open_picture,
        classes=classes,
        notes=table.notes,
    )


def _load_table(source: str, path: Path) -> _Table:
    """Return the table at a path or of a name on the hub; of several splits, the one for training.

    Raises:
        CallError: nothing is there, or it cannot be read.
    """
    if not path.exists() and not can_be_on_hub(source):
        raise CallError(f"data {source}: no such file or folder")
    try:
        return _read_table(source, path)
    except GradindexError:
        raise
    except Exception as error:  # `datasets` raises whatever its readers raise
        if path.exists():
            problem = "cannot be read"
        else:
            problem = "neither a file or folder here nor a data set on the hub"
        raise CallError(f"data {source}: {problem} ({first_line(error)})") from error


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
        return _read_metadata(source, path, metadata)
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise ValueError("a file, but not a parquet one")
        return _Table(_read_parquet([path]))
    if path.is_dir():
        return _read_parquet_folder(source, path)
    return _Table(datasets.load_dataset(source, split="train"))


def _read_parquet(files: Sequence[Path]) -> "datasets.Dataset":
    """Return the rows of Parquet files, one file after the other."""
    import datasets

    # `datasets` takes paths for patterns. And it takes a file of the time of another for that file:
    # a folder of its cache for each state of the files tells them apart.
    paths = [str(file.absolute()) for file in files]
    states = [
        (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        for status in (file.stat() for file in files)
    ]
    digest = hashlib.sha256(repr([paths, states]).encode()).hexdigest()[:16]
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "gradindex" / digest
    patterns = {"train": [glob.escape(name) for name in paths]}
    return datasets.load_dataset(
        "parquet", data_files=patterns, split="train", cache_dir=str(cache)
    )


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
    if listing.sizes:
        warnings.warn(
            f"data {source}: its tables are taken; {len(listing.sizes)} picture files beside them"
            f" are left out, such as {min(listing.sizes)!r}",
            stacklevel=6,
        )
    return _Table(_read_parquet([path / name for name in kept]), notes=notes)


def _metadata_file(path: Path) -> Path | None:
    """Return the file in a folder that lists pictures by `file_name`; None where none does."""
    for file in (path / name for name in METADATA):
        if file.is_file():
            is_parquet = file.suffix == ".parquet"
            names = list(_parquet_types(file)) if is_parquet else text_columns(file)
            if any(map(names_pictures, names)):
                return file
    return None


def _read_metadata(source: str, root: Path, metadata: Path) -> _Table:
    """Return the table of an image folder: a row for each of its metadata.

    Its files are named one by one: `datasets` would guess splits by words in their names. Held-out
    rows beside rows for training, and pictures without a row, are left out and warned of.
    """
    import datasets
    import pyarrow

    rows = _metadata_rows(metadata)
    picture_columns = [name for name in rows.column_names if names_pictures(name)]
    first = FILE_NAME if FILE_NAME in picture_columns else picture_columns[0]
    named = [relative_name(value)[0] for value in rows.column(first).to_pylist()]
    selection = select_training(named)
    if selection.left_out:
        warnings.warn(f"data {source}: {selection}", stacklevel=6)
        kept_names = set(selection.kept)
        rows = rows.take([row for row, name in enumerate(named) if name in kept_names])
    unlisted = sorted(list_files(root).sizes.keys() - set(named))
    if unlisted:
        warnings.warn(
            f"data {source}: {len(unlisted)} pictures there have no row in {metadata.name} and are"
            f" left out, such as {unlisted[0]!r}",
            stacklevel=6,
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
    return _Table(table, names, faults)


def _metadata_rows(metadata: Path) -> "pyarrow.Table":
    """Return the rows of a metadata file, read as `datasets` reads it."""
    import pandas
    import pyarrow
    from pyarrow import json as arrow_json
    from pyarrow import parquet

    if metadata.suffix == ".parquet":
        return parquet.read_table(metadata)
    if metadata.suffix == ".csv":
        return pyarrow.Table.from_pandas(pandas.read_csv(metadata), preserve_index=False)
    content = metadata.read_bytes().removeprefix(b"\xef\xbb\xbf")
    options = arrow_json.ReadOptions(block_size=len(content) + 1)
    return arrow_json.read_json(io.BytesIO(content), read_options=options)


def _has_pictures(file: Path, columns: Columns) -> bool:
    """Whether a Parquet file has a column of pictures, or the one that was named."""
    types = _parquet_types(file)
    return columns.image in types or any(holds_pictures(*item) for item in types.items())


def _parquet_types(file: Path) -> dict[str, str]:
    """Return {column: what it holds} of a Parquet file; {} where it cannot be read.

    What it holds is the type's name to `datasets`, such as "Image", or that of Arrow.
    """
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(file)
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = noted.get("info", {}).get("features", {})
    except Exception:  # whatever pyarrow raises
        return {}
    types = {}
    for column in schema:
        kind = features.get(column.name)
        kind = kind.get("_type") if isinstance(kind, dict) else None
        types[column.name] = kind if kind not in (None, "Value") else str(column.type)
    return types


def _picture_sizes(rows: "datasets.Dataset", image_column: str) -> np.ndarray:
    """Return the bytes of each encoded picture, [N] int64; 0 where there is no picture.

    They come from Arrow's offsets and from the file system: no picture is read.
    """
    import pyarrow.compute as pc

    sizes: list[int] = []
    for chunk in rows.data.column(image_column).chunks:
        lengths = pc.binary_length(chunk.field("bytes"))
        paths = chunk.field("path")
        for length, path in zip(lengths, paths, strict=True):
            sizes.append(length.as_py() or file_size(path.as_py()))
    return np.array(sizes, np.int64)

"""The training pictures: a folder, or anything that `datasets` reads, with an id that stays."""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gradindex.errors import CallError, DataError, first_line

# What Pillow raises for damaged files, and a table without a picture in the cell
UNREADABLE = (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError)
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
MARK = 8  # digits of a picture's mark
GONE = MARK * "-"
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


@dataclass(frozen=True)
class Columns:
    """Where a `datasets` table keeps the picture, its id and its class label; None: found or made."""

    image: str | None = None
    id: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Dataset:
    """Pictures in a fixed order.

    Attributes:
        source: the path or hub name that it was opened from.
        sample_ids: N distinct strings: relative paths of a folder, the id column or row numbers of a table.
        labels: N class labels, int64, or None where there are none.
        sizes: N, int64: bytes of each encoded picture, which tell a changed picture at no cost.
    """

    source: str
    columns: Columns
    sample_ids: Sequence[str]
    labels: np.ndarray | None
    sizes: np.ndarray
    _open: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.sample_ids)

    def picture(self, row: int, image: tuple[int, int, int]) -> np.ndarray:
        """Picture number `row` as float32 [channels, height, width] in [−1, 1].

        Raises:
            DataError: it cannot be decoded; its id is named.
        """
        try:
            with self._open(row) as picture:
                return to_array(picture, image)
        except CallError:
            raise
        except UNREADABLE as error:
            raise DataError(f"{self.source}: {self.sample_ids[row]!r} is not a readable picture ({error})") from error

    def labels_of(self, rows: Sequence[int], classes: int | None) -> list[int] | None:
        """Class labels of some rows, for a model of so many classes; None for an unconditional one."""
        return self.labels[rows].tolist() if classes is not None and self.labels is not None else None

    def thumbnail(self, row: int) -> Image.Image:
        """Picture number `row` as it is on disk, for people to look at."""
        with self._open(row) as picture:
            return picture.convert("RGB")

    def mark(self, row: int) -> str:
        """Eight hex digits over id, label and size of a picture: others when it is exchanged, GONE when it is gone."""
        if self.sizes[row] < 0:
            return GONE
        label = None if self.labels is None else int(self.labels[row])
        return hashlib.sha256(repr((self.sample_ids[row], label, int(self.sizes[row]))).encode()).hexdigest()[:MARK]

    def in_order(self, sample_ids: Sequence[str], positions: np.ndarray) -> "Dataset":
        """The pictures with these ids, which are those at these positions; at −1 there is no picture."""
        return replace(
            self,
            sample_ids=sample_ids,
            labels=None if self.labels is None else self.labels[positions],
            sizes=np.where(positions < 0, -1, self.sizes[positions]),
            _open=lambda row: self._open(int(positions[row])),
        )

    def positions(self, sample_ids: Iterable[str]) -> np.ndarray:
        """Where the pictures with these ids are; −1 for one that is not there."""
        wanted = list(sample_ids)
        if wanted == self.sample_ids[: len(wanted)]:
            return np.arange(len(wanted))
        row_of = {name: row for row, name in enumerate(self.sample_ids)}
        return np.array([row_of.get(name, -1) for name in wanted], np.int64)

    def to_json(self) -> dict[str, Any]:
        """What `open_dataset` needs to open it again."""
        place = Path(self.source)
        source = str(place.resolve()) if place.exists() else self.source
        return {"source": source, "columns": asdict(self.columns)}


def to_array(picture: Image.Image, image: tuple[int, int, int]) -> np.ndarray:
    """A PIL picture as float32 [channels, height, width], `pixel / 127.5 − 1`.

    A picture of the model's size keeps its pixels. Any other is resized (bilinear, shorter side first) and its
    centre cropped, and its mode converted by Pillow, as diffusers' training examples do.
    """
    channels, height, width = image
    if channels not in (1, 3):
        raise CallError(f"the model takes {channels} channels; pictures have 1 (grey) or 3 (colour)")
    if picture.mode.startswith("I;16"):  # Pillow's own conversion clips 16 bits at 255
        picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise CallError(f"a picture of mode {picture.mode!r}: give 8 or 16 bits a channel")
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        scale = max(width / picture.width, height / picture.height)
        size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BILINEAR)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    pixels = np.asarray(picture, dtype=np.float32).reshape(height, width, channels)
    return np.ascontiguousarray((pixels / 127.5 - 1).transpose(2, 0, 1))


def read_thumbnail(file: str | Path) -> Image.Image:
    """A picture file for people to look at."""
    with Image.open(file) as picture:
        return picture.convert("RGB")


def open_dataset(source: str | Path, columns: Columns | None = None) -> Dataset:
    """Open a folder of pictures, a `datasets` image folder, `save_to_disk` folder, parquet files, or a hub name.

    Raises:
        CallError: nothing is there, it holds no pictures, or a column does not exist.
        DataError: two pictures have the same id.
    """
    columns, path = columns or Columns(), Path(source)
    if path.is_dir() and not _is_table(path):
        dataset = _open_folder(path, columns)
    else:
        dataset = _open_table(str(source), path, columns)
    if not len(dataset):
        raise CallError(f"data {source}: no pictures there ({', '.join(sorted(SUFFIXES))})")
    if odd := [name for name in dataset.sample_ids if not _encodes(name)]:
        raise DataError(f"data {source}: the name {odd[0]!r} is not UTF-8; rename the file")
    if len(set(dataset.sample_ids)) < len(dataset):
        seen: set[str] = set()
        twice = sorted({name for name in dataset.sample_ids if name in seen or seen.add(name)})  # type: ignore[func-returns-value]
        raise DataError(f"data {source}: {len(twice)} ids stand for several pictures, such as {twice[0]!r}")
    return dataset


def _encodes(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _is_table(path: Path) -> bool:
    if any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json", "state.json", *METADATA)):
        return True
    return any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))


def _open_folder(path: Path, columns: Columns) -> Dataset:
    if columns != Columns():
        raise CallError(f"data {path}: a plain folder of pictures has no columns")
    sizes = {
        os.path.relpath(file, path).replace(os.sep, "/"): os.path.getsize(file)
        for folder, _, names in os.walk(path)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES and os.path.isfile(file := os.path.join(folder, name))
    }
    sample_ids = sorted(sizes)
    folders = sorted({name.partition("/")[0] for name in sample_ids if "/" in name})
    classes = {folder: label for label, folder in enumerate(folders)}
    labels = np.array([classes.get(name.partition("/")[0], -1) for name in sample_ids], np.int64)
    known = labels if len(labels) and labels.min() >= 0 else None
    in_order = np.array([sizes[name] for name in sample_ids], np.int64)
    return Dataset(str(path), columns, sample_ids, known, in_order, lambda row: Image.open(path / sample_ids[row]))


def _open_table(source: str, path: Path, columns: Columns) -> Dataset:
    import datasets

    datasets.disable_progress_bars()
    if not path.exists() and (source.startswith((".", "/", "~")) or source.count("/") != 1 or "\\" in source):
        raise CallError(f"data {source}: no such file or folder")
    try:
        table = _load_table(source, path)
    except Exception as error:  # datasets raises whatever its readers raise
        what = "cannot be read" if path.exists() else "neither a file or folder here nor a data set on the hub"
        raise CallError(f"data {source}: {what} ({first_line(error)})") from error
    image = columns.image or _image_column(source, table)
    for name in filter(None, (image, columns.id, columns.label)):
        if name not in table.column_names:
            raise CallError(f"data {source}: no column {name!r}; there are {', '.join(table.column_names)}")
    try:
        table = table.cast_column(image, datasets.Image(decode=False))
    except Exception as error:  # whatever pyarrow raises
        raise CallError(f"data {source}: column {image!r} holds no pictures ({first_line(error)})") from error
    labels = _table_labels(source, table, columns.label)

    def open_row(row: int) -> Image.Image:
        cell = table[row][image]
        return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])

    ids = _table_ids(path, table, image, columns.id)
    return Dataset(source, columns, ids, labels, _table_sizes(table, image), open_row)


def _table_sizes(table: Any, image: str) -> np.ndarray:
    """From the offsets alone: no picture is read."""
    import pyarrow.compute as pc

    sizes: list[int] = []
    for chunk in table.data.column(image).chunks:
        lengths, paths = pc.binary_length(chunk.field("bytes")), chunk.field("path")
        for length, path in zip(lengths, paths, strict=True):
            place = Path(path.as_py() or "")
            sizes.append(length.as_py() or (place.stat().st_size if place.is_file() else 0))
    return np.array(sizes, np.int64)


def _table_labels(source: str, table: Any, column: str | None) -> np.ndarray | None:
    """The label column as whole numbers; a column that nobody named counts only when it holds such."""
    if column is None and "label" not in table.column_names:
        return None
    try:
        return np.array([int(value) for value in table[column or "label"]], np.int64)
    except (ValueError, TypeError) as error:
        if column is None:
            return None
        raise CallError(f"data {source}: label column {column!r} does not hold whole numbers") from error


def _load_table(source: str, path: Path) -> Any:
    import datasets

    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        table = datasets.load_from_disk(source)
        return table["train"] if isinstance(table, datasets.DatasetDict) else table
    if any((path / name).exists() for name in METADATA):
        return datasets.load_dataset("imagefolder", data_dir=source, split="train")
    if path.is_file() and path.suffix == ".parquet":
        return datasets.load_dataset("parquet", data_files=source, split="train")
    if path.is_file():
        raise ValueError("a file, but not a parquet one")
    if path.is_dir():
        return datasets.load_dataset(source, split="train")
    return datasets.load_dataset(source, split="train")


def _image_column(source: str, table: Any) -> str:
    import datasets

    found = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    found = found or [name for name in ("image", "img", "picture") if name in table.column_names]
    if not found:
        raise CallError(f"data {source}: which column holds the pictures? there are {', '.join(table.column_names)}")
    return found[0]


def _table_ids(path: Path, table: Any, image: str, id_column: str | None) -> list[str]:
    if id_column:
        return [str(value) for value in table[id_column]]
    if any((path / name).exists() for name in METADATA):
        root = path.absolute()
        return [Path(os.path.relpath(cell["path"], root)).as_posix() for cell in table[image]]
    return [str(row) for row in range(len(table))]

"""The columns of a table: which holds the pictures, and labels, captions and ids of its rows.

Rows are a `datasets.Dataset`; no library is imported here.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradindex.data.caption_list import Caption, Captions
from gradindex.errors import CallError, DataError

USUAL_IMAGE_COLUMNS = ("image", "img", "picture")
USUAL_CAPTION_COLUMNS = ("text", "caption", "prompt")  # the first is what diffusers' scripts take

# How Arrow writes the type of a column of texts, or of lists of texts such as COCO's.
_TEXT = r"(?:large_)?string|string_view"
_HOLDS_CAPTIONS = re.compile(
    rf"(?:{_TEXT})|dictionary<values=(?:{_TEXT}),.*>"
    rf"|(?:large_|fixed_size_)?list<\w+: (?:{_TEXT})(?: not null)?>(?:\[\d+\])?"
)


def holds_pictures(column: str, kind: str) -> bool:
    """Whether a column holds encoded pictures, by its name and type."""
    is_usual_bytes = kind in ("binary", "large_binary") and column in USUAL_IMAGE_COLUMNS
    is_cell = kind.startswith("struct<") and "bytes: " in kind
    return kind == "Image" or is_usual_bytes or is_cell


def image_column_of(source: str, rows: Any) -> str:
    """Return the column that holds pictures; of several, `image`; or else one with a usual name.

    Raises:
        CallError: there is none, or there are several.
    """
    found = []
    for name, feature in rows.features.items():
        kind = str(rows.data.schema.field(name).type)
        if type(feature).__name__ == "Image":
            kind = "Image"
        elif type(feature).__name__ not in ("Value", "dict"):
            kind = ""  # of another medium, such as Audio, which has bytes too
        if holds_pictures(name, kind):
            found.append(name)
    if USUAL_IMAGE_COLUMNS[0] in found:
        return USUAL_IMAGE_COLUMNS[0]
    if len(found) == 1:
        return found[0]
    if found:
        raise CallError(
            f"data {source}: {', '.join(found)} hold pictures; say which with --image-column"
        )
    for name in USUAL_IMAGE_COLUMNS:
        if name in rows.column_names:
            return name
    raise CallError(
        f"data {source}: which column holds the pictures? there are"
        f" {', '.join(rows.column_names)}; say it with --image-column"
    )


def require_column(source: str, rows: Any, name: str) -> None:
    """Raise CallError unless a table has a column of that name."""
    if name not in rows.column_names:
        raise CallError(
            f"data {source}: no column {name!r}; there are {', '.join(rows.column_names)}"
        )


def cells_of(source: str, rows: Any, name: str) -> list[Any]:
    """Return the cells of a column, classes by their names; None for an empty cell.

    Raises:
        CallError: there is no such column.
    """
    require_column(source, rows, name)
    cells = rows.data.column(name).to_pylist()
    classes = getattr(rows.features[name], "names", None)
    if classes:
        return [classes[cell] if cell in range(len(classes)) else None for cell in cells]
    return cells


def class_labels(
    source: str, rows: Any, column: str | None
) -> tuple[np.ndarray | None, dict[str, int]]:
    """Return the label column as whole numbers, [N] int64, and {class: label} where it has names.

    Where no column was named, `label` is taken if it holds whole numbers.

    Returns:
        None and {} when there is none.

    Raises:
        CallError: the column was named, and does not hold whole numbers.
    """
    name = column or "label"
    if name not in rows.column_names:
        return None, {}
    labels = np.empty(len(rows), np.int64)
    for row, value in enumerate(rows.data.column(name).to_pylist()):
        try:
            labels[row] = _whole_number(value)
        except (ValueError, TypeError, OverflowError) as error:
            if column is None:
                return None, {}
            raise CallError(
                f"data {source}: label column {column!r} does not hold whole numbers, but"
                f" {value!r} in row {row}"
            ) from error
    names = getattr(rows.features[name], "names", None) or []
    return labels, {text: label for label, text in enumerate(names)}


def column_captions(source: str, rows: Any, column: str | None) -> Captions | None:
    """Return the captions in a column; no cell is read yet.

    Of a cell with several captions the first is taken, as diffusers' scripts do where they do not
    draw one; an empty cell is a missing caption.

    Args:
        column: its name; None: the first of the usual ones that holds texts.

    Returns:
        None when there is none.

    Raises:
        CallError: the column was named, and does not hold texts.
    """
    names = USUAL_CAPTION_COLUMNS if column is None else (column,)
    types = {name: str(rows.data.schema.field(name).type) for name in rows.column_names}
    fitting = [name for name in names if _HOLDS_CAPTIONS.fullmatch(types.get(name, ""))]
    if not fitting:
        if column is None or types[column] == "null":
            return None
        raise CallError(
            f"data {source}: caption column {column!r} does not hold texts, but {types[column]};"
            " name another with --caption-column"
        )
    name = fitting[0]
    cells = rows.data.column(name)

    def read(row: int) -> Caption:
        try:
            cell = cells[row].as_py()
        except UnicodeDecodeError as error:
            raise DataError(
                f"data {source}: caption column {name!r} is not UTF-8 in row {row}"
            ) from error
        if isinstance(cell, list):
            return Caption(cell[0] if cell else None, len(cell) > 1)
        return Caption(cell)

    rest = "several captions, of which only the first is taken"
    of_more = f"cell holds {rest}", f"cells hold {rest}"
    return Captions(len(rows), read, f"column {name!r}", of_more)


def _whole_number(value: Any) -> int:
    """Return a label as an int; ValueError, TypeError or OverflowError where it is none.

    >>> _whole_number(1.0), _whole_number("3")
    (1, 3)
    """
    number = int(value)
    if isinstance(value, float) and number != value:
        raise ValueError("not whole")
    return number


def row_ids(
    source: str, rows: Any, id_column: str | None, names: Sequence[str] | None
) -> list[str]:
    """Return the ids: the id column, paths relative to an image folder, or else row numbers.

    Args:
        names: the paths; None: it is no image folder.

    Raises:
        CallError: the id of a row is missing.
    """
    if id_column is None:
        texts = [""] * len(rows) if names is None else names
        missing = "" if names is None else "row "
        return [text or f"{missing}{row}" for row, text in enumerate(texts)]
    values = rows.data.column(id_column).to_pylist()
    for row, value in enumerate(values):
        is_nan = value != value
        if value is None or value == "" or is_nan:
            raise CallError(
                f"data {source}: id column {id_column!r} is empty in row {row}; give every row an"
                " id, or name another column"
            )
    return [str(value) for value in values]

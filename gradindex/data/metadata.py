"""What a source says it is: a name on the hub, an image folder with metadata, a set saved to disk.

Tools of all kinds leave a metadata.csv or a state.json beside pictures; these decide by what is in
the file.
"""

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

from gradindex.data.images import picture_suffixes

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of an image folder
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILE_NAME = "file_name"  # the column that names pictures, or the end of its name


def can_be_on_hub(source: str) -> bool:
    """Whether a text has the form of a data set's name on the hub, `owner/name`.

    What has a picture's or table's ending, and what is in a folder that is there, is a path.

    >>> sources = ("owner/name", "owner/name-1.5", "name", "./name", "my set/name", "d/x.parquet")
    >>> [can_be_on_hub(source) for source in sources]
    [True, True, False, False, False, False]
    """
    if not HUB_NAME.fullmatch(source) or Path(source).parent.exists():
        return False
    ending = Path(source).suffix.lower()
    return ending != ".parquet" and ending not in picture_suffixes()


def is_saved_set(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`, as one table."""
    state = _json(path / "state.json")
    if isinstance(state, dict) and "_data_files" in state:
        return True
    # A damaged one is for `datasets` to refuse.
    return (path / "state.json").exists() and any(path.glob("*.arrow"))


def is_saved_dict(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`, as tables by their splits."""
    splits = _json(path / "dataset_dict.json")
    return isinstance(splits, dict) and isinstance(splits.get("splits"), list)


def names_pictures(column: str) -> bool:
    """Whether a metadata column names pictures: `file_name`, or `mask_file_name`.

    >>> [names_pictures(name) for name in ("file_name", "mask_file_name", "my_file", "filename")]
    [True, True, False, False]
    """
    return column == FILE_NAME or column.endswith("_" + FILE_NAME)


def text_columns(file: Path) -> list[str]:
    """Return the columns of a metadata.csv or metadata.jsonl by its first line; [] for others."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix == ".csv":
                return next(csv.reader(lines), [])
            first = json.loads(next((line for line in lines if line.strip()), "{}"))
    except (OSError, ValueError, csv.Error):
        return []
    return list(first) if isinstance(first, dict) else []


def relative_name(value: Any) -> tuple[str, str | None]:
    r"""Return the relative path that a cell of metadata names, and what is wrong with it or None.

    >>> relative_name("./a.png"), relative_name("cat\\1.png")
    (('a.png', None), ('cat/1.png', None))
    >>> relative_name("../a.png")[1]
    'the metadata name a file outside the folder'
    """
    if not isinstance(value, str) or not value:
        return "", "the metadata name no file"
    name = os.path.normpath(value).replace("\\", "/")
    if "://" in value:
        return value, "the metadata name an address, not a file"
    if os.path.isabs(name) or name == ".." or name.startswith("../"):
        return name, "the metadata name a file outside the folder"
    return name, None


def _json(file: Path) -> Any:
    """Return the content of a JSON file; None where there is none that can be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None

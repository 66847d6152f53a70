"""Which group each training picture is in: by folder, by a column of its table, or by a file."""

import csv
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np

from gradindex.data.dataset import Columns
from gradindex.data.opening import read_column
from gradindex.errors import CallError, quoted
from gradindex.store.store import Store

FOLDER = "folder"
NO_GROUP = "(no group)"  # of the pictures that are in none
TOP_FOLDER = "."
NAMED = 3  # ids that a message names

GroupBy = str | Path | Mapping[str, str]


@dataclass(frozen=True)
class Grouping:
    """The groups of a store's pictures.

    Attributes:
        names: G groups, in the order of their names.
        numbers: [N] int64, the group of each row: a position in `names`.
    """

    names: list[str]
    numbers: np.ndarray

    def name_of(self, row: int) -> str:
        """Return the group of a row."""
        return self.names[int(self.numbers[row])]


def grouping(store: Store, group_by: GroupBy, source: str) -> Grouping:
    """Return the groups of a store's pictures.

    Args:
        group_by: "folder": that which a picture is in; the name of a column of the data set's
            table; a CSV file of the columns id and group; or {id: group}. Pictures without one
            are together in the group "(no group)".
        source: where the data set is now.

    Raises:
        CallError: there is no such column or file; an id is not in the index, or in two groups.
    """
    if not isinstance(group_by, Mapping | str | Path):
        raise CallError(f"group_by = {group_by!r}: give a text, a path, or {{id: group}}")
    if isinstance(group_by, Mapping):
        groups = _of_mapping(store, group_by, "group_by")
    elif group_by == FOLDER:
        groups = _folders(store)
    elif Path(group_by).suffix.lower() == ".csv":
        groups = _of_mapping(store, _read_csv(Path(group_by)), str(group_by))
    else:
        groups = _column(store, str(group_by), source)
    names, numbers = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    return Grouping(names.tolist(), numbers.astype(np.int64))


def _folders(store: Store) -> list[str]:
    """The folder of each row's picture."""
    folders = [posixpath.dirname(name) or TOP_FOLDER for name in store.sample_ids]
    if not any("/" in name for name in store.sample_ids):
        raise CallError(
            "group_by = 'folder': no id of this index has a folder in it; name a column of the data"
            " set, or a CSV file of the columns id and group"
        )
    return folders


def _column(store: Store, name: str, source: str) -> list[str]:
    """The cell of each row's picture in a column of the table at `source`."""
    data = store.header.data
    if data is None:
        raise CallError(
            f"group_by = {name!r}: the index does not know its data set; give 'folder', or a CSV"
            " file of the columns id and group"
        )
    if not Path(source).exists() and Path(source).is_absolute():
        raise CallError(
            f"group_by = {name!r}: data {source}: no longer there; say where it is now (data=), or"
            " give a CSV file of the columns id and group"
        )
    try:
        cells = read_column(source, Columns(**data.columns), name)
    except CallError as error:
        advice = (
            "give 'folder', a column of the data set, or a CSV file of the columns id and group"
        )
        raise CallError(f"group_by = {name!r}: {error}; {advice}") from error
    excluded = set(store.excluded)
    absent = [
        picture
        for row, picture in enumerate(store.sample_ids)
        if picture not in cells and row not in excluded
    ]
    if absent:
        raise CallError(
            f"group_by = {name!r}: data {source}: {_counted(absent)} not in its table; give the"
            " table that the index was built from"
        )
    if any(isinstance(cell, bytes | dict | list) for cell in cells.values()):
        raise CallError(f"group_by = {name!r}: its cells are no names; give another column")
    return [_group_name(cells.get(picture)) for picture in store.sample_ids]


def _group_name(cell: object) -> str:
    """The name of a group, from a cell of a table."""
    name = "" if cell is None or cell != cell else str(cell).strip()
    return name or NO_GROUP


def _of_mapping(store: Store, groups: Mapping[str, str], source: str) -> list[str]:
    """The group of each row's picture, from {id: group}."""
    known = set(store.sample_ids)
    unknown = [name for name in groups if name not in known]
    if unknown:
        forms = {normalize("NFC", name) for name in known}
        same = any(normalize("NFC", name) in forms for name in unknown)
        why = " (other code points of the same letters: Unicode's NFC and NFD)" if same else ""
        raise CallError(
            f"{source}: {_counted(unknown)} not in the index{why}; give ids as it has them"
        )
    return [_group_name(groups.get(name)) for name in store.sample_ids]


def _read_csv(file: Path) -> dict[str, str]:
    """The {id: group} of a CSV file.

    Raises:
        CallError: it cannot be read, has other columns, or has an id in two groups.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except UnicodeError as error:
        raise CallError(f"{file}: not text in UTF-8; save it as CSV UTF-8") from error
    except (OSError, ValueError, csv.Error) as error:
        raise CallError(f"{file}: cannot be read ({error})") from error
    if not {"id", "group"} <= set(columns):
        raise CallError(
            f"{file}: give a CSV file whose first line is id,group, with a comma; this one's is"
            f" {quoted(','.join(columns))}"
        )
    if not rows:
        raise CallError(f"{file}: has no line below the first; give each id and its group")
    groups: dict[str, str] = {}
    repeated = []
    for line, row in rows:
        if any(cell.strip() for cell in row.get(None) or ()):  # what is beyond the columns
            raise CallError(
                f"{file}: line {line} has more cells than the first; put quotes around a name that"
                " has a comma in it"
            )
        name, group = row["id"] or "", (row["group"] or "").strip()
        if groups.setdefault(name, group) != group:
            repeated.append(name)
    if repeated:
        raise CallError(f"{file}: {_counted(repeated)} in two groups; a picture is in one")
    return groups


def _counted(ids: Iterable[str]) -> str:
    """How many ids there are and the first of them, with the verb that follows.

    >>> _counted(["a.png"]), _counted(["a", "b", "c", "d"])
    ("the id 'a.png' is", "4 ids ('a', 'b', 'c', …) are")
    """
    ids = list(ids)
    if len(ids) == 1:
        return f"the id {quoted(ids[0])} is"
    shown = ", ".join(map(quoted, ids[:NAMED])) + ", …" * (len(ids) > NAMED)
    return f"{len(ids):,} ids ({shown}) are"

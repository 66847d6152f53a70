"""A plain folder of pictures, with one folder per class where there are classes.

A picture's id is its path relative to the folder. Its label is the number of the top folder that it
lies in, by name. Its caption is in a text file beside it, see `sidecars`. It is opened from its
file.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from gradindex.data.dataset import Columns, Dataset
from gradindex.data.images import open_encoded, picture_suffixes
from gradindex.data.picture_facts import file_size
from gradindex.data.sidecars import SIDECAR_SUFFIXES, folder_captions
from gradindex.data.splits import class_labels, counts_text, select_training
from gradindex.errors import CallError, DataError
from gradindex.wording import counted

# Files that describe pictures or belong to the system: that these are no pictures surprises nobody.
DESCRIPTIONS = {
    *(".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml"),
    *(".md", ".rst", ".html", ".htm", ".log", ".db", ".ini", ".lock", ".sha256", ".md5"),
    *(".py", ".ipynb", ".sh"),
    ".npz",  # what kohya's scripts cache beside pictures
}
DESCRIBING_NAMES = {"license", "readme", "copying", "authors", "notice", "makefile", "version"}
NAMED = 3  # links that a message names


@dataclass
class Listing:
    """The files in a folder and the folders in it.

    Attributes:
        pictures: relative paths, with slashes, of the files that Pillow's suffixes say are
            pictures.
        tables: relative paths of Parquet files.
        others: {suffix: how many} of the other files that may hold pictures.
        hidden: relative paths of hidden and system files and folders, which are left out.
        dangling: relative paths of links that lead nowhere.
        circles: relative paths of links that lead to a folder that they are in.
        sidecars: relative paths of files that may hold the caption of a picture beside them.
    """

    pictures: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    hidden: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    circles: list[str] = field(default_factory=list)
    sidecars: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Return a line for each kind of thing that was left out and may have been meant."""
        lines = []
        if self.dangling:
            lines.append(f"{_named(self.dangling)} leads nowhere and is left out")
        if self.circles:
            lines.append(f"{_named(self.circles)} leads to a folder that it is in; not followed")
        if self.others:
            count = sum(self.others.values())
            lines.append(
                f"{counted(count, 'file')} of other kinds left out: {counts_text(self.others)}"
            )
        return lines


def open_folder(path: Path, columns: Columns) -> Dataset:
    """Return the data set of all pictures in a folder and the folders in it, in the order of ids.

    Its warnings are of held-out folders beside one for training, files of other kinds, and links
    that lead nowhere: they are left out and may have been meant.

    Raises:
        CallError: columns were named, which only a table has.
        DataError: a folder cannot be listed.
    """
    if columns != Columns():
        advice = "leave the names of columns out"
        if columns.caption is not None:
            advice += ", the caption of x.png is in x.txt or x.caption beside it"
        raise CallError(
            f"data {path}: a plain folder of pictures has no columns, only a table has; {advice}"
        )
    listing = list_files(path)
    selection = select_training(sorted(listing.pictures))
    problems = listing.problems()
    if selection.left_out:
        problems.insert(0, str(selection))
    files = selection.kept
    sample_ids = [sample_id(file) for file in files]
    labels, classes = class_labels(sample_ids, selection.parents)

    def open_picture(row: int) -> Image.Image:
        if sample_ids[row] != files[row]:
            raise ValueError("its name is not UTF-8; rename the file")
        return open_encoded(path / files[row])

    return Dataset(
        source=str(path),
        columns=columns,
        sample_ids=sample_ids,
        labels=labels,
        there=np.ones(len(files), bool),
        size_of=lambda row: file_size(str(path / files[row])),
        open_picture=open_picture,
        classes=classes,
        notes=[f"hidden, left out: {_named(listing.hidden)}"] if listing.hidden else [],
        warnings=problems,
        captions=folder_captions(path, files, listing.sidecars),
    )


def list_files(path: Path, *, until_picture: bool = False) -> Listing:
    """Return the files in a folder and the folders in it; links to folders are followed.

    Hidden files and folders (`.name`) and system folders (`__name`) are left out, as `datasets`
    leaves them out. No file is looked at but for its name and kind, which the folder tells.

    Args:
        until_picture: end at the first picture, where it is only asked whether there is one.

    Raises:
        DataError: a folder cannot be listed.
    """
    suffixes = picture_suffixes()
    listing = Listing()
    # Each folder with its relative path and the folders that it is in, by device and inode.
    waiting: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(str(path), "", frozenset())]
    while waiting:
        folder, prefix, above = waiting.pop()
        try:
            above |= {_identity(folder)}
            with os.scandir(folder) as scan:
                entries = list(scan)
        except OSError as error:
            raise DataError(f"data {folder}: cannot be listed ({error.strerror})") from error
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith(".") or (entry.name.startswith("__") and entry.is_dir()):
                listing.hidden.append(name)
            elif entry.is_dir():
                if entry.is_symlink() and _identity(entry.path) in above:
                    listing.circles.append(name)
                else:
                    waiting.append((entry.path, name + "/", above))
            elif entry.is_symlink() and not os.path.exists(entry.path):
                listing.dangling.append(name)
            elif entry.is_file():
                _add_file(listing, entry, name, suffixes)
                if until_picture and listing.pictures:
                    return listing
            else:
                listing.others["no file"] += 1  # a pipe, a socket, a device
    return listing


def sample_id(file: str) -> str:
    r"""Return the id of a relative path: itself, with bytes that are not UTF-8 written as `\xff`.

    >>> print(sample_id("caf\udce9.png"), sample_id("café.png"))
    caf\xe9.png café.png
    """
    name = file.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return file if name == file else name  # not a copy for each of millions


def _add_file(listing: Listing, entry: os.DirEntry[str], name: str, suffixes: set[str]) -> None:
    """Put a file where it belongs in a listing."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in suffixes:
        listing.pictures.append(name)
    elif suffix == ".parquet":
        listing.tables.append(name)
    elif suffix in SIDECAR_SUFFIXES:
        listing.sidecars.append(name)
    elif suffix not in DESCRIPTIONS and entry.name.casefold() not in DESCRIBING_NAMES:
        listing.others[suffix or "no suffix"] += 1


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _named(names: list[str]) -> str:
    """Return the first of some names, and how many more there are."""
    shown = ", ".join(repr(sample_id(name)) for name in sorted(names)[:NAMED])
    return shown + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")

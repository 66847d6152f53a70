"""Folders that divide a data set into pictures of training and held-out ones, and class folders."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gradindex.wording import counted

TRAIN, HELD_OUT = "train", "held out"

# The words by which `datasets` knows a split, alone or set apart by -, _, ., a space or digits;
# CycleGAN's trainA and testA are known too.
_EDGES = r"(?:^|[-._ 0-9])(?:{})[ab]?(?:[-._ 0-9]|$)"
_TRAIN = re.compile(_EDGES.format("train|training"))
_HELD_OUT = re.compile(_EDGES.format("validation|valid|dev|val|test|testing|eval|evaluation"))
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")  # stem of a file as the hub names them
NAMED = 5  # groups that a message names


def split_of(name: str) -> str | None:
    """Return which split a name of a file or folder stands for: TRAIN, HELD_OUT or None.

    >>> [split_of(name) for name in ("train", "Test_images", "val2017", "trainA", "station")]
    ['train', 'held out', 'held out', 'train', None]
    """
    name = name.casefold()
    if _TRAIN.search(name):
        return TRAIN
    return HELD_OUT if _HELD_OUT.search(name) else None


@dataclass(frozen=True)
class Selection:
    """The pictures of a folder that are for training.

    Attributes:
        kept: their paths, in the order given.
        left_out: {folder beside a folder for training: how many pictures it holds}.
        parents: the folders that hold a folder for training and a held-out one; "" is the root.
    """

    kept: list[str]
    left_out: Counter[str]
    parents: set[str]

    def __str__(self) -> str:
        """What is taken and what is left out, as part of a line."""
        return (
            f"takes the {counted(len(self.kept), 'picture')} of folders for training and leaves out"
            f" {sum(self.left_out.values())}: {counts_text(self.left_out)};"
            " to take some of these, give their folder"
        )


def select_training(paths: Sequence[str]) -> Selection:
    """Return which of some relative paths are for training.

    Where a folder named for training (`train`) and a held-out one (`test`, `val`) lie side by side,
    only what is in the first is kept; everything is where there are no such two.

    >>> selection = select_training(["train/cat/0.png", "test/cat/1.png"])
    >>> selection.kept, dict(selection.left_out)
    (['train/cat/0.png'], {'test': 1})
    >>> select_training(["train/0.png", "bus/1.png"]).kept  # classes
    ['train/0.png', 'bus/1.png']
    """
    folders = {posixpath.dirname(path) for path in paths}
    parents = _divided_folders(folders)
    left_out_by = {folder: _left_out_group(folder, parents) for folder in folders}
    kept = []
    left_out: Counter[str] = Counter()
    for path in paths:
        group = left_out_by[posixpath.dirname(path)]
        if group is None:
            kept.append(path)
        else:
            left_out[group] += 1
    return Selection(kept, left_out, parents)


def split_of_table(name: str) -> str | None:
    """Return which split a Parquet file is of, by its name and those of its folders; None: no word.

    >>> [split_of_table(name) for name in ("data/train-00000-of-00002.parquet", "test.parquet")]
    ['train', 'held out']
    >>> split_of_table("data/extra-00000-of-00001.parquet"), split_of_table("00000.parquet")
    ('extra', None)
    """
    *folders, file = name.split("/")
    stem = file.rpartition(".")[0]
    shard = _SHARD.fullmatch(stem)
    if shard:
        return split_of(shard["split"]) or shard["split"]
    found = [split_of(part) for part in (*folders, stem)]
    return HELD_OUT if HELD_OUT in found else found[-1] or next(filter(None, found), None)


def tables_for_training(names: Sequence[str]) -> list[str]:
    """Return those Parquet files of some that are for training, in their order.

    >>> tables_for_training(["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"])
    ['train-00000-of-00001.parquet']
    >>> tables_for_training(["train-stations.parquet", "ships.parquet"])  # no split of another kind
    ['train-stations.parquet', 'ships.parquet']
    >>> tables_for_training(["test.parquet", "val.parquet"])
    []
    """
    splits = {name: split_of_table(name) for name in names}
    if set(splits.values()) <= {TRAIN, None}:
        return list(names)
    wanted = TRAIN if TRAIN in splits.values() else None
    return [name for name in names if splits[name] == wanted]


def class_labels(
    paths: Sequence[str], parents: set[str]
) -> tuple[np.ndarray | None, dict[str, int]]:
    """Return the label of each picture, [N] int64, and {class: label}, by the folders it lies in.

    A picture's class is its top folder; classes are numbered in sorted order. Folders that stand
    for a split are not looked at.

    Args:
        paths: N relative paths. parents: the divided folders of a `Selection`.

    Returns:
        None and {} when a picture lies in no class folder, or when there are no pictures.

    >>> class_labels(["train/cat/1.png", "train/dog/2.png"], {""})
    (array([0, 1]), {'cat': 0, 'dog': 1})
    >>> class_labels(["1.png", "dog/2.png"], set())
    (None, {})
    """
    tops = {path.partition("/")[0] for path in paths}
    if not parents and len(tops) == 1 and split_of(*tops) and all("/" in path for path in paths):
        parents = {""}  # a folder for training alone
    folders = {posixpath.dirname(path) for path in paths}
    class_parts = {folder: _without_splits(folder, parents) for folder in folders}
    if not paths or not all(class_parts.values()):
        return None, {}
    if parents:
        # images/train/cat: all pictures lie in `images`, which is no class.
        while len({parts[0] for parts in class_parts.values()}) == 1 and all(
            len(parts) > 1 for parts in class_parts.values()
        ):
            class_parts = {folder: parts[1:] for folder, parts in class_parts.items()}
    names = sorted({parts[0] for parts in class_parts.values()})
    label_of = {name: label for label, name in enumerate(names)}
    labels = [label_of[class_parts[posixpath.dirname(path)][0]] for path in paths]
    return np.array(labels, np.int64), label_of


def counts_text(counts: Counter[str]) -> str:
    """Return the names of some groups with their counts, as a list that is not too long.

    >>> counts_text(Counter({"test": 2, "val": 1}))
    'test (2), val (1)'
    """
    largest = counts.most_common()
    texts = [f"{name} ({count})" for name, count in largest[:NAMED]]
    if len(largest) > NAMED:
        texts.append(f"and {len(largest) - NAMED} more")
    return ", ".join(texts)


def _divided_folders(folders: Iterable[str]) -> set[str]:
    """Return the folders that hold a folder for training and a held-out one."""
    splits = defaultdict(set)
    for folder in folders:
        parts = folder.split("/") if folder else []
        for depth, name in enumerate(parts):
            splits["/".join(parts[:depth])].add(split_of(name))
    return {parent for parent, found in splits.items() if {TRAIN, HELD_OUT} <= found}


def _left_out_group(folder: str, parents: set[str]) -> str | None:
    """Return the folder because of which the pictures of a folder are left out; None: kept."""
    parts = folder.split("/") if folder else []
    for depth, name in enumerate(parts):
        if "/".join(parts[:depth]) in parents and split_of(name) != TRAIN:
            return "/".join(parts[: depth + 1])
    return (folder or "beside them") if folder in parents else None


def _without_splits(folder: str, parents: set[str]) -> list[str]:
    """Return the names of the folders on a path, without those that stand for a split."""
    parts = folder.split("/") if folder else []
    return [name for depth, name in enumerate(parts) if "/".join(parts[:depth]) not in parents]

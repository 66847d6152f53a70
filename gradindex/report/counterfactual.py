"""Counterfactuals: what a picture's loss becomes when training pictures are left out."""

import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np

from gradindex.data.dataset import Dataset
from gradindex.data.sidecars import SIDECAR_SUFFIXES
from gradindex.errors import CallError, GradindexError
from gradindex.recipe import require_positive
from gradindex.report.evaluate import model_losses
from gradindex.report.training_sample import kept_rows
from gradindex.search.index import Index
from gradindex.search.pictures import Picture, picture_list
from gradindex.search.query import QueryOptions
from gradindex.search.results import Result
from gradindex.store.store import Store

HIGHEST = "highest"
RANDOM = "random"
PLACES = ("{data}", "{out}")  # in a command
STDERR = 2  # the command's output goes there: stdout is for data


@dataclass(frozen=True)
class Removal:
    """What a picture's loss becomes when training pictures are left out.

    Attributes:
        picture: its name.
        which: what was left out: "highest" scores, or "random" ones.
        removed: ids of the pictures that were left out.
        loss: of the model that was trained without them.
    """

    picture: str
    which: str
    removed: list[str]
    loss: float


@dataclass(frozen=True)
class _RemovedRows:
    """The rows that one training leaves out: random ones, or the highest for a picture."""

    picture: str | None
    rows: list[int]

    @property
    def which(self) -> str:
        """What is left out, as in a `Removal`."""
        return RANDOM if self.picture is None else HIGHEST


def counterfactual(
    index: Index,
    pictures: Picture | Iterable[Picture],
    command: str,
    work: str | Path,
    *,
    k: int = 50,
    method: str = "retrac",
    random: int = 2,
    **options: Unpack[QueryOptions],
) -> Iterator[Removal]:
    """Train again without the k pictures of the highest scores, and without k random ones.

    There is one training for each picture, and one for each random removal.

    Args:
        command: what trains a model, or an adapter where the index is of one; `{data}` in it
            becomes a folder with the pictures that stay and the captions beside them, `{out}` the
            folder where it has to save what it trained.
        work: folder for those; what a run before has trained there is used.
        random: how many random removals, for all pictures together.
        options: as for `Index.query`.

    Yields:
        Removals, for each picture and then for each random removal and picture.

    Raises:
        CallError: before anything is trained: the command lacks `{data}` or `{out}`, the index has
            too few pictures, or its data set is not a folder of pictures.
        GradindexError: the command failed, or saved no model.
    """
    require_positive(k=k)
    if random < 0:
        raise CallError(f"random = {random}: give 0 or more")
    absent = [place for place in PLACES if place not in command]
    if absent:
        raise CallError(
            f"command {command!r} has no {' and no '.join(absent)}: write {{data}} where it takes"
            " the folder of pictures, and {out} where it takes the folder to save the model in"
        )
    count = len(kept_rows(index.store))
    if k >= count:
        raise CallError(
            f"k = {k}: the index has {count} pictures, and some have to stay; give fewer"
        )
    _require_folder(index)
    queries = picture_list(pictures)
    return _removals_of(index, queries, command, Path(work), k, method, random, options)


def _removals_of(
    index: Index,
    pictures: Sequence[Picture],
    command: str,
    work: Path,
    k: int,
    method: str,
    random: int,
    options: QueryOptions,
) -> Iterator[Removal]:
    """Do what `counterfactual` says, whose arguments these are."""
    results = index.query(pictures, k, method, **options)
    for number, removal in enumerate(_removals(index.store, results, k, random)):
        folder = work / str(number)
        model = _train_without(index, removal.rows, command, folder)
        prompt, class_label = options.get("prompt"), options.get("class_label")
        losses = model_losses(index, [model], pictures, prompt, class_label)[0]
        removed = [index.store.sample_ids[row] for row in removal.rows]
        for result, loss in zip(results, losses, strict=True):
            if removal.picture in (None, result.picture):
                yield Removal(result.picture, removal.which, removed, float(loss))


def _removals(store: Store, results: Sequence[Result], k: int, random: int) -> list[_RemovedRows]:
    """The rows of each training: those of every result, then `random` times k random ones."""
    removals = [
        _RemovedRows(result.picture, [hit.row for hit in result.hits]) for result in results
    ]
    generator = np.random.default_rng(0)
    kept = kept_rows(store)
    for _ in range(random):
        rows = generator.choice(kept, k, replace=False).tolist()
        removals.append(_RemovedRows(None, rows))
    return removals


def _train_without(index: Index, rows: Sequence[int], command: str, folder: Path) -> Path:
    """Have the command train without the pictures of some rows; return the model's folder.

    A model that a run before has trained without the same pictures is used.
    """
    dataset = _require_folder(index)
    data = folder / "data"
    model = folder / "model"
    removed_file = folder / "removed.txt"  # written last: the model is there
    names = "\n".join(index.store.sample_ids[row] for row in rows)
    removed = names.encode("utf-8", "surrogateescape")
    if removed_file.exists() and removed_file.read_bytes() == removed:
        return model
    shutil.rmtree(folder, ignore_errors=True)
    _link_pictures(dataset, {*rows, *index.store.excluded}, data)
    line = command.replace("{data}", shlex.quote(str(data)))
    line = line.replace("{out}", shlex.quote(str(model)))
    status = subprocess.run(line, shell=True, stdout=STDERR).returncode
    if status:
        raise GradindexError(
            f"{line}: ended with status {status}; what was trained before stays, run it again"
        )
    if not model.exists():
        raise GradindexError(f"{line}: ended with status 0, but saved nothing in {model}")
    removed_file.write_bytes(removed)
    return model


def _require_folder(index: Index) -> Dataset:
    """Return the training pictures; CallError unless they are a folder of pictures."""
    dataset = index.training_pictures.require()
    source = Path(dataset.source)
    first = dataset.sample_ids[kept_rows(index.store)[0]]
    if not source.is_dir() or not (source / first).is_file():
        raise CallError(f"{source}: pictures can only be left out of a folder of pictures")
    return dataset


def _link_pictures(dataset: Dataset, excluded: set[int], folder: Path) -> None:
    """Fill a folder with links to a folder's pictures and captions, but for some rows."""
    source = Path(dataset.source)
    for row, name in enumerate(dataset.sample_ids):
        if row not in excluded:
            _link(source / name, folder / name)
            for suffix in SIDECAR_SUFFIXES:
                sidecar = (source / name).with_suffix(suffix)
                if sidecar.is_file():
                    _link(sidecar, (folder / name).with_suffix(suffix))


def _link(original: Path, link: Path) -> None:
    """Have a file in another place too; pictures of one stem share their caption."""
    if link.exists():
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    original = original.resolve()
    try:
        link.symlink_to(original)
    except OSError:  # exFAT and some network drives have no links, Windows wants rights
        shutil.copyfile(original, link)

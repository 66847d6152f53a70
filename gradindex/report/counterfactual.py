"""Counterfactuals: what a picture's loss becomes when training pictures are left out."""

import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np

from gradindex.data.dataset import Dataset
from gradindex.errors import CallError, GradindexError
from gradindex.recipe import require_positive
from gradindex.report.evaluate import model_losses
from gradindex.report.training_sample import kept_rows
from gradindex.search.index import Index
from gradindex.search.pictures import Picture
from gradindex.search.query import QueryOptions
from gradindex.search.results import Result
from gradindex.store.store import Store

HIGHEST = "highest"
RANDOM = "random"


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
    pictures: Sequence[Picture],
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
        command: what trains a model; `{data}` in it becomes a folder with the pictures that stay,
            `{out}` the folder where it has to save the model.
        work: folder for those; what a run before has trained there is used.
        random: how many random removals, for all pictures together.
        options: as for `Index.query`.

    Yields:
        Removals, for each picture and then for each random removal and picture.

    Raises:
        CallError: the data set is not a folder of pictures. GradindexError: the command failed.
    """
    require_positive(k=k)
    results = index.query(pictures, k, method, **options)
    for number, removal in enumerate(_removals(index.store, results, k, random)):
        folder = Path(work) / str(number)
        model = _train_without(index, removal.rows, command, folder)
        losses = model_losses(index, [model], pictures, options.get("class_label"))[0]
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
    dataset = index.training_pictures.require()
    source = Path(dataset.source)
    if not source.is_dir() or not (source / dataset.sample_ids[0]).is_file():
        raise CallError(f"{source}: pictures can only be left out of a folder of pictures")
    data = folder / "data"
    model = folder / "model"
    removed_file = folder / "removed.txt"  # written last: the model is there
    removed = "\n".join(index.store.sample_ids[row] for row in rows)
    if removed_file.exists() and removed_file.read_text(encoding="utf-8") == removed:
        return model
    shutil.rmtree(folder, ignore_errors=True)
    _link_pictures(dataset, {*rows, *index.store.excluded}, data)
    line = command.replace("{data}", shlex.quote(str(data)))
    line = line.replace("{out}", shlex.quote(str(model)))
    status = subprocess.run(line, shell=True).returncode
    if status:
        raise GradindexError(
            f"{line}: ended with status {status}; what was trained before stays, run it again"
        )
    removed_file.write_text(removed, encoding="utf-8")
    return model


def _link_pictures(dataset: Dataset, excluded: set[int], folder: Path) -> None:
    """Fill a folder with links to a folder's pictures, but for some rows."""
    source = Path(dataset.source)
    for row, name in enumerate(dataset.sample_ids):
        if row not in excluded:
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((source / name).resolve())

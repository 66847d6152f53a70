"""Counterfactuals: what a picture's loss becomes when training pictures are left out."""

import logging
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np

from gradindex.data.dataset import Dataset
from gradindex.data.latent_files import LatentDataset
from gradindex.data.sidecars import SIDECAR_SUFFIXES, class_tokens, find_sidecar, read_sidecar
from gradindex.errors import CallError, GradindexError
from gradindex.recipe import FILES, require_positive
from gradindex.report.evaluate import model_losses
from gradindex.search.index import Index
from gradindex.search.pictures import Picture, picture_list
from gradindex.search.query import QueryOptions
from gradindex.search.results import Result
from gradindex.store.progress import progress
from gradindex.store.records import masks_of, one_caption
from gradindex.store.store import Store
from gradindex.wording import counted, size_text

LOGGER = logging.getLogger("gradindex")

HIGHEST = "highest"
RANDOM = "random"
PLACES = ("{data}", "{out}")  # in a command
MASKS_PLACE = "{masks}"  # in the command of a masked training, whose masks lie in a folder
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
            becomes a folder with the pictures that stay and what lies beside them, captions and the
            latents of kohya's scripts, `{out}` the folder where it has to save what it trained.
            Where the build was given a folder of masks, `{masks}` becomes one with theirs.
        work: folder for those; what a run before has trained there is used.
        random: how many random removals, for all pictures together.
        options: as for `Index.query`.

    Yields:
        Removals, for each picture and then for each random removal and picture.

    Raises:
        CallError: before anything is trained: the command lacks `{data}`, `{out}` or `{masks}`, the
            index has too few pictures, or its data set is not a folder of pictures with captions
            beside them.
        GradindexError: the command failed, or saved no model.
    """
    require_positive(k=k)
    if random < 0:
        raise CallError(f"random = {random}: give 0 or more")
    _require_places(command, index.store.recipe.masks == FILES)
    count = len(index.store.kept)
    if k >= count:
        raise CallError(
            f"k = {k}: the index has {counted(count, 'picture')}, and some have to stay; give fewer"
        )
    _require_folder(index)
    queries = picture_list(pictures)
    return _removals_of(index, queries, command, Path(work), k, method, random, options)


def _require_places(command: str, has_masks: bool) -> None:
    """Raise CallError unless a command has a place for all that a training is given.

    Args:
        has_masks: whether that is a folder of masks, too.
    """
    absent = [place for place in PLACES if place not in command]
    if absent:
        raise CallError(
            f"command {command!r} has no {' and no '.join(absent)}: write {{data}} where it takes"
            " the folder of pictures, and {out} where it takes the folder to save the model in"
        )
    if has_masks and MASKS_PLACE not in command:
        raise CallError(
            f"command {command!r} has no {{masks}}: the index is of a masked loss; write {{masks}}"
            " where it takes the folder of the masks of the pictures that stay"
        )
    if MASKS_PLACE in command and not has_masks:
        raise CallError(
            f"command {command!r} has {{masks}}: the index was built without a folder of masks;"
            " leave it out"
        )


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
    removals = _removals(index.store, results, k, random)
    _announce(index, len(removals), k, work)
    bar = progress(removals, "trainings", unit="training")
    for number, removal in enumerate(bar):
        folder = work / str(number)
        model = _train_without(index, removal.rows, command, folder)
        prompt, class_label = options.get("prompt"), options.get("class_label")
        losses = model_losses(index, [model], pictures, prompt, class_label)[0]
        removed = [index.store.sample_ids[row] for row in removal.rows]
        for result, loss in zip(results, losses, strict=True):
            if removal.picture in (None, result.picture):
                yield Removal(result.picture, removal.which, removed, float(loss))


def _announce(index: Index, trainings: int, k: int, work: Path) -> None:
    """Log how many trainings there will be, of how many pictures, and the disk that they take.

    How long one takes is not known before the first has ended: then the progress says it.
    """
    pictures = counted(len(index.store.kept) - k, "picture")
    paths = [checkpoint.path for checkpoint in index.store.header.checkpoints]
    size = max((_bytes_of(Path(path)) for path in paths if path), default=0)
    disk = f"; about {size_text(trainings * size)} in {work}" if size else ""
    LOGGER.info(f"{counted(trainings, 'training')} on {pictures} each{disk}")


def _bytes_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder; 0 where there is none."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _removals(store: Store, results: Sequence[Result], k: int, random: int) -> list[_RemovedRows]:
    """The rows of each training: those of every result, then `random` times k random ones."""
    removals = [
        _RemovedRows(result.picture, [hit.row for hit in result.hits]) for result in results
    ]
    generator = np.random.default_rng(0)
    kept = store.kept
    for _ in range(random):
        rows = generator.choice(kept, k, replace=False).tolist()
        removals.append(_RemovedRows(None, rows))
    return removals


def _train_without(index: Index, rows: Sequence[int], command: str, folder: Path) -> Path:
    """Have the command train without the pictures of some rows; return the model's folder.

    A model that a run before has trained without the same pictures is used.
    """
    dataset = _require_folder(index)
    data, masks = folder / "data", folder / "masks"
    model = folder / "model"
    removed_file = folder / "removed.txt"  # written last: the model is there
    names = "\n".join(index.store.sample_ids[row] for row in rows)
    removed = names.encode("utf-8", "surrogateescape")
    if removed_file.exists() and removed_file.read_bytes() == removed:
        return model
    shutil.rmtree(folder, ignore_errors=True)
    excluded = {*rows, *index.store.excluded}
    _link_pictures(dataset, excluded, data)
    if index.store.recipe.masks == FILES:
        _link_masks(dataset, excluded, Path(str(masks_of(index.store.header.data))), masks)
    line = command
    for place, path in zip((*PLACES, MASKS_PLACE), (data, model, masks), strict=True):
        line = line.replace(place, shlex.quote(str(path)))
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
    """Return the training pictures; CallError unless a training can be given a folder of them.

    That is one with the captions beside the pictures.
    """
    dataset = index.training_pictures.require()
    source = Path(dataset.source)
    row = index.store.kept[0]
    first = source / dataset.sample_ids[row]
    if not source.is_dir() or not first.is_file():
        raise CallError(f"{source}: pictures can only be left out of a folder of pictures")
    if dataset.captions is not None and one_caption(index.store.header.data) is None:
        sidecar = find_sidecar(first)
        caption = read_sidecar(sidecar).text if sidecar else class_tokens(dataset.sample_ids[row])
        if (caption or "") != (dataset.captions[row] or ""):
            raise CallError(
                f"{source}: the captions are in a table, and a training without some pictures is"
                " given what lies beside the others; put each caption into a file x.txt beside"
                " x.png, and build from a folder without the table"
            )
    return dataset


def _link_pictures(dataset: Dataset, excluded: set[int], folder: Path) -> None:
    """Fill a folder with links to a folder's pictures and captions, but for some rows.

    Latents of kohya's scripts are copied, for these may write them anew.
    """
    source = Path(dataset.source)
    for row, name in enumerate(dataset.sample_ids):
        if row in excluded:
            continue
        _link(source / name, folder / name)
        for suffix in SIDECAR_SUFFIXES:
            sidecar = (source / name).with_suffix(suffix)
            if sidecar.is_file():
                _link(sidecar, (folder / name).with_suffix(suffix))
        latents = dataset.latent_files[row] if isinstance(dataset, LatentDataset) else None
        if latents is not None:
            shutil.copyfile(latents, folder / latents.relative_to(source))


def _link_masks(dataset: Dataset, excluded: set[int], source: Path, folder: Path) -> None:
    """Fill a folder with links to the masks of pictures, but for some rows."""
    files = None if dataset.masks is None else dataset.masks.files
    for row, mask in enumerate(files or ()):
        if mask is not None and row not in excluded:
            _link(mask, folder / mask.relative_to(source))


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

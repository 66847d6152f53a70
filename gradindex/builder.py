"""Walk a training set once: data set × checkpoints → gradient store → FAISS files. Stopped and rerun, it goes on."""

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from gradindex import index as faiss_index
from gradindex import search
from gradindex.dataset import Columns, Dataset, open_dataset
from gradindex.denoiser import DTYPES, Checkpoints, Denoiser, resolve_device
from gradindex.errors import CallError, DataError, GradindexError, RecipeMismatch
from gradindex.gradients.projection import NAMES, TWO_SIDED
from gradindex.gradients.rows import (
    capture_for,
    check_capture,
    choose_parameters,
    choose_strong,
    fitting_batch,
    sample_gradients,
)
from gradindex.recipe import LOSSES, NOISES, Recipe, grid, require, require_positive
from gradindex.store import Shard, Store, is_store

DIM = 4096
RANK = 16  # of the two-sided projection
LOOKED_AT = 8  # pictures whose gradients tell which weights are strong

Item = TypeVar("Item")
Done = TypeVar("Done")


def build(
    index: str | Path,
    *,
    model: str | Path,
    data: str | Path,
    checkpoints: Mapping[str, float | None] | Sequence[str | Path] | None = None,
    scheduler: str | Path | None = None,
    columns: Columns | None = None,
    timesteps: int | Sequence[int] = 10,
    draws: int = 1,
    noise: str = "shared",
    loss: str = "mse",
    projection: str = "auto",
    dim: int = DIM,
    params: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
    batch_size: int | str = "auto",
    skip_bad: bool = False,
    overwrite: bool = False,
) -> "search.Index":
    """Build an index over a training set, or go on with one that was stopped.

    Args:
        index: the folder to write.
        model: a diffusers pipeline folder, a model folder, or a training checkpoint.
        data: a folder of pictures, or anything that `datasets` opens.
        checkpoints: where the weights are, {path: weight}, when there are several; a weight of None, or a plain
            sequence of paths, means 1 / C each. A weight is the learning rate times the share of training that the
            checkpoint stands for.
        scheduler: the scheduler's folder or JSON file, when it does not lie beside the model.
        columns: picture, id and label columns of a `datasets` table.
        timesteps: how many, evenly spaced, or which.
        draws: noise draws averaged per picture and timestep.
        noise: "shared" by all pictures and queries, or each picture its "own".
        loss: "mse" or "l1".
        projection: "auto" (two-sided, then sketched), "sketch" (exact per-sample weight gradients, sketched),
            "rademacher" (dense, slow: a baseline) or "none" (exact, small models).
        dim: width D of a projected row.
        params: regular expression; only parameters in whose name it is found count.
        seed: of noise and projection.
        dtype: "float32", "bfloat16" or "float16", of the weights while gradients are taken; rows are float32.
        batch_size: how many (picture, timestep, draw) at once, as many as fit for "auto"; changes no result beyond
            float rounding, and is halved when the device has not the memory.
        skip_bad: leave out pictures that cannot be read, instead of stopping at them.
        overwrite: replace an index of another recipe or data set, which stays as INDEX.replaced until the new one
            is whole.

    Returns:
        The open index.

    Raises:
        CallError, RecipeMismatch, DataError, ModelError, StoreError: see `gradindex.errors`.

    Example:
        >>> index = gradindex.build("idx", model="ckpt/", data="pictures/", timesteps=10)
    """
    path, device = Path(index), resolve_device(device)
    require("noise", noise, NOISES)
    require("loss", loss, LOSSES)
    require("projection", projection, NAMES)
    require("dtype", dtype, tuple(DTYPES))
    require_positive(dim=dim, draws=draws)
    if batch_size != "auto":
        require_positive(batch_size=batch_size)  # type: ignore[arg-type]
    _check_target(path)
    faiss_index.require_faiss()
    dataset = open_dataset(data, columns)
    places, weights = _weights(checkpoints, model)
    denoisers = Checkpoints(places, model, scheduler, device, dtype)
    facts = denoisers.facts()
    first = denoisers[0]
    names = choose_parameters(first.trainable, params)
    parameter_count = sum(first.model.get_parameter(name).numel() for name in names)
    recipe = Recipe(
        **facts,
        params=params,
        parameter_count=parameter_count,
        timesteps=grid(timesteps, first.num_train_timesteps),
        draws=draws,
        noise=noise,
        seed=seed,
        loss=loss,
        projection=TWO_SIDED if projection == "auto" else projection,
        rank=RANK if projection == "auto" else None,
        strong=(),
        dim=parameter_count if projection == "none" else dim,
    )
    _check_data(dataset, recipe)
    check_capture(first, recipe)  # a layer without a rule is an error before anything is written
    batch = fitting_batch(first, recipe) if batch_size == "auto" else int(batch_size)
    attributes = {
        "model": str(Path(model).resolve()),
        "scheduler": None if scheduler is None else str(Path(scheduler).resolve()),
        "checkpoints": [{"path": str(place.resolve())} for place in places],
        "weights": weights,
        "data": dataset.to_json(),
    }
    store = _existing(path, recipe, dataset, overwrite)
    if store is None:
        if recipe.projection == TWO_SIDED:
            recipe = replace(recipe, strong=_strong(first, recipe, dataset, batch, skip_bad))
        store = Store.create(path, recipe, dataset.sample_ids, **attributes)
    store.set_attributes(**attributes)
    _fill(store, dataset, denoisers, batch, skip_bad)
    if len(store.skipped()) == len(dataset):
        raise DataError(f"data {dataset.source}: not one of {len(dataset)} pictures can be read")
    for method in faiss_index.ROWS_OF:
        faiss_index.load_index(store, method)
    shutil.rmtree(_replaced(path), ignore_errors=True)
    return search.open(path, device=device)


def _check_target(path: Path) -> None:
    if path.exists() and not is_store(path) and (not path.is_dir() or any(path.iterdir())):
        raise CallError(f"{path}: exists and is not a gradindex index; choose another place")


def _weights(
    checkpoints: Mapping[str, float | None] | Sequence[str | Path] | None, model: str | Path
) -> tuple[list[Path], list[float]]:
    """The checkpoints' paths and weights; without any, the model's own weights count 1."""
    if not checkpoints:
        return [Path(model)], [1.0]
    if not isinstance(checkpoints, Mapping):
        checkpoints = dict.fromkeys(map(str, checkpoints))
    weights = [1 / len(checkpoints) if weight is None else float(weight) for weight in checkpoints.values()]
    if not np.isfinite(weights).all():
        raise CallError(f"checkpoint weights {weights}: give finite numbers")
    return [Path(place) for place in checkpoints], weights


def _check_data(dataset: Dataset, recipe: Recipe) -> None:
    if recipe.image[0] not in (1, 3):
        raise CallError(f"the model takes {recipe.image[0]} channels; pictures have 1 (grey) or 3 (colour)")
    if recipe.classes is None:
        return
    if dataset.labels is None:
        raise CallError(
            f"data {dataset.source}: the model is class-conditional and the pictures have no label;"
            " put them in one folder per class, or name a label column"
        )
    if not (min(dataset.labels) >= 0 and max(dataset.labels) < recipe.classes):
        raise CallError(
            f"data {dataset.source}: labels {min(dataset.labels)} to {max(dataset.labels)},"
            f" the model knows 0 to {recipe.classes - 1}"
        )


def _existing(path: Path, recipe: Recipe, dataset: Dataset, overwrite: bool) -> Store | None:
    """The store at `path` when it is the same build's; else, with `overwrite`, it is put aside."""
    if not is_store(path):
        return None
    try:
        store = Store(path)
        strong = store.recipe.strong  # found by that build; another machine's rounding may find others
        store.require_recipe(replace(recipe, strong=strong), "built with another recipe (overwrite replaces it)")
        _require_same_pictures(store, dataset)
        return store
    except GradindexError:
        if not overwrite:
            raise
    if _replaced(path).exists():
        shutil.rmtree(path)  # never finished: the last whole index is the one kept aside
    else:
        path.rename(_replaced(path))
    return None


def _require_same_pictures(store: Store, dataset: Dataset) -> None:
    """The same ids and labels, and no picture exchanged behind a finished row; a bad one may have been repaired."""
    message = f"{store.path}: built over another data set (overwrite replaces it)"
    if store.attributes["data"]["fingerprint"] != dataset.fingerprint or store.sample_ids != dataset.sample_ids:
        raise RecipeMismatch(
            message, [f"data: {len(store.sample_ids)} pictures, now {len(dataset)} or with other ids or labels"]
        )
    for shard, entry in store.committed():
        if not entry["skipped"] and entry["pictures"] != dataset.digest(shard.start, shard.stop):
            raise RecipeMismatch(message, [f"data: rows {shard.start} to {shard.stop - 1}, now other pictures"])


def _replaced(path: Path) -> Path:
    """Where an index that is overwritten stays until its successor is whole."""
    return path.with_name(f"{path.name}.replaced")


def _strong(denoiser: Denoiser, recipe: Recipe, dataset: Dataset, batch_size: int, skip_bad: bool) -> tuple[str, ...]:
    """The weights that the projection must shrink less, from the gradients of a few pictures."""
    some = sorted({int(row) for row in np.linspace(0, len(dataset) - 1, LOOKED_AT)})
    rows, pictures = _read(dataset, recipe, some, skip_bad)
    if not rows:
        raise DataError(f"data {dataset.source}: not one of {len(some)} pictures tried can be read")
    return choose_strong(denoiser, recipe, pictures, *_keys(dataset, recipe, rows), batch_size)


def _fill(store: Store, dataset: Dataset, denoisers: Checkpoints, batch_size: int, skip_bad: bool) -> None:
    """Make every shard that is missing, checkpoint by checkpoint; the next is read and the last written meanwhile."""
    recipe = store.recipe
    repairable = [] if skip_bad else [shard for shard, entry in store.committed() if entry["skipped"]]
    missing = sorted(store.missing() + repairable, key=lambda shard: (shard.checkpoint, shard.start))
    events = len(recipe.timesteps) * recipe.draws * sum(shard.stop - shard.start for shard in missing)
    written: Future[None] | None = None

    def read(shard: Shard) -> tuple[Shard, list[int], np.ndarray]:
        return shard, *_read(dataset, recipe, range(shard.start, shard.stop), skip_bad)

    with (
        tqdm(total=events, unit="gradient", desc="gradients", delay=2, disable=None) as bar,
        ThreadPoolExecutor(1) as writer,
    ):
        for checkpoint, shards in groupby(missing, key=lambda shard: shard.checkpoint):
            denoiser = denoisers[checkpoint]
            with capture_for(denoiser, recipe) as capture:
                for shard, readable, pictures in _ahead(read, shards):
                    rows = np.zeros((shard.stop - shard.start, len(recipe.timesteps), recipe.dim), np.float32)
                    if readable:
                        rows[[row - shard.start for row in readable]] = sample_gradients(
                            denoiser,
                            capture,
                            recipe,
                            pictures,
                            *_keys(dataset, recipe, readable),
                            batch_size=batch_size,
                            progress=bar.update,
                        )
                    if written:
                        written.result()
                    written = writer.submit(_write, store, shard, rows, readable, dataset)
        if written:
            written.result()


def _ahead(work: Callable[[Item], Done], items: Iterable[Item]) -> Iterator[Done]:
    """`work(item)` for one item after the other, the next one being worked on in a thread meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Done]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(dataset: Dataset, recipe: Recipe, rows: Iterable[int], skip_bad: bool) -> tuple[list[int], np.ndarray]:
    """The rows that can be read, and their pictures [B, channels, height, width]."""
    pictures = {}
    for row in rows:
        try:
            pictures[row] = dataset.picture(row, recipe.image)
        except DataError as error:
            if not skip_bad:
                raise DataError(f"{error}; skip_bad leaves such pictures out") from error
    return list(pictures), np.stack(list(pictures.values())) if pictures else np.empty((0, *recipe.image), np.float32)


def _keys(dataset: Dataset, recipe: Recipe, rows: Sequence[int]) -> tuple[list[str], list[int] | None]:
    """Ids and, for a class-conditional model, labels of some rows."""
    labels = [dataset.labels[row] for row in rows] if recipe.classes is not None and dataset.labels else None
    return [dataset.sample_ids[row] for row in rows], labels


def _write(store: Store, shard: Shard, rows: np.ndarray, readable: list[int], dataset: Dataset) -> None:
    timestep = np.broadcast_to(np.array(store.recipe.timesteps, np.float32), rows.shape[:2])
    skipped = sorted(set(range(shard.start, shard.stop)) - set(readable))
    store.write(shard, rows, timestep, skipped, dataset.digest(shard.start, shard.stop))

"""Walk a training set once: data set × checkpoints → gradient store → FAISS files. Stopped and rerun, it goes on."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gradindex import index as faiss_index
from gradindex import search
from gradindex.dataset import Columns, Dataset, open_dataset
from gradindex.denoiser import Checkpoints, Denoiser, resolve_device
from gradindex.errors import CallError, DataError, GradindexError, RecipeMismatch
from gradindex.gradients.capture import Capture, capture_for, check_capture, choose_parameters, sample_gradients
from gradindex.gradients.projection import NAMES, TWO_SIDED
from gradindex.recipe import LOSSES, NOISES, Recipe, grid, require, require_positive
from gradindex.store import Shard, Store, is_store

DIM = 1024
RANK = 32  # of the two-sided projection
BATCH = 64  # events (picture, timestep, draw) that go through the model at once


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
        projection: "auto", "sketch" (exact per-sample weight gradients, sketched) or "none" (exact, small models).
        dim: width D of a projected row.
        params: regular expression; only parameters in whose name it is found count.
        seed: of noise and projection.
        batch_size: how many (picture, timestep, draw) at once, 64 for "auto"; changes no result beyond float
            rounding, and is halved when the device has not the memory.
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
    require_positive(dim=dim, draws=draws)
    batch = BATCH if batch_size == "auto" else int(batch_size)
    require_positive(batch_size=batch)
    _check_target(path)
    faiss_index.require_faiss()
    dataset = open_dataset(data, columns)
    places, weights = _weights(checkpoints, model)
    denoisers = Checkpoints(places, model, scheduler, device)
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
        dim=parameter_count if projection == "none" else dim,
    )
    _check_data(dataset, recipe)
    check_capture(first, recipe)  # a layer without a rule is an error before anything is written
    attributes = {
        "model": str(Path(model).resolve()),
        "scheduler": None if scheduler is None else str(Path(scheduler).resolve()),
        "checkpoints": [{"path": str(place.resolve())} for place in places],
        "weights": weights,
        "data": dataset.to_json(),
    }
    store = _open_or_create(path, recipe, dataset, attributes, overwrite)
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


def _open_or_create(path: Path, recipe: Recipe, dataset: Dataset, attributes: dict[str, Any], overwrite: bool) -> Store:
    """The store at `path` when it is the same build's, else a new one."""
    if is_store(path):
        try:
            store = Store(path)
            store.require_recipe(recipe, "built with another recipe (overwrite replaces it)")
            _require_same_pictures(store, dataset)
            store.set_attributes(**attributes)
            return store
        except GradindexError:
            if not overwrite:
                raise
        if _replaced(path).exists():
            shutil.rmtree(path)  # never finished: the last whole index is the one kept aside
        else:
            path.rename(_replaced(path))
    return Store.create(path, recipe, dataset.sample_ids, **attributes)


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


def _fill(store: Store, dataset: Dataset, denoisers: Checkpoints, batch_size: int, skip_bad: bool) -> None:
    """Make every shard that is missing, checkpoint by checkpoint."""
    repairable = [] if skip_bad else [shard for shard, entry in store.committed() if entry["skipped"]]
    missing = store.missing() + repairable
    events = len(store.recipe.timesteps) * store.recipe.draws * sum(shard.stop - shard.start for shard in missing)
    with tqdm(total=events, unit="gradient", desc="gradients", delay=2, disable=None) as bar:
        for checkpoint in sorted({shard.checkpoint for shard in missing}):
            denoiser = denoisers[checkpoint]
            with capture_for(denoiser, store.recipe) as capture:
                for shard in (shard for shard in missing if shard.checkpoint == checkpoint):
                    _make_shard(store, shard, dataset, denoiser, capture, batch_size, skip_bad, bar)


def _make_shard(
    store: Store,
    shard: Shard,
    dataset: Dataset,
    denoiser: Denoiser,
    capture: Capture,
    batch_size: int,
    skip_bad: bool,
    bar: Any,
) -> None:
    recipe = store.recipe
    rows = np.zeros((shard.stop - shard.start, len(recipe.timesteps), recipe.dim), np.float32)
    readable: list[int] = []
    pictures: list[np.ndarray] = []
    for row in range(shard.start, shard.stop):
        try:
            pictures.append(dataset.picture(row, recipe.image))
            readable.append(row)
        except DataError as error:
            if not skip_bad:
                raise DataError(f"{error}; skip_bad leaves such pictures out") from error
    group = max(1, batch_size // (len(recipe.timesteps) * recipe.draws))
    for start in range(0, len(readable), group):
        part = readable[start : start + group]
        labels = [dataset.labels[row] for row in part] if recipe.classes is not None and dataset.labels else None
        rows[[row - shard.start for row in part]] = sample_gradients(
            denoiser,
            capture,
            recipe,
            np.stack(pictures[start : start + group]),
            [dataset.sample_ids[row] for row in part],
            labels,
            batch_size=batch_size,
            progress=bar.update,
        )
    timestep = np.broadcast_to(np.array(recipe.timesteps, np.float32), rows.shape[:2])
    skipped = sorted(set(range(shard.start, shard.stop)) - set(readable))
    store.write(shard, rows, timestep, skipped, dataset.digest(shard.start, shard.stop))

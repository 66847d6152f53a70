"""Walk a training set once: data set × checkpoints → gradient store → FAISS files. Stopped and rerun, it goes on."""

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradindex import distributed, search
from gradindex import index as faiss_index
from gradindex.arrays import IDS, ROW_ARRAYS
from gradindex.dataset import Columns, Dataset, open_dataset
from gradindex.denoiser import DTYPES, Checkpoints, resolve_device
from gradindex.errors import CallError, DataError, GradindexError, RecipeMismatch
from gradindex.gradients.projection import NAMES, TWO_SIDED
from gradindex.gradients.rows import check_capture, choose_parameters, fitting_batch
from gradindex.manifest import is_store
from gradindex.place import Place, at
from gradindex.recipe import LOSSES, NOISES, Recipe, grid, require, require_positive
from gradindex.store import Store
from gradindex.training_log import MISSING, LoggedCheckpoint, TrainingLog, open_log, training_weights
from gradindex.work import Work, fill, find_strong, missing_shards

DIM = 4096
RANK = 16  # of the two-sided projection


def build(
    index: str | Path,
    *,
    model: str | Path,
    data: str | Path,
    checkpoints: Mapping[str, float | None] | Sequence[str | Path] | None = None,
    scheduler: str | Path | None = None,
    columns: Columns | None = None,
    timesteps: int | Sequence[int] | str = 10,
    log: str | Path | None = None,
    events: int = 1,
    missing: str = "error",
    draws: int = 1,
    noise: str | None = None,
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
    part: tuple[int, int] = (0, 1),
    ray: str | None = None,
) -> "search.Index":
    """Build an index over a training set, or go on with one that was stopped.

    Args:
        index: the folder to write, or a URL such as s3://bucket/index.
        model: a diffusers pipeline folder, a model folder, or a training checkpoint.
        data: a folder of pictures, or anything that `datasets` opens.
        checkpoints: where the weights are, {path: weight}, when there are several; a weight of None, or a plain
            sequence of paths, means 1 / C each. A weight is the learning rate times the share of training that the
            checkpoint stands for; with a log that is the default, and so are all checkpoints that it knows.
        scheduler: the scheduler's folder or JSON file, when it does not lie beside the model.
        columns: picture, id and label columns of a `datasets` table.
        timesteps: how many, evenly spaced; or which; or "recorded": those that each picture was last trained on
            before a checkpoint.
        log: what a training run drew: a `TrainingRecorder`'s folder, or a CSV or Parquet table (see `open_log`).
        events: how many of a picture's last recorded events.
        missing: what a picture gets that has fewer: "error", "skip" (it is left out), or "grid" (evenly spaced
            timesteps in place of those it lacks).
        draws: noise draws averaged per picture and timestep.
        noise: "shared" by all pictures and queries (the default of a grid), each picture its "own", or "recorded",
            the very noise of training (the default of recorded timesteps).
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
        part: (I, N) makes the I-th of N parts, I from 0 to N − 1, so that N processes anywhere share the work; whoever
            finishes last makes the search index.
        ray: "local" shares the work among this machine's GPUs, or its CPUs where there are none; an address ("auto",
            "host:port", "ray://…") among those of the whole Ray cluster there, whose nodes have gradindex installed
            and see index, model and data under the same paths. What a killed worker or node was making is made anew.

    Returns:
        The open index; it answers when all parts are made.

    Raises:
        CallError, RecipeMismatch, DataError, ModelError, StoreError: see `gradindex.errors`.

    Example:
        >>> index = gradindex.build("idx", model="ckpt/", data="pictures/", timesteps=10)
    """
    if not 0 <= part[0] < part[1]:
        raise CallError(f"part = {part}: give (I, N), I from 0 to N - 1")
    if ray is not None and part[1] > 1:
        raise CallError(f"ray = {ray!r} and part = {part}: give one of them; Ray shares the work itself")
    place, here = at(index), resolve_device(device if ray is None else "auto")
    asked = partial(
        prepare, model=model, data=data, checkpoints=checkpoints, scheduler=scheduler, columns=columns,
        timesteps=timesteps, log=log, events=events, missing=missing, draws=draws, noise=noise, loss=loss,
        projection=projection, dim=dim, params=params, seed=seed, dtype=dtype, batch_size=batch_size, skip_bad=skip_bad,
    )  # fmt: skip
    _check_target(place)
    faiss_index.require_faiss()
    if ray is not None:
        distributed.require_ray()
    plan = asked(device=here if ray is None else "cpu")  # the GPUs are the workers'
    work, dataset = plan.work, plan.work.dataset
    store = _existing(place, work.recipe, dataset, overwrite)
    if store is None:
        recipe = work.recipe
        if recipe.projection == TWO_SIDED:
            recipe = replace(recipe, strong=find_strong(plan.denoisers[0], work, plan.batch_size))
        store = Store.create(place, recipe, dataset.sample_ids, **plan.attributes)
        store.require_recipe(replace(recipe, strong=store.recipe.strong), "another build was started there")
    store.set_attributes(**plan.attributes)
    work = replace(work, recipe=store.recipe)
    todo = missing_shards(store, work, part)
    if ray is None:
        fill(store, work, plan.denoisers, plan.batch_size, todo)
    else:
        distributed.fill(ray, partial(_prepare_worker, index, asked), work, todo, device)
    opened = search.Index(store, None, here)
    if store.missing():  # which the other parts make
        return opened
    if len(opened.skipped) == len(dataset):
        raise DataError(f"data {dataset.source}: not one of {len(dataset)} pictures can be read")
    for method in faiss_index.ROWS_OF:
        faiss_index.load_index(store, method)
    place.drop_aside()
    return opened


@dataclass(frozen=True)
class Plan:
    """What a build makes, and with what; `attributes` are the store's beside the recipe."""

    work: Work
    denoisers: Checkpoints
    batch_size: int
    attributes: dict[str, Any]


def prepare(
    *,
    model: str | Path,
    data: str | Path,
    checkpoints: Mapping[str, float | None] | Sequence[str | Path] | None,
    scheduler: str | Path | None,
    columns: Columns | None,
    timesteps: int | Sequence[int] | str,
    log: str | Path | None,
    events: int,
    missing: str,
    draws: int,
    noise: str | None,
    loss: str,
    projection: str,
    dim: int,
    params: str | None,
    seed: int,
    dtype: str,
    batch_size: int | str,
    skip_bad: bool,
    device: str,
    beside: int = 1,
) -> Plan:
    """What comes before a build's first shard, from its arguments; it writes nothing.

    Args:
        device: "cpu" or "cuda".
        beside: how many such processes share the device's memory.
    """
    noise = noise or ("shared" if log is None else "recorded")
    require("noise", noise, NOISES)
    require("loss", loss, LOSSES)
    require("projection", projection, NAMES)
    require("dtype", dtype, tuple(DTYPES))
    require("missing", missing, MISSING)
    require_positive(dim=dim, draws=draws, events=events)
    if batch_size != "auto":
        require_positive(batch_size=batch_size)  # type: ignore[arg-type]
    _check_recorded(timesteps, log, events, noise, draws)
    dataset = open_dataset(data, columns)
    training = None if log is None else open_log(log)
    chosen, weights = _checkpoints(checkpoints, model, training)
    places = [Path(each.path) for each in chosen]
    denoisers = Checkpoints(places, model, scheduler, device, dtype)
    facts = denoisers.facts()
    first = denoisers[0]
    steps = [each.step for each in chosen]
    recorded = None
    if training is not None:
        recorded = training.replay(dataset.sample_ids, steps, events, missing, first.num_train_timesteps)
    names = choose_parameters(first.trainable, params)
    parameter_count = sum(first.model.get_parameter(name).numel() for name in names)
    recipe = Recipe(
        **facts,
        params=params,
        parameter_count=parameter_count,
        timesteps=() if recorded is not None else grid(timesteps, first.num_train_timesteps),  # type: ignore[arg-type]
        draws=draws,
        noise=noise,
        seed=seed,
        loss=loss,
        projection=TWO_SIDED if projection == "auto" else projection,
        rank=RANK if projection == "auto" else None,
        strong=(),
        dim=parameter_count if projection == "none" else dim,
        events=None if recorded is None else events,
        log=None if recorded is None else hashlib.sha256(recorded.tobytes()).hexdigest(),
    )
    _check_data(dataset, recipe)
    check_capture(first, recipe)  # a layer without a rule is an error before anything is written
    batch = fitting_batch(first, recipe, beside) if batch_size == "auto" else int(batch_size)
    attributes = {
        "model": str(Path(model).resolve()),
        "scheduler": None if scheduler is None else str(Path(scheduler).resolve()),
        "checkpoints": [{"path": str(place.resolve())} for place in places],
        "weights": weights,
        "data": dataset.to_json(),
        "log": None if log is None else str(Path(log).resolve()),
    }
    return Plan(Work(dataset, recipe, recorded, skip_bad), denoisers, batch, attributes)


def _prepare_worker(index: str | Path, asked: Callable[..., Plan], device: str) -> distributed.Fill:
    """What makes a worker's shards: the same build prepared again, from what the worker sees."""
    plan = asked(device=device, beside=(os.cpu_count() or 1) if device == "cpu" else 1)
    work, store = plan.work, Store(index)
    store.require_recipe(replace(work.recipe, strong=store.recipe.strong), "a Ray worker makes another recipe of it")
    if work.dataset.fingerprint != store.attributes["data"]["fingerprint"]:
        raise DataError(f"data {work.dataset.source}: a Ray worker finds other pictures there than the driver")
    return partial(fill, store, replace(work, recipe=store.recipe), plan.denoisers, plan.batch_size)


def _check_target(place: Place) -> None:
    left_by_a_crash = {*ROW_ARRAYS, IDS}
    if not is_store(place) and place.names() - left_by_a_crash:
        raise CallError(f"{place}: exists and is not a gradindex index; choose another place")


def _check_recorded(timesteps: object, log: object, events: int, noise: str, draws: int) -> None:
    if (isinstance(timesteps, str) and timesteps == "recorded") != (log is not None):
        raise CallError("timesteps = 'recorded' and log go together: give both, or neither")
    if log is None and (events != 1 or noise == "recorded"):
        raise CallError("events and noise = 'recorded' are for recorded timesteps")
    if noise == "recorded" and draws != 1:
        raise CallError(f"draws = {draws}: the recorded noise of an event is one; choose noise = 'own' for more")


def _checkpoints(
    given: Mapping[str, float | None] | Sequence[str | Path] | None, model: str | Path, training: TrainingLog | None
) -> tuple[list[LoggedCheckpoint], list[float]]:
    """The checkpoints and their weights; the model's own weights where there are none."""
    given = given or {}
    asked = given if isinstance(given, Mapping) else dict.fromkeys(map(str, given))
    if training is None:
        chosen = [LoggedCheckpoint(0, path, 1.0) for path in asked or [str(model)]]
        usual = [1 / len(chosen)] * len(chosen)
    else:
        end = LoggedCheckpoint(int(training.events["step"].max()) + 1, str(model), 1.0)
        chosen = training.find([Path(path) for path in asked]) or [end]
        usual = training_weights(chosen)
    explicit = list(asked.values()) or [None] * len(chosen)
    weights = [mine if weight is None else float(weight) for weight, mine in zip(explicit, usual, strict=True)]
    if not (np.isfinite(weights).all() and any(weights)):
        raise CallError(f"checkpoint weights {weights}: give finite numbers, not all of them zero")
    for each, weight in zip(chosen, weights, strict=True):
        if weight == 0:
            warnings.warn(f"checkpoint {each.path} counts for nothing: its weight or learning rate is 0", stacklevel=4)
    return chosen, weights


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


def _existing(place: Place, recipe: Recipe, dataset: Dataset, overwrite: bool) -> Store | None:
    """The store there when it is the same build's; else, with `overwrite`, it is put aside."""
    if not is_store(place):
        return None
    try:
        store = Store.mended(place, dataset.sample_ids)
        strong = store.recipe.strong  # found by that build; another machine's rounding may find others
        store.require_recipe(replace(recipe, strong=strong), "built with another recipe (overwrite replaces it)")
        _require_same_pictures(store, dataset)
        return store
    except GradindexError:
        if not overwrite:
            raise
    place.set_aside()
    return None


def _require_same_pictures(store: Store, dataset: Dataset) -> None:
    """The same ids and labels, and no picture exchanged behind a finished row; a bad one may have been repaired."""
    message = f"{store.place}: built over another data set (overwrite replaces it)"
    if store.attributes["data"]["fingerprint"] != dataset.fingerprint or store.sample_ids != dataset.sample_ids:
        raise RecipeMismatch(
            message, [f"data: {len(store.sample_ids)} pictures, now {len(dataset)} or with other ids or labels"]
        )
    for shard, entry in store.committed():
        if not entry["skipped"] and entry["pictures"] != dataset.digest(shard.start, shard.stop):
            raise RecipeMismatch(message, [f"data: rows {shard.start} to {shard.stop - 1}, now other pictures"])

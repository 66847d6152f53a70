"""Walk a training set once: data set × checkpoints → gradient store → FAISS files. Stopped and rerun, it goes on."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradindex import distributed, search, whiten
from gradindex.arrays import IDS, ROW_ARRAYS
from gradindex.dataset import Columns, Dataset
from gradindex.denoiser import resolve_device
from gradindex.errors import CallError, DataError, GradindexError, RecipeMismatch
from gradindex.gradients.projection import TWO_SIDED
from gradindex.index import build_index, open_index
from gradindex.manifest import is_store
from gradindex.place import Place, at
from gradindex.plan import DIM, Plan, prepare
from gradindex.recipe import FULL
from gradindex.search_index import METHODS, NAMES, facts_of, require_faiss, wanted
from gradindex.store import Store
from gradindex.upkeep import grow, id_key
from gradindex.work import Work, exchanged, fill, find_strong, missing_shards, progress


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
    output: str = "loss",
    projection: str = "auto",
    dim: int = DIM,
    rows: str = FULL,
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
            before a checkpoint (weaker than a grid).
        log: what a training run drew: a `TrainingRecorder`'s folder, or a CSV or Parquet table (see `open_log`).
        events: how many of a picture's last recorded events.
        missing: what a picture gets that has fewer: "error", "skip" (it is left out), or "grid" (evenly spaced
            timesteps in place of those it lacks).
        draws: noise draws averaged per picture and timestep.
        noise: "shared" by all pictures and queries (the default of a grid); each picture its "own" (weak, see
            docs/trust.md); or "recorded", the very noise of training (the default of recorded timesteps).
        loss: "mse" or "l1".
        output: what gradients are taken of: "loss", or "mean-square" of what the model gives (D-TRAK).
        projection: "auto" (two-sided, then sketched), "sketch" (exact per-sample weight gradients, sketched),
            "rademacher" (dense, slow: a baseline) or "none" (exact, small models).
        dim: width D of a projected row.
        rows: "full", or "folded": in place of a picture's C · T rows only the vector that they are searched by, of at
            most 4,096 numbers. Scores are then as exact as that fold, and there are no answers by timestep.
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
    asked: dict[str, Any] = {
        "model": model, "data": data, "checkpoints": checkpoints, "scheduler": scheduler, "columns": columns,
        "timesteps": timesteps, "log": log, "events": events, "missing": missing, "draws": draws, "noise": noise,
        "loss": loss, "output": output, "projection": projection, "dim": dim, "rows": rows, "params": params,
        "seed": seed, "dtype": dtype, "batch_size": batch_size, "skip_bad": skip_bad,
    }  # fmt: skip
    _check_target(place)
    require_faiss()
    if ray is not None:
        distributed.require_ray()
    plan = prepare(device=here if ray is None else "cpu", **asked)  # the GPUs are the workers'
    store, work = _store(place, plan, overwrite)
    store.set_attributes(**plan.attributes)
    todo = missing_shards(store, work, part)
    if ray is None:
        fill(store, work, plan.denoisers, plan.batch_size, todo)
    else:
        with progress(work.gradients(todo)) as bar:
            worker = partial(_prepare_worker, index, asked)
            distributed.fill(ray, worker, todo, device, lambda shard: bar.update(work.gradients([shard])))
    if store.missing():  # which the other parts make
        return search.Index(store, None, here)
    store.finish()
    if len(store.left_out) == len(store.sample_ids):
        raise DataError(f"data {data}: not one of {len(store.sample_ids)} pictures can be read")
    for method in METHODS:
        whiten.mend(store, method, here)
    for name in NAMES:
        if name in wanted(store) or place.sizes([facts_of(name)]):
            whitening = whiten.of_index(store, name, here)
            if open_index(store, name, whitening=whitening).damages():
                build_index(store, name, whitening=whitening)
    place.drop_aside()
    return search.Index(store, None, here)


def _prepare_worker(index: str | Path, asked: Mapping[str, Any], device: str) -> distributed.Fill:
    """What makes a worker's shards: the same build prepared again, from what the worker sees."""
    plan = prepare(device=device, beside=(os.cpu_count() or 1) if device == "cpu" else 1, **asked)
    store = Store(index)
    dataset, new = _arranged(store, plan.dataset)
    if new:
        raise DataError(f"data {dataset.source}: a Ray worker finds other pictures there than the driver")
    work = plan.work_on(dataset)
    store.require_recipe(replace(work.recipe, strong=store.recipe.strong), "a Ray worker makes another recipe of it")
    return partial(fill, store, replace(work, recipe=store.recipe), plan.denoisers, plan.batch_size)


def _check_target(place: Place) -> None:
    left_by_a_crash = {*ROW_ARRAYS, IDS, "manifest"}
    if not is_store(place) and place.names() - left_by_a_crash:
        raise CallError(f"{place}: exists and is not a gradindex index; choose another place")


def _store(place: Place, plan: Plan, overwrite: bool) -> tuple[Store, Work]:
    """The store to fill, one that is there or a new one, and the work on it in the order of its rows."""
    if is_store(place):
        try:
            return _continued(place, plan)
        except GradindexError:
            if not overwrite:
                raise
        place.set_aside()
    work = plan.work_on(plan.dataset)
    recipe = work.recipe
    if recipe.projection == TWO_SIDED:
        recipe = replace(recipe, strong=find_strong(plan.denoisers[0], work, plan.batch_size))
    store = Store.create(place, recipe, plan.dataset.sample_ids, **plan.attributes)
    store.require_recipe(replace(recipe, strong=store.recipe.strong), "another build was started there")
    return store, replace(work, recipe=store.recipe)


def _continued(place: Place, plan: Plan) -> tuple[Store, Work]:
    """The store there, with the data set's new pictures at its end.

    Raises:
        RecipeMismatch: it is another build's; a picture of it is gone and was not removed, or is another one now.
    """
    store = Store.mended(place)
    dataset, new = _arranged(store, plan.dataset)
    work = plan.work_on(dataset)
    recipe = replace(work.recipe, strong=store.recipe.strong)  # found by that build; another machine may find others
    store.require_recipe(recipe, "built with another recipe (overwrite replaces it)")
    for shard, entry in store.committed():
        for row in exchanged(shard, entry, dataset):
            raise RecipeMismatch(
                _OTHER_DATA.format(place), [f"data: {dataset.sample_ids[row]!r} is another picture now"]
            )
    return grow(store, new) if new else store, replace(work, recipe=recipe)


_OTHER_DATA = "{}: built over another data set (overwrite replaces it)"


def _arranged(store: Store, dataset: Dataset) -> tuple[Dataset, list[str]]:
    """The data set in the order of a store's rows, then its new pictures; and which these are."""
    removed, kept = store.attributes["removed"], store.sample_ids
    positions = dataset.positions(kept)
    if gone := [name for row in np.flatnonzero(positions < 0) if id_key(name := kept[int(row)]) not in removed]:
        what = f"data: {len(gone)} of {len(kept)} pictures are gone, such as {gone[0]!r}; `remove` them first"
        raise RecipeMismatch(_OTHER_DATA.format(store.place), [what])
    new = np.setdiff1d(np.arange(len(dataset)), positions)
    new = np.array([row for row in new if not removed or id_key(dataset.sample_ids[row]) not in removed], np.int64)
    names = [dataset.sample_ids[row] for row in new]
    return dataset.in_order([*kept, *names], np.concatenate([positions, new])), names

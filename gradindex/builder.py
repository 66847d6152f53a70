"""Walk a training set once: data set × checkpoints → gradient store → FAISS files. Stopped and rerun, it goes on."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gradindex import search
from gradindex.arrays import IDS, ROW_ARRAYS
from gradindex.dataset import Columns, Dataset, open_dataset
from gradindex.denoiser import DTYPES, Checkpoints, resolve_device
from gradindex.errors import CallError, DataError, GradindexError, RecipeMismatch
from gradindex.gradients.projection import NAMES, TWO_SIDED
from gradindex.gradients.rows import check_capture, choose_parameters, fitting_batch
from gradindex.index import METHODS, build_index, open_index, require_faiss
from gradindex.manifest import is_store
from gradindex.place import Place, at
from gradindex.recipe import LOSSES, NOISES, Recipe, grid, require, require_positive
from gradindex.store import Store
from gradindex.training_log import MISSING, LoggedCheckpoint, TrainingLog, open_log, training_weights
from gradindex.upkeep import grow, id_key
from gradindex.work import Work, exchanged, fill, find_strong

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

    Returns:
        The open index; it answers when all parts are made.

    Raises:
        CallError, RecipeMismatch, DataError, ModelError, StoreError: see `gradindex.errors`.

    Example:
        >>> index = gradindex.build("idx", model="ckpt/", data="pictures/", timesteps=10)
    """
    place, device = at(index), resolve_device(device)
    noise = noise or ("shared" if log is None else "recorded")
    require("noise", noise, NOISES)
    require("loss", loss, LOSSES)
    require("projection", projection, NAMES)
    require("dtype", dtype, tuple(DTYPES))
    require("missing", missing, MISSING)
    require_positive(dim=dim, draws=draws, events=events)
    if not 0 <= part[0] < part[1]:
        raise CallError(f"part = {part}: give (I, N), I from 0 to N - 1")
    if batch_size != "auto":
        require_positive(batch_size=batch_size)  # type: ignore[arg-type]
    _check_recorded(timesteps, log, events, noise, draws)
    _check_target(place)
    require_faiss()
    dataset = open_dataset(data, columns)
    training = None if log is None else open_log(log)
    chosen, weights = _checkpoints(checkpoints, model, training)
    places = [Path(each.path) for each in chosen]
    denoisers = Checkpoints(places, model, scheduler, device, dtype)
    facts = denoisers.facts()
    first = denoisers[0]
    steps = [each.step for each in chosen]
    names = choose_parameters(first.trainable, params)
    parameter_count = sum(first.model.get_parameter(name).numel() for name in names)

    def plan(dataset: Dataset) -> Work:
        recorded = None
        if training is not None:
            recorded = training.replay(dataset.sample_ids, steps, events, missing, first.num_train_timesteps)
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
        return Work(dataset, recipe, recorded, skip_bad)

    if facts["classes"] is None:
        dataset = replace(dataset, labels=None)
    store, work = None, plan(dataset)
    check_capture(first, work.recipe)  # a layer without a rule is an error before anything is written
    batch = fitting_batch(first, work.recipe) if batch_size == "auto" else int(batch_size)
    if is_store(place):
        try:
            store, work = _continued(place, dataset, plan)
        except GradindexError:
            if not overwrite:
                raise
            place.set_aside()
    attributes = {
        "model": str(Path(model).resolve()),
        "scheduler": None if scheduler is None else str(Path(scheduler).resolve()),
        "checkpoints": [{"path": str(place.resolve())} for place in places],
        "weights": weights,
        "data": dataset.to_json(),
        "log": None if log is None else str(Path(log).resolve()),
    }
    if store is None:
        recipe = work.recipe
        if recipe.projection == TWO_SIDED:
            recipe = replace(recipe, strong=find_strong(first, work, batch))
        store = Store.create(place, recipe, dataset.sample_ids, **attributes)
        store.require_recipe(replace(recipe, strong=store.recipe.strong), "another build was started there")
    store.set_attributes(**attributes)
    fill(store, replace(work, recipe=store.recipe), denoisers, batch, part)
    if store.missing():  # which the other parts make
        return search.Index(store, None, device)
    store.finish()
    if len(store.left_out) == len(store.sample_ids):
        raise DataError(f"data {dataset.source}: not one of {len(dataset)} pictures can be read")
    for method in METHODS:
        if open_index(store, method).damages():
            build_index(store, method)
    place.drop_aside()
    return search.Index(store, None, device)


def _check_target(place: Place) -> None:
    left_by_a_crash = {*ROW_ARRAYS, IDS, "manifest"}
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
            warnings.warn(f"checkpoint {each.path} counts for nothing: its weight or learning rate is 0", stacklevel=3)
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


def _continued(place: Place, dataset: Dataset, plan: Callable[[Dataset], Work]) -> tuple[Store, Work]:
    """The store there, with the data set's new pictures at its end, and the work on it in the order of its rows.

    Raises:
        RecipeMismatch: it is another build's; a picture of it is gone and was not removed, or is another one now.
    """
    store = Store.mended(place)
    removed, kept = store.attributes["removed"], store.sample_ids
    other_data = f"{store.place}: built over another data set (overwrite replaces it)"
    positions = dataset.positions(kept)
    gone = [name for row in np.flatnonzero(positions < 0) if id_key(name := kept[int(row)]) not in removed]
    if gone:
        what = f"data: {len(gone)} of {len(kept)} pictures are gone, such as {gone[0]!r}; `remove` them first"
        raise RecipeMismatch(other_data, [what])
    new = np.setdiff1d(np.arange(len(dataset)), positions)
    new = np.array([row for row in new if not removed or id_key(dataset.sample_ids[row]) not in removed], np.int64)
    names = [dataset.sample_ids[row] for row in new]
    work = plan(dataset.in_order([*kept, *names], np.concatenate([positions, new])))
    strong = store.recipe.strong  # found by that build; another machine's rounding may find others
    recipe = replace(work.recipe, strong=strong)
    store.require_recipe(recipe, "built with another recipe (overwrite replaces it)")
    for shard, entry in store.committed():
        for row in exchanged(shard, entry, work.dataset):
            raise RecipeMismatch(other_data, [f"data: {kept[row]!r} is another picture now"])
    return grow(store, names) if names else store, work

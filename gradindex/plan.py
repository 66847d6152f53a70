"""What a build's arguments come to: which pictures, checkpoints and timesteps, and the recipe of their gradients."""

import hashlib
import math
import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gradindex.dataset import Columns, Dataset, open_dataset
from gradindex.denoiser import DTYPES, Checkpoints
from gradindex.errors import CallError, DataError
from gradindex.gradients.projection import NAMES, TWO_SIDED
from gradindex.gradients.rows import capture_for, check_capture, choose_parameters, fitting_batch, sample_gradients
from gradindex.manifest import Shard
from gradindex.recipe import FOLDED, LOSS, LOSSES, NOISES, OUTPUTS, ROWS, Recipe, grid, require, require_positive
from gradindex.store import SHARD_ROWS
from gradindex.training_log import MISSING, LoggedCheckpoint, TrainingLog, open_log, training_weights
from gradindex.work import Work

DIM = 4096
RANK = 16  # of the two-sided projection


@dataclass(frozen=True)
class Plan:
    """What a build makes, and with what.

    Attributes:
        dataset: the pictures as they were opened. work_on: the work on them in any order.
        attributes: the store's, beside the recipe.
    """

    dataset: Dataset
    work_on: Callable[[Dataset], Work]
    denoisers: Checkpoints
    batch_size: int
    attributes: dict[str, Any]


def estimate(plan: Plan) -> dict[str, Any]:
    """What the build would make and take, from its plan and a batch of gradients that is taken and timed.

    Returns:
        `pictures`, `rows` [C, N, T, D], `shards`, `bytes` of each array, `gradients`, `batch_size`, `seconds` for all
        of them at this batch's pace on this device, `memory`: the most bytes that this process has had so far.
    """
    dataset, denoiser = plan.dataset, plan.denoisers[0]
    work = plan.work_on(dataset)
    shape = work.recipe.shape(len(dataset))
    each, gradients = work.recipe.per_picture * work.recipe.draws, work.gradients([Shard(0, 0, 0, len(dataset))])
    gradients *= 1 if work.recipe.rows == FOLDED else shape[0]
    some = [row for row in range(len(dataset)) if not work.left_out(0, row)][: -(-plan.batch_size // each)]
    readable, pictures = replace(work, skip_bad=True).read(some)
    if not readable:
        raise DataError(f"data {dataset.source}: not one of {len(some)} pictures tried can be read")
    with capture_for(denoiser, work.recipe) as capture:
        for _ in range(2):  # the first time pays for what is made once
            began = time.perf_counter()
            sample_gradients(
                denoiser, capture, work.recipe, pictures, work.events(0, readable),
                dataset.labels_of(readable, work.recipe.classes), batch_size=plan.batch_size,
            )  # fmt: skip
            seconds = time.perf_counter() - began
    numbers = math.prod(shape)
    sizes = {"normalized": 2 * numbers, "unnormalized": 4 * numbers}
    return {
        "pictures": shape[1],
        "rows": shape,
        "shards": shape[0] * -(-shape[1] // SHARD_ROWS),
        "bytes": sizes | dict.fromkeys(("norm", "timestep"), 4 * numbers // shape[3]),
        "gradients": gradients,
        "batch_size": plan.batch_size,
        "seconds": seconds / (len(readable) * each) * gradients,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


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
    output: str,
    projection: str,
    dim: int,
    rows: str,
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
    require("output", output, OUTPUTS)
    require("projection", projection, NAMES)
    require("dtype", dtype, tuple(DTYPES))
    require("rows", rows, ROWS)
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
    names = choose_parameters(first.trainable, params)
    parameter_count = sum(first.model.get_parameter(name).numel() for name in names)
    if facts["classes"] is None:
        dataset = replace(dataset, labels=None)

    def work_on(dataset: Dataset) -> Work:
        recorded = None
        if training is not None:
            steps = [each.step for each in chosen]
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
            rows=FOLDED if rows == FOLDED else None,
            output=None if output == LOSS else output,
        )
        _check_data(dataset, recipe)
        return Work(dataset, recipe, recorded, skip_bad)

    recipe = work_on(dataset).recipe
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
    return Plan(dataset, work_on, denoisers, batch, attributes)


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

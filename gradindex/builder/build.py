"""Build an index: data set × checkpoints → gradient store → search files.

Stopped and run again, a build goes on where it was.
"""

import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gradindex.builder.continuation import (
    as_begun,
    as_begun_options,
    continue_or_create,
    in_store_order,
)
from gradindex.builder.job import BuildJob
from gradindex.builder.options import BuildOptions
from gradindex.builder.parameter_choice import parameter_choice
from gradindex.builder.plan import DIM, make_plan
from gradindex.builder.preparation import drop_prepared
from gradindex.builder.shard_maker import ShardMaker
from gradindex.builder.shards import fill, missing_shards, progress, rows_of
from gradindex.builder.target import check_target
from gradindex.builder.workers import fill_on_cluster
from gradindex.data.buckets import describe_buckets
from gradindex.data.dataset import Columns
from gradindex.errors import CallError, DataError
from gradindex.models.devices import resolve_device
from gradindex.ray_connection import require_ray
from gradindex.recipe import FULL
from gradindex.search.ann_builder import mend_ann_indexes
from gradindex.search.ann_index import (
    INDEX_NAMES,
    default_index_names,
    require_faiss,
)
from gradindex.search.ann_record import index_record_file
from gradindex.search.index import Index
from gradindex.search.made_files import has_factor_files
from gradindex.search.scoring import METHODS
from gradindex.search.whitening import mend_whitening
from gradindex.store.location import locate
from gradindex.store.manifest import Shard
from gradindex.store.store import Store
from gradindex.wording import counted, share

LOGGER = logging.getLogger("gradindex")


def build(
    index: str | Path,
    *,
    model: str | Path | None = None,
    data: str | Path,
    checkpoints: Mapping[str, float | None] | Sequence[str | Path] | None = None,
    scheduler: str | Path | None = None,
    columns: Columns | None = None,
    timesteps: int | Sequence[float] | str | None = None,
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
    caption: str | None = None,
    missing_caption: str = "error",
    resolution: int | tuple[int, int] | None = None,
    buckets: int | Sequence[tuple[int, int]] | None = None,
    latents: str = "mean",
    guidance: float | None = None,
    weighting: str | None = None,
    noise_offset: float = 0.0,
    input_perturbation: float = 0.0,
    masks: str | Path | None = None,
    denoiser: Any = None,
    adapters: Mapping[str, float | None] | Sequence[str | Path] | str | Path | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    check: bool = False,
    part: tuple[int, int] = (0, 1),
    ray: str | None = None,
) -> Index:
    """Build an index over a training set, or go on with one that was stopped.

    Args:
        index: the folder to write, or a URL such as s3://bucket/index.
        model: a diffusers pipeline folder, a model folder, or a training checkpoint.
        data: a folder of pictures, or anything that `datasets` opens.
        checkpoints: where the weights are, {path: weight}, when there are several; a weight of
            None, or a plain sequence of paths, means 1 / C each. A weight is the learning rate
            times the share of training that the checkpoint stands for; with a log that is the
            default, and so are all checkpoints that it knows.
        scheduler: the scheduler's folder or JSON file, when it does not lie beside the model.
        columns: picture, id and label columns of a `datasets` table.
        timesteps: "weighted:N", N of them, closer together where a gradient tells more (see
            docs/method.md); or how many, evenly spaced, up to 100, or "even:N", also more; or
            which; or "recorded": those that each picture was last trained on before a checkpoint
            (weaker than a grid). None: those of the index that is there, else "weighted:5", or of
            an own denoiser ten evenly spaced.
        log: what a training run drew: a `TrainingRecorder`'s folder, or a CSV or Parquet table (see
            `open_log`).
        events: how many of a picture's last recorded events.
        missing: what a picture gets that has fewer: "error", "skip" (it is left out), or "grid"
            (evenly spaced timesteps in place of those it lacks).
        draws: noise draws averaged per picture and timestep.
        noise: "shared" by all pictures and queries (the default of a grid); each picture its "own"
            (weak, see docs/trust.md); or "recorded", the very noise of training (the default of
            recorded timesteps).
        loss: "mse" or "l1".
        output: what gradients are taken of: "loss", or "mean-square" of what the model gives
            (D-TRAK).
        projection: "auto" (two-sided, then sketched), "sketch" (exact per-sample weight gradients,
            sketched), "rademacher" (dense, slow: a baseline) or "none" (exact, small models).
        dim: width D of a projected row. Where no more parameters are chosen, "auto" keeps their
            gradients as they are, without a projection.
        rows: "full", or "folded": in place of a picture's C · T rows only the vector that they are
            searched by, of at most 4,096 numbers. Scores are then as exact as that fold, and there
            are no answers by timestep. "compact": all rows in codes of 8 bits, a sixth of the bytes
            of full ones.
        params: which parameters count: a part of the model by its name, "all", "norms",
            "attention", "convolutions", "biases", "first", "middle", "second-half", "last-block",
            "last-unit", "last" or "level-K" (docs/models.md says what each is), or those in whose
            name a regular expression is found. A part's name always means the part.
        seed: of noise and projection.
        dtype: "float32", "tf32", "bfloat16" or "float16", of the weights while gradients are
            taken; rows are float32. "tf32" is float32 that a GPU rounds to TF32 where it
            multiplies, which it does not for "float32".
        batch_size: how many (picture, timestep, draw) at once, as many as fit for "auto"; changes
            no result beyond float rounding, and is halved when the device has not the memory.
        caption: one for all pictures, of a model that is given captions; otherwise each has its
            own, in a column of the table, or in a file x.txt or x.caption beside x.png.
        missing_caption: what a picture without one gets: "error", or "empty".
        resolution: side, or width and height, of the pictures that a model of latents encodes; that
            which the model was made for by default.
        buckets: aspect-ratio buckets, the sizes of pictures of which each gets the nearest: those
            of kohya's scripts by the step of their sides, such as 64, with areas up to the
            resolution's; or a list of widths and heights.
        latents: "mean" of what the VAE says of a picture, or "sample" of it, drawn once; "npz":
            those that kohya's scripts left beside the pictures.
        guidance: the scale that a model with guidance embedding (Flux dev) was told in training;
            3.5 by default, as in diffusers' scripts.
        weighting: how the training weighted its loss by timestep, such as "min-snr:5"; see
            docs/recipes.md.
        noise_offset: that of the training, such as 0.05.
        input_perturbation: that of the training, such as 0.1.
        masks: of a training with a masked loss: a folder with a mask x.png of each picture x.png,
            or "alpha" for the pictures' own alpha channels.
        denoiser: an object of your own in place of a model, for what gradindex does not know;
            docs/models.md says what it must have.
        adapters: a LoRA file or folder trained on `model`, whose parameters alone gradients are
            then taken of; or several, the checkpoints of one run, with weights or without as for
            `checkpoints`. docs/recipes.md says which files are known.
        skip_bad: leave out pictures that cannot be read, instead of stopping at them.
        overwrite: replace an index of another recipe or data set, which stays as INDEX.replaced
            until the new one is whole.
        check: read every byte of what is there, and make anew what is damaged. Otherwise files are
            known by their sizes and by the entries that are sealed when they are whole.
        part: (I, N) makes the I-th of N parts, I from 0 to N − 1, so that N processes anywhere
            share the work; whoever finishes last makes the search index.
        ray: "local" shares the work among this machine's GPUs, or its CPUs where there are none; an
            address ("auto", "host:port", "ray://…") among those of the whole Ray cluster there,
            whose nodes have gradindex installed and see index, model and data under the same paths.
            What a killed worker or node was making is made anew.

    Returns:
        The open index; it answers when all parts are made.

    Raises:
        CallError, RecipeMismatch, DataError, ModelError, StoreError: see `gradindex.errors`.

    Examples:
        >>> index = gradindex.build(
        ...     "idx", model="ckpt/", data="pictures/"
        ... )  # doctest: +SKIP
    """
    if not 0 <= part[0] < part[1]:
        raise CallError(f"part = {part}: give (I, N), I from 0 to N - 1")
    if ray is not None and part[1] > 1:
        raise CallError(
            f"ray = {ray!r} and part = {part}: give one of them; Ray shares the work itself"
        )
    location = locate(index)
    # With Ray `device` is the workers', and so are the GPUs: the driver plans on its CPU.
    driver_device = resolve_device(device if ray is None else "auto")
    check_target(location)
    require_faiss()
    if ray is not None:
        require_ray()
    timesteps, begun = as_begun_options(location, timesteps, log)
    options = BuildOptions(
        model=model,
        data=data,
        checkpoints=checkpoints,
        scheduler=scheduler,
        columns=columns,
        timesteps=timesteps,
        begun=begun,
        log=log,
        events=events,
        missing=missing,
        draws=draws,
        noise=noise,
        loss=loss,
        output=output,
        projection=projection,
        dim=dim,
        rows=rows,
        params=params,
        seed=seed,
        dtype=dtype,
        batch_size=batch_size,
        caption=caption,
        missing_caption=missing_caption,
        resolution=resolution,
        buckets=buckets,
        latents=latents,
        guidance=guidance,
        weighting=weighting,
        noise_offset=noise_offset,
        input_perturbation=input_perturbation,
        masks=masks,
        denoiser=denoiser,
        adapters=adapters,
        skip_bad=skip_bad,
    )
    plan = make_plan(options, driver_device if ray is None else "cpu")
    store, job = continue_or_create(location, plan, overwrite, part)
    for line in job.dataset.describe():
        LOGGER.info(line)
    store.update_header(**plan.origin)
    if job.recipe.part is not None or job.recipe.params is not None:
        store.update_header(parameters=parameter_choice(plan.denoisers[0], job.recipe))
    shards = missing_shards(store, job, part, check=check)
    rows_read, sizes = rows_of(shards), job.recipe.buckets
    for line in job.dataset.describe_changes(job.recipe.pixels, rows_read, sizes):
        LOGGER.info(line)
    if held := describe_buckets(job.dataset, sizes, rows_read):
        LOGGER.info(f"buckets: {held}")
    if ray is None:
        fill(store, job, plan.denoisers, plan.batch_size, shards)
    else:
        _fill_with_ray(ray, index, options, device, job, shards)
    # Shards of other parts may still be missing: whoever makes the last one finishes the index.
    if not store.missing():
        _finish(store, data, driver_device, check)
    return Index(store, None, driver_device, denoiser=denoiser)


def _fill_with_ray(
    address: str,
    index: str | Path,
    options: BuildOptions,
    device: str,
    job: BuildJob,
    shards: Mapping[Shard, bool],
) -> None:
    """Have the workers of a Ray cluster make shards; see `fill_on_cluster`."""
    with progress(job.count_gradients(shards)) as bar:

        def on_made(shard: Shard) -> None:
            bar.update(job.count_gradients([shard]))

        prepare_worker = partial(_prepare_worker, index, options)
        fill_on_cluster(address, prepare_worker, shards, device, on_made)


def _prepare_worker(index: str | Path, options: BuildOptions, device: str) -> ShardMaker:
    """Return what makes a Ray worker's shards, for the same build, planned anew.

    Raises:
        DataError: the worker sees other pictures than the driver.
        RecipeMismatch: it sees another model, or has another version of gradindex.
    """
    workers_per_device = (os.cpu_count() or 1) if device == "cpu" else 1
    plan = make_plan(options, device, workers_per_device)
    store = Store(index)
    dataset, new_ids = in_store_order(store, plan.dataset)
    if new_ids:
        raise DataError(
            f"data {dataset.source}: a Ray worker finds other pictures there than the driver"
        )
    job = plan.job_on(dataset)
    recipe = as_begun(job.recipe, store.recipe, plan.denoisers)
    store.require_recipe(recipe, "a Ray worker makes another recipe of it")
    job = replace(job, recipe=store.recipe)
    return ShardMaker(store, job, plan.denoisers, plan.batch_size)


def _finish(store: Store, data: str | Path, device: str, check: bool = False) -> None:
    """Publish a store whose shards are all made, and make the search files that it lacks.

    Args:
        check: read every byte of those that are there; otherwise their sizes are compared.

    Raises:
        DataError: not one picture could be read.
    """
    store.finish()
    if len(store.excluded) == len(store.sample_ids):
        raise DataError(
            f"data {data}: not one of {counted(len(store.sample_ids), 'picture')} can be read"
        )
    _warn_of_zeros(store)
    for method in METHODS:
        if check or not has_factor_files(store, method):
            mend_whitening(store, method, device)
    names = [name for name in INDEX_NAMES if _needs_index(store, name)]
    mend_ann_indexes(store, names, device, check)
    drop_prepared(store.location)
    store.location.drop_aside()


def _warn_of_zeros(store: Store) -> None:
    """Warn of rows that are zero though there was a picture: they rank as any score of 0 does."""
    zeros, rows = store.summary.zero_gradients, math.prod(store.shape[:3])
    if zeros:
        warnings.warn(
            f"{store.location}: {share(zeros, rows, 'gradient', 'is', 'are')} zero, and score 0"
            " whatever is asked; the parameters that count may be untrained, or dtype too narrow"
            " for them",
            stacklevel=3,
        )


def _needs_index(store: Store, name: str) -> bool:
    """Whether a build makes the search index of a name, or mends it since it was asked for once."""
    if name in default_index_names(store):
        return True
    return bool(store.location.sizes([index_record_file(name)]))

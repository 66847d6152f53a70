"""The plan of a build: which pictures, checkpoints and timesteps, and the recipe of the rows."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NotRequired, TypedDict

from msgspec import UNSET

from gradindex.builder.checkpoint_weights import WeightedCheckpoint, choose_checkpoints
from gradindex.builder.job import BuildJob, EventChoice
from gradindex.builder.options import BuildOptions
from gradindex.data.captions import with_captions
from gradindex.data.dataset import Dataset
from gradindex.data.latent_files import check_latent_files, with_latent_files
from gradindex.data.masks import mask_kind, masks_source, with_masks
from gradindex.data.opening import open_dataset
from gradindex.data.training_log import open_log
from gradindex.errors import CallError
from gradindex.gradients.batch_size import fitting_batch
from gradindex.gradients.parameters import choose_parameters, count_parameters, split_params
from gradindex.gradients.projection import TWO_SIDED
from gradindex.gradients.self_check import check_buckets, check_capture
from gradindex.gradients.weighting import one_spelling, timestep_weights
from gradindex.models.adapter_checkpoints import AdapterCheckpoints
from gradindex.models.checkpoints import Checkpoints
from gradindex.models.custom import OneDenoiser
from gradindex.models.denoiser import Denoiser
from gradindex.models.refusals import require_training_schedule, warn_of_teachers
from gradindex.models.trainer_differences import loss_differences
from gradindex.models.trainer_notes import TrainerNotes
from gradindex.recipe import FULL, LOSS, NPZ, Recipe
from gradindex.store.records import CheckpointPath, DataSource

DIM = 4096
RANK = 16  # of the two-sided projection


class Origin(TypedDict):
    """Where a build's model and pictures are, and what its checkpoints count.

    These are fields of the store's `Header`. They are no part of the recipe: a later build may
    change them and keep the rows.
    """

    model: str
    scheduler: str | None
    checkpoints: list[CheckpointPath]
    weights: list[float]
    data: DataSource
    log: str | None
    trainer: NotRequired[TrainerNotes]


@dataclass(frozen=True)
class Plan:
    """What a build makes, and with what.

    Attributes:
        dataset: the pictures in the order in which they were opened.
        denoisers: the models of the checkpoints.
        recipe: of the rows; without the digest of recorded events, which depends on the pictures.
        event_choice: which events of a training log; None for a grid of timesteps.
        skip_bad: whether a picture that cannot be read is left out, instead of stopping the build.
        batch_size: how many (picture, timestep, draw) go through the model at once.
        origin: fields of the store's header.
    """

    dataset: Dataset
    denoisers: Checkpoints
    recipe: Recipe
    event_choice: EventChoice | None
    skip_bad: bool
    batch_size: int
    origin: Origin

    def job_on(self, dataset: Dataset) -> BuildJob:
        """Return the job of a data set: the plan's, or one with its pictures in another order.

        Raises:
            CallError: see `BuildJob.of`.
        """
        return BuildJob.of(dataset, self.recipe, self.event_choice, self.skip_bad)


def make_plan(options: BuildOptions, device: str, processes: int = 1) -> Plan:
    """Return the plan of a build; nothing is written.

    Pictures are listed, the first checkpoint is loaded, of the others the headers are read, and the
    first one's captured gradient is compared with autograd's.

    Args:
        device: "cpu" or "cuda".
        processes: how many such processes share the device's memory.

    Raises:
        CallError, DataError, ModelError: see `build`.
    """
    dataset = open_dataset(options.data, options.columns)
    log = None if options.log is None else open_log(options.log)
    if options.model is None:
        checkpoints = [WeightedCheckpoint("", 0, 1.0)]
    else:
        checkpoints = choose_checkpoints(options.weighted_paths, options.model, log)
    denoisers = _open_checkpoints(options, checkpoints, device, processes)
    recipe = _make_recipe(options, denoisers)
    if denoisers.notes is not None:
        for difference in loss_differences(denoisers.notes, recipe):
            warnings.warn(f"the adapter's training {difference}", stacklevel=2)
    if recipe.classes is None:
        dataset = replace(dataset, labels=None)
    if options.adapters:
        warn_of_teachers(checkpoint.path for checkpoint in checkpoints)
    first = denoisers[0]
    require_training_schedule(first)
    if options.latents == NPZ:
        dataset = _with_latents(dataset, first, recipe)
    if first.family.captioned:
        dataset = with_captions(dataset, options.caption, options.missing_caption)
    elif options.caption is not None:
        raise CallError(f"caption = {options.caption!r}: the model is given no captions")
    else:
        dataset = replace(dataset, captions=None)
    if options.masks is not None:
        dataset = with_masks(dataset, options.masks)
    event_choice = None
    if log is not None:
        steps = [checkpoint.step for checkpoint in checkpoints]
        event_choice = EventChoice(log, steps, options.events, options.missing, first.process)
    # What does not fit is an error before anything is written.
    job = BuildJob.of(dataset, recipe, event_choice, options.skip_bad)
    check_capture(first, job.recipe)
    check_buckets(first, job.recipe)
    if options.batch_size == "auto":
        batch_size = fitting_batch(first, job.recipe, processes)
    else:
        batch_size = int(options.batch_size)
    return Plan(
        dataset=dataset,
        denoisers=denoisers,
        recipe=recipe,
        event_choice=event_choice,
        skip_bad=options.skip_bad,
        batch_size=batch_size,
        origin=_make_origin(options, checkpoints, dataset, denoisers.notes),
    )


def _open_checkpoints(
    options: BuildOptions, checkpoints: list[WeightedCheckpoint], device: str, processes: int
) -> Checkpoints:
    """The models of a build's checkpoints, none of them loaded yet."""
    if options.model is None:
        return OneDenoiser(options.denoiser, device, options.dtype)
    paths = [Path(checkpoint.path) for checkpoint in checkpoints]
    kind = AdapterCheckpoints if options.adapters else Checkpoints
    return kind(
        paths,
        options.model,
        options.scheduler,
        device,
        options.dtype,
        resolution=options.picture_size,
        latents=options.latents,
        seed=options.seed,
        guidance=options.guidance,
        buckets=options.bucket_choice,
        processes=processes,
    )


def _make_recipe(options: BuildOptions, denoisers: Checkpoints) -> Recipe:
    """Return the recipe of a build's rows, without the digest of recorded events.

    Raises:
        CallError: no parameter is chosen, a timestep is not the scheduler's, or the weighting is
            none that the model takes.
        ModelError: a checkpoint cannot be loaded, or is of another model than the first.
    """
    model_fields = denoisers.recipe_fields()
    first = denoisers[0]
    params, part = split_params(options.params)
    names = choose_parameters(first, params, part)
    parameter_count = count_parameters(first, names)
    recorded = options.log is not None
    grid, begun = options.grid_timesteps, options.begun
    if begun is not None and begun.timesteps and begun.scheduler == model_fields["scheduler"]:
        grid = begun.timesteps
    timesteps = () if recorded else first.process.grid(grid)
    timestep_weights(options.weighting, first.process, timesteps or first.process.grid(1))
    two_sided = options.projection == "auto"
    return Recipe(
        **model_fields,
        params=params,
        parameter_count=parameter_count,
        timesteps=timesteps,
        draws=options.draws,
        noise=options.noise_or_default,
        seed=options.seed,
        loss=options.loss,
        projection=TWO_SIDED if two_sided else options.projection,
        rank=RANK if two_sided else None,
        high_rank=(),
        dim=parameter_count if options.projection == "none" else options.dim,
        events=options.events if recorded else None,
        rows=None if options.rows == FULL else options.rows,
        output=None if options.output == LOSS else options.output,
        weighting=one_spelling(options.weighting),
        noise_offset=options.noise_offset or None,
        input_perturbation=options.input_perturbation or None,
        masks=None if options.masks is None else mask_kind(options.masks),
        part=part,
    )


def _with_latents(dataset: Dataset, denoiser: Denoiser, recipe: Recipe) -> Dataset:
    """The data set with the latents that kohya's scripts left beside its pictures."""
    assert denoiser.encoder is not None, "an error before, see `load_denoiser`"
    with_files = with_latent_files(dataset, recipe.images)
    name = denoiser.family.kohya_name(denoiser.model.config)
    check_latent_files(with_files, name, denoiser.encoder.factor)
    return with_files


def _make_origin(
    options: BuildOptions,
    checkpoints: list[WeightedCheckpoint],
    dataset: Dataset,
    notes: TrainerNotes | None,
) -> Origin:
    """Return the header fields of a build, with absolute paths."""
    origin = Origin(
        model="" if options.model is None else _absolute(options.model),
        scheduler=None if options.scheduler is None else _absolute(options.scheduler),
        checkpoints=[CheckpointPath(path=_absolute(c.path) if c.path else "") for c in checkpoints],
        weights=[checkpoint.weight for checkpoint in checkpoints],
        data=DataSource(
            **dataset.to_json(),
            caption=UNSET if options.caption is None else options.caption,
            masks=UNSET if options.masks is None else masks_source(options.masks),
        ),
        log=None if options.log is None else _absolute(options.log),
    )
    if notes is not None:
        origin["trainer"] = notes
    return origin


def _absolute(path: str | Path) -> str:
    return str(Path(path).resolve())

"""What a build would make and take: rows, bytes on disk, and time from a batch that is timed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from gradindex.builder.job import BuildJob
from gradindex.builder.parameter_choice import parameter_choice
from gradindex.builder.plan import Plan
from gradindex.data.buckets import describe_buckets
from gradindex.gradients.cost import forward_passes
from gradindex.gradients.parameters import capture_for
from gradindex.gradients.sampling import sample_gradients
from gradindex.machine_memory import peak_memory
from gradindex.models.checkpoints import Checkpoints
from gradindex.models.examples import Examples
from gradindex.recipe import Recipe
from gradindex.search.ann_builder import FLAT_BYTES
from gradindex.search.factors import WIDEST, factor_bytes, is_few_for
from gradindex.search.scoring import METHODS
from gradindex.store.array_names import array_bytes
from gradindex.store.records import ParameterChoice
from gradindex.store.store import SHARD_ROWS

ENTRY_BYTES = 3000  # of a shard's entry in the manifest, but for its pictures
PICTURE_BYTES = 44  # that an entry has for each picture: fingerprint, content, stat
ID_BYTES = 4  # of an id's length, before it


@dataclass(frozen=True)
class Estimate:
    """What a build would make, and what it would take.

    Attributes:
        pictures: N.
        rows: [C, N, T, D] of the arrays.
        shards: units of work.
        bytes: of each part of the finished index on disk, {name: bytes}; of search files the most
            that may come of measuring them.
        gradients: how many (checkpoint, picture, timestep, draw) go through the model.
        batch_size: how many of them at once.
        seconds: for all gradients, at the pace of one batch on this device.
        forward_passes: that take as long as a gradient.
        memory: the most bytes that this process has had so far; None where it is not known.
        buckets: which hold how many pictures; empty: there are none.
        prepared: bytes on disk of encoded pictures and captions, until the build is finished.
        recipe: of the rows. parameters: which it chose.
    """

    pictures: int
    rows: tuple[int, int, int, int]
    shards: int
    bytes: dict[str, int]
    gradients: int
    batch_size: int
    seconds: float
    forward_passes: float
    memory: int | None
    buckets: str
    prepared: int
    recipe: Recipe
    parameters: ParameterChoice


def estimate(plan: Plan) -> Estimate:
    """Return what a build would make and take, by its plan and a batch of gradients that is timed.

    Raises:
        DataError: none of the pictures that the batch would be made of can be read.
    """
    job = plan.job_on(plan.dataset)
    job = replace(job, recipe=job.recipe.exact_where_narrow())
    shape = job.recipe.shape(len(job.dataset))
    checkpoints, pictures, _, _ = shape
    gradients = pictures * job.gradients_per_picture * len(job.recipe.checkpoints)
    readable, examples = _first_batch(plan, job)
    return Estimate(
        pictures=pictures,
        rows=shape,
        shards=checkpoints * -(-pictures // SHARD_ROWS),
        bytes=index_bytes(job.recipe, job.dataset.sample_ids),
        gradients=gradients,
        batch_size=plan.batch_size,
        seconds=_seconds_per_gradient(plan, job, readable, examples) * gradients,
        forward_passes=forward_passes(plan.denoisers[0], job.recipe, plan.batch_size),
        memory=peak_memory(),
        buckets=describe_buckets(job.dataset, job.recipe.buckets, np.arange(pictures)),
        prepared=_prepared_bytes(job, plan.denoisers, examples),
        recipe=job.recipe,
        parameters=parameter_choice(plan.denoisers[0], job.recipe),
    )


def index_bytes(recipe: Recipe, sample_ids: Sequence[str]) -> dict[str, int]:
    """Return the bytes of each part of an index of some pictures, {name: bytes}."""
    shape = recipe.shape(len(sample_ids))
    checkpoints, pictures, _, dim = shape
    shards = checkpoints * -(-pictures // SHARD_ROWS)
    id_bytes = sum(len(name.encode("utf-8", "surrogateescape")) + ID_BYTES for name in sample_ids)
    is_few = is_few_for(shape, pictures)
    has_factors = dim <= WIDEST and not is_few
    searches = len(METHODS) * (2 if has_factors else 0 if is_few else 1)
    return {
        **array_bytes(recipe, pictures),
        "ids": 2 * id_bytes,  # each file has a copy
        "manifest": shards * ENTRY_BYTES + checkpoints * pictures * PICTURE_BYTES,
        "whitening": factor_bytes(shape) if has_factors else 0,
        "search files": searches * pictures * _search_bytes(recipe.search_width, pictures),
    }


def _search_bytes(width: int, pictures: int) -> int:
    """The most bytes of a search vector: float32 up to a gigabyte of them, then RaBitQ's codes."""
    if 4 * width * pictures <= FLAT_BYTES:
        return 4 * width
    return width // 2 + 22


def _first_batch(plan: Plan, job: BuildJob) -> tuple[list[int], Examples]:
    """The first pictures that make a batch or more, as the first checkpoint takes them."""
    rows = (row for row in range(len(job.dataset)) if not job.is_excluded(0, row))
    tried = list(islice(rows, -(-plan.batch_size // job.gradients_per_picture)))
    skipping = replace(job, skip_bad=True)
    readable, examples, _ = skipping.examples(tried, plan.denoisers.encoder)
    if not readable:
        raise job.none_readable(tried)
    return readable, examples


def _seconds_per_gradient(
    plan: Plan, job: BuildJob, readable: list[int], examples: Examples
) -> float:
    """Time the gradients of some pictures at the first checkpoint."""
    denoiser = plan.denoisers[0]
    with capture_for(denoiser, job.recipe) as capture:
        for _ in range(2):  # the first time pays for what is made once
            began = time.perf_counter()
            sample_gradients(
                denoiser,
                capture,
                job.recipe,
                examples,
                job.events(0, readable),
                batch_size=plan.batch_size,
            )
            seconds = time.perf_counter() - began
    return seconds / (len(readable) * job.gradients_per_picture)


def _prepared_bytes(job: BuildJob, denoisers: Checkpoints, examples: Examples) -> int:
    """About how many bytes encoded pictures and captions take until the build is finished.

    Args:
        examples: B of the pictures, B ≥ 1, at the first checkpoint.
    """
    encoders: list[Any] = [denoisers.encoder_of(number) for number in range(len(denoisers))]
    if None in encoders:
        return 0  # a model of pixels
    latents_keys = {encoder.latents_key for encoder in encoders}
    captions_keys = {encoder.captions_key for encoder in encoders} - {None}
    given = (job.dataset.captions or ()) if captions_keys else ()
    captions = {caption for caption in given if caption is not None}
    of_caption = encoders[0].encode_captions([min(captions)])[0] if captions else {}
    columns: list[Any] = [examples.x]
    columns += [values for name, values in examples.conditions.items() if name not in of_caption]
    of_pictures = sum(array.nbytes for column in columns for array in column) / len(examples)
    of_captions = sum(tensor.nbytes for tensor in of_caption.values()) * len(captions)
    pictures = len(job.dataset)
    return round(of_pictures * pictures) * len(latents_keys) + of_captions * len(captions_keys)

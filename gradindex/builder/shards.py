"""The shards of a build: which are missing, and pictures → gradients → folded → written."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np

from gradindex.builder.job import BuildJob
from gradindex.builder.preparation import Preparation
from gradindex.data.picture_facts import NO_CONTENT
from gradindex.gradients.capture import Capture
from gradindex.gradients.fold import search_vectors, unit
from gradindex.gradients.parameters import capture_for
from gradindex.gradients.projection import Projection
from gradindex.gradients.sampling import sample_gradients
from gradindex.models.checkpoints import Checkpoints
from gradindex.models.examples import Examples
from gradindex.recipe import FOLDED
from gradindex.store.prefetch import prefetch
from gradindex.store.progress import Progress
from gradindex.store.progress import progress as show_progress
from gradindex.store.records import ShardEntry
from gradindex.store.shard_list import part_of
from gradindex.store.store import Shard, Store

LOGGER = logging.getLogger("gradindex")


def missing_shards(
    store: Store, job: BuildJob, part: tuple[int, int] = (0, 1), *, check: bool = False
) -> dict[Shard, bool]:
    """Return the shards of a part that are to be made.

    Args:
        part: see `part_of`.
        check: read every byte of those that are there. Otherwise a shard is whole whose entry is
            and whose files have the sizes that it says.

    Returns:
        True for a shard that is there and is to be made again: its files are damaged, or it lacks
        pictures that the job does not skip.
    """
    missing = dict.fromkeys(part_of(store.shards(), part), False)
    committed = store.committed(list(missing))
    for shard, entry in show_progress(committed, "checking", len(missing), unit="shard"):
        if (check and store.damaged(entry)) or _lacks_pictures(shard, entry, job):
            missing[shard] = True
        else:
            del missing[shard]
    return missing


def rows_of(shards: Iterable[Shard]) -> np.ndarray:
    """Return the numbers of the pictures in shards, ascending; once each, of many checkpoints too.

    >>> rows_of([Shard(0, 1, 4, 6), Shard(1, 1, 4, 6), Shard(0, 0, 0, 2)])
    array([0, 1, 4, 5])
    """
    spans = sorted({(shard.start, shard.stop) for shard in shards})
    return np.concatenate([np.arange(0), *(np.arange(*span) for span in spans)])


def _lacks_pictures(shard: Shard, entry: ShardEntry, job: BuildJob) -> bool:
    """Whether an earlier build skipped pictures of a shard that this one has to read."""
    if job.skip_bad:
        return False
    return any(not job.is_excluded(shard.checkpoint, row) for row in entry.skipped)


def fill(
    store: Store,
    job: BuildJob,
    denoisers: Checkpoints,
    batch_size: int,
    missing: Mapping[Shard, bool],
) -> None:
    """Make the rows of shards and commit them, checkpoint by checkpoint.

    While the gradients of one shard are taken, a thread reads the next one's pictures, and another
    writes the shard before.

    Args:
        batch_size: how many (picture, timestep, draw) go through the model at once.
        missing: {shard: whether it is made again}; one that is not is left alone where another
            builder has finished it meanwhile.

    Raises:
        DataError: a picture cannot be read, and the job does not skip such pictures.
        ModelError: a gradient is not finite.
        StoreError: see `Store.write`.
    """
    written: Future[None] | None = None
    with (
        progress(job.count_gradients(missing)) as bar,
        ThreadPoolExecutor(1) as writer,
        ShardGradients(job, denoisers, batch_size, bar.update) as gradients,
    ):
        preparation = Preparation(store.location, job, denoisers)
        preparation.run(_unread(store, job, missing))
        read = partial(read_shard, store, job, missing, preparation)
        for shard_pictures in prefetch(read, missing):
            if shard_pictures is None:
                continue
            rows = gradients.rows(shard_pictures)
            # At most one shard waits to be written, and its error ends the build here.
            if written:
                written.result()
            written = writer.submit(write_shard, store, job, rows)
        if written:
            written.result()


def progress(gradients: int) -> Progress:
    """Return the progress of a build that takes so many gradients."""
    return show_progress(title="gradients", total=gradients, unit="gradient")


@dataclass(frozen=True)
class ShardPictures:
    """A shard whose pictures have been read.

    Attributes:
        shard: the pictures `start` … `stop` − 1 of one checkpoint, or of all where rows are folded.
        readable: row numbers of the B pictures whose gradients are to be taken.
        examples: these pictures as the model takes them, {checkpoint: examples}.
        skipped: row numbers without a picture.
        contents: the digest of each of the shard's pictures, see `content_digest`.
        reused: the shard's rows [stop − start, T, D] float32 with those that an earlier build made;
            the others are zero.
    """

    shard: Shard
    readable: list[int]
    examples: Mapping[int, Examples]
    skipped: list[int]
    contents: list[str]
    reused: np.ndarray


@dataclass(frozen=True)
class ShardRows:
    """A shard that is ready to be written.

    Attributes:
        rows: unnormalized gradients, [stop − start, T, D] float32; zero for skipped pictures.
        units: the normalized rows where they are folded; None: `rows` divided by their norms.
        skipped: row numbers without a picture.
        contents: the digest of each picture, see `content_digest`.
    """

    shard: Shard
    rows: np.ndarray
    units: np.ndarray | None
    skipped: list[int]
    contents: list[str]


def read_shard(
    store: Store,
    job: BuildJob,
    missing: Mapping[Shard, bool],
    preparation: Preparation,
    shard: Shard,
) -> ShardPictures | None:
    """Read the pictures of a shard whose gradients are to be taken.

    Returns:
        None where another builder has committed the shard and it is not made again.

    Raises:
        DataError, ModelError: see `BuildJob.examples`.
    """
    if not missing[shard] and any(store.committed([shard])):
        return None
    reused, contents = _reusable_rows(store, shard)
    rows = range(shard.start + len(contents), shard.stop)
    included = _included(job, shard.checkpoint, rows)
    checkpoints = job.checkpoints_of(shard.checkpoint)
    readable, examples, digests = preparation.read(checkpoints, included)
    skipped = sorted(set(rows).difference(readable))
    digest_of = dict(zip(readable, digests, strict=True))
    contents += [digest_of.get(row, NO_CONTENT) for row in rows]
    return ShardPictures(shard, readable, examples, skipped, contents, reused)


def _unread(
    store: Store, job: BuildJob, missing: Mapping[Shard, bool]
) -> Iterator[tuple[range, list[int]]]:
    """The checkpoints of each shard, and the rows whose pictures `read_shard` reads for it."""
    for shard in missing:
        entry = _reusable_entry(store, shard)
        rows = range(shard.start if entry is None else entry.rows[1], shard.stop)
        yield job.checkpoints_of(shard.checkpoint), _included(job, shard.checkpoint, rows)


def _included(job: BuildJob, checkpoint: int, rows: range) -> list[int]:
    return [row for row in rows if not job.is_excluded(checkpoint, row)]


def _reusable_rows(store: Store, shard: Shard) -> tuple[np.ndarray, list[str]]:
    """Return the rows of a shard that were committed before pictures were added to it.

    Returns:
        [stop − start, T, D] float32, zero where there are none, and the digest of the picture of
        each row that there is, see `content_digest`.
    """
    rows = np.zeros((shard.stop - shard.start, *store.shape[2:]), np.float32)
    entry = _reusable_entry(store, shard)
    if entry is None:
        return rows, []
    stop = entry.rows[1]
    numbers = slice(shard.start, stop)
    rows[: stop - shard.start] = store.read("unnormalized", shard.checkpoint, numbers)
    return rows, [entry.content(row) for row in range(shard.start, stop)]


def _reusable_entry(store: Store, shard: Shard) -> ShardEntry | None:
    """Return the entry of a shard's rows that were committed before pictures were added to it.

    None where there are none, pictures were skipped, files are damaged, or rows are folded.
    """
    # An entry with fewer pictures than the shard has now counts as none. It does count for the
    # shard of one picture that begins where this one does.
    for _, entry in store.committed([replace(shard, stop=shard.start + 1)]):
        reusable = not entry.skipped and store.recipe.rows != FOLDED
        if entry.rows[1] < shard.stop and reusable and not store.damaged(entry):
            return entry
    return None


class ShardGradients:
    """Takes the gradients of shards.

    The capture on a checkpoint's model stays open from shard to shard, until a shard of another
    checkpoint comes or the `with` block ends.

    Args:
        denoisers: the models of the checkpoints.
        batch_size: how many (picture, timestep, draw) go through the model at once.
        progress: called with the number of gradients that were just taken.
    """

    def __init__(
        self,
        job: BuildJob,
        denoisers: Checkpoints,
        batch_size: int,
        progress: Callable[[int], object],
    ) -> None:
        self._job = job
        self._denoisers = denoisers
        self._batch_size = batch_size
        self._progress = progress
        self._captures = ExitStack()
        self._captured: tuple[int, Capture] | None = None
        self._projection: Projection | None = None  # one for all checkpoints

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._captures.close()

    def rows(self, shard_pictures: ShardPictures) -> ShardRows:
        """Return the rows of a shard; `reused` of the argument becomes them.

        Raises:
            ModelError: a gradient is not finite.
        """
        job, shard = self._job, shard_pictures.shard
        rows = shard_pictures.reused
        folded = job.recipe.rows == FOLDED
        units = np.zeros_like(rows) if folded else None
        if shard_pictures.readable:
            positions = [row - shard.start for row in shard_pictures.readable]
            gradients = [
                self._take(checkpoint, shard_pictures)
                for checkpoint in job.checkpoints_of(shard.checkpoint)
            ]
            if units is None:
                (rows[positions],) = gradients
            else:
                by_checkpoint = np.stack(gradients, axis=1)  # [B, C, T, D]
                rows[positions, 0] = search_vectors(by_checkpoint, job.recipe)
                units[positions, 0] = search_vectors(unit(by_checkpoint), job.recipe)
        skipped, contents = shard_pictures.skipped, shard_pictures.contents
        return ShardRows(shard, rows, units, skipped, contents)

    def _take(self, checkpoint: int, shard_pictures: ShardPictures) -> np.ndarray:
        """Return the gradients of a shard's readable pictures at a checkpoint, [B, T, D]."""
        job, readable = self._job, shard_pictures.readable
        capture = self._capture(checkpoint)
        return sample_gradients(
            self._denoisers[checkpoint],
            capture,
            job.recipe,
            shard_pictures.examples[checkpoint],
            job.events(checkpoint, readable),
            batch_size=self._batch_size,
            progress=self._progress,
        )

    def _capture(self, checkpoint: int) -> Capture:
        """Return the capture on a checkpoint's model; the one on another model is closed first."""
        if self._captured is None or self._captured[0] != checkpoint:
            # Let go of the model before the next one is loaded: there may be room for one only.
            self._captures.close()
            self._captured = None
            denoiser = self._denoisers[checkpoint]
            capture = capture_for(denoiser, self._job.recipe, self._projection)
            self._projection = capture.projection
            self._captured = checkpoint, self._captures.enter_context(capture)
        return self._captured[1]


def write_shard(store: Store, job: BuildJob, shard_rows: ShardRows) -> None:
    """Write the rows of a shard and commit them.

    Raises:
        StoreError: see `Store.write`.
    """
    shard = shard_rows.shard
    store.write(
        shard,
        shard_rows.rows,
        job.row_timesteps(shard),
        shard_rows.skipped,
        job.fingerprints(shard),
        shard_rows.units,
        "".join(shard_rows.contents),
        job.stats(shard),
    )
    LOGGER.debug(f"{shard.name}: pictures {shard.start} to {shard.stop - 1} committed")

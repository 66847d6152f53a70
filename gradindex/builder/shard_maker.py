"""A shard, step by step: pictures read → gradients launched → rows written.

Each step may run in a thread of its own, for another shard.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Self

import numpy as np

from gradindex.builder.job import BuildJob
from gradindex.builder.preparation import Preparation
from gradindex.builder.shard_gradients import (
    ShardGradients,
    ShardPictures,
    ShardRows,
    batches_ahead,
)
from gradindex.data.picture_facts import NO_CONTENT
from gradindex.models.checkpoints import Checkpoints
from gradindex.recipe import FOLDED
from gradindex.store.records import ShardEntry
from gradindex.store.store import Shard, Store

LOGGER = logging.getLogger("gradindex")


class ShardMaker:
    """Makes the rows of shards.

    `encode` and `launch` use the device: they are called by one thread at a time.

    Args:
        batch_size: how many (picture, timestep, draw) go through the model at once.
        progress: called with the number of gradients that were just taken.
    """

    def __init__(
        self,
        store: Store,
        job: BuildJob,
        denoisers: Checkpoints,
        batch_size: int,
        progress: Callable[[int], object] = lambda gradients: None,
    ) -> None:
        self._store = store
        self._job = job
        self._denoisers = denoisers
        self._batch_size = batch_size
        self._preparation = Preparation(store.location, job, denoisers)
        self._gradients = ShardGradients(job, denoisers, batch_size, progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._gradients.close()

    @property
    def encodes(self) -> bool:
        """Whether `encode` has anything to do, ever."""
        return self._preparation.encodes

    def encode(self, missing: Mapping[Shard, bool]) -> None:
        """Encode the pictures of shards, for a model of latents, which makes room for that.

        Raises:
            DataError, ModelError: see `Preparation.run`.
        """
        if self.encodes:
            self._gradients.close()
            self._preparation.run(_unread(self._store, self._job, missing))

    def read(self, shard: Shard, again: bool) -> ShardPictures | None:
        """Read the pictures of a shard whose gradients are to be taken.

        Args:
            again: whether it is made again, whatever is there.

        Returns:
            None where another builder has committed the shard and it is not made again.

        Raises:
            DataError, ModelError: see `BuildJob.examples`.
        """
        if not again and any(self._store.committed([shard])):
            return None
        job = self._job
        reused, contents = _reusable_rows(self._store, shard)
        rows = range(shard.start + len(contents), shard.stop)
        included = _included(job, shard.checkpoint, rows)
        checkpoints = job.checkpoints_of(shard.checkpoint)
        readable, examples, digests = self._preparation.read(checkpoints, included)
        skipped = sorted(set(rows).difference(readable))
        digest_of = dict(zip(readable, digests, strict=True))
        contents += [digest_of.get(row, NO_CONTENT) for row in rows]
        first = checkpoints[0]
        batches = batches_ahead(
            examples[first], job.events(first, readable), self._denoisers, self._batch_size
        )
        return ShardPictures(shard, readable, examples, skipped, contents, reused, batches)

    def launch(self, shard_pictures: ShardPictures) -> Callable[[], ShardRows]:
        """Return a function that waits for the rows of a shard, see `ShardGradients.launch`."""
        return self._gradients.launch(shard_pictures)

    def write(self, rows: Callable[[], ShardRows]) -> None:
        """Write the rows of a shard, when they are there, and commit them.

        Raises:
            ModelError: a gradient is not finite.
            StoreError: see `Store.write`.
        """
        shard_rows, job = rows(), self._job
        shard = shard_rows.shard
        self._store.write(
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

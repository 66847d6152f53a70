"""The shards of a build: which are missing, and how they are made one after the other."""

import os
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from gradindex.builder.job import BuildJob
from gradindex.builder.shard_maker import ShardMaker
from gradindex.models.checkpoints import Checkpoints
from gradindex.store.prefetch import prefetch
from gradindex.store.progress import Progress
from gradindex.store.progress import progress as show_progress
from gradindex.store.records import ShardEntry
from gradindex.store.shard_list import part_of
from gradindex.store.store import Shard, Store

# Threads that write shards: one takes longer for a shard than a fast GPU, and most of that is
# waiting for the disk and work outside of Python.
WRITERS = min(8, max(2, (os.cpu_count() or 1) // 2))


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

    While the gradients of one shard are taken, a thread reads the next one's pictures, and others
    write the shards before.

    Args:
        batch_size: how many (picture, timestep, draw) go through the model at once.
        missing: {shard: whether it is made again}; one that is not is left alone where another
            builder has finished it meanwhile.

    Raises:
        DataError: a picture cannot be read, and the job does not skip such pictures.
        ModelError: a gradient is not finite.
        StoreError: see `Store.write`.
    """
    writing: deque[Future[None]] = deque()
    with (
        progress(job.count_gradients(missing)) as bar,
        ThreadPoolExecutor(WRITERS) as writers,
        ShardMaker(store, job, denoisers, batch_size, bar.update) as maker,
    ):
        maker.encode(missing)
        for shard_pictures in prefetch(lambda item: maker.read(*item), missing.items()):
            if shard_pictures is None:
                continue
            rows = maker.launch(shard_pictures)
            # So many shards are being written, and no more wait; an error ends the build here.
            if len(writing) == WRITERS:
                writing.popleft().result()
            writing.append(writers.submit(maker.write, rows))
        while writing:
            writing.popleft().result()


def progress(gradients: int) -> Progress:
    """Return the progress of a build that takes so many gradients."""
    return show_progress(title="gradients", total=gradients, unit="gradient")

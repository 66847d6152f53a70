"""The work of a build: shard by shard, pictures → gradients → store; what is missing, and nothing twice."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from tqdm import tqdm

from gradindex.ahead import ahead
from gradindex.dataset import GONE, MARK, Dataset
from gradindex.denoiser import Checkpoints, Denoiser
from gradindex.errors import DataError
from gradindex.gradients.rows import (
    Events,
    capture_for,
    choose_strong,
    grid_events,
    recorded_events,
    sample_gradients,
)
from gradindex.recipe import Recipe
from gradindex.store import Shard, Store

LOOKED_AT = 8  # pictures whose gradients tell which weights are strong


@dataclass(frozen=True)
class Work:
    """What is to be made of a data set: `recorded` has the events [C, N, T] of a training log, None means a grid."""

    dataset: Dataset
    recipe: Recipe
    recorded: np.ndarray | None
    skip_bad: bool

    def left_out(self, checkpoint: int, row: int) -> bool:
        """Whether a picture was removed and is gone, or the training log has no events for it and such are skipped."""
        if self.dataset.mark(row) == GONE:
            return True
        return self.recorded is not None and bool(np.isnan(self.recorded["timestep"][checkpoint, row, 0]))

    def read(self, rows: Iterable[int]) -> tuple[list[int], np.ndarray]:
        """The rows that can be read, and their pictures [B, channels, height, width]."""
        pictures, image = {}, self.recipe.image
        for row in rows:
            try:
                pictures[row] = self.dataset.picture(row, image)
            except DataError as error:
                if not self.skip_bad:
                    raise DataError(f"{error}; skip_bad leaves such pictures out") from error
        return list(pictures), np.stack(list(pictures.values())) if pictures else np.empty((0, *image), np.float32)

    def ids(self, rows: Sequence[int]) -> list[str]:
        return [self.dataset.sample_ids[row] for row in rows]

    def events(self, checkpoint: int, rows: Sequence[int]) -> Events:
        """Where these pictures' gradients are taken."""
        if self.recorded is None:
            return grid_events(self.recipe, self.ids(rows))
        return recorded_events(self.recipe, self.ids(rows), self.recorded[checkpoint, rows])

    def timestep(self, shard: Shard) -> np.ndarray:
        """The timesteps of a shard's rows, [B, T] float32; 0 for pictures that are left out."""
        if self.recorded is None:
            return np.tile(np.array(self.recipe.timesteps, np.float32), (shard.stop - shard.start, 1))
        return np.nan_to_num(self.recorded["timestep"][shard.checkpoint, shard.start : shard.stop])

    def gradients(self, shards: Iterable[Shard]) -> int:
        """How many gradients the rows of these shards are made of."""
        return self.recipe.per_picture * self.recipe.draws * sum(shard.stop - shard.start for shard in shards)


def exchanged(shard: Shard, entry: Mapping[str, Any], dataset: Dataset) -> Iterator[int]:
    """The rows of a committed shard behind which another picture is now; a bad one may have been repaired."""
    marks = entry["pictures"]
    for row in range(*entry["rows"]):
        mark = marks[(row - shard.start) * MARK : (row - shard.start + 1) * MARK]
        if row < len(dataset) and row not in entry["skipped"] and dataset.mark(row) not in (mark, GONE):
            yield row


def find_strong(denoiser: Denoiser, work: Work, batch_size: int) -> tuple[str, ...]:
    """The weights that the projection must shrink less, from the gradients of a few pictures."""
    some = sorted({int(row) for row in np.linspace(0, len(work.dataset) - 1, LOOKED_AT)})
    rows, pictures = work.read(some)
    if not rows:
        raise DataError(f"data {work.dataset.source}: not one of {len(some)} pictures tried can be read")
    return choose_strong(
        denoiser, work.recipe, pictures, work.ids(rows), work.dataset.labels_of(rows, work.recipe.classes), batch_size
    )


def shards_of(store: Store, part: tuple[int, int]) -> list[Shard]:
    """Those of one builder of several: part (I, N), I from 0 to N − 1."""
    number, parts = part
    shards = store.shards()
    return shards[len(shards) * number // parts : len(shards) * (number + 1) // parts]


def missing_shards(store: Store, work: Work, part: tuple[int, int] = (0, 1)) -> dict[Shard, bool]:
    """The shards of a part that are to be made; True for those to be made again: damaged, or short of pictures."""
    todo = dict.fromkeys(shards_of(store, part), False)
    bar = tqdm(store.committed(list(todo)), "checking", len(todo), unit="shard", delay=2, disable=None)
    for shard, entry in bar:
        if store.damaged(entry) or (
            not work.skip_bad and any(not work.left_out(shard.checkpoint, row) for row in entry["skipped"])
        ):
            todo[shard] = True
        else:
            del todo[shard]
    return todo


def fill(store: Store, work: Work, denoisers: Checkpoints, batch_size: int, missing: Mapping[Shard, bool]) -> None:
    """Make these shards, checkpoint by checkpoint; those with True again, whatever is there.

    The next shard is read and the last one written meanwhile. One that another builder has finished is left alone.
    """
    recipe = work.recipe
    written: Future[None] | None = None

    def read(shard: Shard) -> tuple[Shard, np.ndarray, list[int], list[int], np.ndarray] | None:
        if not missing[shard] and dict(store.committed([shard])):
            return None
        rows, first = _earlier(store, shard)
        wanted = (row for row in range(first, shard.stop) if not work.left_out(shard.checkpoint, row))
        readable, pictures = work.read(wanted)
        return shard, rows, sorted({*range(first, shard.stop)} - {*readable}), readable, pictures

    def write(shard: Shard, rows: np.ndarray, skipped: Sequence[int]) -> None:
        marks = "".join(work.dataset.mark(row) for row in range(shard.start, shard.stop))
        store.write(shard, rows, work.timestep(shard), skipped, marks)

    with progress(work.gradients(missing)) as bar, ThreadPoolExecutor(1) as writer:
        for checkpoint, shards in groupby(missing, key=lambda shard: shard.checkpoint):
            denoiser = denoisers[checkpoint]
            with capture_for(denoiser, recipe) as capture:
                for shard, rows, skipped, readable, pictures in filter(None, ahead(read, shards)):
                    if readable:
                        rows[[row - shard.start for row in readable]] = sample_gradients(
                            denoiser,
                            capture,
                            recipe,
                            pictures,
                            work.events(checkpoint, readable),
                            work.dataset.labels_of(readable, recipe.classes),
                            batch_size=batch_size,
                            progress=bar.update,
                        )
                    if written:
                        written.result()
                    written = writer.submit(write, shard, rows, skipped)
        if written:
            written.result()


def progress(gradients: int) -> tqdm:
    """The bar of a build."""
    return tqdm(total=gradients, unit="gradient", desc="gradients", delay=2, disable=None)


def _earlier(store: Store, shard: Shard) -> tuple[np.ndarray, int]:
    """A shard's rows [stop − start, T, D] as far as it was committed before it grew, and the number of the next one.

    The rest is zero; all of it is where there was none, or rows were skipped or are damaged.
    """
    rows = np.zeros((shard.stop - shard.start, *store.shape[2:]), np.float32)
    for _, entry in store.committed([replace(shard, stop=shard.start + 1)]):
        stop = entry["rows"][1]
        if stop < shard.stop and not entry["skipped"] and not store.damaged(entry):
            rows[: stop - shard.start] = store.read("unnormalized", shard.checkpoint, slice(shard.start, stop))
            return rows, stop
    return rows, shard.start

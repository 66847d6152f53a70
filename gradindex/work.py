"""The work of a build: shard by shard, pictures → gradients → store; what is missing, and nothing twice."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from gradindex.ahead import ahead
from gradindex.dataset import GONE, MARK, Dataset
from gradindex.denoiser import Checkpoints, Denoiser
from gradindex.errors import DataError
from gradindex.gradients.capture import Capture
from gradindex.gradients.rows import (
    Events,
    capture_for,
    choose_strong,
    grid_events,
    recorded_events,
    sample_gradients,
)
from gradindex.recipe import FOLDED, Recipe
from gradindex.scoring import unit
from gradindex.search_index import search_vectors
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
        if self.recorded is None:
            return False
        return bool(np.isnan(self.recorded["timestep"][self.checkpoints_of(checkpoint), row, 0]).any())

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
        """The timesteps of a shard's rows, [B, T] float32; 0 for pictures that are left out, a mean for folded rows."""
        if self.recorded is None:
            times = np.tile(np.array(self.recipe.timesteps, np.float32), (shard.stop - shard.start, 1))
        else:
            times = np.nan_to_num(self.recorded["timestep"][shard.checkpoint, shard.start : shard.stop])
        return times.mean(1, keepdims=True) if self.recipe.rows == FOLDED else times

    def gradients(self, shards: Iterable[Shard]) -> int:
        """How many gradients the rows of these shards are made of."""
        each = self.recipe.per_picture * self.recipe.draws * len(self.checkpoints_of(0))
        return each * sum(shard.stop - shard.start for shard in shards)

    def checkpoints_of(self, checkpoint: int) -> range:
        """The checkpoints that are in a shard of this one: it alone, or all where rows are folded."""
        folded = self.recipe.rows == FOLDED
        return range(len(self.recipe.checkpoints)) if folded else range(checkpoint, checkpoint + 1)


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

    def write(shard: Shard, rows: np.ndarray, units: np.ndarray | None, skipped: Sequence[int]) -> None:
        marks = "".join(work.dataset.mark(row) for row in range(shard.start, shard.stop))
        store.write(shard, rows, work.timestep(shard), skipped, marks, units)

    with progress(work.gradients(missing)) as bar, ThreadPoolExecutor(1) as writer, ExitStack() as captures:
        captured: tuple[int, Capture] | None = None
        for shard, rows, skipped, readable, pictures in filter(None, ahead(read, missing)):
            units = np.zeros_like(rows) if recipe.rows == FOLDED else None
            labels, taken = work.dataset.labels_of(readable, recipe.classes), []
            for checkpoint in work.checkpoints_of(shard.checkpoint) if readable else ():
                if captured is None or captured[0] != checkpoint:
                    captures.close()
                    captured = checkpoint, captures.enter_context(capture_for(denoisers[checkpoint], recipe))
                taken.append(
                    sample_gradients(
                        denoisers[checkpoint],
                        captured[1],
                        recipe,
                        pictures,
                        work.events(checkpoint, readable),
                        labels,
                        batch_size=batch_size,
                        progress=bar.update,
                    )
                )
            if readable:
                place = [row - shard.start for row in readable]
                if units is None:
                    (rows[place],) = taken
                else:
                    every = np.stack(taken, axis=1)
                    rows[place, 0] = search_vectors(every, recipe)
                    units[place, 0] = search_vectors(unit(every), recipe)
            if written:
                written.result()
            written = writer.submit(write, shard, rows, units, skipped)
        if written:
            written.result()


def progress(gradients: int) -> tqdm:
    """The bar of a build."""
    return tqdm(total=gradients, unit="gradient", desc="gradients", delay=2, disable=None)


def _earlier(store: Store, shard: Shard) -> tuple[np.ndarray, int]:
    """A shard's rows [stop − start, T, D] as far as it was committed before it grew, and the number of the next one.

    The rest is zero; all of it is where there was none, rows were skipped or are damaged, or rows are folded.
    """
    rows = np.zeros((shard.stop - shard.start, *store.shape[2:]), np.float32)
    for _, entry in store.committed([replace(shard, stop=shard.start + 1)]):
        stop = entry["rows"][1]
        reusable = not entry["skipped"] and store.recipe.rows != FOLDED
        if stop < shard.stop and reusable and not store.damaged(entry):
            rows[: stop - shard.start] = store.read("unnormalized", shard.checkpoint, slice(shard.start, stop))
            return rows, stop
    return rows, shard.start

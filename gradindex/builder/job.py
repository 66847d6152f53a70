"""The job of a build: which rows are made of which pictures, at which timesteps."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from gradindex.data.dataset import Dataset
from gradindex.data.images import DecodedPicture
from gradindex.data.training_log import TrainingLog
from gradindex.errors import CallError, DataError
from gradindex.gradients.events import Events, grid_events, recorded_events
from gradindex.models.examples import Examples, Pictures
from gradindex.models.pipeline import Encoder, make_examples
from gradindex.models.processes import Process
from gradindex.recipe import FLOW, FOLDED, Recipe
from gradindex.store.manifest import Shard
from gradindex.store.prefetch import prefetch
from gradindex.wording import counted

DECODERS = min(8, os.cpu_count() or 1)  # threads; most of the work is done outside of Python
CHANNELS = (1, 3)  # that pictures can have: grey, colour


@dataclass(frozen=True)
class EventChoice:
    """Which events of a training log gradients are taken at.

    Attributes:
        log: the training log.
        steps: how many training steps were done when each of the C checkpoints was saved.
        count: how many of a picture's last events before each checkpoint.
        missing: what a picture with fewer events gets, see `TrainingLog.replay`.
        process: of the model.
    """

    log: TrainingLog
    steps: Sequence[int]
    count: int
    missing: str
    process: Process

    def events(self, sample_ids: Sequence[str]) -> np.ndarray:
        """Return the events of the pictures with these N ids, EVENT [C, N, count].

        Raises:
            CallError: the log does not fit the pictures, see `TrainingLog.replay`.
        """
        return self.log.replay(
            sample_ids,
            self.steps,
            self.count,
            self.missing,
            self.process.num_train_timesteps,
            self.process.grid if self.process.prediction_type == FLOW else None,
        )


@dataclass(frozen=True)
class BuildJob:
    """What is to be made of a data set.

    Attributes:
        dataset: the pictures, in the order of the store's rows.
        recipe: of the store's rows.
        recorded: the events of a training log, EVENT [C, N, T]; None for a grid of timesteps.
        skip_bad: whether a picture that cannot be read is left out, instead of stopping the build.
    """

    dataset: Dataset
    recipe: Recipe
    recorded: np.ndarray | None
    skip_bad: bool

    @classmethod
    def of(
        cls, dataset: Dataset, recipe: Recipe, event_choice: EventChoice | None, skip_bad: bool
    ) -> Self:
        """Return the job of a data set.

        Args:
            recipe: of its rows; the digest of recorded events is added here.
            event_choice: which recorded events; None for a grid of timesteps.

        Raises:
            CallError: the model does not take such pictures or labels, or the training log does
                not fit the pictures.
        """
        recorded = None
        if event_choice is not None:
            recorded = event_choice.events(dataset.sample_ids)
            recipe = replace(recipe, log=hashlib.sha256(recorded.tobytes()).hexdigest())
        _check_pictures(dataset, recipe)
        return cls(dataset, recipe, recorded, skip_bad)

    @property
    def gradients_per_picture(self) -> int:
        """How many gradients a picture has at one checkpoint: timesteps times draws of noise."""
        return self.recipe.per_picture * self.recipe.draws

    def checkpoints_of(self, checkpoint: int) -> range:
        """Return the checkpoints whose gradients are in the rows of a shard.

        Args:
            checkpoint: the shard's number on the store's axis C. It is the only one, unless rows
                are folded, which takes the gradients of all checkpoints.
        """
        if self.recipe.rows == FOLDED:
            return range(len(self.recipe.checkpoints))
        return range(checkpoint, checkpoint + 1)

    def count_gradients(self, shards: Iterable[Shard]) -> int:
        """Return how many gradients the rows of these shards are made of."""
        pictures = sum(shard.stop - shard.start for shard in shards)
        return pictures * self.gradients_per_picture * len(self.checkpoints_of(0))

    def is_excluded(self, checkpoint: int, row: int) -> bool:
        """Whether a picture gets no row in a shard of a checkpoint.

        It was removed and is gone, or the training log has no events for it and such pictures are
        skipped.
        """
        if not self.dataset.there[row]:
            return True
        if self.recorded is None:
            return False
        first_timesteps = self.recorded["timestep"][self.checkpoints_of(checkpoint), row, 0]
        return bool(np.isnan(first_timesteps).any())

    def examples(
        self, rows: Iterable[int], encoder: Encoder | None
    ) -> tuple[list[int], Examples, list[str]]:
        """Return what `pictures` does, with the pictures as the model takes them.

        Args:
            encoder: of the model; None for one of pixels.

        Raises:
            DataError: see `pictures`.
            ModelError: the VAE or a text encoder cannot be run.
        """
        readable, pictures, contents = self.pictures(rows)
        return readable, make_examples(encoder, pictures), contents

    def pictures(self, rows: Iterable[int]) -> tuple[list[int], Pictures, list[str]]:
        """Return the B row numbers whose pictures can be read, and these pictures.

        Returns:
            The row numbers, B pictures, and B digests of the bytes that were read, see
            `content_digest`.

        Raises:
            DataError: a picture cannot be read, and the build does not skip such pictures.
        """
        rows = list(rows)
        readable = []
        read = []
        pictures = prefetch(self._picture, rows, DECODERS)
        for row, picture in zip(rows, pictures, strict=True):
            if picture is not None:
                readable.append(row)
                read.append(picture)
        found = Pictures.of_rows(self.dataset, readable, read, self.recipe.classes)
        contents = [picture.content for picture in read]
        return readable, found, contents

    def _picture(self, row: int) -> DecodedPicture | None:
        """Read a picture; None where it cannot be read and the build skips such pictures."""
        _ = self.dataset.stats[row]  # before its bytes, so that a later change is noticed
        try:
            return self.dataset.read(row, self.recipe.pixels, self.recipe.buckets)
        except DataError as error:
            if not self.skip_bad:
                raise DataError(f"{error}; skip_bad leaves such pictures out") from error
        return None

    def none_readable(self, rows: Sequence[int]) -> DataError:
        """Return the error that not one of some pictures can be read, and what ails the first."""
        example = ""
        try:
            self.dataset.read(rows[0], self.recipe.pixels) if rows else None
        except DataError as error:
            example = ": " + str(error).removeprefix(f"{self.dataset.source}: ")
        return DataError(
            f"data {self.dataset.source}: not one of {counted(len(rows), 'picture')} tried can be"
            " read"
            f"{example}"
        )

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Return the ids of some pictures."""
        return [self.dataset.sample_ids[row] for row in rows]

    def events(self, checkpoint: int, rows: Sequence[int]) -> Events:
        """Return where the gradients of some pictures are taken at a checkpoint."""
        if self.recorded is None:
            return grid_events(self.recipe, self.ids(rows))
        return recorded_events(self.recipe, self.ids(rows), self.recorded[checkpoint, rows])

    def row_timesteps(self, shard: Shard) -> np.ndarray:
        """Return the timesteps of a shard's rows, [B, T] float32.

        They are 0 for pictures that are left out. A folded row has the mean of its timesteps,
        [B, 1].
        """
        if self.recorded is None:
            grid = np.array(self.recipe.timesteps, np.float32)
            timesteps = np.tile(grid, (shard.stop - shard.start, 1))
        else:
            recorded = self.recorded["timestep"]
            timesteps = np.nan_to_num(recorded[shard.checkpoint, shard.start : shard.stop])
        if self.recipe.rows == FOLDED:
            return timesteps.mean(1, keepdims=True)
        return timesteps

    def fingerprints(self, shard: Shard) -> str:
        """Return the `Dataset.fingerprint`s of a shard's pictures, one after the other."""
        rows = range(shard.start, shard.stop)
        return "".join(self.dataset.fingerprint(row) for row in rows)

    def stats(self, shard: Shard) -> str:
        """Return the `Dataset.stats` of a shard's pictures, one after the other."""
        return b"".join(self.dataset.stats[row] for row in range(shard.start, shard.stop)).decode()


def _check_pictures(dataset: Dataset, recipe: Recipe) -> None:
    """Raise CallError unless the model takes a data set's channels and class labels."""
    channels = recipe.pixels[0]
    if channels not in CHANNELS:
        raise CallError(
            f"the model takes {channels} channels; pictures have 1 (grey) or 3 (colour)"
        )
    if recipe.classes is None:
        return
    if dataset.labels is None:
        raise CallError(
            f"data {dataset.source}: the model is class-conditional and the pictures have no label;"
            " put them in one folder per class, or name a label column"
        )
    lowest, highest = min(dataset.labels), max(dataset.labels)
    if lowest < 0 or highest >= recipe.classes:
        raise CallError(
            f"data {dataset.source}: labels {lowest} to {highest},"
            f" the model knows 0 to {recipe.classes - 1}; give the pictures that it was trained on"
        )

"""The gradients of a shard's pictures, and its rows made of them.

The model gets batch after batch, what the next ones need being made ahead in threads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np

from gradindex.builder.job import BuildJob
from gradindex.gradients.batches import Batch, event_batches, make_batch
from gradindex.gradients.events import Events
from gradindex.gradients.fold import search_vectors, unit
from gradindex.gradients.graphs import GraphedCapture
from gradindex.gradients.parameters import capture_for
from gradindex.gradients.projection import Projection
from gradindex.gradients.sampling import launch_gradients
from gradindex.models.checkpoints import Checkpoints
from gradindex.models.examples import Examples
from gradindex.recipe import FOLDED, Recipe
from gradindex.store.prefetch import prefetch
from gradindex.store.store import Shard

BATCHES_AHEAD = 2  # in work or ready, each in a thread of its own, beside the one on the device


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
        first_batches: what the model needs of these pictures at the first of the checkpoints, the
            first batch of it made already.
    """

    shard: Shard
    readable: list[int]
    examples: Mapping[int, Examples]
    skipped: list[int]
    contents: list[str]
    reused: np.ndarray
    first_batches: Iterator[Batch]


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


def batches_ahead(
    examples: Examples, events: Events, denoisers: Checkpoints, batch_size: int
) -> Iterator[Batch]:
    """Give what the model needs of all events, batch by batch, made ahead in threads.

    The first batch is there when the call returns.
    """
    make = partial(make_batch, examples, events, denoisers.device)
    batches = prefetch(make, event_batches(examples, events, batch_size), BATCHES_AHEAD)
    first = next(batches, None)
    return iter(()) if first is None else chain([first], batches)


class ShardGradients:
    """Takes the gradients of shards.

    The capture on a checkpoint's model stays open from shard to shard, until a shard of another
    checkpoint comes or `close` is called.

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
        self._captured: tuple[int, GraphedCapture] | None = None
        self._projection: Projection | None = None  # one for all checkpoints

    def launch(self, shard_pictures: ShardPictures) -> Callable[[], ShardRows]:
        """Return a function that waits for the rows of a shard; any thread may call it, once.

        `reused` of the argument becomes the rows. The function raises ModelError where a gradient
        is not finite.
        """
        checkpoints = self._job.checkpoints_of(shard_pictures.shard.checkpoint)
        launched = []
        if shard_pictures.readable:
            launched = [self._launch(checkpoint, shard_pictures) for checkpoint in checkpoints]
        return partial(_shard_rows, self._job.recipe, shard_pictures, launched)

    def _launch(self, checkpoint: int, shard_pictures: ShardPictures) -> Callable[[], np.ndarray]:
        """What waits for the gradients of the readable pictures at a checkpoint, [B, T, D]."""
        job, readable = self._job, shard_pictures.readable
        capture = self._capture(checkpoint)
        events = job.events(checkpoint, readable)
        if checkpoint == job.checkpoints_of(shard_pictures.shard.checkpoint)[0]:
            batches = shard_pictures.first_batches
        else:
            examples = shard_pictures.examples[checkpoint]
            batches = batches_ahead(examples, events, self._denoisers, self._batch_size)
        return launch_gradients(
            self._denoisers[checkpoint], capture, job.recipe, events, batches, self._progress
        )

    def close(self) -> None:
        """Let go of the model that was captured last."""
        self._captures.close()
        self._captured = None

    def _capture(self, checkpoint: int) -> GraphedCapture:
        """Return the capture on a checkpoint's model; the one on another model is closed first."""
        if self._captured is None or self._captured[0] != checkpoint:
            # Let go of the model before the next one is loaded: there may be room for one only.
            self.close()
            denoiser = self._denoisers[checkpoint]
            capture = capture_for(denoiser, self._job.recipe, self._projection)
            self._projection = capture.projection
            self._captures.enter_context(capture)
            # Folded rows take all checkpoints in turns, for every shard.
            stays = self._job.recipe.rows != FOLDED or len(self._denoisers) == 1
            self._captured = checkpoint, GraphedCapture(denoiser, capture, many=stays)
        return self._captured[1]


def _shard_rows(
    recipe: Recipe, shard_pictures: ShardPictures, launched: Sequence[Callable[[], np.ndarray]]
) -> ShardRows:
    """The rows of a shard, when the gradients at its checkpoints are there, [B, T, D] each."""
    shard, rows = shard_pictures.shard, shard_pictures.reused
    units = np.zeros_like(rows) if recipe.rows == FOLDED else None
    if launched:
        positions = [row - shard.start for row in shard_pictures.readable]
        gradients = [wait() for wait in launched]
        if units is None:
            (of_readable,) = gradients
            if len(of_readable) == len(rows):
                rows = of_readable  # all of them: a copy would be as large
            else:
                rows[positions] = of_readable
        else:
            by_checkpoint = np.stack(gradients, axis=1)  # [B, C, T, D]
            rows[positions, 0] = search_vectors(by_checkpoint, recipe)
            units[positions, 0] = search_vectors(unit(by_checkpoint), recipe)
    return ShardRows(shard, rows, units, shard_pictures.skipped, shard_pictures.contents)

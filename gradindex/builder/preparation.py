"""Pictures as the model takes them: encoded once, and kept in the index until it is finished.

A model of pixels takes pictures as they are, and nothing is kept. For one of latents, VAE and text
encoders run before the model is in memory, and each shard's latents and encoded captions wait in a
file `prepared/…`, which all checkpoints use.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from gradindex.builder.job import BuildJob
from gradindex.models.checkpoints import Checkpoints
from gradindex.models.examples import Examples, from_bytes, to_bytes
from gradindex.store.location import Location
from gradindex.store.memory import give_back_freed_memory
from gradindex.store.progress import progress

FOLDER = "prepared"

ReadExamples = tuple[list[int], Examples, list[str]]  # see `BuildJob.examples`


class Preparation:
    """Reads the pictures of shards as the model takes them.

    Args:
        location: of the index.
        denoisers: the models of the checkpoints.
    """

    def __init__(self, location: Location, job: BuildJob, denoisers: Checkpoints) -> None:
        self._location = location
        self._job = job
        self._denoisers = denoisers
        # Adapters may change text encoders: then each checkpoint has conditions of its own.
        self._encoders = [denoisers.encoder_of(number) for number in range(len(denoisers))]

    def run(self, shards: Iterable[tuple[range, list[int]]]) -> None:
        """Encode the pictures of shards that are not encoded yet; then let the encoders go.

        Args:
            shards: the checkpoints and row numbers of each.

        Raises:
            DataError, ModelError: see `BuildJob.examples`.
        """
        if not any(self._encoders):
            return  # models of pixels: the shards need not be looked through
        missing: dict[str, tuple[Any, list[int]]] = {}
        for checkpoints, rows in shards:
            for encoder in self._distinct(checkpoints).values():
                if not rows:
                    continue
                name = self._file(encoder, rows)
                if name not in missing and not self._location.sizes([name]):
                    missing[name] = encoder, rows
        if not missing:
            return
        self._denoisers.release()  # there may be room for the encoders only
        give_back_freed_memory()
        pictures = sum(len(rows) for _, rows in missing.values())
        last = None
        with progress(title="encoding", total=pictures, unit="picture") as bar:
            for encoder, rows in missing.values():
                if last not in (None, encoder):
                    last.release()
                last = encoder
                self._read(encoder, rows)
                bar.update(len(rows))
        for encoder in {id(encoder): encoder for encoder, _ in missing.values()}.values():
            encoder.say_what_was_cut()
            encoder.release()
        give_back_freed_memory()

    def read(
        self, checkpoints: range, rows: list[int]
    ) -> tuple[list[int], dict[int, Examples], list[str]]:
        """Return what `BuildJob.examples` gives for these rows, from the index where it is there.

        Returns:
            See there, the examples by the checkpoint.

        Raises:
            DataError, ModelError: see there.
        """
        read_of = {
            key: self._read(encoder, rows) for key, encoder in self._distinct(checkpoints).items()
        }
        read = [read_of[id(self._encoders[checkpoint])] for checkpoint in checkpoints]
        readable, _, contents = read[0]
        return readable, dict(zip(checkpoints, (one[1] for one in read), strict=True)), contents

    def _distinct(self, checkpoints: range) -> dict[int, Any]:
        """The encoders of some checkpoints, {identity: encoder}."""
        encoders = [self._encoders[checkpoint] for checkpoint in checkpoints]
        return {id(encoder): encoder for encoder in encoders}

    def _read(self, encoder: Any, rows: list[int]) -> ReadExamples:
        """What `BuildJob.examples` gives for these rows with an encoder."""
        if encoder is None or not rows:
            return self._job.examples(rows, encoder)
        name = self._file(encoder, rows)
        if self._location.sizes([name]):
            try:
                examples, notes = from_bytes(self._location.read(name))
                return json.loads(notes["rows"]), examples, json.loads(notes["contents"])
            except (ValueError, KeyError):
                self._location.discard(name)  # damaged
        readable, examples, contents = self._job.examples(rows, encoder)
        notes = {"rows": json.dumps(readable), "contents": json.dumps(contents)}
        self._location.publish(name, to_bytes(examples, notes))
        return readable, examples, contents

    def _file(self, encoder: Any, rows: list[int]) -> str:
        """The name of the file of some rows: it depends on all that decides its content."""
        recipe, dataset = self._job.recipe, self._job.dataset
        # A recipe's seed draws the latents where they are sampled.
        key = (
            *(encoder.key, recipe.latents, recipe.seed, recipe.buckets or recipe.picture),
            *(self._job.ids(rows), rows, self._job.skip_bad),
            [dataset.fingerprint(row) for row in rows],
            [str(dataset.stats[row]) for row in rows],
            *([] if recipe.masks is None else [recipe.masks]),
        )
        return f"{FOLDER}/{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.safetensors"


def drop_prepared(location: Location) -> None:
    """Delete what was encoded for a build that is finished."""
    location.discard_folder(FOLDER)

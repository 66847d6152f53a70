"""Pictures as the model takes them: encoded once, and kept in the index until it is finished.

A model of pixels takes pictures as they are, and nothing is kept. For one of latents, VAE and text
encoders run before the model is in memory, and what they make waits in files `prepared/…`: the
latents of a few pictures in each, and one encoded caption in each. All checkpoints use them, but
for captions that a checkpoint's own text encoders encode.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gradindex.builder.job import BuildJob
from gradindex.models.checkpoints import Checkpoints
from gradindex.models.examples import LOSS_MASK, Column, Examples, from_bytes, to_bytes
from gradindex.models.pipeline import make_examples
from gradindex.store.location import Location
from gradindex.store.memory import give_back_freed_memory
from gradindex.store.progress import progress

FOLDER = "prepared"
PIECE = 16  # pictures, or captions, that are in memory at once: 200 MB of pixels at a side of 1024

Latents = tuple[list[int], dict[str, list[Any]], list[str]]  # see `BuildJob.pictures`


@dataclass
class Work:
    """What an encoder has to encode: rows, piece by piece, and captions."""

    encoder: Any
    pieces: list[list[int]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Return how many pictures and captions there are."""
        return sum(map(len, self.pieces)) + len(self.captions)


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
        # A checkpoint, or an adapter, may have text encoders of its own, and so an encoder.
        self._encoders: list[Any] = [
            denoisers.encoder_of(number) for number in range(len(denoisers))
        ]
        self._blank: set[int] = set()  # rows that were warned of

    @property
    def encodes(self) -> bool:
        """Whether any model is one of latents."""
        return any(self._encoders)

    def run(self, shards: Iterable[tuple[range, list[int]]]) -> None:
        """Encode the pictures of shards that are not encoded yet; then let the encoders go.

        Args:
            shards: the checkpoints and row numbers of each.

        Raises:
            DataError, ModelError: see `BuildJob.examples`.
        """
        if not self.encodes:
            return  # models of pixels: the shards need not be looked through
        missing = self._missing(shards)
        if not missing:
            return
        self._denoisers.make_room()  # there may be room for the encoders only
        give_back_freed_memory()
        with progress(title="encoding", total=sum(map(len, missing)), unit="item") as bar:
            for work in missing:
                for rows in work.pieces:
                    self._latents(work.encoder, rows)
                    bar.update(len(rows))
                for captions in _pieces(work.captions):
                    self._encoded(work.encoder, captions)
                    bar.update(len(captions))
                work.encoder.say_what_was_cut()
                work.encoder.release()
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
        if not self.encodes or not rows:
            readable, examples, contents = self._job.examples(rows, None)
            self._name_blank(readable, examples.conditions.get(LOSS_MASK, ()))
            return readable, dict.fromkeys(checkpoints, examples), contents
        read_of: dict[str, Latents] = {}
        examples_of: dict[int, Examples] = {}
        for encoder in self._distinct(checkpoints):
            if encoder.latents_key not in read_of:
                read_of[encoder.latents_key] = self._all_latents(encoder, rows)
            readable, columns, contents = read_of[encoder.latents_key]
            self._name_blank(readable, columns.get(LOSS_MASK, ()))
            columns = {**columns, **self._conditions(encoder, readable)}
            examples_of[id(encoder)] = Examples(columns.pop("x", []), columns)
        by_checkpoint = {number: examples_of[id(self._encoders[number])] for number in checkpoints}
        return readable, by_checkpoint, contents

    def _name_blank(self, rows: list[int], masks: Column) -> None:
        """Warn of pictures whose mask is zero all over, once of each."""
        blank = [rows[position] for position, mask in enumerate(masks) if not mask.any()]
        if new := [row for row in blank if row not in self._blank]:
            dataset = self._job.dataset
            warnings.warn(
                f"data {dataset.source}: the mask of {dataset.names(new)} is zero all over, and so"
                " is the gradient",
                stacklevel=2,
            )
            self._blank.update(new)

    def _missing(self, shards: Iterable[tuple[range, list[int]]]) -> list[Work]:
        """What is to be encoded for some shards, by the encoder."""
        known = {f"{FOLDER}/{name}" for name in self._location.names(FOLDER)}
        work_of: dict[int, Work] = {}
        for checkpoints, rows in shards:
            for encoder in self._distinct(checkpoints):
                work = work_of.setdefault(id(encoder), Work(encoder))
                for piece in _pieces(rows):
                    file = self._latents_file(encoder, piece)
                    if file not in known:
                        work.pieces.append(piece)
                        known.add(file)
                for caption in self._captions(encoder, rows):
                    file = _caption_file(encoder, caption)
                    if file not in known:
                        work.captions.append(caption)
                        known.add(file)
        return [work for work in work_of.values() if len(work)]

    def _distinct(self, checkpoints: range) -> list[Any]:
        """The encoders of some checkpoints, each once."""
        encoders = [self._encoders[checkpoint] for checkpoint in checkpoints]
        return list({id(encoder): encoder for encoder in encoders}.values())

    def _captions(self, encoder: Any, rows: Sequence[int]) -> list[str]:
        """The captions of some rows that are encoded apart from the pictures."""
        if encoder.captions_key is None:
            return []
        return self._job.dataset.captions_of(rows) or []

    def _all_latents(self, encoder: Any, rows: list[int]) -> Latents:
        """What `_latents` gives for any number of rows."""
        readable: list[int] = []
        columns: dict[str, list[Any]] = {}
        contents: list[str] = []
        for piece in _pieces(rows):
            read, of_piece, digests = self._latents(encoder, piece)
            readable += read
            contents += digests
            for name, values in of_piece.items():
                columns.setdefault(name, []).extend(values)
        return readable, columns, contents

    def _latents(self, encoder: Any, rows: list[int]) -> Latents:
        """The rows whose pictures can be read; these without captions; digests of their bytes.

        The pictures are columns: "x" and conditions, see `Examples`.
        """
        name = self._latents_file(encoder, rows)
        (content,) = self._location.read_many([name])
        try:
            columns, notes = from_bytes(content or b"")
            return json.loads(notes["rows"]), columns, json.loads(notes["contents"])
        except (ValueError, KeyError):
            pass  # there is none, or it is damaged
        readable, pictures, contents = self._job.pictures(rows)
        if encoder.captions_key is not None:
            pictures = replace(pictures, captions=None)
        examples = make_examples(encoder, pictures)
        made: dict[str, Column] = {"x": examples.x, **examples.conditions} if readable else {}
        notes = {"rows": json.dumps(readable), "contents": json.dumps(contents)}
        self._location.publish(name, to_bytes(made, notes))
        return readable, {key: list(values) for key, values in made.items()}, contents

    def _conditions(self, encoder: Any, rows: list[int]) -> dict[str, list[Any]]:
        """The conditions that the captions of some rows make, {name: a tensor for each row}."""
        captions = self._captions(encoder, rows)
        encoded: dict[str, dict[str, Any]] = {}
        for piece in _pieces(list(dict.fromkeys(captions))):
            encoded |= self._encoded(encoder, piece)
        names = encoded[captions[0]] if captions else {}
        return {name: [encoded[caption][name] for caption in captions] for name in names}

    def _encoded(self, encoder: Any, captions: list[str]) -> dict[str, dict[str, Any]]:
        """The conditions that captions make, {caption: {name: tensor}}."""
        files = {caption: _caption_file(encoder, caption) for caption in captions}
        encoded: dict[str, dict[str, Any]] = {}
        for caption, content in zip(files, self._location.read_many(files.values()), strict=True):
            try:
                columns, _ = from_bytes(content or b"")
                encoded[caption] = {name: values[0] for name, values in columns.items()}
            except ValueError:
                pass  # there is none, or it is damaged
        missing = [caption for caption in files if caption not in encoded]
        made = encoder.encode_captions(missing) if missing else []
        for caption, conditions in zip(missing, made, strict=True):
            columns = {name: [value] for name, value in conditions.items()}
            self._location.publish(files[caption], to_bytes(columns, {}))
            encoded[caption] = conditions
        return encoded

    def _latents_file(self, encoder: Any, rows: list[int]) -> str:
        """The name of the file of some rows: it depends on all that decides its content."""
        recipe, dataset = self._job.recipe, self._job.dataset
        # A recipe's seed draws the latents where they are sampled.
        return _file(
            *(encoder.latents_key, recipe.latents, recipe.seed, recipe.buckets or recipe.picture),
            *(self._job.ids(rows), rows, self._job.skip_bad),
            [dataset.fingerprint(row) for row in rows],
            [str(dataset.stats[row]) for row in rows],
            *([] if recipe.masks is None else [recipe.masks]),
        )


def drop_prepared(location: Location) -> None:
    """Delete what was encoded for a build that is finished."""
    location.discard_folder(FOLDER)


def _pieces(items: list[Any]) -> list[list[Any]]:
    """Lists of `PIECE` items, the last one of what is left.

    >>> [len(piece) for piece in _pieces(list(range(40)))]
    [16, 16, 8]
    """
    return [items[start : start + PIECE] for start in range(0, len(items), PIECE)]


def _caption_file(encoder: Any, caption: str) -> str:
    """The name of the file of an encoded caption."""
    return _file(encoder.captions_key, caption)


def _file(*key: Any) -> str:
    """The name of the file of what a key decides on."""
    return f"{FOLDER}/{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.safetensors"

"""Vectors of pictures in an embedding, such as CLIP's: by a model, or from files.

What a model makes of training pictures is kept in the index, shard by shard, in a file

    embeddings/DIGEST-sNNNNNN.f32    SHA-256 (32 bytes), then float32 [pictures of the shard, E]

whose digest is over the model, the shard's pictures as their manifest entry tells them, and the
vectors; NaN stands for a picture that was not asked for yet. It is a cache: another model, other
pictures and damage make it anew, and an index that cannot be written to answers without it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gradindex.errors import CallError, GradindexError, first_line
from gradindex.search.cosines import Read
from gradindex.search.pictures import Picture
from gradindex.search.pixels import READERS, opener
from gradindex.search.training_pictures import TrainingPictures
from gradindex.store.manifest import Shard
from gradindex.store.prefetch import prefetch
from gradindex.store.progress import progress
from gradindex.store.store import Store

Embedding = str | Path | np.ndarray

VERSION = 1  # raised whenever the same model and picture give another vector
NAME_DIGITS = 16
DIGEST_BYTES = 32
NPY = ".npy"  # ending of a file of vectors
BATCH = 16  # pictures that go through the model at once
CHECKED_ROWS = 4096  # of an array, that are looked at at once
WHOLE = 1 << 16  # pixels a side: no picture is made smaller before the model's processor does


class Compared(NamedTuple):
    """Vectors in an embedding.

    Attributes:
        queries: of the Q pictures that are asked about, [Q, E] float32.
        read: gives those of training pictures.
    """

    queries: np.ndarray
    read: Read


class Embeddings:
    """The embeddings in which pictures of an index are compared; a model is loaded once."""

    def __init__(self, store: Store, pictures: TrainingPictures, device: str) -> None:
        self._store, self._pictures = store, pictures
        self._of_model = cache(partial(_ModelVectors, store, pictures, device))

    def load(self, model: str) -> None:
        """Load a vision model, before it is asked.

        Raises:
            CallError, ModelError: it is a file of vectors, or see `compared`.
        """
        if Path(model).suffix.lower() == NPY:
            raise CallError(
                f"embedding = {model!r}: whoever asks has no vectors; give a model that makes them"
            )
        self._of_model(model)

    def compared(
        self,
        embedding: Embedding | None,
        query_embedding: Embedding | None,
        pictures: Sequence[Picture],
        arrays: Iterable[np.ndarray],
    ) -> Compared | None:
        """The vectors of pictures that are asked about, and what gives those of training pictures.

        None where there is no embedding.

        Args:
            embedding, query_embedding: see `Index.query`.
            pictures: Q of them, as they were given. arrays: as the model of the index takes them.

        Raises:
            CallError, ModelError: the embedding does not fit the index or the pictures, or cannot
                be loaded; or a model's training pictures are gone.
        """
        if embedding is None:
            if query_embedding is not None:
                raise CallError(
                    "query_embedding: goes with a file of the training pictures' (embedding=)"
                )
            return None
        if isinstance(embedding, str | Path) and Path(embedding).suffix.lower() != NPY:
            if query_embedding is not None:
                raise CallError("query_embedding: goes with a file; a model makes it itself")
            vectors = self._of_model(str(embedding))
            return Compared(vectors.of_queries(pictures, arrays), vectors.read)
        if query_embedding is None:
            raise CallError(
                "embedding: a file holds the training pictures' vectors; give those of the pictures"
                " that you ask about, too (query_embedding=)"
            )
        training = read_array("embedding", embedding)
        queries = read_array("query_embedding", query_embedding)
        if len(queries) != len(pictures):
            raise CallError(
                f"query_embedding: {list(queries.shape)}; give [{len(pictures)}, E], a row for each"
                " picture that you ask about"
            )
        if queries.shape[1] != training.shape[1]:
            raise CallError(
                f"query_embedding: vectors of {queries.shape[1]} numbers, the training pictures'"
                f" have {training.shape[1]}; give those of one model"
            )
        _require_finite("query_embedding", queries, np.arange(len(queries)))
        return Compared(np.array(queries, np.float32), self._reader(training))

    def _reader(self, training: np.ndarray) -> Read:
        """What gives rows of an array of all training pictures, or of all but the excluded ones."""
        store = self._store
        count = store.shape[1]
        kept = store.kept
        if len(training) not in (count, len(kept)):
            raise CallError(
                f"embedding: {list(training.shape)}; give [{len(kept)}, E], a row for each picture"
                f" in the order of `gradindex ids {store.location}`"
            )
        position = np.arange(count)
        if len(training) != count:
            position[kept] = np.arange(len(kept))
        _require_finite("embedding", training, position[kept])
        return lambda rows: (np.array(training[position[row]], np.float32) for row in rows)


def read_array(name: str, given: Any) -> np.ndarray:
    """Return an array of vectors, or that of a .npy file, whose rows are read when they are used.

    Raises:
        CallError: there is no such file, or it holds no vectors.
    """
    text = name
    if isinstance(given, str | Path):
        text = f"{name} {given}"
        try:
            given = np.load(given, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
            raise CallError(f"{text}: not a .npy file of numbers ({reason})") from error
        if not isinstance(given, np.ndarray):
            given.close()
            raise CallError(f"{text}: holds several arrays (.npz); give a .npy file of one")
    array = np.asarray(given)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise CallError(
            f"{text}: {array.dtype} {list(array.shape)}; give floating point numbers [pictures, E]"
        )
    return array


def _require_finite(name: str, array: np.ndarray, positions: np.ndarray) -> None:
    """Raise CallError unless the rows at some positions hold numbers alone."""
    for start in range(0, len(positions), CHECKED_ROWS):
        some = positions[start : start + CHECKED_ROWS]
        is_finite = np.isfinite(array[some]).all(1)
        if not is_finite.all():
            row = some[int(is_finite.argmin())]
            raise CallError(f"{name}: row {row} is not finite; give numbers for every picture")


class _ModelVectors:
    """What a vision model makes of the pictures of an index."""

    def __init__(self, store: Store, pictures: TrainingPictures, device: str, path: str) -> None:
        from gradindex.models.vision import VisionModel

        pictures.require()
        self._store, self._pictures = store, pictures
        self._model = VisionModel(path, device)
        self._is_writable = True

    def of_queries(self, pictures: Sequence[Picture], arrays: Iterable[np.ndarray]) -> np.ndarray:
        """The vectors of pictures that are asked about, [Q, E]."""
        pairs = zip(pictures, arrays, strict=True)
        prepared = (self._model.prepare(opener(*pair)(WHOLE)) for pair in pairs)
        batches = []
        while batch := list(islice(prepared, BATCH)):
            batches.append(self._model.embed(batch))
        return np.concatenate(batches)

    def read(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the vectors of ascending rows; NaN where a picture is gone."""
        shards = [shard for shard in self._store.shards() if shard.checkpoint == 0]
        with progress(None, "embedding", len(rows), "picture") as bar:
            for shard in shards:
                own = rows[(rows >= shard.start) & (rows < shard.stop)]
                if len(own):
                    vectors = self._of_shard(shard, own)
                    bar.update(len(own))
                    yield from vectors[own - shard.start]

    def _of_shard(self, shard: Shard, rows: np.ndarray) -> np.ndarray:
        """The vectors of a shard's pictures, those of `rows` made where they are not there yet."""
        name = f"embeddings/{self._model.digest[:NAME_DIGITS]}-s{shard.number:06d}.f32"
        key = self._key(shard)
        vectors = self._saved(name, key, shard.stop - shard.start)
        if vectors is not None:
            rows = rows[np.isnan(vectors[rows - shard.start]).any(1)]
        made = list(self._made(rows))
        if vectors is None:
            width = len(made[0][1]) if made else 1
            vectors = np.full((shard.stop - shard.start, width), np.nan, np.float32)
        for row, vector in made:
            vectors[row - shard.start] = vector
        if made and self._is_writable:
            content = vectors.astype("<f4").tobytes()
            try:
                self._store.location.publish(name, _digest(key, content) + content)
            except (OSError, GradindexError):
                self._is_writable = False
        return vectors

    def _made(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """The vectors of rows whose pictures are there, each with its row."""
        read = prefetch(self._prepared, rows.tolist(), READERS)
        present = (pair for pair in zip(rows.tolist(), read, strict=True) if pair[1] is not None)
        while batch := list(islice(present, BATCH)):
            numbers, prepared = zip(*batch, strict=True)
            yield from zip(numbers, self._model.embed(prepared), strict=True)

    def _prepared(self, row: int) -> np.ndarray | None:
        """A training picture as the model takes it; None where it is gone or another one."""
        picture = self._pictures.thumbnail(row, WHOLE)
        return None if picture is None else self._model.prepare(picture)

    def _key(self, shard: Shard) -> bytes:
        """What tells vectors of a model and of a shard's pictures from all others."""
        entry = self._store.entry_of(shard.start)
        pictures = "" if entry is None else f"{entry.pictures} {entry.contents}"
        return f"{VERSION} {self._model.digest} {pictures}".encode()

    def _saved(self, name: str, key: bytes, count: int) -> np.ndarray | None:
        """The vectors in a file [count, E]; None where there are none of that key."""
        with suppress(OSError, GradindexError):
            content = self._store.location.read(name)
            digest, numbers = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
            if digest == _digest(key, numbers):
                return np.frombuffer(numbers, "<f4").reshape(count, -1).copy()
        return None


def _digest(key: bytes, content: bytes) -> bytes:
    """SHA-256 over a key and a content."""
    return hashlib.sha256(key + content).digest()

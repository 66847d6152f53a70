"""Making the FAISS files of a search index: training, done once for all of them, and filling."""

import re
from typing import Any

import numpy as np

from gradindex.errors import CallError, first_line
from gradindex.search.ann_index import read_faiss, require_faiss
from gradindex.search.ann_record import FLAT, AnnFile, index_file
from gradindex.store.digests import sha256
from gradindex.store.store import Store

TRAINED_ON = 4096  # vectors, or 64 for each list of an inverted file
SPARE_DIRECTIONS = 32  # that a randomized SVD follows beyond those asked for
ITERATIONS = 4  # of a randomized SVD
PCA = re.compile(r"PCA(\d+),")  # at the beginning of a factory


def new_faiss_index(factory: str, width: int) -> Any:
    """An empty FAISS index of a factory, for vectors of so many numbers.

    Raises:
        CallError: FAISS does not know the factory.
    """
    faiss = require_faiss()
    name = "Flat" if factory == FLAT else factory
    try:
        return faiss.index_factory(width, name, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        what = first_line(error).rpartition(": ")[2]
        message = f"give auto, flat, store, or what FAISS knows ({what})"
        raise CallError(f"factory {factory}: {message}") from error


def directions_of(factory: str) -> int:
    """How many strongest directions a factory keeps; 0 where it keeps vectors whole.

    >>> directions_of("PCA64,SQfp16"), directions_of("HR,RaBitQ4")
    (64, 0)
    """
    match = PCA.match(factory)
    return int(match[1]) if match else 0


def lists_of(faiss_index: Any) -> int:
    """How many lists an inverted file has; 0 for an index of another kind."""
    inverted = require_faiss().try_extract_index_ivf(faiss_index)
    return inverted.nlist if inverted is not None else 0


def training_rows(kept: np.ndarray, faiss_index: Any) -> np.ndarray:
    """The rows that a FAISS index is trained on, evenly spread over those that count."""
    count = max(TRAINED_ON, 64 * lists_of(faiss_index))
    return np.unique(kept[np.linspace(0, len(kept) - 1, count).astype(int)])


def train(faiss_index: Any, factory: str, sample: np.ndarray) -> None:
    """Train an empty FAISS index on a sample of vectors [n, W].

    Directions come from a randomized SVD: FAISS's own takes minutes where vectors are wide.
    """
    count = directions_of(factory)
    if count:
        _set_directions(faiss_index, strongest_directions(sample, count))
    faiss_index.train(sample)  # what is not trained yet


def strongest_directions(sample: np.ndarray, count: int) -> np.ndarray:
    """The directions of the most energy of vectors [n, W], orthonormal [count, W] float32.

    No mean is taken off, which would change inner products. Where the vectors have fewer
    directions, the rest are zero. A randomized SVD (Halko, Martinsson and Tropp 2011, algorithm
    4.4), always the same.
    """
    width = sample.shape[1]
    followed = min(count + SPARE_DIRECTIONS, *sample.shape)
    basis = np.random.default_rng(0).standard_normal((width, followed), np.float32)
    for _ in range(ITERATIONS):
        basis, _ = np.linalg.qr(sample.T @ (sample @ basis))
    _, _, rotation = np.linalg.svd(sample @ basis, full_matrices=False)
    directions = np.zeros((count, width), np.float32)
    found = (rotation @ basis.T)[:count]
    directions[: len(found)] = found
    return directions


def _set_directions(faiss_index: Any, directions: np.ndarray) -> None:
    """Give FAISS's transform the directions [count, W] that it else would train."""
    faiss = require_faiss()
    count, width = directions.shape
    transform = faiss.downcast_VectorTransform(faiss_index.chain.at(0))
    for vector, numbers in (
        (transform.A, directions),
        (transform.b, np.zeros(count, np.float32)),
        (transform.mean, np.zeros(width, np.float32)),
        (transform.eigenvalues, np.zeros(width, np.float32)),
    ):
        faiss.copy_array_to_vector(np.ascontiguousarray(numbers).ravel(), vector)
    transform.is_orthonormal = True
    transform.is_trained = True


def narrowed(faiss_index: Any, factory: str) -> Any:
    """The FAISS index of a narrower factory, from one of more directions in float16 codes.

    Directions come strongest first: its codes are the beginnings of the others'.
    """
    faiss = require_faiss()
    count = directions_of(factory)
    wide_transform = faiss.downcast_VectorTransform(faiss_index.chain.at(0))
    directions = faiss.vector_to_array(wide_transform.A).reshape(-1, faiss_index.d)
    narrow = new_faiss_index(factory, faiss_index.d)
    _set_directions(narrow, directions[:count])
    narrow.is_trained = True
    add_codes(narrow, codes_of(faiss_index)[:, : 2 * count])
    return narrow


def codes_of(faiss_index: Any) -> np.ndarray:
    """The codes behind a FAISS index's directions, [n, bytes] uint8."""
    faiss = require_faiss()
    inner = faiss.downcast_index(faiss_index.index)
    return faiss.vector_to_array(inner.codes).reshape(-1, inner.code_size)


def add_codes(faiss_index: Any, codes: np.ndarray) -> None:
    """Add vectors by their codes behind the directions, [n, bytes] uint8."""
    inner = require_faiss().downcast_index(faiss_index.index)
    inner.add_sa_codes(np.ascontiguousarray(codes))
    faiss_index.ntotal = inner.ntotal


class FileWriter:
    """Writes the files of a search index, of about the same size, as vectors come in row order.

    Args:
        trained: an empty FAISS index, of which each file is a copy at first.
        file_bytes: of a file, about.

    Attributes:
        files: those that are written.
    """

    def __init__(self, store: Store, name: str, trained: Any, file_bytes: int) -> None:
        self._store, self._name = store, name
        self._trained = require_faiss().serialize_index(trained)
        self._width = trained.d
        shard_rows = store.shard_rows
        self._rows = max(1, file_bytes // _code_bytes(trained) // shard_rows) * shard_rows
        self._current = self._empty()
        self.files: list[AnnFile] = []

    def add(self, vectors: np.ndarray) -> None:
        """Add the vectors [n, W] of the next pictures."""
        while len(vectors):
            room = self._rows - self._current.ntotal
            self._current.add(vectors[:room])
            vectors = vectors[room:]
            if self._current.ntotal == self._rows:
                self._publish()

    def add_coded(self, codes: np.ndarray) -> None:
        """Add the next pictures by their codes, see `add_codes`."""
        while len(codes):
            room = self._rows - self._current.ntotal
            add_codes(self._current, codes[:room])
            codes = codes[room:]
            if self._current.ntotal == self._rows:
                self._publish()

    def close(self) -> list[AnnFile]:
        """Write what is left; return all files."""
        if self._current.ntotal:
            self._publish()
        return self.files

    def _empty(self) -> Any:
        return read_faiss(self._trained.tobytes(), self._width)

    def _publish(self) -> None:
        """Write the current file, begin the next."""
        content = require_faiss().serialize_index(self._current).tobytes()
        file = index_file(self._name, len(self.files))
        start = self.files[-1].rows[1] if self.files else 0
        rows = (start, start + self._current.ntotal)
        self._store.location.publish(file, content)
        self.files.append(AnnFile(file=file, rows=rows, bytes=len(content), sha256=sha256(content)))
        self._current = self._empty()


def _code_bytes(faiss_index: Any) -> int:
    """Bytes of a vector."""
    try:
        return int(faiss_index.sa_code_size())
    except RuntimeError:  # of an index that is no codec, such as a graph
        return 4 * faiss_index.d

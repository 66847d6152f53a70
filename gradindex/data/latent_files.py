"""Latents that kohya's sd-scripts left beside the pictures: `x.npz` or `x_0640x0480_sdxl.npz`.

They are samples of the VAE's distribution, not scaled, as training saw them. A file may come from
anywhere: the shape of an array is looked at before it is read, and nothing is unpickled.
"""

import hashlib
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from gradindex.data.buckets import sizes_text
from gradindex.data.dataset import GONE, Dataset
from gradindex.data.images import DecodedPicture, Geometry, Size
from gradindex.data.picture_facts import CONTENT_DIGITS, NO_CONTENT, FileStats
from gradindex.errors import CallError, DataError, first_line, quoted
from gradindex.wording import share

NAMED = 5  # pictures or sizes in an error
LARGEST_SIDE = 2**16  # of a latent
LARGEST_PLACE = 2**20  # pixels
# As kohya's scripts name a file: the picture's width and height, and the kind of model.
SIZED_FILE = re.compile(r"(.+)_\d{4,}x\d{4,}_([a-z0-9]+)\.npz", re.DOTALL)
SIZED_KEY = re.compile(r"latents_(\d{1,5})x(\d{1,5})", re.ASCII)  # height and width
HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class LatentDataset(Dataset):
    """A data set with a file of latents beside each picture, of which one is taken.

    Attributes:
        latent_files: N paths, None where there is none.
        shapes: channels, height and width of the latents that a build takes.
    """

    latent_files: Sequence[Path | None] = ()
    shapes: Sequence[Shape] = ()

    def latents_of(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Return the latents of some pictures, [channels, height, width] float32 each, not scaled.

        Raises:
            DataError: one has none, or none that the build can take; the file is named.
        """
        return [self._latent(row)[0] for row in rows]

    def read(self, row: int, image: Shape, buckets: Sequence[Size] | None = None) -> DecodedPicture:
        """Return picture number `row` in the size of its latent; see `Dataset.read`.

        The geometry is what the file of the latent says; the digest is of both files.

        Raises:
            DataError: see `Dataset.read` and `latents_of`.
        """
        latent, geometry = self._latent(row)
        sizes = None if buckets is None else [buckets[self.shapes.index(latent.shape)]]
        return super().read(row, image, sizes)._replace(geometry=geometry)

    def bucket_of(self, row: int, sizes: Sequence[Size]) -> Size:
        """Return the bucket of picture number `row`, by the shape of its latent."""
        latent, _ = self._latent(row)
        return sizes[self.shapes.index(latent.shape)]

    def describe_changes(
        self, image: Shape, rows: np.ndarray, buckets: Sequence[Size] | None = None
    ) -> list[str]:
        """Return no line: latents are taken as they are, and of pictures nothing but masks."""
        return []

    def fingerprint(self, row: int) -> str:
        """Return eight hex digits as `Dataset.fingerprint` does, of the latents' bytes too."""
        digits = super().fingerprint(row)
        if digits == GONE:
            return digits
        file = self.latent_files[row]
        size = -1 if file is None or not file.exists() else file.stat().st_size
        return hashlib.sha256(f"{digits} {size}".encode()).hexdigest()[: len(digits)]

    @cached_property
    def stats(self) -> FileStats:
        """Digests of size, time and inode of both files of each picture, by its row number."""
        beside = self.latent_files.__getitem__
        return FileStats(self.source, self.sample_ids, self.there, beside)

    def in_order(self, sample_ids: Sequence[str], positions: np.ndarray) -> Dataset:
        """Return the data set in another order; see `Dataset.in_order`."""
        files = [None if place < 0 else self.latent_files[place] for place in positions.tolist()]
        return super(LatentDataset, replace(self, latent_files=files)).in_order(
            sample_ids, positions
        )

    def _latent(self, row: int) -> tuple[np.ndarray, Geometry]:
        """The latent of a picture, and where its pixels came from."""
        file = self.latent_files[row]
        if file is None:
            raise DataError(f"{self.source}: {quoted(self.sample_ids[row])} has no latents beside")
        return read_latent(file, self.shapes)

    def _content(self, row: int, picture: Image.Image) -> str:
        """The digest of a picture's bytes and its latents'."""
        digest = super()._content(row, picture)
        file = self.latent_files[row]
        if file is None or digest == NO_CONTENT:
            return digest
        with file.open("rb") as stream:
            latents = hashlib.file_digest(stream, "sha256").hexdigest()
        return hashlib.sha256(f"{digest} {latents}".encode()).hexdigest()[:CONTENT_DIGITS]


def with_latent_files(dataset: Dataset, shapes: Sequence[Shape]) -> LatentDataset:
    """Return the data set with the files of latents beside its pictures; none is read.

    Args:
        shapes: channels, height and width of the latents that a build takes.

    Raises:
        CallError: its pictures are no files in a folder.
        DataError: there are several files of one picture.
    """
    folder = Path(dataset.source)
    if not folder.is_dir():
        raise CallError(
            f"latents = 'npz': they lie beside pictures in a folder, and data {dataset.source} is"
            " none; give latents = 'sample'"
        )
    files_in: dict[Path, Mapping[str, list[str]]] = {}
    files = []
    for sample_id in dataset.sample_ids:
        picture = folder / sample_id
        if picture.parent not in files_in:
            files_in[picture.parent] = _files_by_stem(picture.parent)
        names = files_in[picture.parent].get(picture.stem, [])
        if f"{picture.stem}.npz" in names:  # as kohya's scripts prefer it
            names = [f"{picture.stem}.npz"]
        if len(names) > 1:
            raise DataError(
                f"{picture}: has several files of latents, {', '.join(map(quoted, names[:NAMED]))};"
                " keep the one that training saw"
            )
        files.append(picture.parent / names[0] if names else None)
    known = {field.name: getattr(dataset, field.name) for field in fields(Dataset)}
    known["notes"] = [*dataset.notes, "latents: from .npz files beside the pictures"]
    return LatentDataset(**known, latent_files=files, shapes=shapes)


def check_latent_files(dataset: LatentDataset, kind: str | None, factor: int) -> None:
    """Raise an error unless a build can take the latents of all pictures; only heads are read.

    A file that cannot be read is left to who reads the picture.

    Args:
        kind: what kohya's scripts call the model in the names of files; None: they are not taken.
        factor: pixels of a side that a number of a latent stands for.

    Raises:
        CallError: latents of such a model are not taken, or they have other sizes than the build.
        DataError: pictures have none, or those of another kind of model.
    """
    if kind is None:
        raise CallError(
            "latents = 'npz': taken for Stable Diffusion 1, 2 and XL alone; give latents = 'sample'"
        )
    present = np.flatnonzero(dataset.there).tolist()
    files = {row: dataset.latent_files[row] for row in present}
    lacking = [quoted(dataset.sample_ids[row]) for row, file in files.items() if file is None]
    if lacking:
        more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
        raise DataError(
            f"{dataset.source}: {share(len(lacking), len(present), 'picture', 'has', 'have')} no"
            f" latents beside them: {', '.join(lacking[:NAMED])}{more}; kohya's scripts leave"
            f" them there with --cache_latents_to_disk, x.npz or x_0640x0480_{kind}.npz"
        )
    sizes: set[Size] = set()
    misfit = None
    for file in files.values():
        assert file is not None, "an error otherwise"
        match = SIZED_FILE.fullmatch(file.name)
        if match and match[2] != kind:
            raise DataError(
                f"{file}: latents of a model that kohya's scripts call {match[2]!r}, and this one"
                f" is {kind!r}; have them cache its own"
            )
        try:
            held = _keys_by_size(file)
        except DataError:
            continue
        fitting = held.keys() & {shape[1:] for shape in dataset.shapes}
        if not fitting:
            misfit = misfit or file
        sizes |= fitting or held.keys()
    if misfit is not None:
        pictures = sorted((height * factor, width * factor) for height, width in sizes)
        raise CallError(
            f"{misfit}: latents of a picture of another size than this build's; in place of"
            f" resolution give buckets = {sizes_text(pictures)}"
        )


def read_latent(file: Path, shapes: Sequence[Shape]) -> tuple[np.ndarray, Geometry]:
    """Return the latent in a file, and where its pixels came from.

    Args:
        shapes: channels, height and width that it may have.

    Returns:
        [channels, height, width] float32, not scaled; and what the file says of the picture.

    Raises:
        DataError: the file is damaged, or does not hold one latent of such a shape.
    """
    held = _keys_by_size(file)
    fitting = [shape for shape in shapes if shape[1:] in held]
    if len(fitting) != 1:
        names = [f"{height} × {width}" for height, width in held]
        raise DataError(
            f"{file}: holds latents of {', '.join(names[:NAMED])}, of which"
            f" {len(fitting) or 'none'} fit this build; give resolution or buckets that one fits"
        )
    shape = fitting[0]
    key = held[shape[1:]]
    suffix = key.removeprefix("latents")
    with _opened(file) as archive:
        latent = _read(archive, key, shape)
        width, height = _read(archive, f"original_size{suffix}", (2,)).tolist()
        left, top, _, _ = _read(archive, f"crop_ltrb{suffix}", (4,)).tolist()
        places = (width, height, abs(left), abs(top))
        if min(width, height) < 1 or max(places) > LARGEST_PLACE:
            raise ValueError(f"{width:g} × {height:g} pixels, cut at {left:g}, {top:g}")
    return latent, Geometry((int(height), int(width)), (int(top), int(left)))


def _files_by_stem(folder: Path) -> Mapping[str, list[str]]:
    """The names of files of latents in a folder, by the names of the pictures they may be of."""
    names: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        if name.endswith(".npz"):
            match = SIZED_FILE.fullmatch(name)
            for stem in {name.removesuffix(".npz"), match[1] if match else None} - {None}:
                names.setdefault(str(stem), []).append(name)
    return names


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """An npz file; what goes wrong inside is a DataError that names it."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except MemoryError:  # the machine's fault, not the file's
        raise
    except Exception as error:  # zipfile and NumPy raise a dozen kinds
        raise DataError(f"{file}: latents that cannot be read ({first_line(error)})") from error


def _keys_by_size(file: Path) -> dict[Size, str]:
    """The names of the arrays of latents in a file, by height and width.

    Newer scripts have several in a file, each with its size in its name.
    """
    with _opened(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if "latents" in names:
            with archive.open("latents.npy") as stream:
                shape, _, _ = _read_header(stream)
            if len(shape) != 3 or not all(1 <= side <= LARGEST_SIDE for side in shape):
                raise ValueError("latents is no array of channels, height and width")
            return {shape[1:]: "latents"}
        matches = [match for name in names if (match := SIZED_KEY.fullmatch(name))]
        if not matches:
            raise ValueError("no array 'latents'")
        return {(int(match[1]), int(match[2])): match[0] for match in matches}


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape of an array in an npz file, whether its first axis is the fastest, and its type."""
    version = np.lib.format.read_magic(stream)
    if version not in HEADER_READERS:
        raise ValueError(f"an npy of version {version}")
    return HEADER_READERS[version](stream)


def _read(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of numbers of a shape, float32.

    Raises:
        ValueError, KeyError: it is not there, of another shape or type, or not finite.
    """
    with archive.open(f"{name}.npy") as stream:
        declared, is_fortran, dtype = _read_header(stream)
        if declared != shape:
            raise ValueError(f"{name} has the shape {declared}, not {shape}")
        if dtype.kind not in "fiu":
            raise ValueError(f"{name} holds no numbers, but {dtype}")
        content = stream.read(dtype.itemsize * math.prod(shape))
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")
    with np.errstate(over="ignore"):
        numbers = np.array(array, np.float32, order="C")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} holds numbers that are not finite")
    return numbers

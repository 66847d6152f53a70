"""The training pictures in a fixed order, each with an id that stays the same from run to run.

`folder.py` and `table.py` make a `Dataset`: they list the pictures, say what their ids and labels
are, and give `open_picture`, which finds the encoded picture. `images.py` decodes and resizes it.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gradindex.data.images import UNREADABLE, to_array
from gradindex.errors import CallError, DataError

FINGERPRINT_DIGITS = 8  # hex digits of a picture's fingerprint
GONE = FINGERPRINT_DIGITS * "-"  # in place of the fingerprint of a picture that is not there


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a `datasets` table.

    Attributes:
        image: the column of pictures; None: the first one that holds pictures.
        id: the column of ids; None: paths in an image folder, otherwise row numbers.
        label: the column of class labels; None: `label`, where it holds whole numbers.
    """

    image: str | None = None
    id: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Dataset:
    """N pictures in a fixed order.

    Attributes:
        source: the path or hub name that it was opened from.
        columns: those that it was opened with.
        sample_ids: N distinct strings: paths relative to a folder, the id column of a table, or its
            row numbers.
        labels: N class labels, int64, or None where there are none.
        sizes: bytes of each encoded picture, [N] int64; −1 for one that is not there. They show,
            without reading a picture, that it was changed.
        open_picture: given a row number, opens that picture with Pillow, which decodes nothing yet.
    """

    source: str
    columns: Columns
    sample_ids: Sequence[str]
    labels: np.ndarray | None
    sizes: np.ndarray
    open_picture: Callable[[int], Image.Image]

    def __len__(self) -> int:
        """Return N, the number of pictures."""
        return len(self.sample_ids)

    def picture(self, row: int, image: tuple[int, int, int]) -> np.ndarray:
        """Return picture number `row` as float32 [channels, height, width] in [−1, 1].

        Args:
            image: channels, height and width that the model takes; see `to_array`.

        Raises:
            CallError: its mode, or the model's number of channels, is not supported.
            DataError: it cannot be decoded; its id is named.
        """
        try:
            with self.open_picture(row) as picture:
                return to_array(picture, image)
        except CallError:  # it is a ValueError too, which UNREADABLE would take
            raise
        except UNREADABLE as error:
            raise DataError(
                f"{self.source}: {self.sample_ids[row]!r} is not a readable picture ({error})"
            ) from error

    def labels_of(self, rows: Sequence[int], classes: int | None) -> list[int] | None:
        """Return the class labels of some rows, or None where they have none.

        Args:
            classes: how many classes the model knows; None: it is unconditional and takes no label.
        """
        if classes is None or self.labels is None:
            return None
        return self.labels[rows].tolist()

    def thumbnail(self, row: int) -> Image.Image:
        """Return picture number `row` at its full size in RGB, for people to look at."""
        with self.open_picture(row) as picture:
            return picture.convert("RGB")

    def fingerprint(self, row: int) -> str:
        """Return eight hex digits of the SHA-256 over a picture's id, label and size in bytes.

        A picture that was exchanged for one of another size or label has another fingerprint, and
        one that is not there has `GONE`.
        """
        size = int(self.sizes[row])
        if size < 0:
            return GONE
        label = None if self.labels is None else int(self.labels[row])
        text = repr((self.sample_ids[row], label, size))
        return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]

    def in_order(self, sample_ids: Sequence[str], positions: np.ndarray) -> "Dataset":
        """Return the data set whose picture number i is this one's picture number `positions[i]`.

        Args:
            sample_ids: M ids of the new data set's pictures.
            positions: [M] int64, as `positions` gives them; −1: there is no such picture.
        """
        return replace(
            self,
            sample_ids=sample_ids,
            labels=None if self.labels is None else self.labels[positions],
            sizes=np.where(positions < 0, -1, self.sizes[positions]),
            open_picture=lambda row: self.open_picture(int(positions[row])),
        )

    def positions(self, sample_ids: Iterable[str]) -> np.ndarray:
        """Return the row number of each id, int64; −1 for an id that is not there.

        >>> open_nothing = lambda row: Image.new("L", (1, 1))
        >>> dataset = Dataset("a", Columns(), ["x", "y"], None, np.array([1, 1]), open_nothing)
        >>> dataset.positions(["y", "z"])
        array([ 1, -1])
        """
        names = list(sample_ids)
        # The usual case, at no cost: a store holds the first pictures of its data set.
        if names == self.sample_ids[: len(names)]:
            return np.arange(len(names))
        row_of = {name: row for row, name in enumerate(self.sample_ids)}
        return np.array([row_of.get(name, -1) for name in names], np.int64)

    def to_json(self) -> dict[str, Any]:
        """Return what `open_dataset` needs to open it again, as JSON values."""
        path = Path(self.source)
        source = str(path.resolve()) if path.exists() else self.source
        return {"source": source, "columns": asdict(self.columns)}

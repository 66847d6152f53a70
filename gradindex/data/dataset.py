"""The training pictures in a fixed order, each with an id that stays the same from run to run.

`folder.py` and `table.py` make a `Dataset`: they list the pictures, say what their ids and labels
are, and give `open_picture`, which finds the encoded picture. `images.py` decodes and resizes it.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gradindex.data import caption_list
from gradindex.data.images import (
    TRANSPARENT,
    DecodedPicture,
    Size,
    changes,
    geometry,
    nearest_image,
    nearest_size,
    picture_fault,
    require_channels,
    to_array,
    to_thumbnail,
)
from gradindex.data.mask_files import Masks
from gradindex.data.picture_facts import NO_CONTENT, FileStats, content_digest
from gradindex.errors import DataError, quoted
from gradindex.wording import counted

FINGERPRINT_DIGITS = 8  # hex digits of a picture's fingerprint
GONE = FINGERPRINT_DIGITS * "-"  # in place of the fingerprint of a picture that is not there
NAMED_CLASSES = 20  # classes that `describe` names
NAMED = 3  # pictures that a message names
LOOKED_AT = 2000  # pictures that are opened for a line about all


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a `datasets` table.

    Attributes:
        image: the column of pictures; None: the only one that holds pictures, or `image`.
        id: the column of ids; None: paths in an image folder, otherwise row numbers.
        label: the column of class labels; None: `label`, where it holds whole numbers.
        caption: the column of captions; None: the first of `text`, `caption` and `prompt` that
            holds texts.
    """

    image: str | None = None
    id: str | None = None
    label: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Dataset:
    """N pictures in a fixed order.

    Attributes:
        source: the path or hub name that it was opened from.
        columns: those that it was opened with.
        sample_ids: N distinct strings: paths relative to a folder, the id column of a table, or its
            row numbers.
        labels: N class labels, int64, or None where there are none.
        there: [N] bool, whether the picture is there.
        size_of: given the row number of one that is there, its bytes as it is encoded, 0 where
            there are none. They show, without reading a picture, that it was changed.
        open_picture: given a row number, opens that picture with Pillow, which decodes nothing yet.
        classes: {class: label}, where classes have names.
        notes: lines for people about what was taken and what was left out.
        warnings: lines about what was left out and may have been meant.
        captions: N of them, None for a picture without one; None where no caption was found. They
            are read when they are asked for, see `caption_list.Captions`.
        masks: that the losses of the pictures are multiplied with; None: there are none.
    """

    source: str
    columns: Columns
    sample_ids: Sequence[str]
    labels: np.ndarray | None
    there: np.ndarray
    size_of: Callable[[int], int]
    open_picture: Callable[[int], Image.Image]
    classes: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    captions: Sequence[str | None] | None = None
    masks: Masks | None = None

    def __len__(self) -> int:
        """Return N, the number of pictures."""
        return len(self.sample_ids)

    def picture(self, row: int, image: tuple[int, int, int]) -> np.ndarray:
        """Return picture number `row` as float32 [channels, height, width] in [−1, 1].

        The arguments and errors are those of `read`.
        """
        return self.read(row, image).array

    def read(
        self, row: int, image: tuple[int, int, int], buckets: Sequence[Size] | None = None
    ) -> DecodedPicture:
        """Return picture number `row`, its mask, and what is to be known of it.

        Args:
            image: channels, height and width that the model takes; see `to_array`.
            buckets: other heights and widths, of which the picture gets the nearest.

        Raises:
            CallError: the model's number of channels is not supported.
            DataError: it is not there, cannot be decoded, or has a mode that is not supported, or
                its mask does not fit; its id is named.
        """
        require_channels(image[0])
        try:
            with self._open(row) as picture:
                content = self._content(row, picture)
                image = nearest_image(picture, image, buckets)
                origin = geometry(picture, image)
                array = to_array(picture, image)
                mask = None
                if self.masks is not None:
                    name = f"{self.source}: the mask of {quoted(self.sample_ids[row])}"
                    mask = self.masks.read(row, picture, image, name)
                return DecodedPicture(array, content, origin, mask)
        except (MemoryError, DataError):  # the machine's fault, or a mask's
            raise
        except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
            raise DataError(
                f"{self.source}: {quoted(self.sample_ids[row])} is not a readable picture"
                f" ({picture_fault(error)})"
            ) from error

    def names(self, rows: Sequence[int]) -> str:
        """Return the ids of the first of some pictures, and how many more there are."""
        shown = ", ".join(repr(self.sample_ids[row]) for row in rows[:NAMED])
        return shown + (f" and {len(rows) - NAMED:,} more" if len(rows) > NAMED else "")

    def labels_of(self, rows: Sequence[int], classes: int | None) -> list[int] | None:
        """Return the class labels of some rows, or None where they have none.

        Args:
            classes: how many classes the model knows; None: it is unconditional and takes no label.
        """
        if classes is None or self.labels is None:
            return None
        return self.labels[rows].tolist()

    def captions_of(self, rows: Sequence[int]) -> list[str] | None:
        """Return the captions of some pictures, or None where the data set has none.

        Raises:
            DataError: one of them has no caption, or one that cannot be read; see `with_captions`.
        """
        if self.captions is None:
            return None
        texts = []
        for row in rows:
            text = self.captions[row]
            if text is None:
                raise DataError(f"{self.source}: {self.sample_ids[row]!r} has no caption; give one")
            texts.append(text)
        return texts

    def latents_of(self, rows: Sequence[int]) -> list[np.ndarray] | None:
        """Return latents that lie beside some pictures; None: none are taken."""
        return None

    def bucket_of(self, row: int, sizes: Sequence[Size]) -> Size:
        """Return the size that picture number `row` gets, which is not decoded."""
        with self._open(row) as picture:
            return nearest_size(picture, sizes)

    def thumbnail(self, row: int, content: str = NO_CONTENT, side: int = 256) -> Image.Image | None:
        """Return picture number `row` in RGB and no larger than `side`, for people to look at.

        None where it cannot be read, or is another one.

        Args:
            content: the `content_digest` that its bytes must have; `NO_CONTENT`: any.
        """
        try:
            with self._open(row) as picture:
                if content not in (NO_CONTENT, self._content(row, picture)):
                    return None
                return to_thumbnail(picture, side)
        except Exception:  # see `picture`
            return None

    def describe(self) -> list[str]:
        """Return lines for people: the number of pictures, each class and its label, the notes.

        >>> nothing = lambda row: Image.new("L", (1, 1))
        >>> known = Columns(), ["x"], np.array([0]), np.array([True])
        >>> dataset = Dataset("a", *known, size_of=lambda row: 1, open_picture=nothing)
        >>> dataset.describe()
        ['a: 1 picture', 'labels: 0 (1)']
        """
        lines = [f"{self.source}: {counted(len(self), 'picture')}"]
        if self.labels is not None:
            lines.append(f"labels: {self._labels_text(self.labels)}")
        if self.captions is not None:
            rows, sample = self.looked_at(np.arange(len(self)), caption_list.LOOKED_AT)
            lines.append(caption_list.captions_text(self.captions, rows, sample))
        return [*lines, *self.notes]

    def _labels_text(self, labels: np.ndarray) -> str:
        """Return each class with its label and, in parentheses, its number of pictures."""
        name_of = {label: f"{name} = {label}" for name, label in self.classes.items()}
        values, counts = np.unique(labels, return_counts=True)
        texts = [
            f"{name_of.get(label, label)} ({count})"
            for label, count in zip(values.tolist(), counts.tolist(), strict=True)
        ]
        if len(texts) > NAMED_CLASSES:
            more = len(texts) - NAMED_CLASSES
            texts = [*texts[:NAMED_CLASSES], f"and {more} more classes"]
        return ", ".join(texts)

    def describe_changes(
        self, image: tuple[int, int, int], rows: np.ndarray, buckets: Sequence[Size] | None = None
    ) -> list[str]:
        """Return a line that counts what `read` does to pictures; none where it does nothing.

        At most 2,000 are looked at, evenly spaced; none is decoded.

        Args:
            image, buckets: see `read`.
            rows: numbers of the pictures that are going to be read.
        """
        counts: Counter[str] = Counter()
        looked_at, sample = self.looked_at(rows)
        for row in looked_at:
            try:
                with self._open(row) as picture:
                    counts.update(changes(picture, image, buckets))
            except Exception:  # see `picture`
                counts["cannot be opened"] += 1
        if self.masks is not None and self.masks.files is None:
            masked = counts.pop(TRANSPARENT, 0) + counts["cannot be opened"]
            counts["of no alpha channel, count wholly"] = len(looked_at) - masked
        texts = [f"{count} {change}" for change, count in counts.items() if count]
        return [f"pictures{sample}: {'; '.join(texts)}"] if texts else []

    def looked_at(self, rows: np.ndarray, most: int = LOOKED_AT) -> tuple[list[int], str]:
        """Return some of these rows that have a picture, and a text of how many of them they are.

        They are at most `most`, evenly spaced; the text is empty where they are all.
        """
        present = rows[self.there[rows]]
        spaced = np.linspace(0, len(present) - 1, min(len(present), most)).astype(int)
        of_all = f" ({len(spaced):,} of {len(present):,} looked at)"
        return present[spaced].tolist(), of_all if len(spaced) < len(present) else ""

    def _content(self, row: int, picture: Image.Image) -> str:
        """The digest of what a row is made of, see `content_digest`."""
        return content_digest(picture)

    def _open(self, row: int) -> Image.Image:
        """Return picture number `row`, opened by Pillow; ValueError when it is not there."""
        if not self.there[row]:
            raise ValueError("it is not there")
        return self.open_picture(row)

    def fingerprint(self, row: int) -> str:
        """Return eight hex digits of the SHA-256 over what tells that a picture is another one.

        A picture that was exchanged for one of another size, label, caption or mask has another
        fingerprint, and one that is not there has `GONE`.
        """
        if not self.there[row]:
            return GONE
        label = None if self.labels is None else int(self.labels[row])
        facts: tuple[str | int | None, ...] = (self.sample_ids[row], label, self.size_of(row))
        caption = None if self.captions is None else self.captions[row]
        if caption is not None:  # without one it is what it was before there were captions
            facts = (*facts, caption)
        if self.masks is not None and (digest := self.masks.digest(row)):
            facts = (*facts, f"mask {digest}")
        text = repr(facts)
        return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]

    def content(self, row: int) -> str:
        """Return 16 hex digits of the SHA-256 of a picture's bytes, which are read.

        It is `NO_CONTENT` where it cannot be opened.
        """
        try:
            with self._open(row) as picture:
                return self._content(row, picture)
        except Exception:  # see `picture`
            return NO_CONTENT

    @cached_property
    def stats(self) -> FileStats:
        """Digests of size, time and inode of each picture's file, by its row number."""
        return FileStats(self.source, self.sample_ids, self.there)

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
            there=np.where(positions < 0, False, self.there[positions]),
            size_of=lambda row: self.size_of(int(positions[row])),
            open_picture=lambda row: self.open_picture(int(positions[row])),
            captions=None
            if self.captions is None
            else caption_list.in_order(self.captions, positions),
            masks=None if self.masks is None else self.masks.in_order(positions),
        )

    def positions(self, sample_ids: Iterable[str]) -> np.ndarray:
        """Return the row number of each id, int64; −1 for an id that is not there.

        >>> nothing = lambda row: Image.new("L", (1, 1))
        >>> known = Columns(), ["x", "y"], None, np.array([True, True])
        >>> dataset = Dataset("a", *known, size_of=lambda row: 1, open_picture=nothing)
        >>> dataset.positions(["y", "z"])
        array([ 1, -1])
        """
        names = sample_ids if isinstance(sample_ids, Sequence) else list(sample_ids)
        # The usual case, without a copy: a store holds the first pictures of its data set.
        if len(names) <= len(self) and all(map(str.__eq__, names, self.sample_ids)):
            return np.arange(len(names))
        row_of = {name: row for row, name in enumerate(self.sample_ids)}
        return np.array([row_of.get(name, -1) for name in names], np.int64)

    def to_json(self) -> dict[str, Any]:
        """Return what `open_dataset` needs to open it again, as JSON values."""
        path = Path(self.source)
        source = str(path.resolve()) if path.exists() else self.source
        columns = asdict(self.columns)
        if columns["caption"] is None:  # so an index without captions is what it always was
            del columns["caption"]
        return {"source": source, "columns": columns}

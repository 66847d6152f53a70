"""The captions of a data set's pictures, each read when it is first asked for."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, overload

import numpy as np

from gradindex.wording import counted

LOOKED_AT = 20_000  # captions that are read for what is said of all
KEPT = 2 * LOOKED_AT  # captions in memory


class Caption(NamedTuple):
    """What a file or a cell says of a picture.

    Attributes:
        text: the caption that is taken; None: there is none.
        has_more: whether more lines or captions follow it, which are not taken.
    """

    text: str | None
    has_more: bool = False


@dataclass(frozen=True, eq=False)
class Captions(Sequence[str | None]):
    """The captions of N pictures; None for a picture without one.

    Nothing is read before it is asked for: a model without text encoders never meets a file or cell
    that cannot be read.

    Attributes:
        length: N.
        read: given a row number, reads that picture's caption. It raises DataError where there is
            one that cannot be read.
        origin: for people, where captions come from.
        of_more: for people, what `has_more` means of these: ("file has more lines", "files have
            more lines").
        notes: for people, what else is to be known.
        known: {row: caption} of some that were read.
    """

    length: int
    read: Callable[[int], Caption]
    origin: str
    of_more: tuple[str, str] = ("", "")
    notes: Sequence[str] = ()
    known: dict[int, Caption] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return N, the number of pictures."""
        return self.length

    @overload
    def __getitem__(self, row: int) -> str | None: ...

    @overload
    def __getitem__(self, row: slice) -> list[str | None]: ...

    def __getitem__(self, row: int | slice) -> str | list[str | None] | None:
        """Return the caption of a picture, or of some."""
        if isinstance(row, slice):
            return [self.caption(number).text for number in range(self.length)[row]]
        return self.caption(range(self.length)[row]).text

    def caption(self, row: int) -> Caption:
        """Return the caption of picture number `row`, from 0, and whether it has more lines."""
        found = self.known.get(row)
        if found is None:
            found = self.read(row)
            if len(self.known) >= KEPT:
                self.known.clear()
            self.known[row] = found
        return found


def in_order(captions: Sequence[str | None], positions: np.ndarray) -> Captions:
    """Return the list whose caption number i is number `positions[i]` of another; none is read.

    Args:
        positions: [M] int64; −1: there is no such picture, and it has no caption.

    >>> list(in_order(["a", None, "c"], np.array([2, -1, 0])))
    ['c', None, 'a']
    """
    source = listed(captions)

    def read(row: int) -> Caption:
        position = int(positions[row])
        return Caption(None) if position < 0 else source.caption(position)

    return Captions(len(positions), read, source.origin, source.of_more, source.notes)


def listed(texts: Sequence[str | None], origin: str = "a list") -> Captions:
    """Return captions that are there already as a list; `Captions` as they are."""
    if isinstance(texts, Captions):
        return texts
    return Captions(len(texts), lambda row: Caption(texts[row]), origin)


def captions_text(captions: Sequence[str | None], rows: Iterable[int], sample: str = "") -> str:
    """Return a line for people: how many distinct captions, how many missing, the longest, origin.

    Args:
        rows: that are looked at. sample: how many they are of how many; empty: all.

    >>> captions_text(listed(["a red dog", None, "a red dog"], "files"), range(3))
    'captions: 1 distinct, 1 missing, at most 3 words; from files'
    """
    source = listed(captions)
    found = [source.caption(row) for row in rows]
    distinct = {caption.text for caption in found} - {None}
    missing = sum(caption.text is None for caption in found)
    words = max((len(text.split()) for text in distinct if text), default=0)
    more = sum(caption.has_more for caption in found)
    empty = sum(caption.text == "" for caption in found)
    counts = [f"{len(distinct):,} distinct"]
    if missing:
        counts.append(f"{missing:,} missing")
    if empty:
        counts.append(f"{empty:,} empty")
    counts.append(f"at most {words:,} word{'s' if words != 1 else ''}")
    parts = [", ".join(counts), f"from {source.origin}"]
    if more:
        parts.append(counted(more, *source.of_more))
    return f"captions{sample}: " + "; ".join([*parts, *source.notes])

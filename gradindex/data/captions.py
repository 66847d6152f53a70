"""The captions with which a text-to-image model trained on its pictures.

`with_captions` settles them for a build; `same_captions` gives them again to whoever opens the
pictures of an index. Both are for models with text encoders: for others a data set's captions are
dropped, as labels are.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gradindex.data.caption_list import LOOKED_AT, Caption, Captions, listed
from gradindex.data.dataset import Dataset
from gradindex.errors import CallError, DataError
from gradindex.wording import counted, share

MISSING_CAPTION = ("error", "empty")  # what becomes of pictures without a caption
TRIGGER = "[trigger]"  # ai-toolkit writes its trigger word, or nothing, in place of this


def with_captions(dataset: Dataset, caption: str | None = None, missing: str = "error") -> Dataset:
    """Return the data set with a caption for each picture.

    At most 20,000 captions are read now, evenly spaced; what is wrong with another one is an error
    when it is asked for. A picture that is not there needs none.

    Args:
        caption: that of all pictures; None: those of the data set.
        missing: what pictures without one get: "error", or "empty" (the empty caption).

    Raises:
        CallError: pictures have no caption, `missing` is another word, or `caption` is not text.
        DataError: a caption cannot be read, or has a placeholder of ai-toolkit's in it.

    >>> from gradindex.data.dataset import Columns
    >>> nothing = lambda row: None
    >>> dataset = Dataset("a", Columns(), ["x"], None, np.array([True]), nothing, nothing)
    >>> list(with_captions(dataset, "a photo of sks dog").captions)
    ['a photo of sks dog']
    """
    if missing not in MISSING_CAPTION:
        raise CallError(f"missing_caption = {missing!r}: give one of {', '.join(MISSING_CAPTION)}")
    if caption is not None:
        _check_text(caption)
        return same_captions(dataset, caption)
    rows, sample = dataset.looked_at(np.arange(len(dataset)), LOOKED_AT)
    _check_captions(dataset, rows, missing, sample)
    if dataset.captions is None:
        return same_captions(dataset)
    source = listed(dataset.captions)

    def read(row: int) -> Caption:
        _check_captions(dataset, [row], missing)
        found = source.caption(row)
        return Caption("") if found.text is None else found

    return replace(dataset, captions=replace(source, read=read, known={}))


def same_captions(dataset: Dataset, caption: str | None = None) -> Dataset:
    """Return the data set with the captions that `with_captions` gave; nothing is read or checked.

    A picture without one has the empty caption: a build that does not allow that has not begun. One
    whose caption cannot be read any more has none, and so another fingerprint.

    Args:
        caption: that of all pictures, as it was given to `with_captions`.
    """
    own = dataset.captions
    if caption is not None:
        text = caption
        notes = [] if own is None else ["captions of the data are not taken"]
        given = Captions(len(dataset), lambda _: Caption(text), "--caption", notes=notes)
        return replace(dataset, captions=given)
    if own is None:
        empty = Captions(len(dataset), lambda _: Caption(""), "--missing-caption empty")
        return replace(dataset, captions=empty)
    source = listed(own)

    def read(row: int) -> Caption:
        try:
            found = source.caption(row)
        except DataError:
            return Caption(None)
        return Caption("") if found.text is None else found

    return replace(dataset, captions=replace(source, read=read, known={}))


def _check_text(caption: str) -> None:
    """Raise CallError unless a caption is a text that a tokenizer can take."""
    if not isinstance(caption, str):
        raise CallError(f"caption = {caption!r}: give one text for all pictures")
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise CallError(f"caption = {caption!r}: not UTF-8") from error


def _check_captions(dataset: Dataset, rows: Sequence[int], missing: str, sample: str = "") -> None:
    """Raise an error where some pictures lack a caption, or where it is unfinished.

    Args:
        sample: how many they are of how many, for people; empty: that does not matter.
    """
    captions = dataset.captions
    lacking = []
    unfinished = []
    for row in rows:
        text = None if captions is None else captions[row]
        if text is None:
            lacking.append(row)
        elif TRIGGER in text:
            unfinished.append(row)
    if unfinished:
        raise DataError(
            f"data {dataset.source}{sample}:"
            f" {counted(len(unfinished), 'caption holds', 'captions hold')} {TRIGGER}"
            f" ({dataset.names(unfinished)}); write the trigger word of the training there, or"
            " give --caption TEXT for all pictures"
        )
    if lacking and missing == "error":
        raise CallError(
            f"data {dataset.source}{sample}:"
            f" {share(len(lacking), len(rows), 'picture', 'has', 'have')} no caption"
            f" ({dataset.names(lacking)}); write it to a text file x.txt beside x.png, name a"
            " table's column with --caption-column, or give --caption TEXT for all pictures or"
            " --missing-caption empty"
        )

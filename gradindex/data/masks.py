"""The masks of a training with a masked loss: how much each pixel of a picture counts.

They lie in a folder, as files that are called like the pictures, or are the pictures' own alpha
channels: kohya's `--masked_loss` with `conditioning_data_dir`, or with `--alpha_mask`.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from gradindex.data.dataset import Dataset
from gradindex.data.folder import list_files, sample_id
from gradindex.data.mask_files import Masks
from gradindex.errors import CallError
from gradindex.recipe import ALPHA, FILES
from gradindex.wording import share


def mask_kind(masks: str | Path) -> str:
    """Return what a recipe says of masks: "alpha", or "files" for a folder of them."""
    return ALPHA if masks == ALPHA else FILES


def masks_source(masks: str | Path) -> str:
    """Return masks as an index keeps them: "alpha", or the absolute path of their folder."""
    return ALPHA if masks == ALPHA else str(Path(masks).resolve())


def with_masks(dataset: Dataset, masks: str | Path) -> Dataset:
    """Return the data set with a mask for each picture; none is opened yet.

    Args:
        masks: "alpha" for the alpha channels of the pictures, where one without counts wholly; or a
            folder. The mask of the picture `a/x.png` is the picture `a/x` of any suffix in it, or
            `x`, if there is no such one.

    Raises:
        CallError: there is no such folder, it is that of the pictures, or pictures have no mask
            there.
        DataError: the folder cannot be listed.
    """
    if masks != ALPHA and not Path(masks).is_dir():
        raise CallError(
            f"masks = {str(masks)!r}: no such folder; give one with a mask of each picture, or"
            f" {ALPHA!r} for the pictures' alpha channels"
        )
    if masks != ALPHA and Path(masks).resolve() == Path(dataset.source).resolve():
        raise CallError(
            f"masks = {str(masks)!r}: the folder of the pictures themselves; give one with a mask"
            f" of each, or {ALPHA!r} for their alpha channels"
        )
    masked = add_masks(dataset, masks)
    assert masked.masks is not None
    files = masked.masks.files
    if files is None:
        return masked
    present = np.flatnonzero(dataset.there).tolist()
    lacking = [row for row in present if files[row] is None]
    if lacking:
        raise CallError(
            f"masks {masks}: {share(len(lacking), len(present), 'picture', 'has', 'have')} no mask"
            f" ({dataset.names(lacking)}); put one of the same name there for each, white where"
            " the whole picture counts"
        )
    return masked


def add_masks(dataset: Dataset, masks: str | Path) -> Dataset:
    """Return the data set with the masks that there are; pictures may lack one.

    Args:
        masks: see `with_masks`.

    Raises:
        CallError, DataError: the folder is not there, or cannot be listed.
    """
    if masks == ALPHA:
        notes = [*dataset.notes, "masks: the pictures' alpha channels"]
        return replace(dataset, masks=Masks(None), notes=notes)
    folder = Path(masks)
    if not folder.is_dir():
        raise CallError(
            f"masks {folder}: no such folder; put them back, or run the same build with"
            " masks = NEW, where they are now"
        )
    names = sorted(list_files(folder).pictures, reverse=True)
    # The first of several suffixes counts, and a file's whole name before that without its suffix.
    name_of = {os.path.splitext(sample_id(name))[0]: name for name in names}
    name_of |= {sample_id(name): name for name in names}
    files = [_find(folder, name_of, name) for name in dataset.sample_ids]
    return replace(dataset, masks=Masks(files), notes=[*dataset.notes, f"masks: from {folder}"])


def _find(folder: Path, name_of: Mapping[str, str], picture: str) -> Path | None:
    """Return the file of a picture's mask; None where there is none.

    Args:
        name_of: {id of a file in the folder, with its suffix and without: the file's name}.
        picture: id of the picture.
    """
    base = os.path.basename(picture)
    for name in (picture, os.path.splitext(picture)[0], base, os.path.splitext(base)[0]):
        if name in name_of:
            return folder / name_of[name]
    return None

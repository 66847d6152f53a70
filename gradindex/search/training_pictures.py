"""The training pictures behind an index, where they still are."""

from dataclasses import replace
from functools import cached_property

import numpy as np
from PIL import Image

from gradindex.data.captions import same_captions
from gradindex.data.dataset import Columns, Dataset
from gradindex.data.latent_files import with_latent_files
from gradindex.data.masks import add_masks
from gradindex.data.opening import open_dataset
from gradindex.errors import CallError, GradindexError
from gradindex.recipe import NPZ
from gradindex.store.records import masks_of, one_caption
from gradindex.store.store import Store


def open_pictures(store: Store, source: str) -> Dataset:
    """Return the data set at a path or of a name, with what the store's model is given of it.

    It is opened with the columns, caption and masks that the build was given, and warns of nothing.

    Raises:
        CallError, DataError: see `open_dataset`.
    """
    data = store.header.data
    columns = Columns() if data is None else Columns(**data.columns)
    dataset = open_dataset(source, columns, warn=False)
    if store.recipe.latents == NPZ:
        dataset = with_latent_files(dataset, store.recipe.images)
    if store.recipe.classes is None:
        dataset = replace(dataset, labels=None)
    if (masks := masks_of(data)) is not None:
        dataset = add_masks(dataset, masks)
    if store.recipe.captioned:
        return same_captions(dataset, one_caption(data))
    return replace(dataset, captions=None)


class TrainingPictures:
    """The training pictures of a store, in the order of its rows, opened when first used."""

    def __init__(self, store: Store) -> None:
        self._store = store
        data = store.header.data
        self._fault = f"data{f' {data.source}' if data else ''}: no longer there, or changed"

    @cached_property
    def dataset(self) -> Dataset | None:
        """The data set; None when the pictures, or their masks, are no longer where they were."""
        data = self._store.header.data
        if data is None:
            return None
        try:
            dataset = open_pictures(self._store, data.source)
        except GradindexError as error:
            self._fault = str(error)
            return None
        positions = dataset.positions(self._store.sample_ids)
        absent = np.setdiff1d(np.flatnonzero(positions < 0), self._store.excluded)
        if len(absent):
            return None
        return dataset.in_order(self._store.sample_ids, positions)

    def require(self, advice: str = "") -> Dataset:
        """The data set; CallError, with some advice, when it is no longer where it was."""
        if self.dataset is None:
            raise CallError(f"{self._fault}{advice}")
        return self.dataset

    def thumbnail(self, row: int) -> Image.Image | None:
        """The picture of a row as it is on disk; None when it is gone or another is there."""
        entry = self._store.entry_of(row)
        if self.dataset is None or entry is None:
            return None
        if self.dataset.fingerprint(row) != entry.fingerprint(row):
            return None
        # Its bytes are read anyway, so they are compared too.
        return self.dataset.thumbnail(row, entry.content(row))

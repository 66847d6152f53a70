"""The training pictures behind an index, where they still are."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from gradindex.data.captions import same_captions
from gradindex.data.dataset import Columns, Dataset
from gradindex.data.latent_files import with_latent_files
from gradindex.data.masks import add_masks
from gradindex.data.opening import open_dataset
from gradindex.data.picture_facts import NO_CONTENT
from gradindex.errors import CallError, GradindexError
from gradindex.models.examples import Pictures
from gradindex.recipe import NPZ, Recipe
from gradindex.search.results import Hit, Result
from gradindex.store.records import ShardEntry, masks_of, one_caption
from gradindex.store.store import Store
from gradindex.wording import share

KEPT_ENTRIES = 64  # of shards, so that pictures one after the other read theirs once


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


def read_rows(dataset: Dataset, recipe: Recipe, rows: Sequence[int]) -> Pictures:
    """Return the pictures of some rows of a data set, as a recipe's model takes them.

    Raises:
        DataError: one cannot be read.
    """
    read = [dataset.read(row, recipe.pixels, recipe.buckets) for row in rows]
    return Pictures.of_rows(dataset, rows, read, recipe.classes)


class TrainingPictures:
    """The training pictures of a store, in the order of its rows, opened when first used.

    Args:
        moved_to: where they are now; None: where they were when the index was built.
    """

    def __init__(self, store: Store, moved_to: str | Path | None = None) -> None:
        self._store = store
        self._moved_to = moved_to
        self._fault = ""  # why there is no data set
        self._entries: dict[int, ShardEntry] = {}

    @property
    def source(self) -> str:
        """Where they are looked for; empty where the index does not say it."""
        data = self._store.header.data
        return str(self._moved_to or ("" if data is None else data.source))

    @cached_property
    def dataset(self) -> Dataset | None:
        """The data set; None when the pictures are no longer where they were, or their masks.

        Raises:
            CallError, DataError: they are not where the caller says that they are now.
        """
        if self._moved_to is not None:
            return self._open()
        try:
            return self._open()
        except GradindexError as error:
            self._fault = str(error)
            return None

    def _open(self) -> Dataset:
        """The data set where it is looked for; GradindexError where that has other pictures."""
        if not self.source:
            raise CallError(f"{self._store.location}: does not say where its pictures are")
        dataset = open_pictures(self._store, self.source)
        ids = self._store.sample_ids
        positions = dataset.positions(ids)
        absent = np.setdiff1d(np.flatnonzero(positions < 0), self._store.excluded)
        if len(absent):
            count = share(len(absent), len(ids), "picture", "is", "are")
            raise CallError(
                f"data {self.source}: {count} not there, such as {ids[int(absent[0])]!r}; give the"
                " folder, or table, that the index was built from"
            )
        return dataset.in_order(ids, positions)

    def require(self, advice: str = "") -> Dataset:
        """The data set; CallError, with some advice, when it is no longer where it was."""
        if self.dataset is None:
            raise CallError(f"{self._fault}; say where it is now (data=){advice}")
        return self.dataset

    def picture(self, row: int) -> Image.Image:
        """The picture of a row, which is opened and not yet decoded.

        Raises:
            CallError: it is gone or another is there, or the training pictures are.
        """
        dataset, entry = self.require(), self._entry(row)
        # Its bytes are compared too: another picture may be as large.
        if (
            entry is None
            or dataset.fingerprint(row) != entry.fingerprint(row)
            or entry.content(row) not in (NO_CONTENT, dataset.content(row))
        ):
            name = self._store.sample_ids[row]
            raise CallError(f"{self.source}: {name!r} is gone, or another picture is in its place")
        return dataset.open_picture(row)

    def _entry(self, row: int) -> ShardEntry | None:
        """The manifest entry of a row's shard, of which the last ones read are kept."""
        number = row // self._store.shard_rows
        entry = self._entries.get(number)
        if entry is None:
            entry = self._store.entry_of(row)
            if len(self._entries) >= KEPT_ENTRIES:
                self._entries.clear()
            if entry is not None:
                self._entries[number] = entry
        return entry

    def contents(self) -> Iterator[str]:
        """The `content_digest` of each picture when it was indexed; `NO_CONTENT`: not known."""
        shards = [shard for shard in self._store.shards() if shard.checkpoint == 0]
        for shard, entry in self._store.committed(shards):
            yield from (entry.content(row) for row in range(shard.start, shard.stop))

    def caption(self, row: int) -> str | None:
        """The caption of a row.

        None where it has none, where it cannot be read, and where the model is given no captions or
        the pictures are not on this machine: for captions alone nothing is fetched.
        """
        is_here = "dataset" in vars(self) or Path(self.source).exists()
        if not self._store.recipe.captioned or not is_here:
            return None
        try:
            captions = None if self.dataset is None else self.dataset.captions
            return None if captions is None else captions[row]
        except GradindexError:
            return None

    def with_captions(self, results: Iterable[Result]) -> list[Result]:
        """Results whose hits tell their captions."""

        def told(hits: Iterable[Hit]) -> list[Hit]:
            return [replace(hit, caption=self.caption(hit.row)) for hit in hits]

        return [
            replace(
                result,
                hits=told(result.hits),
                opponents=None if result.opponents is None else told(result.opponents),
            )
            for result in results
        ]

    def thumbnail(self, row: int, side: int = 256) -> Image.Image | None:
        """The picture of a row as it is on disk, no larger than `side` pixels.

        None when it is gone or another is there.
        """
        entry = self._entry(row)
        if self.dataset is None or entry is None:
            return None
        if self.dataset.fingerprint(row) != entry.fingerprint(row):
            return None
        # Its bytes are read anyway, so they are compared too.
        return self.dataset.thumbnail(row, entry.content(row), side)

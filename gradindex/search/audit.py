"""Held-out pictures as one query: what training pictures do to all of them on average."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from gradindex.data.captions import same_captions
from gradindex.data.dataset import Columns, Dataset
from gradindex.data.opening import open_dataset
from gradindex.errors import CallError
from gradindex.models.examples import Pictures
from gradindex.recipe import Recipe
from gradindex.search.query import Query
from gradindex.store.records import one_caption
from gradindex.store.store import Store

GROUP = 64  # held-out pictures whose gradients are in memory at once


def open_held_out(store: Store, source: str) -> Dataset:
    """Return a data set of held-out pictures, with the labels and captions that the model takes.

    It is opened as the build opened the training pictures, with the same columns; masks and latents
    beside pictures are not taken.

    Raises:
        CallError, DataError: see `open_dataset`; or the model is class-conditional, and the
            pictures have no labels.
    """
    data = store.header.data
    dataset = open_dataset(source, Columns() if data is None else Columns(**data.columns))
    if store.recipe.classes is None:
        dataset = replace(dataset, labels=None)
    elif dataset.labels is None:
        raise CallError(f"data {source}: the model is class-conditional, and these have no labels")
    if store.recipe.captioned:
        return same_captions(dataset, one_caption(data))
    return replace(dataset, captions=None)


def queries_of(store: Store, dataset: Dataset, options: Any) -> Iterator[Query]:
    """Yield the queries of a data set's pictures, some pictures at a time.

    Args:
        options: as for `Index.query`.

    Raises:
        CallError: the options do not fit. DataError: a picture cannot be read.
    """
    recipe = store.recipe
    present = np.flatnonzero(dataset.sizes >= 0)
    if absent := len(dataset) - len(present):
        warnings.warn(f"data {dataset.source}: {absent} pictures are not there", stacklevel=2)
    for start in range(0, len(present), GROUP):
        pictures = _read(dataset, recipe, present[start : start + GROUP].tolist())
        # As a query checks its options by what it is given; what else is known of them comes after.
        query = Query.of(
            store,
            list(pictures.arrays),
            prompt=pictures.captions,
            class_label=pictures.labels,
            ids=pictures.ids,
            **options,
        )
        yield replace(query, pictures=pictures)


def _read(dataset: Dataset, recipe: Recipe, rows: list[int]) -> Pictures:
    """The pictures of some rows of a data set."""
    read = [dataset.read(row, recipe.pixels, recipe.buckets) for row in rows]
    return Pictures.of_rows(dataset, rows, read, recipe.classes)

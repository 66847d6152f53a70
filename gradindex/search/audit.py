"""Held-out pictures as one query: what training pictures do to all of them on average."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from gradindex.data.captions import same_captions
from gradindex.data.dataset import Columns, Dataset
from gradindex.data.opening import open_dataset
from gradindex.errors import CallError
from gradindex.models.examples import Pictures
from gradindex.recipe import Recipe
from gradindex.search.query import Query
from gradindex.search.query_gradients import QueryGradients
from gradindex.store.records import one_caption
from gradindex.store.store import Store

GROUP = 64  # held-out pictures whose gradients are in memory at once


class MeanQuery(NamedTuple):
    """Many pictures as one query.

    Attributes:
        block: the mean of their query blocks, [1, C, T, D], not whitened.
        query: of some of them, with the options of all.
        pictures: how many there are. seconds: that their gradients took.
    """

    block: np.ndarray
    query: Query
    pictures: int
    seconds: float


def mean_query(
    store: Store, gradients: QueryGradients, source: str, method: str, options: Any
) -> MeanQuery:
    """Return the mean of the query blocks of a data set's pictures.

    Args:
        source: of the data set. options: as for `Index.query`.

    Raises:
        CallError, DataError: the data set or the options do not fit.
    """
    dataset = _open_held_out(store, source)
    total, count, seconds, last = np.zeros(()), 0, 0.0, None
    for query in _queries_of(store, dataset, options):
        (block,), duration = gradients.blocks(query, [method])
        total = total + block.sum(0, keepdims=True, dtype=np.float64)
        count += len(block)
        seconds += duration
        last = query
    if last is None:
        raise CallError(f"data {source}: none of its pictures is there")
    return MeanQuery((total / count).astype(np.float32), last, count, seconds)


def _open_held_out(store: Store, source: str) -> Dataset:
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


def _queries_of(store: Store, dataset: Dataset, options: Any) -> Iterator[Query]:
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

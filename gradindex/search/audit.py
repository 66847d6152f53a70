"""Held-out pictures as one query: what training pictures do to all of them on average."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gradindex.data.captions import same_captions
from gradindex.data.dataset import Columns, Dataset
from gradindex.data.latent_files import with_latent_files
from gradindex.data.opening import is_plain_folder, open_dataset
from gradindex.data.picture_facts import NO_CONTENT
from gradindex.errors import CallError, GradindexError, quoted
from gradindex.recipe import NPZ
from gradindex.search.answering import Request, answer_blocks
from gradindex.search.grouping import Grouping
from gradindex.search.query import Query
from gradindex.search.query_gradients import QueryGradients
from gradindex.search.ranker import Ranker
from gradindex.search.results import Result
from gradindex.search.training_pictures import TrainingPictures, read_rows
from gradindex.store.records import one_caption
from gradindex.store.store import Store
from gradindex.wording import counted, share

LOGGER = logging.getLogger("gradindex")

FEW = 50  # held-out pictures, of fewer of which it is said that they are few
GROUP = 64  # held-out pictures whose gradients are in memory at once


class AuditRequest(NamedTuple):
    """What is wanted of an audit: see `Index.audit`; groups: of training pictures."""

    source: str
    k: int
    method: str
    groups: Grouping | None


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


def audit_result(
    store: Store,
    gradients: QueryGradients,
    training: TrainingPictures,
    ranker: Ranker,
    request: AuditRequest,
    options: Any,
) -> Result:
    """Return what training pictures do to held-out ones on average, see `Index.audit`.

    Args:
        options: as for `Index.query`.

    Raises:
        CallError, DataError: see `mean_query`. StoreError: no build has finished.
    """
    source, k, method, groups = request
    store.require_in_place()
    _ = store.summary  # raises unless a build has finished
    asked = mean_query(store, gradients, training, source, method, options)
    name = f"{source} ({counted(asked.pictures, 'picture')})"
    wanted = Request([name], asked.query, k, method, opponents=True, groups=groups)
    results, _ = answer_blocks(store, ranker, asked.block, wanted, asked.seconds)
    return _helpful_and_harmful(*training.with_captions(results))


def mean_query(
    store: Store,
    gradients: QueryGradients,
    training: TrainingPictures,
    source: str,
    method: str,
    options: Any,
) -> MeanQuery:
    """Return the mean of the query blocks of a data set's pictures.

    Args:
        source: of the data set. options: as for `Index.query`.

    Raises:
        CallError, DataError: the data set or the options do not fit.
    """
    dataset = _open_held_out(store, training, source)
    if len(dataset) < FEW:
        LOGGER.info(
            f"data {dataset.source}: {counted(len(dataset), 'picture')}; with fewer than {FEW} the"
            " ends of the lists are mostly chance"
        )
    _warn_of_training_pictures(store, dataset, training)
    total, count, seconds, last = np.zeros(()), 0, 0.0, None
    for query in _queries_of(store, dataset, options):
        (block,), duration = gradients.blocks(query, [method])
        total = total + block.sum(0, keepdims=True, dtype=np.float64)
        count += len(block)
        seconds += duration
        last = query
    if last is None:
        raise CallError(f"data {source}: none of its pictures is there")
    query = replace(last, is_like_rows=False)
    return MeanQuery((total / count).astype(np.float32), query, count, seconds)


def _helpful_and_harmful(result: Result) -> Result:
    """Return the result of an audit without hits of zero or of the other sign than their list's."""
    hits = [hit for hit in result.hits if hit.score > 0]
    opponents = [hit for hit in result.opponents or () if hit.score < 0]
    return replace(result, hits=hits, opponents=opponents)


def _open_held_out(store: Store, training: TrainingPictures, source: str) -> Dataset:
    """Return a data set of held-out pictures, with the labels and captions that the model takes.

    A table is opened as the build opened the training pictures, with the same columns; masks and
    latents beside pictures are not taken. Classes are those of the training pictures, by their
    names.

    Raises:
        CallError, DataError: see `open_dataset`; or pictures lack a label or a caption.
    """
    data = store.header.data
    columns = Columns() if data is None else Columns(**data.columns)
    if is_plain_folder(Path(source), columns):
        columns = Columns()
    dataset = open_dataset(source, columns)
    if store.recipe.classes is None:
        dataset = replace(dataset, labels=None)
    else:
        dataset = _with_classes(dataset, training)
    if not store.recipe.captioned:
        return replace(dataset, captions=None)
    if dataset.captions is None:
        caption = one_caption(data)
        if caption is None:
            raise CallError(
                f"data {source}: the model is given captions, and these have none; write each to"
                " a text file x.txt beside x.png"
            )
        return same_captions(dataset, caption)
    lacking = [row for row, caption in enumerate(dataset.captions) if caption is None]
    if lacking:
        raise CallError(
            f"data {source}: {share(len(lacking), len(dataset), 'picture', 'has', 'have')} no"
            f" caption ({dataset.names(lacking)}); write it to a text file x.txt beside x.png"
        )
    return dataset


def _warn_of_training_pictures(store: Store, dataset: Dataset, training: TrainingPictures) -> None:
    """Warn where held-out pictures are training pictures: the same bytes were indexed."""
    compared = dataset
    if store.recipe.latents == NPZ:  # a picture's latents count among its bytes
        with suppress(GradindexError):
            compared = with_latent_files(dataset, store.recipe.images)
    asked = [compared.content(row) for row in range(len(compared))]
    known = {digest for digest in training.contents() if digest != NO_CONTENT}.intersection(asked)
    same = [row for row, digest in enumerate(asked) if digest in known]
    if same:
        count = share(len(same), len(dataset), "picture", "is", "are")
        warnings.warn(
            f"data {dataset.source}: {count} among the training pictures, such as"
            f" {quoted(dataset.sample_ids[same[0]])}; an audit is of pictures that the model was"
            " not trained on",
            stacklevel=2,
        )


def _with_classes(dataset: Dataset, training: TrainingPictures) -> Dataset:
    """Return held-out pictures with the labels that the training pictures' classes have.

    Classes without names are labels already.

    Raises:
        CallError: there are no labels, or a class that the training pictures do not have.
    """
    source = dataset.source
    if dataset.labels is None:
        raise CallError(f"data {source}: the model is class-conditional, and these have no labels")
    if not dataset.classes:
        return dataset
    label_of = training.require("; its classes say which label a held-out picture has").classes
    unknown = sorted(dataset.classes.keys() - label_of.keys())
    if unknown:
        raise CallError(
            f"data {source}: {counted(len(unknown), 'class', 'classes')} that the training pictures"
            f" do not have, such as {unknown[0]!r}; they have {', '.join(label_of)}"
        )
    moved = {label: label_of[name] for name, label in dataset.classes.items()}
    labels = np.array([moved[label] for label in dataset.labels.tolist()], np.int64)
    return replace(dataset, labels=labels, classes=label_of)


def _queries_of(store: Store, dataset: Dataset, options: Any) -> Iterator[Query]:
    """Yield the queries of a data set's pictures, some pictures at a time.

    Args:
        options: as for `Index.query`.

    Raises:
        CallError: the options do not fit. DataError: a picture cannot be read.
    """
    present = np.flatnonzero(dataset.there)
    if absent := len(dataset) - len(present):
        warnings.warn(f"data {dataset.source}: {absent} pictures are not there", stacklevel=2)
    for start in range(0, len(present), GROUP):
        pictures = read_rows(dataset, store.recipe, present[start : start + GROUP].tolist())
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

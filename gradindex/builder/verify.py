"""Every byte of an index against its checksums.

Files are found that were changed, are missing, or do not belong where they are.
"""

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from gradindex.builder.changes import changed_pictures
from gradindex.data.dataset import Dataset
from gradindex.data.picture_facts import NO_CONTENT
from gradindex.errors import CallError
from gradindex.search.ann_index import AnnIndex
from gradindex.search.ann_record import AnnRecord, index_file, index_record_file
from gradindex.search.factors import (
    WHITENED,
    factor_damages,
    factors_file,
    factors_fit,
    saved_factors,
)
from gradindex.search.scoring import METHODS
from gradindex.search.training_pictures import open_pictures
from gradindex.store.location import Location, locate
from gradindex.store.manifest import SUMMARY, Shard, header_damages, read_record
from gradindex.store.progress import progress
from gradindex.store.records import Summary
from gradindex.store.removals import removal_damages
from gradindex.store.store import Store
from gradindex.wording import counted


def damages(path: str | Path | Location) -> Iterator[str]:
    """Yield what is wrong with an index, one line for each file; nothing when it is whole.

    Raises:
        CallError: no index is there. StoreError: neither the header nor its copy is whole.
    """
    location = locate(path)
    yield from header_damages(location)
    yield from removal_damages(location)
    store = Store(location)
    shards = store.shards()
    contents = location.read_many(shard.entry for shard in shards)
    pairs = zip(shards, contents, strict=True)
    rows_are_whole = True
    for shard, content in progress(pairs, "verify", len(shards), unit="shard"):
        lines = _shard_damages(store, shard, content)
        rows_are_whole = rows_are_whole and not lines
        yield from lines
    # What was made from rows is compared with them, where these are as they were made.
    yield from _summary_damages(store, rows_are_whole)
    for method in METHODS:
        yield from _search_damages(store, method, rows_are_whole)
        factor_lines = list(_factor_damages(store, method, rows_are_whole))
        yield from factor_lines
        factors_are_whole = rows_are_whole and not factor_lines
        yield from _search_damages(store, method + WHITENED, factors_are_whole)


def data_damages(path: str | Path | Location, data: str | Path | None = None) -> Iterator[str]:
    """Yield which training pictures are other ones than those that an index was built from.

    Every picture is read. Those that were removed or skipped do not count.

    Args:
        data: where the pictures are, when they were moved since the build.

    Raises:
        CallError: no index is there, or the pictures are not where they were. StoreError: the build
            has not finished.
    """
    store = Store.finished(path)
    dataset = _training_data(store, data)
    excluded = set(store.excluded)
    for row in np.flatnonzero(~dataset.there).tolist():
        if row not in excluded:
            yield f"{dataset.sample_ids[row]!r} is gone"
    content_of = cache(dataset.content)
    shards = len(store.shards())
    changed: set[int] = set()
    unknown: set[int] = set()
    for entry in progress(store.entries(), "pictures", shards, unit="shard"):
        new = set(changed_pictures(entry, dataset, content_of, read_all=True)) - excluded - changed
        for row in sorted(new):
            yield f"{dataset.sample_ids[row]!r} is another picture now"
        changed |= new
        rows = range(*entry.rows)
        unknown |= {row for row in rows if entry.content(row) == NO_CONTENT} - excluded
    if unknown:
        warnings.warn(
            f"{store.location}: of {counted(len(unknown), 'picture')} the size alone was compared:"
            " an earlier gradindex kept no digest of their bytes",
            stacklevel=2,
        )


def _training_data(store: Store, data: str | Path | None) -> Dataset:
    """Return the training pictures in the order of a store's rows.

    Raises:
        CallError: it is not known where they are, or they are not there.
    """
    source = store.header.data
    if data is None and source is None:
        raise CallError(f"{store.location}: it is not known where its pictures are; give data")
    path = source.source if data is None and source else str(data)
    dataset = open_pictures(store, path)
    ids = list(store.sample_ids)
    return dataset.in_order(ids, dataset.positions(ids))


def _shard_damages(store: Store, shard: Shard, content: bytes | None) -> list[str]:
    """Return what is wrong with a shard's files, from the content of its manifest entry."""
    try:
        entry = store.entry(shard, content)
    except ValueError as error:
        pictures = f"pictures {shard.start} to {shard.stop - 1} do not count"
        return [f"{shard.entry} {error}: {pictures}"]
    return store.damaged(entry)


def _summary_damages(store: Store, rows_are_whole: bool) -> Iterator[str]:
    """Yield what is wrong with the summary; a store that no build has finished has none."""
    (content,) = store.location.read_many([SUMMARY])
    try:
        summary = read_record(content, Summary)
    except ValueError as error:
        if content or rows_are_whole:
            yield f"{SUMMARY} {error}"
        return
    if rows_are_whole and summary != store.summarize():
        yield f"{SUMMARY} was made from other rows"


def _factor_damages(store: Store, method: str, rows_are_whole: bool) -> Iterator[str]:
    """Yield what is wrong with a method's whitening factors; there are none until asked for."""
    name = factors_file(method)
    record_files = [name, index_record_file(method + WHITENED)]
    content, whitened_index = store.location.read_many(record_files)
    factors = saved_factors(store, method)
    if factors and rows_are_whole and not factors_fit(store, method, factors):
        yield f"{name} was made from other rows, or for another method"
    elif factors:
        yield from factor_damages(store, factors)
    elif content is not None:
        yield f"{name} was changed"
    elif whitened_index:  # it needs them
        yield f"{name} is missing"


def _search_damages(store: Store, name: str, origin_is_whole: bool) -> Iterator[str]:
    """Yield what is wrong with a search index.

    One of half-whitened rows is there when it was built or asked for; its vectors tell.

    Args:
        origin_is_whole: whether the rows are as they were made, and the factors of whitened ones.
    """
    file, vectors = index_record_file(name), index_file(name, 0)
    (content,) = store.location.read_many([file])
    try:
        index = AnnIndex(store, name, read_record(content, AnnRecord))
    except ValueError as error:
        is_expected = name in METHODS or vectors in store.location.sizes([vectors])
        if content is not None or (origin_is_whole and is_expected):
            yield f"{file} {error}"
        return
    lines = index.damages()
    yield from lines
    if origin_is_whole and not lines and not index.fits():
        yield f"{file} was made from other rows, or for another method"

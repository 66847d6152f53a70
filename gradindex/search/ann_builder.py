"""Making and measuring search indexes, in files of a bounded size, of codes that find the hits.

All indexes of a store are made in one pass over its rows, by codes of the strongest directions;
another pass makes those that these do not serve. How many candidates it takes, for 10 hits to be
the true 10, is measured when an index is made, with sums of two rows as queries.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gradindex.errors import CallError
from gradindex.search.ann_files import directions_of
from gradindex.search.ann_index import AnnIndex, open_whitening, saved_ann_index
from gradindex.search.ann_making import NARROWER, AnnBuilder
from gradindex.search.ann_record import FLAT, STORE
from gradindex.search.factors import WHITENED, is_few
from gradindex.search.made_files import has_search_files
from gradindex.search.row_reader import RowReader
from gradindex.search.scoring import METHODS, THREADS
from gradindex.store.memory import free_memory
from gradindex.store.prefetch import prefetch
from gradindex.store.progress import progress as show_progress
from gradindex.store.store import Store

if TYPE_CHECKING:
    from gradindex.search.whitening import Whitening

# What `auto` tries, one after the other, until the measured recall is high enough
LADDER = ("PCA256,SQfp16", "HR,RaBitQ4", STORE)
WIDEST_VECTOR = 1 << 20  # numbers; FAISS refuses to read files of wider ones
READ_ROWS = 256  # of a sample, that are in memory at once
FLAT_BYTES = 1 << 30  # of search vectors, up to which they are kept as they are


def build_ann_index(
    store: Store, name: str, factory: str = "auto", whitening: "Whitening | None" = None
) -> AnnIndex:
    """Make, measure and save one search index, see `build_ann_indexes`.

    Args:
        whitening: of the method, where one is open already.
    """
    whitenings = {name: whitening} if whitening else {}
    return build_ann_indexes(store, [name], factory, whitenings=whitenings)[name]


def build_ann_indexes(
    store: Store,
    names: Sequence[str],
    factory: str = "auto",
    device: str = "cpu",
    whitenings: "Mapping[str, Whitening] | None" = None,
) -> dict[str, AnnIndex]:
    """Make and measure search indexes over all rows, and save them in the store's `faiss` folder.

    Args:
        names: of "tracin" and "retrac", and with "-whitened" those of the half-whitened rows.
        factory: "flat" (float32 vectors), "store" (none at all: a query scans the store), a string
            of FAISS's `index_factory`, or "auto": none for the plain rows of few pictures, flat up
            to a gigabyte of vectors, then what first reaches a recall@10 of 0.995 of LADDER: the
            rows' few strongest directions where these tell enough, RaBitQ codes where not.
        device: where rows are whitened.
        whitenings: {name: what half-whitens its rows}, where one is open already.

    Returns:
        {name: index}.

    Raises:
        CallError: FAISS does not know the factory, or no picture is left.
        StoreError: rows are damaged.
    """
    if len(store.excluded) == store.shape[1]:
        raise CallError(
            f"{store.location}: every picture was skipped or removed; there is nothing to search"
        )
    if factory not in ("auto", STORE) and store.recipe.search_width > WIDEST_VECTOR:
        raise CallError(
            f"factory {factory}: FAISS reads vectors of {WIDEST_VECTOR:,} numbers at the most,"
            f" these have {store.recipe.search_width:,}; give auto or store"
        )
    given = whitenings or {}
    whitened = [name for name in names if name.endswith(WHITENED) and name not in given]
    if whitened:
        # torch takes seconds to import
        from gradindex.search.whitening import make_whitenings

        make_whitenings(store, [name.removesuffix(WHITENED) for name in whitened], device)
    builders = {}
    for name in names:
        whitening = given.get(name) or open_whitening(store, name, device)
        factories = _factories(store, name, factory)
        builders[name] = AnnBuilder(store, name, factory, factories, whitening)
    unfinished = list(builders.values())
    while unfinished:
        _make_files(store, [builder for builder in unfinished if builder.begin()])
        unfinished = [builder for builder in unfinished if not builder.finish()]
    return {name: builder.index for name, builder in builders.items()}


def _factories(store: Store, name: str, factory: str) -> Sequence[str]:
    """What is tried for a factory that was asked for, in this order."""
    if factory != "auto":
        return [factory]
    width = store.recipe.search_width
    if width > WIDEST_VECTOR or (is_few(store) and name in METHODS):
        return [STORE]
    rungs = [NARROWER.get(rung, rung) if directions_of(rung) > width else rung for rung in LADDER]
    rungs = [rung for rung in rungs if directions_of(rung) <= width]
    flat_bytes = store.shape[1] * width * 4
    if flat_bytes <= min(FLAT_BYTES, free_memory() // 4):
        return [FLAT, *rungs]
    return rungs


def _make_files(store: Store, builders: Sequence[AnnBuilder]) -> None:
    """Make the files of several indexes in one pass over the store."""
    if not builders:
        return
    reader = RowReader(store, sorted({builder.index.method for builder in builders}))
    new = [builder for builder in builders if builder.is_new]
    if new:
        parents = reader.rows(new[0].parents)
        for builder in new:
            builder.take_queries(parents[builder.index.method])
    _train(reader, builders)
    builders = [builder for builder in builders if builder.index.record.factory != STORE]
    if not builders:
        return
    columns = {builder.name: builder.columns for builder in new}
    blocks = list(store.blocks())
    read = partial(reader.scored_rows, columns=columns)
    threads = max(1, THREADS // len(reader.methods))
    bar = show_progress(prefetch(read, blocks, threads), "search files", len(blocks), unit="block")
    for block, (rows_by_method, scores) in zip(blocks, bar, strict=True):
        for builder in builders:
            numbers = np.arange(block.start, block.stop)
            if builder.is_new:
                builder.take_scores(numbers, scores[builder.name])
            builder.add(rows_by_method[builder.index.method])


def _train(reader: RowReader, builders: Sequence[AnnBuilder]) -> None:
    """Train the files of indexes on samples of vectors, those of the same rows together."""
    alike: dict[bytes, list[AnnBuilder]] = {}
    for builder in builders:
        if len(builder.training_rows):
            alike.setdefault(builder.training_rows.tobytes(), []).append(builder)
    for group in alike.values():
        vectors: dict[str, list[np.ndarray]] = {builder.name: [] for builder in group}
        rows = group[0].training_rows
        for start in range(0, len(rows), READ_ROWS):
            some_rows = reader.rows(rows[start : start + READ_ROWS])
            for builder in group:
                of_method = some_rows[builder.index.method]
                vectors[builder.name].append(builder.index.row_vectors(of_method))
        for builder in group:
            builder.train(np.concatenate(vectors.pop(builder.name)))


def mend_ann_indexes(
    store: Store, names: Sequence[str], device: str = "cpu", check: bool = True
) -> None:
    """Make those search indexes anew, as they were asked for, that are absent, damaged or old.

    Args:
        check: whether every byte of their files is read; the sizes are looked at otherwise.
    """
    by_factory: dict[str, list[str]] = {}
    for name in names:
        index = saved_ann_index(store, name)
        if index is None or not _is_whole(store, index, check):
            asked = (index and index.record.asked) or "auto"
            by_factory.setdefault(asked, []).append(name)
    for factory, some_names in by_factory.items():
        build_ann_indexes(store, some_names, factory, device)


def _is_whole(store: Store, index: AnnIndex, check: bool) -> bool:
    """Whether a search index is of all rows, and its files are there."""
    if not index.fits():
        return False
    return not index.damages() if check else has_search_files(store, index.record)


def open_ann_index(
    store: Store,
    name: str,
    ray: str | None = None,
    device: str = "cpu",
    whitening: "Whitening | None" = None,
) -> AnnIndex:
    """The saved index of a name; made anew, as it was asked for, when it is absent or does not fit.

    Args:
        ray, device, whitening: see `AnnIndex`.
    """
    index = saved_ann_index(store, name)
    if index is None or not index.fits():
        asked = (index and index.record.asked) or "auto"
        index = build_ann_index(store, name, asked, whitening)
    return AnnIndex(store, name, index.record, ray, device, whitening)

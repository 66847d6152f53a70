"""All that a report shows of some queries: rankings by both methods and by pixels, side by side."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
from PIL import Image

from gradindex.data.images import THUMBNAIL_SIDE
from gradindex.recipe import FOLDED, require, require_positive
from gradindex.search.answering import nothing_to_rank
from gradindex.search.copies import MOST_READ
from gradindex.search.cosines import cosine_scores, tell_cosines
from gradindex.search.embeddings import Compared, Embedding
from gradindex.search.group_scores import group_scores
from gradindex.search.grouping import GroupBy, Grouping
from gradindex.search.index import Index
from gradindex.search.merging import Clusters, merged_hits, nearest_of_each
from gradindex.search.pictures import Picture, picture_list, picture_name
from gradindex.search.pixels import TrainingPixels, asked_pixels, compared_shape, opener
from gradindex.search.query import Query, QueryOptions
from gradindex.search.results import Hit, Result
from gradindex.search.scoring import METHODS
from gradindex.search.standing import Standing
from gradindex.search.verdicts import JUDGED, with_verdicts

PIXELS = "pixels"  # in place of a method: the cosine of pixels
EMBEDDING = "embedding"  # likewise: the cosine in an embedding
COSINE_FIELDS = {PIXELS: "pixel", EMBEDDING: "embedding"}  # of a hit
SCORE_BYTES = 1 << 28  # of scores [Q, N] float32 in memory at once
HITS_AT_ONCE = 50  # queries whose candidates' rows are scored exactly at once
SPARE = 8  # candidates beyond k, for scores that float32 rounds to the same


@dataclass(frozen=True)
class Listing:
    """The rankings of Q queries by one measure.

    Attributes:
        measure: "retrac", "tracin", "pixels" or "embedding".
        results: Q of them, whose hits' z is told by the scores of all training pictures.
        standings: what they are compared with, one each.
    """

    measure: str
    results: Sequence[Result]
    standings: Sequence[Standing]


@dataclass(frozen=True)
class Asked:
    """One query, for people.

    Attributes:
        name: see `picture_name`.
        open_picture: gives its thumbnail; it may fail.
        prompt: that it was generated with; None for a model without captions.
    """

    name: str
    open_picture: Callable[[], Image.Image | None]
    prompt: str | None = None


@dataclass(frozen=True)
class Answers:
    """Queries, their rankings, and what is to be known of the pictures in them.

    Attributes:
        queries: Q of them.
        listings: one for each measure; the first is the method that was asked for.
        k: how many hits were asked for.
        index: its path.
        pictures: how many training pictures were ranked.
        picture_of: thumbnail of a row; None where it is gone. It may fail.
        group_of: class or folder of a row; None where pictures have no groups.
        facts: {name: text} about model and data.
        whitened: whether queries were.
        last_timestep: S of the scheduler, where pictures are noise.
        notes: what people should know of the answers.
    """

    queries: Sequence[Asked]
    listings: Sequence[Listing]
    k: int
    index: str
    pictures: int
    picture_of: Callable[[int], Image.Image | None]
    group_of: Callable[[int], str | None] = lambda row: None
    facts: dict[str, str] = field(default_factory=dict)
    whitened: bool = True
    last_timestep: float = 1000
    notes: Sequence[str] = ()


def answer(
    index: Index,
    pictures: Picture | Iterable[Picture],
    k: int = 10,
    method: str = "retrac",
    *,
    opponents: bool = False,
    pixels: bool | None = None,
    embedding: Embedding | None = None,
    query_embedding: Embedding | None = None,
    group_by: GroupBy | None = None,
    merge_duplicates: bool = False,
    **options: Unpack[QueryOptions],
) -> Answers:
    """Return the rankings of both methods, of pixels and by an embedding where there is one.

    They say where each hit stands among all, and hits of a method have both cosines, too.

    Gradients are taken once, and the store is scanned once a method: the standing of a hit needs
    the scores of all. The hits of a method are those of `Index.query`.

    Args:
        method: the one that is shown first. pixels: whether also the nearest in pixels are looked
            for, for which every training picture is read; None: where they are 10,000 or fewer.
        index, pictures, k, opponents, embedding, query_embedding, group_by, merge_duplicates,
            options: see `Index.query`; of near-duplicates the nearest in pixels stands for all.

    Raises:
        CallError: see `Index.query`; with `pixels`, that the training pictures are gone.
    """
    require_positive(k=k)
    require("method", method, METHODS)
    pictures = picture_list(pictures)
    groups = None if group_by is None else index.grouping(group_by)
    query = index.to_query(pictures, **options)
    clusters = index.duplicate_rows("pixels") if merge_duplicates else None
    arrays = query.pictures.arrays[: len(pictures)]
    vectors = index.embeddings.compared(embedding, query_embedding, pictures, arrays)
    names = [picture_name(picture, number) for number, picture in enumerate(pictures)]
    methods = [method, *(other for other in METHODS if other != method)]
    _ = index.gradients.checkpoints  # loaded before, which does not count
    began = time.perf_counter()
    blocks = index.query_blocks(query, *methods)
    seconds = {"gradients": time.perf_counter() - began}
    began = time.perf_counter()
    listings = [
        _method_listing(index, query, names, block, most, one, opponents, seconds, clusters)
        for one, block, most in zip(methods, blocks, (max(k, JUDGED), k), strict=True)
    ]
    if groups is not None:
        listings[0] = _with_groups(index, query, listings[0], blocks[0], groups)
    training = TrainingPixels(index.training_pictures, compared_shape(index.store.recipe))
    listings[0] = _with_verdicts(index, query, listings[0], training, k)
    seconds["search"] = time.perf_counter() - began
    kept = index.store.shape[1] - len(index.store.excluded)
    notes = []
    compared: dict[str, Compared] = {}
    dataset = index.training_pictures.dataset if not pixels else index.training_pictures.require()
    if dataset is None:
        notes.append("The training pictures are no longer where they were: their places are empty.")
    elif pixels or (pixels is None and kept <= MOST_READ):
        asked = asked_pixels(pictures, arrays, training.shape)
        compared[PIXELS] = Compared(asked, training.read)
    elif pixels is None:
        notes.append(
            f"Of more than {MOST_READ:,} training pictures the nearest in pixels are looked for"
            " only with --pixels."
        )
    if vectors is not None:
        compared[EMBEDDING] = vectors
    for measure, (asked, read) in compared.items():
        rows = index.store.kept
        scores = cosine_scores(asked, rows, index.store.shape[1], read)
        listings = [_with_cosines(listing, measure, scores) for listing in listings]
        listings.append(_cosine_listing(index, names, measure, scores, k, clusters))
    captioned = index.training_pictures.with_captions
    listings = [replace(listing, results=captioned(listing.results)) for listing in listings]
    return Answers(
        queries=_asked(pictures, names, query),
        listings=listings,
        k=k,
        index=str(index.store.location),
        pictures=kept,
        picture_of=index.thumbnail,
        group_of=_groups(index) if groups is None else groups.name_of,
        facts=_facts(index),
        whitened=query.damping is not None,
        last_timestep=json.loads(index.store.recipe.scheduler)["num_train_timesteps"],
        notes=notes,
    )


def _method_listing(
    index: Index,
    query: Query,
    names: Sequence[str],
    block: np.ndarray,
    k: int,
    method: str,
    opponents: bool,
    seconds: dict[str, float],
    clusters: Clusters | None,
) -> Listing:
    """The rankings of a method, from query blocks [Q, C, T, D]."""
    by_timestep = index.store.recipe.rows != FOLDED
    at_once = max(1, SCORE_BYTES // (4 * index.store.shape[1]))
    results: list[Result] = []
    standings: list[Standing] = []
    for start in range(0, len(block), at_once):
        scores = index.ranker.scores(method, block[start : start + at_once], query.span)
        if np.isnan(scores).all():
            raise nothing_to_rank(query)
        standings += [Standing.of(own) for own in scores]
        for first in range(0, len(scores), HITS_AT_ONCE):
            some_scores = scores[first : first + HITS_AT_ONCE]
            some = slice(start + first, start + first + len(some_scores))
            signs = (1, -1) if opponents else (1,)
            asked = block[some], k, method, query.span, by_timestep
            if clusters is not None:
                lists = merged_hits(index.store, *asked, signs, clusters)
            else:
                lists = {
                    sign: index.ranker.hits(*asked, sign, _ends(some_scores, k, sign))
                    for sign in signs
                }
            for number, name in enumerate(names[some]):
                standing = standings[start + first + number]
                best, *worst = [standing.with_z(hits[number]) for hits in lists.values()]
                opposed = worst[0] if worst else None
                told = query.asked[start + first + number]
                results.append(Result(name, best, opposed, seconds=seconds, asked=told))
    return Listing(method, results, standings)


def _with_groups(
    index: Index, query: Query, listing: Listing, block: np.ndarray, groups: Grouping
) -> Listing:
    """A listing whose results tell what groups of training pictures did."""
    of_queries = group_scores(index.store, block, listing.measure, query.span, groups)
    pairs = zip(listing.results, of_queries, strict=True)
    results = [replace(result, groups=of_query) for result, of_query in pairs]
    return replace(listing, results=results)


def _with_verdicts(
    index: Index, query: Query, listing: Listing, training: TrainingPixels, k: int
) -> Listing:
    """A listing whose results tell what they come to."""
    results = with_verdicts(index.store, training, query, listing.results, listing.standings, k)
    return replace(listing, results=results)


def _with_cosines(listing: Listing, measure: str, scores: np.ndarray) -> Listing:
    """A listing whose hits have their cosines by a measure, from all of them [Q, N]."""

    def cosine_of(q: int, row: int) -> float | None:
        return None if np.isnan(scores[q, row]) else float(scores[q, row])

    return replace(
        listing, results=tell_cosines(listing.results, COSINE_FIELDS[measure], cosine_of)
    )


def _ends(scores: np.ndarray, k: int, sign: int) -> list[np.ndarray]:
    """Rows of the highest of scores [Q, N] (sign 1) or the lowest (−1), ascending."""
    keyed = np.nan_to_num(sign * scores, nan=-np.inf)
    order = np.argsort(-keyed, axis=1, kind="stable")[:, : k + SPARE]
    return [np.sort(rows[keyed[q, rows] > -np.inf]) for q, rows in enumerate(order)]


def _cosine_listing(
    index: Index,
    names: Sequence[str],
    measure: str,
    scores: np.ndarray,
    k: int,
    clusters: Clusters | None,
) -> Listing:
    """The rankings by the cosines of a measure [Q, N]."""
    ids = index.store.sample_ids
    results = []
    standings = [Standing.of(own) for own in scores]
    for name, all_scores, standing in zip(names, scores, standings, strict=True):
        own, others = nearest_of_each(all_scores, clusters or ())
        (best,) = _ends(own[None], k, 1)
        order = best[np.lexsort((best, -own[best]))][:k].tolist()
        hits = [
            Hit(rank, ids[row], row, float(own[row]), None) for rank, row in enumerate(order, 1)
        ]
        if clusters is not None:
            hits = [
                replace(hit, duplicates=[ids[row] for row in others.get(hit.row, ())])
                for hit in hits
            ]
        results.append(Result(name, standing.with_z(hits)))
    return Listing(measure, results, standings)


def _asked(pictures: Sequence[Picture], names: Sequence[str], query: Query) -> list[Asked]:
    """The queries for people."""
    captions, arrays = query.pictures.captions, query.pictures.arrays
    return [
        Asked(
            name,
            partial(opener(picture, arrays[number]), THUMBNAIL_SIDE),
            None if captions is None else captions[number],
        )
        for number, (picture, name) in enumerate(zip(pictures, names, strict=True))
    ]


def _groups(index: Index) -> Callable[[int], str | None]:
    """What gives the group of a row: its class, or else the folder in its id.

    Pictures that are all in one have none.
    """
    dataset = index.training_pictures.dataset
    ids = index.store.sample_ids
    if dataset is not None and dataset.labels is not None:
        labels = dataset.labels
        name_of = {label: name for name, label in dataset.classes.items()}
        return lambda row: name_of.get(int(labels[row]), f"class {labels[row]}")
    if len({name.rpartition("/")[0] for name in ids}) < 2:
        return lambda row: None
    return lambda row: ids[row].rpartition("/")[0] or "."


def _facts(index: Index) -> dict[str, str]:
    """What model and data an index is of."""
    header, recipe = index.store.header, index.store.recipe
    adapters = [Path(checkpoint.path).name for checkpoint in header.checkpoints]
    model = f"{recipe.model}, gradients of {recipe.parameter_count:,} parameters"
    facts = {"Model": f"{model}, {header.model}" if header.model else model}
    if recipe.base is not None:
        facts["Adapters" if len(adapters) > 1 else "Adapter"] = ", ".join(adapters)
    if header.data is not None:
        facts["Data"] = header.data.source
    return facts

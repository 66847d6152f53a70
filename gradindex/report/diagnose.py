"""What an index is worth, as numbers.

Gradient norms by timestep, which pictures are influential for everything, which stand out by
self-influence, and how far scores depend on the noise.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict

import numpy as np

from gradindex.errors import NONE_LEFT, CallError
from gradindex.models.examples import Pictures
from gradindex.recipe import require_positive
from gradindex.report.agreement import SettingAgreement, count_gradients, noise_agreement
from gradindex.report.ranking import Influence, influence
from gradindex.report.self_influence import (
    SELF_DRAWS,
    SELF_TIMESTEPS,
    Outliers,
    find_outliers,
    require_full_rows,
    self_influence,
)
from gradindex.report.training_sample import (
    ADVICE,
    evenly_spaced,
    read_training_pictures,
)
from gradindex.report.verdict import verdict
from gradindex.search.index import Index
from gradindex.search.pictures import Picture, picture_list, picture_name
from gradindex.search.query import read_query
from gradindex.search.scoring import METHODS
from gradindex.store.store import Store
from gradindex.wording import counted, duration_text

LOGGER = logging.getLogger("gradindex")

BINS = 20  # of timesteps, where every picture has recorded ones of its own
NOISE_QUERIES = 8  # queries that the noise seeds are compared by


class NormStatistics(TypedDict):
    """The gradient norms at a timestep, over pictures and checkpoints.

    Keys:
        timestep: of a grid; the mean of a bin of recorded ones.
        count: of norms.
        mean, median, p10, p90: of the norms; the last two are percentiles.
    """

    timestep: float
    count: int
    mean: float
    median: float
    p10: float
    p90: float


class Diagnosis(TypedDict):
    """The JSON of `gradindex diagnose`.

    Keys:
        index: where it lies.
        queries: names of the query pictures.
        k: length of their lists.
        whitened: whether the queries were.
        norm: gradient norms against the timestep.
        influence: {method: how general the influential pictures are}.
        self_influence: {method: pictures that stand out}, unless left out.
        noise: how far two noise seeds agree, one entry per setting, unless left out.
        verdict: all of it in some sentences.
    """

    index: str
    queries: list[str]
    k: int
    whitened: bool
    norm: list[NormStatistics]
    influence: dict[str, Influence]
    self_influence: NotRequired[dict[str, Outliers]]
    noise: NotRequired[list[SettingAgreement]]
    verdict: NotRequired[list[str]]


@dataclass(frozen=True)
class QueryPictures:
    """The queries of a diagnosis.

    Attributes:
        pictures: Q of them.
        rows: their rows; None for a picture that is not a training picture.
    """

    pictures: Pictures
    rows: list[int | None]


def report(
    index: Index,
    pictures: Picture | Iterable[Picture] = (),
    *,
    k: int = 10,
    queries: int = 24,
    compared: int = 100,
    outliers: bool = True,
    whiten: bool = True,
    class_label: int | Sequence[int] | None = None,
) -> Diagnosis:
    """Return everything that `gradindex diagnose` shows, as JSON values.

    Args:
        pictures: queries, as for `Index.query`. For none, `queries` training pictures, evenly
            spaced, each left out of its own list.
        k: length of the lists.
        compared: training pictures whose gradients are taken again for the agreement between noise
            seeds; 0 for none of it.
        outliers: whether to rank pictures by self-influence; with recorded timesteps that takes
            gradients of all.
        whiten: whether queries are whitened, as for `Index.query`.
        class_label: of the queries, for a class-conditional model; training pictures know theirs.

    Raises:
        CallError: rows are folded, or `compared` is 1 or negative; or the training pictures are not
            where they were, and no others are given.
    """
    require_positive(k=k, queries=queries)
    store = index.store
    require_full_rows(store)
    if compared < 0 or compared == 1:
        raise CallError(f"compared = {compared}: give 0, or at least 2 pictures")
    if compared or (outliers and store.recipe.events):
        index.training_pictures.require(ADVICE)
    chosen = _choose_queries(index, picture_list(pictures), queries, class_label)
    scores, seconds_per_gradient = _scores(index, chosen, whiten)
    _announce(index, len(chosen.rows), compared, outliers, seconds_per_gradient)
    norm = picture_norms(store)
    diagnosis: Diagnosis = {
        "index": str(store.location),
        "queries": list(chosen.pictures.ids),
        "k": k,
        "whitened": whiten,
        "norm": norms(store),
        "influence": {method: influence(scores[method], norm, k) for method in METHODS},
    }
    if outliers:
        diagnosis["self_influence"] = {
            method: find_outliers(store, values, method, k)
            for method, values in self_influence(index).items()
        }
    if compared:
        diagnosis["noise"] = _agreement_of_few(index, chosen, compared, k, whiten)
    diagnosis["verdict"] = verdict(diagnosis, store.recipe)
    return diagnosis


def training_scores(index: Index, queries: int) -> dict[str, np.ndarray]:
    """Return the whitened scores of each method for so many training pictures.

    They are {method: [Q, N] float32}. The pictures are evenly spaced; the score of one and itself
    is NaN.

    Raises:
        CallError: the training pictures are not where they were.
    """
    return _scores(index, _choose_queries(index, [], queries, None), whiten=True)[0]


def _announce(index: Index, queries: int, compared: int, outliers: bool, seconds: float) -> None:
    """Log how many gradients a diagnosis still takes and how long that will be.

    Args:
        seconds: that one gradient of the queries took.
    """
    store = index.store
    count = 0
    if compared:
        count = count_gradients(index, min(queries, NOISE_QUERIES), compared)
    if outliers and store.recipe.events:
        per_picture = SELF_TIMESTEPS * SELF_DRAWS * len(store.header.weights)
        count += len(store.kept) * per_picture
    if count:
        duration = duration_text(count * seconds)
        LOGGER.info(f"diagnosis: {counted(count, 'more gradient')}, {duration}")


def _choose_queries(
    index: Index,
    pictures: Sequence[Picture],
    count: int,
    class_label: int | Sequence[int] | None,
) -> QueryPictures:
    """The queries: the pictures that were given, or else `count` training pictures."""
    if len(pictures):
        names = [picture_name(picture, number) for number, picture in enumerate(pictures)]
        read = read_query(index.store.recipe, pictures, class_label=class_label, ids=names)
        return QueryPictures(read, [None] * len(names))
    kept = index.store.kept
    if not len(kept):
        raise CallError(NONE_LEFT)
    rows = kept[evenly_spaced(len(kept), count)]
    training = replace(read_training_pictures(index, rows), masks=None)  # as of any query
    return QueryPictures(training, rows.tolist())


def _scores(
    index: Index, queries: QueryPictures, whiten: bool
) -> tuple[dict[str, np.ndarray], float]:
    """The scores of each method, {method: [Q, N]}, and the seconds that a gradient took.

    The score of a training picture and itself is NaN.
    """
    pictures = queries.pictures
    query = index.to_query(
        list(pictures.arrays),
        whiten=whiten,
        class_label=pictures.labels,
        prompt=pictures.captions,
    )
    blocks, seconds = index.gradients.blocks(query, METHODS)
    scores = {}
    for method, block in zip(METHODS, blocks, strict=True):
        if query.damping is not None:
            block = index.ranker.whitened(method, block, query.damping)
        scores[method] = index.ranker.scores(method, block, query.span)
    for table in scores.values():
        for number, row in enumerate(queries.rows):
            if row is not None:
                table[number, row] = np.nan
    timesteps = len(index.gradients.checkpoints[0].process.grid(query.timesteps))
    gradients = len(queries.rows) * len(query.weights) * timesteps * query.draws
    return scores, seconds / gradients


def _agreement_of_few(
    index: Index, queries: QueryPictures, compared: int, k: int, whiten: bool
) -> list[SettingAgreement]:
    """The noise agreement of a few of the queries."""
    pictures = queries.pictures
    few = evenly_spaced(len(pictures.arrays), NOISE_QUERIES)
    rows = [queries.rows[number] for number in few]
    names = [f"query {number}" for number in range(len(few))]
    chosen = replace(pictures.at(few), ids=names)
    return noise_agreement(index, chosen, compared, k, rows, whiten)


def norms(store: Store) -> list[NormStatistics]:
    """Return the gradient norms against the timestep, over all pictures and checkpoints.

    There is one entry for each timestep of a grid; recorded timesteps are put into bins.
    """
    kept = store.kept
    timestep = _read_whole(store, "timestep")[:, kept].ravel()
    norm = _read_whole(store, "norm")[:, kept].ravel()
    bins = timestep
    if store.recipe.events:
        edges = np.linspace(timestep.min(), timestep.max() + 1, BINS + 1)
        bins = np.digitize(timestep, edges)
    return [_norm_statistics(timestep[bins == b], norm[bins == b]) for b in np.unique(bins)]


def _norm_statistics(timestep: np.ndarray, norm: np.ndarray) -> NormStatistics:
    """The statistics of some norms and their timesteps, both [n]."""
    p10, median, p90 = (float(value) for value in np.percentile(norm, (10, 50, 90)))
    return {
        "timestep": float(timestep.mean()),
        "count": len(norm),
        "mean": float(norm.mean()),
        "median": median,
        "p10": p10,
        "p90": p90,
    }


def picture_norms(store: Store) -> np.ndarray:
    """Return the mean norm of each picture's rows, [N] float64."""
    return _read_whole(store, "norm").astype(np.float64).mean((0, 2))


def _read_whole(store: Store, name: str) -> np.ndarray:
    """The array of norms or timesteps, [C, N, T] float32."""
    checkpoints = range(store.shape[0])
    return np.stack([store.read(name, checkpoint, slice(None)) for checkpoint in checkpoints])

"""Hits of which near-duplicates are one: what training on all of its copies did."""

from collections.abc import Sequence

import numpy as np

from gradindex.search.results import Hit
from gradindex.search.scoring import Span, as_columns, by_timestep, contributions, scan, stderrs
from gradindex.store.store import Store

Clusters = Sequence[Sequence[int]]  # rows of near-duplicates


def merged_hits(
    store: Store,
    block: np.ndarray,
    k: int,
    method: str,
    span: Span | None,
    with_timesteps: bool,
    signs: Sequence[int],
    clusters: Clusters,
) -> dict[int, list[list[Hit]]]:
    """The k best and worst of each query, by a scan; a cluster's score is the sum of its pictures'.

    Args:
        clusters: rows of near-duplicates. The others: see `Ranker.hits`.

    Returns:
        {sign: hits of each query}: a cluster is named by its picture of the highest score (sign 1)
        or the lowest, and has the ids of the others as `duplicates`.
    """
    cluster_of = np.arange(store.shape[1])
    for cluster in clusters:
        cluster_of[list(cluster)] = min(cluster)
    members = {min(cluster): np.sort(list(cluster)) for cluster in clusters}
    scores = np.concatenate([part for _, part in scan(store, block, method, span)], axis=1)
    lists: dict[int, list[list[Hit]]] = {sign: [] for sign in signs}
    for own, one in zip(scores, block, strict=True):
        known = np.flatnonzero(~np.isnan(own))
        sums = np.bincount(cluster_of[known], own[known], len(own))
        heads = np.unique(cluster_of[known])
        columns = as_columns(one[None])
        for sign in signs:
            best = heads[np.argsort(-sign * sums[heads].astype(np.float32), kind="stable")][:k]
            hits = []
            for rank, head in enumerate(best.tolist(), 1):
                rows = np.intersect1d(members.get(head, [head]), known)
                row = int(rows[np.argmax(sign * own[rows])])
                (each,) = contributions(store, columns, method, rows, span)  # [rows, C, T]
                added = each.sum(0)
                errors = stderrs(added.sum(0)[None, None], store.recipe, span)
                others = [store.sample_ids[other] for other in rows.tolist() if other != row]
                hit = Hit(
                    rank=rank,
                    id=store.sample_ids[row],
                    row=row,
                    score=float(np.float32(added.sum())),
                    stderr=None if errors is None else float(errors[0, 0]),
                    by_timestep=_by_timestep(store, rows, each, span) if with_timesteps else None,
                    duplicates=others,
                )
                hits.append(hit)
            lists[sign].append(hits)
    return lists


def nearest_of_each(
    own: np.ndarray, clusters: Clusters
) -> tuple[np.ndarray, dict[int, Sequence[int]]]:
    """Scores [N] in which of each cluster the highest is left, and {its row: the others' rows}.

    >>> nearest_of_each(np.array([0.5, 0.9, 0.7, 0.2]), [[0, 2]])
    (array([nan, 0.9, 0.7, 0.2]), {2: [0]})
    """
    own, others = own.copy(), dict[int, Sequence[int]]()
    for cluster in clusters:
        rows = np.array(cluster)[~np.isnan(own[cluster])]
        if len(rows):
            best = rows[np.argmax(own[rows])]
            others[int(best)] = rows[rows != best].tolist()
            own[rows[rows != best]] = np.nan
    return own, others


def _by_timestep(
    store: Store, rows: np.ndarray, each: np.ndarray, span: Span | None
) -> dict[float, float]:
    """What each timestep adds to a cluster's score: of recorded ones each picture has its own."""
    total: dict[float, float] = {}
    for row, added in zip(rows.tolist(), each, strict=True):
        for timestep, part in by_timestep(store, row, added, span).items():
            total[timestep] = total.get(timestep, 0.0) + part
    return dict(sorted(total.items()))

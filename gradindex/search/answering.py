"""From query blocks to results: hits, where they stand, groups, and what it comes to."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gradindex.errors import NONE_LEFT, CallError
from gradindex.search.group_scores import group_scores
from gradindex.search.grouping import Grouping
from gradindex.search.merging import merged_hits
from gradindex.search.query import Query, range_text
from gradindex.search.ranker import Ranker
from gradindex.search.results import Result
from gradindex.search.standing import Standing, standings
from gradindex.store.store import Store


class Request(NamedTuple):
    """What is wanted of query blocks.

    Attributes:
        names: of Q queries, as results have them. query: their options.
        k, method, opponents, by_timestep: see `Index.query`. groups: of training pictures.
        clusters: rows of near-duplicates, each of which is one hit; None: no two are.
    """

    names: Sequence[str]
    query: Query
    k: int
    method: str
    opponents: bool = False
    by_timestep: bool = False
    groups: Grouping | None = None
    clusters: Sequence[Sequence[int]] | None = None


def answer_blocks(
    store: Store, ranker: Ranker, block: np.ndarray, request: Request, gradient_seconds: float
) -> tuple[list[Result], list[Standing]]:
    """The results of query blocks [Q, C, T, D], and what their scores are compared with.

    Args:
        block: not whitened yet. gradient_seconds: that it took.

    Raises:
        CallError: no training picture has a score.
    """
    began = time.perf_counter()
    names, query, k, method, opponents, by_timestep, groups, clusters = request
    span = query.span
    if query.damping is not None:
        block = ranker.whitened(method, block, query.damping)
    signs = (1, -1) if opponents else (1,)
    if clusters is not None:
        lists = merged_hits(store, block, k, method, span, by_timestep, signs, clusters)
    else:
        proposed = ranker.proposed(
            block, k, method, span, query.damping, signs, is_like_rows=query.is_like_rows
        )
        lists = {
            sign: ranker.hits(block, k, method, span, by_timestep, sign, rows)
            for sign, rows in proposed.items()
            if sign in signs and any(map(len, rows))
        }
    if not lists or not any(lists[1]):
        raise nothing_to_rank(query)
    standing = standings(store, block, method, span)
    by_group = None if groups is None else group_scores(store, block, method, span, groups)
    seconds = {"gradients": gradient_seconds, "search": time.perf_counter() - began}
    results = []
    for number, name in enumerate(names):
        best, *worst = [standing[number].with_z(hits[number]) for hits in lists.values()]
        of_groups = None if by_group is None else by_group[number]
        opposed = worst[0] if worst else None
        asked = query.asked[number] if query.asked else {}
        results.append(Result(name, best, opposed, of_groups, seconds, asked=asked))
    return results, standing


def nothing_to_rank(query: Query) -> CallError:
    """The error for a query that no training picture answers."""
    return CallError(
        f"timesteps = {range_text(query.span)}: no picture has a row there"
        if query.span
        else NONE_LEFT
    )

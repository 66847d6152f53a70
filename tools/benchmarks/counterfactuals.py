"""What taking out the pictures of a query's highest scores does to its loss."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from baselines import baseline_scores
from row_products import RowProducts
from row_settings import DEFAULT_ROWS, Scoring
from subset_models import FASHION, PICTURES, Subject, losses_without, map_in_processes

from gradindex.report.evaluate import interval

SCORINGS = {  # whose highest pictures are taken out, beside those of pixels and random ones
    "retrac, whitened": Scoring("retrac", "matched", "whitened"),
    "tracin, whitened": Scoring("tracin", "matched", "whitened"),
    "tracin, plain": Scoring("tracin", "matched", "plain"),
}
TAKEN_OUT = PICTURES // 10  # pictures; of a smaller subject, too, one in ten
QUERIES_EACH = 6  # queries of each kind, validation and generated ones
RANDOM = 8  # models without random pictures

Rises = dict[str, dict[str, list[float]]]


def counterfactuals_of_rows(folder: Path) -> Rises:
    """Return the rises of SCORINGS and of pixels, see `counterfactuals`."""
    products = RowProducts.of(folder, DEFAULT_ROWS)
    scores = {name: products.scores(scoring) for name, scoring in SCORINGS.items()}
    return counterfactuals(
        folder, {**scores, "pixel cosine": baseline_scores(folder)["pixel cosine"]}
    )


def counterfactuals(
    folder: Path, scores: Mapping[str, np.ndarray], subject: Subject = FASHION
) -> Rises:
    """Return by how many per cent a query's loss rises above that after random removals.

    Args:
        scores: {name: of all queries and training pictures, [2 · queries, N]}.

    Returns:
        {name: {"validation": …, "generated": …}}, each the mean over queries and the ends of its
        95 % bootstrap interval.
    """
    asked = {
        name: range(queries.start or 0, (queries.start or 0) + QUERIES_EACH)
        for name, queries in subject.query_sets.items()
    }
    count = subject.pictures // 10
    removals = {}
    for number in range(RANDOM):
        order = np.random.default_rng(number).permutation(subject.pictures)
        removals[f"random-{number}"] = order[:count]
    for name, table in scores.items():
        for query in (query for queries in asked.values() for query in queries):
            removals[f"{name}-{query}"] = np.argsort(-table[query])[:count]
    subjects = [subject] * len(removals)
    trained = map_in_processes(losses_without, folder, removals.values(), subjects)
    losses = dict(zip(removals, trained, strict=True))
    random_loss = np.mean([losses[f"random-{number}"] for number in range(RANDOM)], axis=0)
    return {
        name: {
            kind: _interval(
                [100 * (losses[f"{name}-{q}"][q] / random_loss[q] - 1) for q in queries]
            )
            for kind, queries in asked.items()
        }
        for name in scores
    }


def _interval(values: Sequence[float]) -> list[float]:
    return list(interval(np.array(values)))

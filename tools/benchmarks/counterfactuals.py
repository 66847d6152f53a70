"""What taking out the pictures of a query's highest scores does to its loss."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from baselines import baseline_scores
from row_products import RowProducts
from row_settings import DEFAULT_ROWS, Scoring
from subset_models import PICTURES, QUERIES, losses_without, map_in_processes

from gradindex.report.evaluate import interval

SCORINGS = {  # whose highest pictures are taken out, beside those of pixels and random ones
    "retrac, whitened": Scoring("retrac", "matched", "whitened"),
    "tracin, whitened": Scoring("tracin", "matched", "whitened"),
    "tracin, plain": Scoring("tracin", "matched", "plain"),
}
TAKEN_OUT = 50  # pictures
REMOVED_FOR = (*range(6), *range(QUERIES, QUERIES + 6))  # queries, validation and generated ones
RANDOM = 8  # models without random pictures


def counterfactuals(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return by how many per cent a query's loss rises above that after random removals.

    Returns:
        {score: {"validation": …, "generated": …}}, each the mean over queries and the ends of its
        95 % bootstrap interval.
    """
    products = RowProducts.of(folder, DEFAULT_ROWS)
    scores = {name: products.scores(scoring) for name, scoring in SCORINGS.items()}
    scores["pixel cosine"] = baseline_scores(folder)["pixel cosine"]
    removals = {}
    for number in range(RANDOM):
        order = np.random.default_rng(number).permutation(PICTURES)
        removals[f"random-{number}"] = order[:TAKEN_OUT]
    for name, table in scores.items():
        for query in REMOVED_FOR:
            removals[f"{name}-{query}"] = np.argsort(-table[query])[:TAKEN_OUT]
    losses_of_removals = map_in_processes(losses_without, folder, removals.values())
    losses = dict(zip(removals, losses_of_removals, strict=True))
    random_loss = np.mean([losses[f"random-{number}"] for number in range(RANDOM)], axis=0)
    rises: dict[str, dict[str, list[float]]] = {}
    for name in scores:
        validation, generated = [], []
        for query in REMOVED_FOR:
            loss = losses[f"{name}-{query}"][query]
            rise = 100 * (loss / random_loss[query] - 1)
            if query < QUERIES:
                validation.append(rise)
            else:
                generated.append(rise)
        rises[name] = {"validation": _interval(validation), "generated": _interval(generated)}
    return rises


def _interval(values: Sequence[float]) -> list[float]:
    return list(interval(np.array(values)))

"""What folding a picture's rows into one vector costs: `tools/bench folded`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import record
from picture_sets import write_pictures
from trained_models import model_and_pictures

import gradindex
from gradindex.gradients.fold import search_vectors
from gradindex.report.ranking import overlap, spearman
from gradindex.search.ann_builder import build_ann_index
from gradindex.search.ann_index import open_whitening
from gradindex.search.factors import WHITENED
from gradindex.search.index import Index
from gradindex.search.scoring import METHODS

PICTURES, QUERIES = 8000, 100
TIMESTEPS, DIM = 10, 1024
K = 10
LISTS = (1, K, 100)  # lengths of the lists that are compared
FACTORIES = ("flat", "PCA64,SQfp16", "PCA256,SQfp16", "HR,RaBitQ", "HR,RaBitQ4", "HR,RaBitQfs")


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/folded.json and .md; with `only` write nothing."""
    model, pictures = model_and_pictures("tiny", work)
    data = work / "folded-pictures"
    if not data.exists():
        write_pictures(data, pictures[:PICTURES])
    index = gradindex.build(
        work / "folded-rows",
        model=model,
        data=data,
        timesteps=TIMESTEPS,
        dim=DIM,
        device=device,
    )
    queries = list(pictures[PICTURES : PICTURES + QUERIES])
    results = {}
    for whiten in (False, True):
        query = index.to_query(queries, whiten=whiten)
        blocks = index.query_blocks(query, *METHODS)
        for method, block in zip(METHODS, blocks, strict=True):
            name = method + WHITENED if whiten else method
            results[name] = measure(index, block, method, name)
    text = page(results)
    print(text)
    if not only:
        record.save("folded", device, "tools/bench folded", results, text)


def measure(index: Index, block: np.ndarray, method: str, name: str) -> dict[str, Any]:
    """Return how near scores by the fold are, and how many of the exact ten indexes propose.

    Args:
        block: query blocks [Q, C, T, D] of the method.
        name: of its search indexes, of plain or of half-whitened rows.
    """
    store = index.store
    exact = index.ranker.scores(method, block)
    array = "unnormalized" if method == "tracin" else "normalized"
    rows = store.read(array, 0, slice(None)).astype(np.float32)
    # The search vectors of queries [Q, W] and rows [N, W], as the search files have them.
    whitening = open_whitening(store, name)
    queries, rows = block, rows[:, None]
    if whitening:
        queries, rows = whitening.half_queries(block), whitening.half_rows(rows)
    query_vectors = search_vectors(queries, store.recipe)
    folded = query_vectors @ search_vectors(rows, store.recipe).T
    results: dict[str, Any] = {"spearman": spearman(exact, folded)}
    for k in LISTS:
        results[f"overlap_{k}"] = overlap(exact, folded, k)
    best = np.argsort(-exact, axis=1)[:, :K]
    for factory in FACTORIES:
        ann_index = build_ann_index(store, name, factory, whitening)
        ann_record = ann_index.record
        candidates = ann_index.candidates(query_vectors, K)
        shares = [
            np.isin(true_rows, proposed).mean()
            for true_rows, proposed in zip(best, candidates, strict=True)
        ]
        results[factory] = {
            "recall_at_10": float(np.mean(shares)),
            "measured_by_itself": ann_record.recall_at_10,
            "bytes_each": sum(file.bytes for file in ann_record.files) / store.shape[1],
            "candidates": ann_record.candidates,
        }
    return results


def page(results: Mapping[str, Any]) -> str:
    """Return the tables and what they are of."""
    scores, indexes = [], []
    for method, figures in results.items():
        row = {"method": method, "Spearman": figures["spearman"]}
        for k in LISTS:
            row[f"overlap of the best {k}"] = figures[f"overlap_{k}"]
        scores.append(row)
        for factory in FACTORIES:
            indexes.append(
                {
                    "method": method,
                    "factory": factory,
                    "bytes a picture": figures[factory]["bytes_each"],
                    "candidates": figures[factory]["candidates"],
                    "recall@10": figures[factory]["recall_at_10"],
                    "as measured by itself": figures[factory]["measured_by_itself"],
                }
            )
    return record.fill_page(
        "folded",
        pictures=PICTURES,
        timesteps=TIMESTEPS,
        dim=DIM,
        queries=QUERIES,
        scores=record.table(scores),
        indexes=record.table(indexes),
    )

"""What folding a picture's rows into one vector costs: `tools/bench folded`."""

from pathlib import Path
from typing import Any

import numpy as np
import record
from build import write_pictures
from subjects import subject

import gradindex
from gradindex.factors import WHITENED
from gradindex.index import build_index
from gradindex.ranking import overlap, spearman
from gradindex.search import Index
from gradindex.search_index import METHODS, SearchIndex

COUNT, ASKED = 8000, 100
TIMESTEPS, DIM = 10, 1024
K = 10
FACTORIES = ("flat", "PCA64,SQfp16", "PCA256,SQfp16", "HR,RaBitQ", "HR,RaBitQ4", "HR,RaBitQfs")


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/folded.json and .md."""
    model, pictures = subject("tiny", work)
    data = work / "folded-pictures"
    if not data.exists():
        write_pictures(data, pictures[:COUNT])
    place = work / "folded-rows"
    store = gradindex.build(place, model=model, data=data, timesteps=TIMESTEPS, dim=DIM, device=device).store
    index, asked, results = Index(store, None, device), list(pictures[COUNT : COUNT + ASKED]), {}
    for whiten in (False, True):
        blocks = index.query_blocks(index.question(asked, whiten=whiten), *METHODS)
        for method, block in zip(METHODS, blocks, strict=True):
            results[method + WHITENED * whiten] = measure(index, block, method, whiten)
    text = page(results)
    print(text)
    if not only:
        record.save("folded", device, "tools/bench folded", results, text)


def measure(opened: Index, block: np.ndarray, method: str, whiten: bool) -> dict[str, Any]:
    """Scores by the fold against the exact ones, and how many of the exact ten each kind of index proposes."""
    exact, store = opened.block_scores(method, block), opened.store
    rows = store.read("unnormalized" if method == "tracin" else "normalized", 0, slice(None)).astype(np.float32)
    name = method + WHITENED * whiten
    made = SearchIndex(store, name, {})
    vectors = made.query_vectors(block)
    folded = vectors @ made.row_vectors(rows[:, None]).T
    found: dict[str, Any] = {"spearman": spearman(exact, folded)}
    found |= {f"overlap_{k}": overlap(exact, folded, k) for k in (1, K, 100)}
    true = np.argsort(-exact, axis=1)[:, :K]
    for factory in FACTORIES:
        index = build_index(store, name, factory, made.whitening)
        lists = zip(true, index.candidates(vectors, K) or (), strict=True)
        right = float(np.mean([np.isin(best, mine).mean() for best, mine in lists]))
        size = sum(part["bytes"] for part in index.facts["files"]) / store.shape[1]
        by_itself = index.facts["recall_at_10"]
        facts = {"recall_at_10": right, "measured_by_itself": by_itself, "bytes_each": size}
        found[factory] = {**facts, "candidates": index.facts["candidates"]}
    return found


def page(results: dict[str, Any]) -> str:
    """The tables and what they are of."""
    scores = [
        {
            "method": method,
            "Spearman": found["spearman"],
            **{f"overlap of the best {k}": found[f"overlap_{k}"] for k in (1, K, 100)},
        }
        for method, found in results.items()
    ]
    indexes = [
        {
            "method": method,
            "factory": factory,
            "bytes a picture": found[factory]["bytes_each"],
            "candidates": found[factory]["candidates"],
            "recall@10": found[factory]["recall_at_10"],
            "as measured by itself": found[factory]["measured_by_itself"],
        }
        for method, found in results.items()
        for factory in FACTORIES
    ]
    return f"""# What folding costs

{COUNT:,} pictures of Fashion-MNIST, gradients of a small DDPM (0.7 M parameters) at {TIMESTEPS} timesteps × {DIM:,}
numbers, folded into 4,096; {ASKED} queries that are not among them, matched.

With `--rows folded` the fold is all that is kept, and its scores are what a query shows. Against the exact ones (where
whitened, of half-whitened rows that are folded, as search files have them):

{record.table(scores)}

With all rows in the store the fold only proposes candidates, which are then scored exactly. How often the true ten are
among as many as the index found to need, when it measured itself with sums of two rows as queries:

{record.table(indexes)}

FAISS's fast scan of RaBitQ codes (`fs`) fails at 4,096 numbers, where the plain one does not, so *auto* takes the plain
one; an index that finds too little recall says so, and *auto* goes on to an exact scan."""

"""How far the scores of two seeds of noise agree, in `tools/bench parts`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from parts_choice import Part
from parts_products import SEEDS, products_file, read_products
from parts_scores import USUAL, Scoring, block_scores
from parts_timesteps import DRAWS, FIRST_LOOK, MORE_DRAWS, TODAY, timestep_sets
from subset_models import Subject, map_in_processes

from gradindex.report.ranking import spearman

SETS = (TODAY, "even 5", "even 2", *FIRST_LOOK, *MORE_DRAWS)

Rows = list[dict[str, Any]]


def noise_rows(folder: Path, subject: Subject, parts: Sequence[Part]) -> Rows:
    """Return how far two seeds agree, of every part's ReTrac at SETS, plain and whitened."""
    jobs = [(subject, part, draws) for part in parts for draws in DRAWS]
    rows = map_in_processes(_noise_rows, folder, *zip(*jobs, strict=True))
    return [row for several in rows for row in several]


def _noise_rows(folder: Path, subject: Subject, part: Part, draws: int) -> Rows:
    """Those of one kind and number of draws."""
    rows: Rows = []
    for scoring in USUAL:
        if scoring.method != "retrac":
            continue
        names = SETS if draws == 1 else MORE_DRAWS
        sets = {name: timestep_sets()[name] for name in names}
        agreements = seed_agreements(folder, subject, part.kind, scoring, [*sets.values()], draws)
        for (name, timesteps), agreement in zip(sets.items(), agreements, strict=True):
            row = part.row(len(timesteps), draws) | scoring.row() | {"set": name}
            rows.append({**row, "seeds_agree": agreement})
    return rows


def seed_agreements(
    folder: Path,
    subject: Subject,
    kind: str,
    scoring: Scoring,
    sets: Sequence[Sequence[int]],
    draws: int = 1,
) -> list[float]:
    """Return Spearman's ρ between two seeds' scores, mean over queries, for each set."""
    scores = {
        (t, seed): block_scores(
            read_products(products_file(folder, subject, t, seed), draws, kind),
            subject.pictures,
            scoring,
        )
        for t in sorted({t for timesteps in sets for t in timesteps})
        for seed in SEEDS
    }
    agreements = []
    for timesteps in sets:
        first, second = (np.sum([scores[t, seed] for t in timesteps], axis=0) for seed in SEEDS)
        agreements.append(spearman(first, second))
    return agreements

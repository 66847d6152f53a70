"""The smallest store that keeps the answers: `tools/bench bytes`.

Stores of other rows, timesteps, widths and parts of the model, against ten even timesteps in full:
what models that were trained again say of their scores, and whether the same pictures are named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from parts_scores import Judgement
from picture_sets import write_pictures
from subset_models import (
    FASHION,
    Subject,
    all_subset_losses,
    picture_folder,
    query_pictures,
    subsets,
    whole_model,
)
from trained_models import model_and_pictures

import gradindex
from gradindex.report.evaluate import lds
from gradindex.report.ranking import overlap, spearman
from gradindex.search.index import Index
from gradindex.store.array_names import array_bytes

# The halves of `tools/bench parts`: one model of each.
SUBJECT = replace(FASHION, subsets=48, seeds=1)
SMOKE, SMOKE_SUBJECT = (
    "smoke",
    replace(FASHION, pictures=40, queries=8, subsets=8, seeds=1, steps=20),
)
K = 10
MANY, ASKED = 8000, 100  # pictures of a larger set, and queries that are not among them


@dataclass(frozen=True)
class Rows:
    """How a store keeps a picture.

    Attributes:
        timesteps, rows, dim, params: see `gradindex.build`.
    """

    timesteps: int | str = 10
    rows: str = "full"
    dim: int = 4096
    params: str = "all"

    @property
    def title(self) -> str:
        """Return what a table calls it."""
        timesteps = f"{self.timesteps} timesteps"
        if isinstance(self.timesteps, str):
            timesteps = f"{self.timesteps.rpartition(':')[2]} weighted timesteps"
        parts = [f"{self.rows} rows", timesteps]
        if self.dim != Rows.dim:
            parts.append(f"D = {self.dim:,}")
        if self.params != Rows.params:
            parts.append(self.params)
        return ", ".join(parts)

    @property
    def like(self) -> "Rows":
        """The full rows of the same gradients."""
        return Rows(self.timesteps, params=self.params)

    @property
    def folder(self) -> str:
        """Return a name for its index."""
        return f"{self.rows}-{self.timesteps}-{self.dim}-{self.params}".replace(":", "")


TIMESTEPS = (10, 5, "weighted:5", "weighted:4", "weighted:3")
FRONTIER = (
    *(Rows(timesteps) for timesteps in TIMESTEPS),
    Rows(rows="folded"),
    *(Rows(timesteps, "compact") for timesteps in TIMESTEPS),
    *(Rows(timesteps, "compact", dim) for timesteps in (10, "weighted:4") for dim in (2048, 1024)),
    Rows("weighted:5", params="norms"),
    Rows("weighted:5", "compact", params="norms"),
    Rows("weighted:3", params="last-block"),
    Rows("weighted:3", "compact", params="last-block"),
)
LARGER = (Rows(), Rows(rows="compact"), Rows("weighted:4"), Rows("weighted:4", "compact"))


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/bytes.json and .md; with `only` write nothing.

    Args:
        only: "smoke" tries everything on few pictures; "truth" or "many" measures that alone.
    """
    is_smoke = only == [SMOKE]
    folder = work / ("bytes-smoke" if is_smoke else "lds")
    folder.mkdir(parents=True, exist_ok=True)
    part = record.resumable(work / f"bytes-{device}{'-smoke' * is_smoke}")
    subject = SMOKE_SUBJECT if is_smoke else SUBJECT
    results: dict[str, Any] = {"pictures": subject.pictures, "many": MANY, "queries": ASKED}
    if only != ["many"]:
        results["truth"] = part("truth", partial(truth, folder, subject, device))
    if only not in (["truth"], [SMOKE]):
        results["of many"] = part("many", partial(of_many, work, device))
    text = page(results)
    print(text)
    if not only:
        record.save("bytes", device, "tools/bench bytes", results, text)


# Against models that were trained again


def truth(folder: Path, subject: Subject, device: str) -> list[dict[str, Any]]:
    """Return a row of figures for each way of keeping a picture."""
    losses = all_subset_losses(folder, subject).mean(1)
    data, model = picture_folder(folder, subject), whole_model(folder, subject)[-1]
    asked = list(torch.from_numpy(query_pictures(folder, subject)))
    scores = {}
    for rows in FRONTIER:
        index = built(folder / "bytes" / rows.folder, rows, model, data, device)
        scores[rows] = index.scores(asked)
    halves = subsets(subject)
    judged = {rows: judge(subject, scores[rows], halves, losses) for rows in FRONTIER}
    first = judged[Rows()]
    return [
        {
            "title": rows.title,
            "bytes": picture_bytes(gradindex.open(folder / "bytes" / rows.folder)),
            **{name: judgement.figures() for name, judgement in judged[rows].items()},
            "share": {
                name: judgement.share_of(first[name]) for name, judgement in judged[rows].items()
            },
            **likeness(scores[rows.like], scores[rows]),
        }
        for rows in FRONTIER
    ]


def built(folder: Path, rows: Rows, model: Path, data: Path, device: str) -> Index:
    """Return the index of a folder's pictures that are kept in a way."""
    return gradindex.build(
        folder,
        model=model,
        data=data,
        timesteps=rows.timesteps,
        rows=rows.rows,
        dim=rows.dim,
        params=rows.params,
        device=device,
    )


def picture_bytes(index: Index) -> int:
    """Return how many bytes an index's arrays keep of a picture."""
    return sum(array_bytes(index.store.recipe, 1).values())


def judge(
    subject: Subject, scores: np.ndarray, halves: np.ndarray, losses: np.ndarray
) -> dict[str, Judgement]:
    """Return the linear datamodeling score of scores [Q, N], for each set of queries."""
    judged = {}
    for name, queries in subject.query_sets.items():
        result = lds(scores[queries], halves, losses[:, queries])
        judged[name] = Judgement(100 * result.mean, 100 * np.asarray(result.resampled))
    return judged


def likeness(full: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Return how near scores [Q, N] are to those of full rows of the same gradients."""
    return {"spearman": spearman(full, scores), "overlap": overlap(full, scores, K)}


# Of many pictures


def of_many(work: Path, device: str) -> list[dict[str, Any]]:
    """Return a row of figures for each way of keeping one of many pictures."""
    model, pictures = model_and_pictures("tiny", work)
    data = work / "bytes-pictures"
    if not data.exists():
        write_pictures(data, pictures[:MANY])
    asked = list(torch.from_numpy(pictures[MANY : MANY + ASKED]))
    figures = []
    full: dict[str, np.ndarray] = {}
    for rows in LARGER:
        index = built(work / "bytes-many" / rows.folder, rows, model, data, device)
        scores = {
            f"{method}{', whitened' * whiten}": index.scores(asked, method, whiten=whiten)
            for whiten in (False, True)
            for method in ("tracin", "retrac")
        }
        if rows == rows.like:
            full = scores
        likenesses = {name: likeness(full[name], scores[name]) for name in scores}
        figures.append({"title": rows.title, "bytes": picture_bytes(index), "like": likenesses})
    return figures


def page(results: Mapping[str, Any]) -> str:
    """Return the tables and what they are of."""
    return record.fill_page(
        "bytes",
        pictures=results["pictures"],
        many=results["many"],
        queries=results["queries"],
        truth=_table([_truth_row(row) for row in results.get("truth", [])]),
        of_many=_table([_likeness_row(row) for row in results.get("of many", [])]),
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    return record.table(rows) if rows else "Not measured."


def _truth_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "store": row["title"],
        "KB a picture": f"{row['bytes'] / 1000:.1f}",
        **{name: _interval(row[name], ".1f") for name in ("validation", "generated")},
        "of the first": " / ".join(_interval(share, ".2f") for share in row["share"].values()),
        f"best {K} in common": row["overlap"],
        "Spearman": row["spearman"],
    }


def _likeness_row(row: Mapping[str, Any]) -> dict[str, Any]:
    columns = {
        name: f"{like['overlap']:.3f} ({like['spearman']:.4f})"
        for name, like in row["like"].items()
    }
    return {"store": row["title"], "KB a picture": f"{row['bytes'] / 1000:.1f}", **columns}


def _interval(values: Sequence[float] | None, form: str) -> str:
    """A figure and its interval; a dash where there is none."""
    if values is None:
        return "–"
    value, low, high = (format(number, form) for number in values)
    return f"{value} ({low} … {high})"

"""Training pictures that are in many lists, or stand out by self-influence, as rows of a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradindex.recipe import FOLDED
from gradindex.report.diagnose import training_scores
from gradindex.report.page import COLUMNS, render
from gradindex.report.printable import one_line, printable
from gradindex.report.ranking import top
from gradindex.report.self_influence import find_outliers, self_influence
from gradindex.report.thumbnails import Thumbnails
from gradindex.report.view import CAPTION_LETTERS, TITLES, HitView, RowView
from gradindex.serve.served_index import ServedIndex

TEMPLATES = Path(__file__).parent / "templates"
QUERIES = 24  # training pictures that are asked about
PICTURE_BYTES = 20_000  # of a thumbnail in a page


@dataclass(frozen=True)
class Listed:
    """A training picture in such a row, with what is said of it and the length of its bar."""

    row: int
    score: float
    text: str
    bar: int


def common_and_outliers(served: ServedIndex, method: str, k: int) -> str:
    """Return a part of a page: the pictures in most lists, and those that stand out.

    Of folded rows the latter are not known.

    Raises:
        CallError: see `training_scores` and `self_influence`.
    """
    rows = {
        "Common": (_common(served, method, k), "in more than half of the lists, most first"),
    }
    if served.index.store.recipe.rows != FOLDED:
        rows["Outliers"] = _outliers(served, method, k), _outlier_text(method)
    count = sum(len(standing) for standing, _ in rows.values())
    thumbnails = Thumbnails(served.index.thumbnail, PICTURE_BYTES * max(count, 1), count)
    views = [
        RowView(
            method, title, kind, [hit_view(served, thumbnails, *one) for one in _ranked(standing)]
        )
        for title, (standing, kind) in rows.items()
    ]
    low, high = COLUMNS
    context: dict[str, Any] = {
        "tiles": [],
        "rows": views,
        "columns": min(max(k, low), high),
        "data": {"answers": [_values(served, *item, method) for item in rows.items()]},
        "pictures": thumbnails.style_sheet(),
    }
    return render("lists.html", context, TEMPLATES)


def _common(served: ServedIndex, method: str, k: int) -> list[Listed]:
    """The pictures in more than half of the lists of some training pictures."""
    lists = top(training_scores(served.index, QUERIES)[method], k)
    counts = np.bincount(lists.ravel(), minlength=len(served.index))
    order = np.argsort(-counts, kind="stable")
    asked = len(lists)
    return [
        Listed(
            row, int(counts[row]), f"{counts[row]} of {asked} lists", percent(counts[row], asked)
        )
        for row in order.tolist()
        if 2 * counts[row] > asked
    ]


def _outliers(served: ServedIndex, method: str, k: int) -> list[Listed]:
    """The pictures that stand out by self-influence."""
    found = find_outliers(served.index.store, self_influence(served.index)[method], method, k)
    highest = max((abs(one["score"]) for one in found["outliers"]), default=1.0)
    return [
        Listed(one["row"], one["score"], f"{one['score']:.3g}", percent(one["score"], highest))
        for one in found["outliers"]
    ]


def _outlier_text(method: str) -> str:
    kind = "highest" if method == "tracin" else "lowest"
    return f"the {kind} self-influence by {TITLES[method]}, plain scores"


def percent(value: float, whole: float) -> int:
    """Return a length in percent of another, 100 at the most."""
    return round(100 * min(1.0, abs(value) / (abs(whole) or 1)))


def _ranked(standing: Sequence[Listed]) -> list[tuple[int, Listed]]:
    return list(enumerate(standing, 1))


def hit_view(served: ServedIndex, thumbnails: Thumbnails, rank: int, one: Listed) -> HitView:
    """Return what the templates of a report show of a training picture."""
    caption = served.index.training_pictures.caption(one.row) or ""
    return HitView(
        rank=rank,
        row=one.row,
        name=printable(served.index.ids[one.row]),
        thumbnail=thumbnails.of(lambda: served.index.thumbnail(one.row)),
        z="",
        score=one.text,
        error="",
        bar=one.bar,
        caption=one_line(caption)[:CAPTION_LETTERS],
        group=None,
        also="",
        marks=0,
        path="",
        zero=0,
        parts="",
        is_common=False,
    )


def _values(
    served: ServedIndex, title: str, listed: tuple[list[Listed], str], method: str
) -> dict[str, Any]:
    """A row as the JSON values of an answer."""
    hits = [
        {"rank": rank, "id": served.index.ids[one.row], "row": one.row, "score": one.score}
        for rank, one in _ranked(listed[0])
    ]
    queries = [{"picture": title.lower(), "hits": hits}]
    return {"index": served.path, "method": method, "k": len(hits), "queries": queries}

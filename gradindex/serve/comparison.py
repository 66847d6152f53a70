"""The answers of two methods, or of two indexes, about one picture, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradindex.report.page import COLUMNS, render
from gradindex.report.ranking import spearman, top
from gradindex.report.thumbnails import Thumbnails
from gradindex.report.view import TITLES, RowView, measure_text
from gradindex.search.answering import nothing_to_rank
from gradindex.search.standing import Standing
from gradindex.serve.options import QueryFields
from gradindex.serve.served_index import Asked, ServedIndex, named_errors
from gradindex.serve.standing import PICTURE_BYTES, TEMPLATES, Listed, hit_view, percent

FEWEST_SHARED = 3  # pictures of both indexes, from which on their scores are compared


@dataclass(frozen=True)
class Side:
    """What one of the two says of a picture.

    Attributes:
        scores: of all training pictures, [N] float32; NaN where there is none.
        whitened: whether the query was.
    """

    served: ServedIndex
    method: str
    scores: np.ndarray
    whitened: bool

    def name(self, with_index: bool) -> str:
        """Return what it is called: the method, and the index where there are two."""
        return f"{TITLES[self.method]}, {self.served.name}" if with_index else TITLES[self.method]

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Return the ids of some rows."""
        return [self.served.index.ids[row] for row in rows]


def side_of(served: ServedIndex, method: str, asked: Asked, fields: QueryFields) -> Side:
    """Return the scores that an index gives to all training pictures; see `Index.scores`.

    What the model of this index is not given, prompt or class label, is left out.
    """
    recipe = served.index.store.recipe
    if not served.is_captioned:
        fields, asked = fields.model_copy(update={"prompt": None}), asked._replace(prompt=None)
    if recipe.classes is None:
        fields = fields.model_copy(update={"class_label": None})
        asked = asked._replace(class_label=None)
    options = served.options(asked, fields)
    for name in ("opponents", "group_by", "merge_duplicates"):
        del options[name]
    with named_errors(asked.name), asked.open() as picture:
        query = served.index.to_query(picture, **options)
        (block,) = served.index.query_blocks(query, method)
    (scores,) = served.index.ranker.scores(method, block, query.span)
    if np.isnan(scores).all():
        raise nothing_to_rank(query)
    return Side(served, method, scores, bool(fields.whiten))


def compared(first: Side, second: Side, name: str, k: int) -> str:
    """Return a part of a page: both rankings, and how far they agree.

    Args:
        name: of the picture that both were asked about. k: length of the lists.
    """
    sides = first, second
    of_two = first.served is not second.served
    lists = [top(side.scores[None], k)[0].tolist() for side in sides]
    ids = [side.ids(rows) for side, rows in zip(sides, lists, strict=True)]
    shared = {*ids[0]} & {*ids[1]}
    count = len(lists[0]) + len(lists[1])
    thumbnails = Thumbnails(first.served.index.thumbnail, PICTURE_BYTES * max(count, 1), count)
    # Rows of another index are other pictures: they are counted on from those of the first.
    offset = len(first.served.index) if of_two else 0
    rows, values = [], []
    for side, chosen, begin in zip(sides, lists, (0, offset), strict=True):
        views = []
        for rank, standing in enumerate(_standing(side, chosen), 1):
            view = hit_view(side.served, thumbnails, rank, standing)
            is_shared = side.served.index.ids[standing.row] in shared
            also = "in both lists" if is_shared else ""
            views.append(replace(view, row=begin + view.row, also=also, marks=int(is_shared)))
        title = side.name(of_two)
        kind = measure_text(side.method, side.whitened)
        rows.append(RowView(side.method, title, kind, views))
        values.append(_values(side, chosen, name, begin))
    low, high = COLUMNS
    context: dict[str, Any] = {
        "name": name,
        "tiles": _tiles(first, second, len(shared), max(map(len, lists))),
        "rows": rows,
        "columns": min(max(k, low), high),
        "data": {"answers": values},
        "pictures": thumbnails.style_sheet(),
    }
    return render("lists.html", context, TEMPLATES)


def agreement(first: Side, second: Side) -> tuple[float, int] | None:
    """Return Spearman's ρ of the scores of the pictures that both have, and how many they are.

    None where these are fewer than three.
    """
    row_of = second.served.row_of
    shared = [name for name in first.served.index.ids if name in row_of]
    left = np.array([first.served.row_of[name] for name in shared], int)
    right = np.array([row_of[name] for name in shared], int)
    both = np.stack([first.scores[left], second.scores[right]])
    both = both[:, ~np.isnan(both).any(0)]
    if both.shape[1] < FEWEST_SHARED:
        return None
    return spearman(both[:1], both[1:]), both.shape[1]


def _tiles(first: Side, second: Side, shared: int, longest: int) -> list[tuple[str, str]]:
    """The figures of the comparison, with what they are."""
    tiles = [(f"{shared} of {longest}", "in both lists, marked by a dot")]
    if found := agreement(first, second):
        rho, count = found
        text = f"rank correlation (Spearman) of the scores of {count:,} pictures"
        tiles.append((f"{rho:.2f}", text))
    return tiles


def _standing(side: Side, rows: Sequence[int]) -> list[Listed]:
    """The pictures of a list, with how many robust deviations each lies above the median."""
    bulk = Standing.of(side.scores)
    highest = max((abs(float(side.scores[row])) for row in rows), default=1.0)
    standing = []
    for row in rows:
        score = float(side.scores[row])
        z = bulk.z(score)
        text = f"{score:.3g}" if z is None else f"{score:.3g}, z {z:.1f}"
        standing.append(Listed(row, score, text, percent(score, highest)))
    return standing


def _values(side: Side, rows: Sequence[int], name: str, begin: int) -> dict[str, Any]:
    """A list as the JSON values of an answer; `served` is the name that its index has here."""
    hits = [
        {"rank": rank, "id": side.served.index.ids[row], "row": begin + row}
        | {"score": float(side.scores[row]), "served": side.served.name}
        for rank, row in enumerate(rows, 1)
    ]
    queries = [{"picture": name, "hits": hits}]
    return {"index": side.served.path, "method": side.method, "k": len(hits), "queries": queries}

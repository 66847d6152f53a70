"""What the templates of a report show: texts, lengths and marks, made of `Answers`."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from gradindex.report.answers import COSINE_FIELDS, EMBEDDING, PIXELS, Answers, Listing
from gradindex.report.printable import one_line, printable
from gradindex.report.rendering import marked_hits, plus_minus, to_values
from gradindex.report.shares import ShareView, share_views
from gradindex.report.thumbnails import Thumbnail, Thumbnails
from gradindex.report.timestep_chart import chart_path, parts_text, zero_line
from gradindex.search.asked import asked_text
from gradindex.search.results import Hit

FULL = 0.95  # quantile of what hits have that is drawn at full length or height
MOST_COMMON = 12  # pictures of many lists that are shown
FEWEST_LISTS = 3  # of which a picture can be in more than half, worth a word
QUERY_WEIGHT = 4  # a query's share of the bytes, in shares of a training picture's
PART_DIGITS = 4  # of what a timestep adds, in the JSON inside
CAPTION_LETTERS = 300

# Bytes of a page that are not pictures: of the markup of a hit, and of all that is there once.
HIT_BYTES, FRAME_BYTES = 800, 30_000
FEWEST_BYTES = 700  # of a picture

TITLES = {
    "retrac": "ReTrac",
    "tracin": "TracIn",
    PIXELS: "Nearest in pixels",
    EMBEDDING: "Nearest by embedding",
}
KINDS = {
    "retrac": "cosine of loss gradients",
    "tracin": "inner product of loss gradients",
    PIXELS: "cosine of the pictures themselves; no model is asked",
    EMBEDDING: "cosine of the pictures' vectors in another model",
}


@dataclass(frozen=True)
class HitView:
    """A training picture in a row.

    Attributes:
        z, score, error: as texts; the first and last may be empty.
        bar: its length in percent.
        group: position among `Cards.groups`; None: it has none.
        also: which other rows name the picture; marks: how many.
        path: drawing of what each timestep adds, whose zero is so far from the top; parts: the same
            in words. Empty where not known.
        is_common: whether it is in more than half of the measure's lists, and not named by the
            verdict.
        named: what the verdict says of the picture where it names it; else empty.
        copies: how many near-duplicates it stands for beside itself, as text; else empty.
    """

    rank: int
    row: int
    name: str
    thumbnail: Thumbnail | None
    z: str
    score: str
    error: str
    bar: int
    caption: str
    group: int | None
    also: str
    marks: int
    path: str
    zero: int
    parts: str
    is_common: bool
    named: str = ""
    copies: str = ""


@dataclass(frozen=True)
class RowView:
    """A ranking by one measure, folded where it is one of opponents."""

    measure: str
    title: str
    kind: str
    hits: list[HitView]
    is_folded: bool = False


@dataclass(frozen=True)
class CardView:
    """A query with its rows.

    Attributes:
        asked: what of the picture was asked about; empty: simply all of it.
        verdict: what the method asked for comes to; empty where not asked.
        shares: of groups, the largest first; empty unless asked for. others: how many more.
    """

    number: int
    name: str
    path: str
    prompt: str
    asked: str
    thumbnail: Thumbnail | None
    rows: list[RowView]
    verdict: str
    shares: list[ShareView]
    others: int


@dataclass(frozen=True)
class Scale:
    """What is drawn at full size, of one measure in all of a report: z, and a timestep's part."""

    z: float
    part: float


class Cards:
    """The cards of some of the queries, with all of their pictures in `thumbnails`.

    Args:
        chosen: which queries.
        page_bytes: that the page should not exceed.

    Attributes:
        cards: one for each query.
        groups: the names of all groups in the lists.
        values: the answers as JSON values; a measure that is no method is "pixels" or "embedding".
    """

    def __init__(self, answers: Answers, chosen: range, page_bytes: float) -> None:
        self._answers, self._chosen = answers, chosen
        self._scales = [_scale(listing) for listing in answers.listings]
        self._common = [common_pictures(listing) for listing in answers.listings]
        hits = [hit for listing in answers.listings for q in chosen for hit in _hits(listing, q)]
        rows = {hit.row for hit in hits}
        names = sorted({group for row in rows if (group := answers.group_of(row)) is not None})
        self._position = {group: number for number, group in enumerate(names)}
        self.groups = [printable(name) for name in names]
        self.values = self._values()
        count = len(rows) + QUERY_WEIGHT * len(chosen)
        # Texts are in the page twice: in its data, and where people read them.
        texts = 1.3 * len(json.dumps(self.values)) + HIT_BYTES * len(hits) + FRAME_BYTES
        budget = max(page_bytes - texts, FEWEST_BYTES * count)
        self.thumbnails = Thumbnails(answers.picture_of, budget, count)
        self._of_query = {
            q: self.thumbnails.of(answers.queries[q].open_picture, QUERY_WEIGHT) for q in chosen
        }
        self.cards = [self._card(q) for q in chosen]

    def _card(self, q: int) -> CardView:
        query = self._answers.queries[q]
        rows, opponents = [], []
        for number, listing in enumerate(self._answers.listings):
            result = listing.results[q]
            title = TITLES[listing.measure]
            kind = measure_text(listing.measure, self._answers.whitened)
            rows.append(RowView(listing.measure, title, kind, self._views(number, q, result.hits)))
            if result.opponents is not None:
                views = self._views(number, q, result.opponents, opponents=True)
                kind = "the lowest scores: training on them works against this picture"
                title = f"{title}, opponents"
                opponents.append(RowView(listing.measure, title, kind, views, is_folded=True))
        path = printable(query.name)
        name = PurePath(path).name or path
        prompt = one_line(query.prompt or "")
        result = self._answers.listings[0].results[q]
        shares = share_views(result.groups)
        return CardView(
            number=q + 1,
            name=name,
            path=path,
            prompt=prompt,
            asked=one_line(asked_text(result.asked).removeprefix(", ")),
            thumbnail=self._of_query[q],
            rows=rows + opponents,
            verdict="" if result.verdict is None else printable(result.verdict.text),
            shares=shares,
            others=len(result.groups or []) - len(shares),
        )

    def _views(
        self, number: int, q: int, hits: Sequence[Hit], opponents: bool = False
    ) -> list[HitView]:
        """The views of a list of one query, by the measure of that number."""
        listing, scale = self._answers.listings[number], self._scales[number]
        highest = max((abs(hit.score) for hit in hits), default=0.0)
        sigma = _sigma(listing, q)
        # A verdict is of the method that was asked for, and names proponents.
        is_judged = number == 0 and not opponents
        named, meaning = marked_hits(listing.results[q].verdict if is_judged else None)
        views = []
        for hit in hits:
            z = hit.z
            length = abs(hit.score) / (highest or 1) if z is None else abs(z) / (scale.z or 1)
            also = [] if opponents else self._others(number, q, hit)
            group = self._answers.group_of(hit.row)
            parts, path = hit.by_timestep or {}, ""
            if parts:
                path = chart_path(parts, self._answers.last_timestep, scale.part * sigma)
            view = HitView(
                rank=hit.rank,
                row=hit.row,
                name=printable(hit.id),
                thumbnail=self.thumbnails.of_row(hit.row),
                z="" if z is None else z_text(z),
                score=f"{hit.score:.3g}",
                error=plus_minus(hit),
                bar=round(100 * min(1.0, length)),
                caption=one_line(hit.caption or "")[:CAPTION_LETTERS],
                group=None if group is None else self._position[group],
                also=f"also in {' and '.join(also)}" if also else "",
                marks=len(also),
                path=path,
                zero=zero_line(parts),
                parts=parts_text(parts) if parts else "",
                is_common=picture_of(hit) in self._common[number]
                and not opponents
                and hit.id not in named,
                named=meaning if hit.id in named else "",
                copies=f"and {len(hit.duplicates)} like it" if hit.duplicates else "",
            )
            views.append(view)
        return views

    def _others(self, number: int, q: int, hit: Hit) -> list[str]:
        """The titles of the other measures whose list of a query has a hit, or a copy of it."""
        return [
            TITLES[listing.measure]
            for other, listing in enumerate(self._answers.listings)
            if other != number and picture_of(hit) in map(picture_of, listing.results[q].hits)
        ]

    def _values(self) -> dict[str, Any]:
        """For each measure what `to_json` writes, as JSON values."""
        whole = self._answers
        return {"answers": [self._listing_values(listing) for listing in whole.listings]}

    def _listing_values(self, listing: Listing) -> dict[str, Any]:
        whole = self._answers
        chosen = [listing.results[q] for q in self._chosen]
        is_whitened = whole.whitened and listing.measure not in COSINE_FIELDS
        values = to_values(chosen, whole.index, listing.measure, whole.k, is_whitened)
        for result, query in zip(chosen, values["queries"], strict=True):
            for hits, name in ((result.hits, "hits"), (result.opponents or [], "opponents")):
                for hit, fields in zip(hits, query.get(name, []), strict=True):
                    if hit.by_timestep is not None:
                        parts = hit.by_timestep.items()
                        fields["by_timestep"] = [[t, _short(part)] for t, part in parts]
        return values


def z_text(z: float) -> str:
    """Return z in so few characters that they stand beside rank and dots.

    >>> z_text(18.42), z_text(-3.06), z_text(112.4)
    ('18.4', '-3.1', '112')
    """
    return f"{z:.1f}" if abs(z) < 99.95 else f"{z:.0f}"


def measure_text(measure: str, whitened: bool) -> str:
    """Return what the scores of a measure are.

    >>> measure_text("retrac", whitened=True)
    'whitened cosine of loss gradients'
    """
    is_whitened = whitened and measure not in COSINE_FIELDS
    return f"whitened {KINDS[measure]}" if is_whitened else KINDS[measure]


def picture_of(hit: Hit) -> str:
    """Return the id that stands for a hit and its duplicates, the same in every list."""
    return min([hit.id, *(hit.duplicates or ())])


def common_pictures(listing: Listing) -> dict[str, int]:
    """Return the pictures in more than half of three lists or more, most first.

    Returns:
        {`picture_of` their hits: how many lists}.
    """
    count = len(listing.results)
    names = Counter(picture_of(hit) for result in listing.results for hit in result.hits)
    if count < FEWEST_LISTS:
        return {}
    return {name: times for name, times in names.most_common() if 2 * times > count}


def overlap(first: Listing, second: Listing) -> float:
    """Return how many pictures two measures' lists of a query share, a mean over queries."""
    shared = [
        len({*map(picture_of, one.hits)} & {*map(picture_of, other.hits)})
        for one, other in zip(first.results, second.results, strict=True)
    ]
    return float(np.mean(shared))


def used_timesteps(answers: Answers) -> int:
    """Return how many timesteps the drawings of a report have, at the most."""
    counts = [
        len(hit.by_timestep or {})
        for listing in answers.listings
        for result in listing.results
        for hit in result.hits
    ]
    return max(counts, default=0)


def _hits(listing: Listing, q: int) -> list[Hit]:
    """All hits of a query by a measure."""
    result = listing.results[q]
    return [*result.hits, *(result.opponents or [])]


def _sigma(listing: Listing, q: int) -> float:
    """The robust standard deviation of a query's scores; 1 where it is not known."""
    sigma = listing.standings[q].sigma
    return sigma if sigma > 0 else 1.0


def _scale(listing: Listing) -> Scale:
    """What is drawn at full size, of all hits of a measure."""
    zs, parts = [0.0], [0.0]
    for q in range(len(listing.results)):
        for hit in _hits(listing, q):
            zs.append(abs(hit.z or 0.0))
            if hit.by_timestep:
                largest = max(map(abs, hit.by_timestep.values()))
                parts.append(largest / _sigma(listing, q))
    return Scale(float(np.quantile(zs, FULL)), float(np.quantile(parts, FULL)))


def _short(value: float) -> float:
    """A number with as many digits as anyone needs."""
    return float(f"{value:.{PART_DIGITS}g}")

"""What a query gives back: hits, and how people see them."""

import base64
import html
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from PIL import Image

KIND = {"tracin": "inner product", "retrac": "cosine"}


@dataclass(frozen=True)
class Hit:
    """One training picture in a ranking.

    `score` is exact, from the store's rows; `stderr` is its standard error over timesteps, None for a single one.
    `by_timestep`, where it was asked for, is what each timestep adds; together they are the score.
    """

    rank: int
    id: str
    row: int
    score: float
    stderr: float | None
    by_timestep: dict[float, float] | None = None


@dataclass(frozen=True)
class Result:
    """The answer for one picture: `hits` are its proponents, best first; `opponents` the most negative first."""

    picture: str
    hits: list[Hit]
    opponents: list[Hit] | None = None

    @property
    def ids(self) -> list[str]:
        return [hit.id for hit in self.hits]

    @property
    def scores(self) -> list[float]:
        return [hit.score for hit in self.hits]


def to_json(results: Sequence[Result], index: str, method: str, k: int, whitened: bool = False) -> str:
    """The JSON of a query, as docs/cli.md shows it."""
    queries = []
    for result in results:
        query: dict[str, Any] = {"picture": result.picture, "hits": [_hit_json(hit) for hit in result.hits]}
        if result.opponents is not None:
            query["opponents"] = [_hit_json(hit) for hit in result.opponents]
        queries.append(query)
    more = {"whitened": True} if whitened else {}
    return json.dumps({"index": index, "method": method, "k": k, **more, "queries": queries}, indent=1)


def _hit_json(hit: Hit) -> dict[str, Any]:
    values = asdict(hit)
    parts = values.pop("by_timestep")
    return values if parts is None else {**values, "by_timestep": [list(part) for part in parts.items()]}


def to_table(results: Sequence[Result], method: str, whitened: bool = False) -> str:
    """One block of lines per picture: rank, score ± standard error, id."""
    kind = "whitened" if whitened else KIND[method]
    lines = []
    for result in results:
        for title, hits in _lists(result):
            lines.append(f"{result.picture}: {title} ({method}, {kind} ± standard error over timesteps)")
            for hit in hits:
                lines.append(f"{hit.rank:>5}  {hit.score:>11.4g}{_plus_minus(hit):<12}  {hit.id}")
                if hit.by_timestep is not None:
                    parts = (f"t = {t:g}: {part:.3g}" for t, part in hit.by_timestep.items())
                    lines.append(f"       {', '.join(parts)}")
            lines.append("")
    return "\n".join(lines).rstrip()


def to_html(
    sections: Sequence[tuple[str, Sequence[Result]]],
    picture_of: Callable[[int], Image.Image | None],
    query_pictures: Sequence[Image.Image | None],
    title: str = "gradindex",
    notes: Sequence[str] = (),
    whitened: bool = False,
) -> str:
    """A page that stands alone: every query picture with its rankings, all pictures inside the file.

    Args:
        sections: (method, results of that method) — one column of rankings per method.
        picture_of: row → training picture, None where it is gone.
        query_pictures: one per query.
        notes: paragraphs above the rankings.
        whitened: whether the queries were.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(note)}</p>" for note in notes)]
    for number, shown in enumerate(query_pictures):
        parts.append("<section>")
        parts.append(_figure(shown, PurePath(sections[0][1][number].picture).name, "query"))
        parts.append("<div>")
        for method, results in sections:
            for heading, hits in _lists(results[number]):
                figures = "".join(_figure(picture_of(hit.row), hit.id, "hit", hit) for hit in hits)
                kind = "whitened" if whitened else KIND[method]
                label = f"{method} {heading} <small>{kind} ± standard error over timesteps</small>"
                parts.append(f"<h2>{label}</h2><div class=row>{figures}</div>")
        parts.append("</div></section>")
    return _PAGE.replace("{title}", html.escape(title)).replace("{body}", "\n".join(parts))


def _lists(result: Result) -> list[tuple[str, list[Hit]]]:
    lists = [("proponents", result.hits)]
    return lists if result.opponents is None else [*lists, ("opponents", result.opponents)]


def _plus_minus(hit: Hit) -> str:
    return "" if hit.stderr is None else f" ± {hit.stderr:.2g}"


def _figure(picture: Image.Image | None, name: str, kind: str, hit: Hit | None = None) -> str:
    if picture is None:
        shown = "<div class=gone>picture not found</div>"
    else:
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        content = base64.b64encode(stream.getvalue()).decode()
        shown = f'<img alt="{html.escape(name)}" src="data:image/png;base64,{content}">'
    score = "" if hit is None else f"<span><b>{hit.score:.3g}</b>{_plus_minus(hit)}</span><br>"
    bars = "" if hit is None or hit.by_timestep is None else _bars(hit.by_timestep)
    return f"<figure class={kind}>{shown}<figcaption>{score}{bars}{html.escape(name)}</figcaption></figure>"


def _bars(by_timestep: dict[float, float]) -> str:
    """What each timestep adds, up from the middle or down, the largest at full height; in words as a tooltip."""
    largest = max(map(abs, by_timestep.values())) or 1.0
    heights = [part / largest for part in by_timestep.values()]
    bars = "".join(
        f'<rect x="{number + 0.1:.1f}" y="{min(0, -height):.3f}" width=".8" height="{abs(height):.3f}"/>'
        for number, height in enumerate(heights)
    )
    words = ", ".join(f"t = {t:g}: {part:.3g}" for t, part in by_timestep.items())
    return f'<svg viewBox="0 -1 {len(heights)} 2" preserveAspectRatio="none"><title>{words}</title>{bars}</svg>'


_PAGE = re.sub(
    r"\n\s*",
    "\n",
    """<!doctype html>
    <html lang="en"><head><meta charset="utf-8"><title>{title}</title>
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <style>
    body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1a1a1a }
    h1 { font-size: 1.4rem } h2 { font-size: .95rem; margin: .2rem 0 } small { font-weight: normal; color: #666 }
    section { display: flex; gap: 1.5rem; border-top: 1px solid #ddd; padding: 1rem 0 }
    .row { display: flex; flex-wrap: wrap; gap: .5rem; margin-bottom: .6rem }
    figure { margin: 0; width: 7rem; text-align: center; font-size: .75rem; overflow-wrap: anywhere }
    figure.query { width: 8.5rem; flex: none }
    img { width: 5.5rem; height: 5.5rem; object-fit: contain; image-rendering: pixelated; background: #eee }
    figcaption span { white-space: nowrap }
    svg { width: 5.5rem; height: 1.5rem; fill: #456; background: linear-gradient(#ccc, #ccc) center/100% 1px no-repeat }
    .query img { width: 8rem; height: 8rem } .gone { height: 5.5rem; background: #eee; color: #666 }
    </style></head><body>
    {body}
    </body></html>
    """,
)

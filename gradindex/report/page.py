"""The answer to a query as a page of HTML that stands alone: all pictures are inside the file."""

import html
from collections.abc import Callable, Sequence
from pathlib import PurePath

from PIL import Image

from gradindex.report.printable import printable
from gradindex.report.rendering import plus_minus, score_kind, timestep_text, titled_lists
from gradindex.report.thumbnails import Thumbnails
from gradindex.search.results import Hit, Result

Section = tuple[str, Sequence[Result]]  # a method, and its result for each query


def to_html(
    sections: Sequence[Section],
    picture_of: Callable[[int], Image.Image | None],
    query_pictures: Sequence[Image.Image | None],
    title: str = "gradindex",
    notes: Sequence[str] = (),
    whitened: bool = False,
) -> str:
    """Return a page of every query picture with its rankings.

    Pictures are shown at up to 256 × 256 pixels, and each is in the page once.

    Args:
        sections: (method, results of that method), whose rankings are shown one below the other.
        picture_of: the training picture of a row; None where it is gone. One that fails to open
            leaves its place empty.
        query_pictures: one per query; None where it cannot be shown.
        notes: paragraphs above the rankings.
        whitened: whether the queries were.
    """
    thumbnails = Thumbnails(picture_of)
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    for number, picture in enumerate(query_pictures):
        results = [(method, section_results[number]) for method, section_results in sections]
        parts += _query_parts(picture, results, thumbnails, whitened)
    beginning = BEGINNING.replace("{title}", html.escape(title))
    beginning = beginning.replace("{pictures}", thumbnails.style_sheet())
    return "\n".join([beginning, *parts, END])


def _query_parts(
    picture: Image.Image | None,
    results: Sequence[tuple[str, Result]],
    thumbnails: Thumbnails,
    whitened: bool,
) -> list[str]:
    """The lines of one query: its picture, and the rankings of each (method, result)."""
    name = PurePath(results[0][1].picture).name
    parts = ["<section>", _figure("query", thumbnails.element(picture, name), name), "<div>"]
    for method, result in results:
        kind = score_kind(method, whitened)
        for heading, hits in titled_lists(result):
            label = f"{method} {heading} <small>{kind} ± standard error over timesteps</small>"
            figures = "".join(_hit_figure(hit, thumbnails) for hit in hits)
            parts.append(f"<h2>{label}</h2><div class=row>{figures}</div>")
    parts.append("</div></section>")
    return parts


def _hit_figure(hit: Hit, thumbnails: Thumbnails) -> str:
    """A hit's picture with its score, and bars of what each timestep adds to it."""
    caption = f"<span><b>{hit.score:.3g}</b>{plus_minus(hit)}</span><br>"
    if hit.by_timestep is not None:
        caption += _bars(hit.by_timestep)
    return _figure("hit", thumbnails.of_row(hit.row, hit.id), hit.id, caption)


def _figure(css_class: str, element: str, name: str, caption: str = "") -> str:
    """The element of a picture with a caption in HTML, and its name below."""
    caption += html.escape(printable(name))
    return f"<figure class={css_class}>{element}<figcaption>{caption}</figcaption></figure>"


def _bars(by_timestep: dict[float, float]) -> str:
    """A drawing of what each timestep adds to a score, up from the middle or down.

    The largest is at full height. The numbers are the drawing's tooltip.
    """
    largest = max(map(abs, by_timestep.values())) or 1.0
    bars = []
    for number, part in enumerate(by_timestep.values()):
        height = part / largest
        x, y = f"{number + 0.1:.1f}", f"{min(0, -height):.3f}"  # y grows downward
        bars.append(f'<rect x="{x}" y="{y}" width=".8" height="{abs(height):.3f}"/>')
    title = f"<title>{timestep_text(by_timestep)}</title>"
    view = f'viewBox="0 -1 {len(bars)} 2" preserveAspectRatio="none"'
    return f"<svg {view}>{title}{''.join(bars)}</svg>"


BEGINNING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; \
padding: 0 1rem; color: #1a1a1a }
h1 { font-size: 1.4rem } h2 { font-size: .95rem; margin: .2rem 0 } \
small { font-weight: normal; color: #666 }
section { display: flex; gap: 1.5rem; border-top: 1px solid #ddd; padding: 1rem 0 }
.row { display: flex; flex-wrap: wrap; gap: .5rem; margin-bottom: .6rem }
figure { margin: 0; width: 7rem; text-align: center; font-size: .75rem; overflow-wrap: anywhere }
figure.query { width: 8.5rem; flex: none }
img { width: 5.5rem; height: 5.5rem; background: #eee center / contain no-repeat; \
print-color-adjust: exact }
.small { image-rendering: pixelated }
figcaption span { white-space: nowrap }
svg { width: 5.5rem; height: 1.5rem; fill: #456; \
background: linear-gradient(#ccc, #ccc) center/100% 1px no-repeat }
.query img { width: 8rem; height: 8rem } .gone { height: 5.5rem; background: #eee; color: #666 }
{pictures}
</style></head><body>"""

END = """</body></html>
"""

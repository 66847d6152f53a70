"""Answers as pages of HTML that stand alone: pictures, style and script are inside each file."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import gradindex
from gradindex.report.answers import EMBEDDING, PIXELS, Answers
from gradindex.report.printable import printable
from gradindex.report.rendering import NONE_ABOVE_CHANCE
from gradindex.report.thumbnails import Thumbnails
from gradindex.report.timestep_chart import stroke_width
from gradindex.report.view import (
    FEWEST_LISTS,
    MOST_COMMON,
    TITLES,
    Cards,
    common_pictures,
    measure_text,
    overlap,
    picture_of,
    used_timesteps,
)

TEMPLATES = Path(__file__).parent / "templates"
PER_PAGE = 50  # queries; more are an index page and pages of so many
PAGE_BYTES, PAGE_QUERIES = 1.9e6, 16  # a page of up to so many queries is no larger
FIRST_LINKED = 4  # queries, from which on a page begins with links to them
LINK_SIDE, LINK_BYTES = 64, 3000  # of a query's thumbnail on an index page
COLUMNS = (6, 10)  # of hits in a row, at the least and the most
COMMAND_LETTERS = 2000
# Where a hit is found again, of measures other than methods.
PLACES = {PIXELS: "among the nearest in pixels", EMBEDDING: "among the nearest by embedding"}

# A picture is the background of an <img>, whose own picture is one transparent pixel.
TRANSPARENT = (
    "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"  # 1 × 1
)


def to_html(answers: Answers, command: str = "", made: datetime | None = None) -> str:
    """Return a page of all queries.

    Args:
        command: what was typed.
        made: when; now by default.
    """
    return _page(answers, range(len(answers.queries)), _frame(answers, command, made))


def to_fragment(answers: Answers) -> str:
    """Return the cards of all queries as a part of a page that is there already.

    It has the style sheet of their pictures, and their data, inside.
    """
    context, thumbnails = _context(answers, range(len(answers.queries)), _frame(answers, "", None))
    return render("fragment.html", {**context, "pictures": thumbnails.style_sheet()})


def write_report(
    answers: Answers, file: Path, command: str = "", made: datetime | None = None
) -> list[Path]:
    """Write a page of all queries; of more than 50 an index page, and pages of 50 in a folder.

    The folder of `x.html` is `x-pages` beside it. The other arguments are those of `to_html`.

    Returns:
        The files, the first of which is `file`.
    """
    count = len(answers.queries)
    if count <= PER_PAGE:
        _write(file, to_html(answers, command, made))
        return [file]
    frame = _frame(answers, command, made)
    folder = file.with_name(f"{file.stem}-pages")
    folder.mkdir(exist_ok=True)
    ranges = [range(q, min(q + PER_PAGE, count)) for q in range(0, count, PER_PAGE)]
    names = [f"{number:03d}.html" for number in range(1, len(ranges) + 1)]
    _write(file, _index_page(answers, frame, [f"{quote(folder.name)}/{name}" for name in names]))
    for chosen, name in zip(ranges, names, strict=True):
        around = {"Overview": f"../{quote(file.name)}"}
        for other, its_range in zip(names, ranges, strict=True):
            text = f"{its_range.start + 1} to {its_range.stop}"
            around[text] = "" if other == name else other
        _write(folder / name, _page(answers, chosen, frame, around))
    return [file, *(folder / name for name in names)]


def _write(file: Path, text: str) -> None:
    """Write a page. A name of other bytes than UTF-8 has characters that no text file can hold."""
    file.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _page(
    answers: Answers, chosen: range, frame: dict[str, Any], around: dict[str, str] | None = None
) -> str:
    """A page of some queries.

    Args:
        around: {name: link} of the other pages; an empty link for this one.
    """
    return _render(*_context(answers, chosen, frame, around))


def _context(
    answers: Answers, chosen: range, frame: dict[str, Any], around: dict[str, str] | None = None
) -> tuple[dict[str, Any], Thumbnails]:
    """What the templates show of some queries, and its thumbnails; see `_page`."""
    view = Cards(answers, chosen, PAGE_BYTES * max(1.0, len(chosen) / PAGE_QUERIES))
    contents = []
    if len(chosen) >= FIRST_LINKED:
        contents = [
            {"link": f"#q{card.number}", "name": card.name, "thumbnail": card.thumbnail}
            for card in view.cards
        ]
    switches = {"errors": "\N{PLUS-MINUS SIGN} errors", "names": "names", "timesteps": "timesteps"}
    if any(common_pictures(listing) for listing in answers.listings):
        switches["common"] = "common pictures"
    context = {
        **frame,
        "tiles": [] if around else _tiles(answers, view.thumbnails),
        "contents": contents,
        "cards": view.cards,
        "groups": view.groups if len(view.groups) > 1 else [],
        "switches": switches,
        "data": view.values,
        "around": list((around or {}).items()),
    }
    return context, view.thumbnails


def _index_page(answers: Answers, frame: dict[str, Any], files: Sequence[str]) -> str:
    """The page that leads to those of 50 queries each."""
    count = len(answers.queries)
    thumbnails = Thumbnails(answers.picture_of, LINK_BYTES * count, count, LINK_SIDE)
    contents = []
    for q, query in enumerate(answers.queries):
        thumbnail = thumbnails.of(query.open_picture)
        link = f"{files[q // PER_PAGE]}#q{q + 1}"
        contents.append({"link": link, "name": printable(query.name), "thumbnail": thumbnail})
    tiles = _tiles(answers, thumbnails)
    empty: dict[str, Any] = {"cards": [], "groups": [], "switches": {}, "data": None, "around": []}
    return _render({**frame, **empty, "tiles": tiles, "contents": contents}, thumbnails)


def _render(context: dict[str, Any], thumbnails: Thumbnails) -> str:
    """The page, with the style sheet of all thumbnails that the context has."""
    return render("report.html", {**context, "pictures": thumbnails.style_sheet()})


def render(template: str, context: Mapping[str, Any], folder: Path | None = None) -> str:
    """Return a template with what it shows.

    Args:
        folder: of templates beside those of reports, where it is looked for first.
    """
    return _environment(folder).get_template(template).render(**context)


@cache
def _environment(folder: Path | None) -> Environment:
    """The templates, in which every text is escaped."""
    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES] if folder else TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=f"sha256-{digest}",
        transparent=TRANSPARENT,
        version=gradindex.__version__,
        none_above_chance=NONE_ABOVE_CHANCE,
    )
    macros = environment.get_template("hit.html").module
    for name in ("image", "cut", "hits"):
        environment.globals[name] = getattr(macros, name)
    return environment


def _frame(answers: Answers, command: str, made: datetime | None) -> dict[str, Any]:
    """What all pages of a report have in common."""
    count = len(answers.queries)
    made = made or datetime.now().astimezone()
    pictures = f"{answers.pictures:,} training pictures"
    facts = dict(answers.facts)
    facts["Data"] = f"{pictures}, {facts['Data']}" if "Data" in facts else pictures
    facts["Method"] = _method_text(answers)
    facts["Made"] = f"{made.day} {made:%B %Y, %H:%M %Z}".strip()
    low, high = COLUMNS
    return {
        "title": "What shaped this picture"
        if count == 1
        else f"What shaped these {count:,} pictures",
        "pictures_text": pictures,
        "facts": {name: printable(text) for name, text in facts.items()},
        "command": _shortened(printable(command)),
        "notes": [printable(note) for note in answers.notes],
        "columns": min(max(answers.k, low), high),
        "stroke": stroke_width(used_timesteps(answers)),
    }


def _method_text(answers: Answers) -> str:
    """The method in words."""
    measure = answers.listings[0].measure
    text = f"Diffusion-{TITLES[measure]}, the {measure_text(measure, answers.whitened)}"
    return text + (": what all pictures share counts for little" if answers.whitened else "")


def _shortened(command: str) -> str:
    """A command without its middle where it is very long."""
    if len(command) <= COMMAND_LETTERS:
        return command
    half = COMMAND_LETTERS // 2
    return f"{command[:half]} \N{HORIZONTAL ELLIPSIS} {command[-half:]}"


def _tiles(answers: Answers, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """The figures of the summary: {"figure", "text", "pictures"}."""
    first, *others = answers.listings
    count = len(answers.queries)
    tiles: list[dict[str, Any]] = []
    if count > 1:
        names = [picture_of(hit) for result in first.results for hit in result.hits]
        text = f"distinct pictures in {len(names):,} places of {TITLES[first.measure]}"
        tiles.append(_tile(f"{len(set(names)):,}", text))
    mean = "on average " if count > 1 else ""
    longest = max(len(result.hits) for result in first.results)
    for other in others:
        place = PLACES.get(other.measure, f"in {TITLES[other.measure]}'s list")
        tiles.append(
            _tile(f"{round(overlap(first, other), 1):g} of {longest}", f"{mean}also {place}")
        )
    if count >= FEWEST_LISTS:
        common = common_pictures(first)
        text = "in more than half of the lists"
        if common:
            text += ": influential for everything, they say little about any one"
        tile = _tile(f"{len(common):,}", text)
        hits = {picture_of(hit): hit for result in first.results for hit in result.hits}
        tile["pictures"] = [
            {
                "thumbnail": thumbnails.of_row(hits[name].row),
                "name": printable(hits[name].id),
                "text": f"{times} lists",
            }
            for name, times in list(common.items())[:MOST_COMMON]
        ]
        tiles.append(tile)
    return tiles


def _tile(figure: str, text: str) -> dict[str, Any]:
    """A figure of the summary without pictures."""
    return {"figure": figure, "text": text, "pictures": []}

"""What a notebook shows of an index and of results: small tables of HTML, pictures inside."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from gradindex.errors import GradindexError
from gradindex.store.store import Store
from gradindex.wording import counted

SIDE = 96  # pixels of a thumbnail, at the most
SHOWN = 10  # hits of a picture, and pictures


def facts_html(facts: Mapping[str, str]) -> str:
    """Return a table of names and texts.

    >>> facts_html({"index": "a<b"})
    '<table><tr><th>index</th><td>a&lt;b</td></tr></table>'
    """
    lines = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
        for name, text in facts.items()
    )
    return f"<table>{lines}</table>"


def facts_of(store: Store, device: str) -> dict[str, str]:
    """Return what an open index holds, in words.

    Args:
        device: where gradients are taken.
    """
    checkpoints, pictures, timesteps, dim = store.shape
    recipe = store.recipe
    counts = [counted(pictures, "picture"), counted(timesteps, "timestep")]
    if checkpoints > 1:
        counts.insert(0, counted(checkpoints, "checkpoint"))
    return {
        "index": str(store.location),
        "rows": f"{' × '.join(counts)} × {dim} numbers",
        "model": f"{recipe.model} ({recipe.prediction_type})",
        "device": device,
    }


def results_html(
    results: Sequence[tuple[str, Sequence[Any]]],
    picture_of: Callable[[int], Image.Image | None],
) -> str:
    """Return a table of results: a line for each picture, its first hits with score and id.

    Args:
        results: a picture's path and its `Hit`s, best first.
        picture_of: the training picture of a row; None where it is gone.
    """
    lines = [_result_line(picture, hits, picture_of) for picture, hits in results[:SHOWN]]
    more = len(results) - SHOWN
    rest = f"<p>and {more} more</p>" if more > 0 else ""
    return f"<table>{''.join(lines)}</table>{rest}"


def _result_line(
    picture: str, hits: Sequence[Any], picture_of: Callable[[int], Image.Image | None]
) -> str:
    """The line of one picture: it, then its hits."""
    cells = [f"<th>{_image(_opened(picture))}<br>{html.escape(picture)}</th>"]
    for hit in hits[:SHOWN]:
        element = _image(_found(picture_of, hit.row))
        cells.append(f"<td>{element}<br><b>{hit.score:.3g}</b><br>{html.escape(hit.id)}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _found(picture_of: Callable[[int], Image.Image | None], row: int) -> Image.Image | None:
    """The training picture of a row; None where it is gone, wherever the caller says it is."""
    try:
        return picture_of(row)
    except GradindexError:
        return None


def _opened(path: str) -> Image.Image | None:
    """The picture at a path; None where none opens."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except Exception:  # Pillow raises whatever damaged bytes lead it to
        return None


def _image(picture: Image.Image | None) -> str:
    """The element of a picture, made small; empty for none."""
    if picture is None:
        return ""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    small.save(content, "PNG")
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="">'

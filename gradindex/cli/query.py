"""The command that queries an index."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradindex.cli.messages import say
from gradindex.cli.options import (
    CLASS_LABEL,
    DEVICE,
    METHOD_CHOICE,
    MODEL,
    WHITEN,
    to_range,
    to_whiten,
)
from gradindex.store.memory import keep_freed_memory

if TYPE_CHECKING:
    from gradindex.search.index import Index
    from gradindex.search.results import Result


@click.command()
@click.argument("index")
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE...")
@click.option("-k", default=10, show_default=True, help="How many training pictures.")
@click.option(
    "--method",
    type=METHOD_CHOICE,
    default="retrac",
    show_default=True,
    help="Cosine, or inner product.",
)
@click.option("--opponents", is_flag=True, help="Also the most negative ones.")
@click.option(
    "--pairing",
    type=click.Choice(["matched", "mean"]),
    help="Timestep by timestep, or means over them.  [default: matched; mean with recorded"
    " timesteps]",
)
@click.option(
    "--query-timesteps", type=int, metavar="N", help="Timesteps of the mean pairing.  [default: 25]"
)
@click.option(
    "--query-draws", type=int, metavar="M", help="Noise draws of the mean pairing.  [default: 2]"
)
@click.option(
    "--timesteps",
    callback=to_range,
    metavar="A:B",
    help="Only rows at timesteps from A to below B.",
)
@click.option("--by-timestep", is_flag=True, help="Also what each timestep adds to a score.")
@WHITEN
@click.option(
    "--damping",
    type=click.FloatRange(0, min_open=True),
    help="Of whitening, in mean squares of a row's norm; another than the default scans the store."
    "  [default: 0.0003]",
)
@CLASS_LABEL
@MODEL
@DEVICE
@click.option("--ray", metavar="local|ADDRESS", help="Have a Ray cluster search the index files.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "json", "html"]),
    default="table",
    show_default=True,
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="File to write, instead of the terminal."
)
def query(
    index: str,
    pictures: tuple[str, ...],
    k: int,
    method: str,
    whiten: bool,
    damping: float | None,
    model: str | None,
    device: str,
    ray: str | None,
    style: str,
    output: Path | None,
    **options: Any,
) -> None:
    """List the training pictures that shaped each PICTURE."""
    from gradindex.report.rendering import to_json, to_table
    from gradindex.search.index import open as open_index

    keep_freed_memory()
    opened = open_index(index, model=model, device=device, ray=ray)
    options["whiten"] = to_whiten(whiten, damping)
    results = opened.query(pictures, k, method, **options)
    seconds = opened.seconds
    say(f"gradients {seconds['gradients']:.2f} s, search {seconds['search']:.2f} s")
    if style == "json":
        text = to_json(results, index, method, k, whiten)
    elif style == "table":
        text = to_table(results, method, whiten)
    else:
        text = _page(opened, pictures, results, method, whiten)
    if output is None:
        click.echo(text)
    else:
        output.write_text(text + "\n", encoding="utf-8")
        say(f"wrote {output}")


def _page(
    opened: "Index",
    pictures: Sequence[str],
    results: Sequence["Result"],
    method: str,
    whitened: bool,
) -> str:
    """The answer as HTML."""
    from gradindex.data.images import read_thumbnail
    from gradindex.report.page import to_html

    thumbnails = [read_thumbnail(path) for path in pictures]
    return to_html([(method, results)], opened.thumbnail, thumbnails, whitened=whitened)

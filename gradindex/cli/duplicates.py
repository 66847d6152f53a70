"""The command that lists training pictures that are there more than once."""

import csv
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradindex.cli.messages import say, style_of, write_or_print
from gradindex.cli.options import BY_ENDING, DATA, INDEX, OUTPUT
from gradindex.wording import counted

if TYPE_CHECKING:
    from gradindex.search.index import Index

STYLES = ("table", "json", "csv")


@click.command(short_help="List clusters of near-duplicate training pictures.")
@INDEX
@click.option(
    "--by",
    type=click.Choice(["pixels", "rows"]),
    default="pixels",
    show_default=True,
    help="Pictures, also flipped or cut to 90 %, which are read; or their gradients.",
)
@DATA
@click.option("--format", "style", type=click.Choice(STYLES), help=BY_ENDING)
@OUTPUT
def duplicates(
    index: str, by: str, data: str | None, style: str | None, output: Path | None
) -> None:
    """List clusters of INDEX's near-duplicate training pictures, the largest first.

    `query --merge-duplicates` shows each as one.
    """
    from gradindex.report.printable import printable
    from gradindex.search.index import open as open_index

    style = style or style_of(output, STYLES)
    opened = open_index(index, data=data, device="cpu")
    clusters = opened.duplicates(by)
    if style == "json":
        text = json.dumps({"index": index, "by": by, "clusters": clusters}, indent=1)
    elif style == "csv":
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["id", "group"])
        for number, cluster in enumerate(clusters, 1):
            writer.writerows((name, f"duplicates {number}") for name in cluster)
        text = lines.getvalue().rstrip("\n")
    else:
        blocks = [
            "\n".join([f"{len(cluster)} pictures", *(f"  {printable(name)}" for name in cluster)])
            for cluster in clusters
        ]
        text = "\n".join(blocks) if blocks else "no near-duplicates"
    write_or_print(text, output)
    if clusters:
        _say_what_is_next(opened, index, clusters)


def _say_what_is_next(opened: "Index", index: str, clusters: Sequence[Sequence[str]]) -> None:
    """Say how many duplicates there are, how many of them are identical, and what to do."""
    from gradindex.search.duplicates import identical

    row_of = {name: row for row, name in enumerate(opened.ids)}
    rows = [[row_of[name] for name in cluster] for cluster in clusters]
    same = identical(list(opened.training_pictures.contents()), rows)
    found = f"{counted(len(clusters), 'cluster')} of {counted(sum(map(len, rows)), 'picture')}"
    place = shlex.quote(index)
    say(
        f"{found}, {same or 'none'} of them identical to another; next: gradindex query {place}"
        f" PICTURE --merge-duplicates, or gradindex remove {place} --file FILE (an id a line)"
    )

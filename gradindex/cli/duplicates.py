"""The command that lists training pictures that are there more than once."""

import csv
import io
import json
from pathlib import Path

import click

from gradindex.cli.messages import write_or_print
from gradindex.cli.options import DATA, INDEX, OUTPUT


@click.command()
@INDEX
@click.option(
    "--by",
    type=click.Choice(["pixels", "rows"]),
    default="pixels",
    show_default=True,
    help="Pictures, also flipped or cut to 90 %, which are read; or their gradients.",
)
@DATA
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
)
@OUTPUT
def duplicates(index: str, by: str, data: str | None, style: str, output: Path | None) -> None:
    """List clusters of INDEX's near-duplicate training pictures, the largest first.

    `query --merge-duplicates` shows each as one.
    """
    from gradindex.report.printable import printable
    from gradindex.search.index import open as open_index

    clusters = open_index(index, data=data, device="cpu").duplicates(by)
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

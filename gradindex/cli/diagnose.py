"""The command that tells what an index is worth."""

import json
from pathlib import Path
from typing import Any

import click

from gradindex.cli.messages import say
from gradindex.cli.opening import open_index
from gradindex.cli.options import (
    ADAPTERS,
    CLASS_LABEL,
    DATA,
    DEVICE,
    INDEX,
    MODEL,
    PATH,
    TABLE_OR_JSON,
    WHITEN,
)
from gradindex.store.memory import keep_freed_memory


@click.command(short_help="Show what INDEX is worth, and how much of a list is noise.")
@INDEX
@click.argument("pictures", nargs=-1, type=PATH, metavar="[PICTURE]...")
@click.option("-k", default=10, show_default=True, help="Length of the lists.")
@click.option(
    "--queries",
    default=24,
    show_default=True,
    help="Training pictures as queries, when none are given.",
)
@click.option(
    "--compared",
    default=100,
    show_default=True,
    help="Pictures for the agreement of noise seeds; 0: none.",
)
@click.option(
    "--outliers/--no-outliers",
    default=True,
    show_default=True,
    help="Rank pictures by self-influence.",
)
@WHITEN
@CLASS_LABEL
@MODEL
@ADAPTERS
@DATA
@DEVICE
@TABLE_OR_JSON
@click.option(
    "--out",
    default="diagnose-out",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to use.",
)
def diagnose(
    index: str,
    pictures: tuple[str, ...],
    model: str | None,
    adapters: tuple[str, ...],
    data: str | None,
    device: str,
    style: str,
    out: Path,
    **options: Any,
) -> None:
    """Show what INDEX is worth: norms by timestep, who is influential for everything, how much is
    noise.

    Writes diagnose.json and norms.png, the gradient norm against the timestep (with matplotlib).
    """
    from gradindex.report.diagnose import report
    from gradindex.report.diagnosis_text import save, to_text

    keep_freed_memory()
    opened = open_index(index, model=model, device=device, adapters=adapters, data=data)
    diagnosis = report(opened, pictures, **options)
    click.echo(json.dumps(diagnosis, indent=1) if style == "json" else to_text(diagnosis))
    for file in save(diagnosis, out):
        say(f"wrote {file}")

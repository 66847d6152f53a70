"""The command that tells which training pictures help and which harm."""

import time
from pathlib import Path
from typing import Any

import click

from gradindex.cli.messages import say, say_seconds, style_of, write_or_print
from gradindex.cli.opening import open_index
from gradindex.cli.options import (
    ADAPTERS,
    BY_ENDING,
    DAMPING,
    DATA,
    DEVICE,
    GROUP_BY,
    INDEX,
    METHOD,
    MODEL,
    OUTPUT,
    PATH,
    RANGE,
    RAY,
    WHITEN,
    to_count,
    to_whiten,
)
from gradindex.store.memory import keep_freed_memory

# What an audit was worth where faults were planted, in docs/benchmarks.
AUDITS_TRIED = (
    "on a small model, 64 held-out pictures: wrong labels were found with an AUC of 0.64, damaged"
    " pictures with 0.73, and without gradients with 0.95; see docs/benchmarks/audit.md"
)
STYLES = ("table", "json")
TITLES = ("most helpful", "most harmful")


@click.command(short_help="List the training pictures that help and harm on HELD_OUT.")
@INDEX
@click.argument("held_out", type=PATH)
@click.option(
    "-k",
    default="10",
    show_default=True,
    callback=to_count,
    metavar="N|all",
    help="How many on either side.",
)
@METHOD
@RANGE
@GROUP_BY
@WHITEN
@DAMPING
@MODEL
@ADAPTERS
@DATA
@DEVICE
@RAY
@click.option("--format", "style", type=click.Choice(STYLES), help=BY_ENDING)
@OUTPUT
def audit(
    index: str,
    held_out: str,
    k: int | None,
    method: str,
    whiten: bool,
    damping: float | None,
    model: str | None,
    adapters: tuple[str, ...],
    data: str | None,
    device: str,
    ray: str | None,
    style: str | None,
    output: Path | None,
    **options: Any,
) -> None:
    """List the training pictures that help and that harm on the pictures of HELD_OUT.

    HELD_OUT is a folder or table as `build` takes it, of pictures that the model was not trained
    on. What harms on most of them is worth a look: a wrong caption or label, a damaged picture.
    """
    from gradindex.report.rendering import to_json, to_table

    began = time.monotonic()
    keep_freed_memory()
    style = style or style_of(output, STYLES)
    opened = open_index(index, model=model, device=device, ray=ray, adapters=adapters, data=data)
    options["whiten"] = to_whiten(whiten, damping)
    k = len(opened) if k is None else k
    result = opened.audit(held_out, k, method, **options)
    say_seconds(result.seconds, began)
    say(AUDITS_TRIED)
    if style == "json":
        text = to_json([result], index, method, k, whiten)
    else:
        lists = (result.hits, "above"), (result.opponents or [], "below")
        best, worst = (_end(len(hits), k, side) for hits, side in lists)
        text = to_table([result], method, whiten, TITLES, (best, worst))
    write_or_print(text, output)


def _end(listed: int, k: int, side: str) -> str:
    """Return the last line of a list of an audit; empty where all k are there.

    >>> _end(2, k=10, side="below"), _end(0, k=10, side="above")
    ('no more scores below 0', 'no scores above 0')
    """
    if listed >= k:
        return ""
    return f"{'no more' if listed else 'no'} scores {side} 0"

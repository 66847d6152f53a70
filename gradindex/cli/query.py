"""The command that queries an index."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradindex.cli.messages import say, say_seconds, style_of, write_or_print
from gradindex.cli.opening import open_index
from gradindex.cli.options import (
    ADAPTERS,
    CLASS_LABEL,
    DAMPING,
    DATA,
    DEVICE,
    GROUP_BY,
    INDEX,
    METHOD,
    MODEL,
    OUTPUT,
    PATH,
    PROMPT,
    RANGE,
    RAY,
    WHITEN,
    to_count,
    to_prompt,
    to_region,
    to_whiten,
)
from gradindex.store.memory import keep_freed_memory

# What answers of some options were worth where the truth was known, in docs/benchmarks.
PARTS_TRIED = (
    "of parts of pictures put together, the right one was first for 66 %, among ten for 92 %; see"
    " docs/benchmarks/regions.md"
)
GROUPS_TRIED = (
    "the right group was first for 90 % of unseen pictures, and for 23 % of generated ones; see"
    " docs/benchmarks/groups.md"
)
TRIED = {"region": PARTS_TRIED, "mask": PARTS_TRIED, "group_by": GROUPS_TRIED}
STYLES = ("table", "json", "csv", "parquet", "html")

if TYPE_CHECKING:
    from gradindex.search.index import Index


@click.command()
@INDEX
@click.argument("pictures", nargs=-1, type=PATH, required=True, metavar="PICTURE...")
@click.option(
    "-k",
    default="10",
    show_default=True,
    callback=to_count,
    metavar="N|all",
    help="How many training pictures, or all of them.",
)
@METHOD
@click.option(
    "--opponents",
    is_flag=True,
    help="Also the most negative ones; whitened, by a scan of the store.",
)
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
@RANGE
@click.option("--by-timestep", is_flag=True, help="Also what each timestep adds to a score.")
@click.option(
    "--verdict/--no-verdict",
    default=True,
    show_default=True,
    help="Also what it comes to in one line: copied, attributable, or nothing stands out. For it"
    " some training pictures are read, where they are on this machine.",
)
@click.option(
    "--merge-duplicates",
    is_flag=True,
    help="Near-duplicate training pictures as one, with the sum of their scores; all training"
    " pictures are read, and the store is scanned.",
)
@GROUP_BY
@WHITEN
@DAMPING
@PROMPT
@CLASS_LABEL
@click.option(
    "--region",
    callback=to_region,
    metavar="X0,Y0,X1,Y1",
    help="Only what shaped this rectangle: left, top, right, bottom in pixels of the picture.",
)
@click.option(
    "--mask",
    type=PATH,
    help="Only what shaped what is white in this picture, which is as large as the PICTUREs.",
)
@click.option(
    "--against",
    type=PATH,
    multiple=True,
    metavar="PICTURE",
    help="What makes the PICTUREs differ from this one: one for all, or one each.",
)
@click.option(
    "--against-prompt",
    multiple=True,
    callback=to_prompt,
    metavar="TEXT",
    help="What a word of the prompt draws on: what differs with this prompt in place of it.",
)
@MODEL
@ADAPTERS
@DATA
@DEVICE
@RAY
@click.option(
    "--format",
    "style",
    type=click.Choice(STYLES),
    help="[default: what the name of --output ends in, .json, .csv, .parquet, .html or .htm; else"
    " table]",
)
@click.option(
    "--pixels/--no-pixels",
    default=None,
    help="Also the cosine of each hit's pixels with the PICTURE's; in a report the nearest in"
    " pixels, for which all training pictures are read.  [default: with the verdict, which reads"
    " the hits anyway, and in a report; where training pictures are 10,000 or fewer]",
)
@click.option(
    "--embedding",
    type=PATH,
    metavar="MODEL|FILE.npy",
    help="Also the cosine in an embedding, in a report the nearest by it: a vision model such as"
    " CLIP or DINOv2 (folder or hub name), whose vectors INDEX keeps; or the training pictures'"
    " vectors [N, E], in the order of `gradindex ids`.",
)
@click.option(
    "--query-embedding",
    type=PATH,
    metavar="FILE.npy",
    help="With FILE.npy: the vectors of the PICTUREs [Q, E].",
)
@OUTPUT
def query(
    index: str,
    pictures: tuple[str, ...],
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
    """List the training pictures that shaped each PICTURE."""
    began = time.monotonic()
    from gradindex.report.rendering import to_json, to_table

    style = style or style_of(output, STYLES)
    if style in ("csv", "parquet") and options["group_by"] is not None:
        raise click.UsageError("--group-by: groups are in tables and JSON; give --format json")
    if style == "parquet" and output is None:
        raise click.UsageError("--format parquet: is no text; give --output x.parquet")
    is_report = style == "html"
    if is_report:
        _require_room(len(pictures), output)
    keep_freed_memory()
    options["against"] = options["against"] or None
    opened = open_index(index, model=model, device=device, ray=ray, adapters=adapters, data=data)
    options["whiten"] = to_whiten(whiten, damping)
    k = len(opened) if k is None else k
    if is_report:
        _report(opened, pictures, k, method, output, options, began)
        return
    results = opened.query(pictures, k, method, **options)
    say_seconds(results[0].seconds, began)
    _say_trials(options)
    if output is not None and style == "parquet":
        results.to_parquet(output)
        say(f"wrote {output}")
        return
    if style == "json":
        text = to_json(results, index, method, k, whiten)
    elif style == "csv":
        text = results.to_csv().rstrip("\n")
    else:
        text = to_table(results, method, whiten)
    write_or_print(text, output)


def _say_trials(options: dict[str, Any]) -> None:
    """Say what the answers of options that were given are worth, where the truth was known."""
    for text in dict.fromkeys(TRIED[name] for name in TRIED if options[name] is not None):
        say(f"on small models, by whitened ReTrac: {text}")


def _require_room(pictures: int, output: Path | None) -> None:
    """Raise a usage error where a report is several files and has no place for them."""
    from gradindex.report.page import PER_PAGE

    if output is None and pictures > PER_PAGE:
        raise click.UsageError(
            f"a report of more than {PER_PAGE} pictures is several files: give --output x.html"
        )


def _report(
    opened: "Index",
    pictures: Sequence[str],
    k: int,
    method: str,
    output: Path | None,
    options: dict[str, Any],
    began: float,
) -> None:
    """Answer with a report, on stdout or in the file of --output and a folder beside it.

    Args:
        began: when the command began, by `time.monotonic`.
    """
    from gradindex.report.answers import answer
    from gradindex.report.page import to_html, write_report

    if opened.training_pictures.dataset is None:
        source = opened.training_pictures.source or "the index does not say where"
        say(
            f"no thumbnails: training pictures are not as they were ({source}); --data PATH says"
            " where they are now"
        )
    for name in ("by_timestep", "verdict"):  # a report always tells them
        del options[name]
    answers = answer(opened, pictures, k, method, **options)
    say_seconds(answers.listings[0].results[0].seconds, began)
    _say_trials(options)
    command = shlex.join(["gradindex", *click.get_current_context().find_root().obj])
    if output is None:
        click.echo(to_html(answers, command))
        return
    files = write_report(answers, output, command)
    more = f" and {len(files) - 1} pages in {files[1].parent}" if len(files) > 1 else ""
    say(f"wrote {output}{more}")

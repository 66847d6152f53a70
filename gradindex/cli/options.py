"""Options that several commands share, and their values: text in, Python values out.

The functions `to_…` with a context and a parameter are callbacks of click.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import click

METHOD_CHOICE = click.Choice(["retrac", "tracin"])
DEVICE = click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda")
MODEL = click.option("--model", help="Where the model is now, when it was moved since the build.")
WHITEN = click.option(
    "--whiten/--no-whiten",
    default=True,
    show_default=True,
    help="Have what all pictures' gradients have in common count for little, or give the paper's"
    " plain scores (weak: on small models no better than pixel similarity).",
)
CLASS_LABEL = click.option(
    "--class-label", type=int, help="Of the pictures, for a class-conditional model."
)
PAIRING = click.option(
    "--pairing",
    type=click.Choice(["matched", "mean"]),
    help="[default: matched; mean with recorded timesteps]",
)
TABLE_OR_JSON = click.option(
    "--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True
)


def to_timesteps(
    context: click.Context, parameter: click.Parameter, value: str
) -> int | list[int] | str:
    """Return --timesteps of a build: how many, which, or "recorded"."""
    if value == "recorded":
        return value
    try:
        if "," in value:
            return [int(part) for part in value.split(",") if part]
        return int(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r}: give a number, timesteps with commas between them, or recorded"
        ) from None


def to_range(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> list[int | None] | None:
    """Return --timesteps of a query, `A:B`, as its two ends; None stands for an open end."""
    if value is None:
        return None
    ends = value.split(":")
    if len(ends) != 2 or not all(end == "" or end.isdecimal() for end in ends):
        raise click.BadParameter(f"{value!r}: give A:B, such as 0:500")
    return [int(end) if end else None for end in ends]


def to_batch_size(context: click.Context, parameter: click.Parameter, value: str) -> int | str:
    """Return --batch-size: a number, or "auto"."""
    if value == "auto":
        return value
    if value.isdecimal():
        return int(value)
    raise click.BadParameter(f"{value!r}: give a number, or auto")


def to_part(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, int]:
    """Return --part `I/N` as (part counted from 0, N); a cluster's environment may complete it.

    I may be counted from 0 or from 1: part N is part 0. Slurm's array tasks are parts by
    themselves, and a task of a Kubernetes indexed job needs `/N` only.
    """
    text = _complete_part(value)
    if text is None:
        return 0, 1
    number, slash, parts = text.partition("/")
    is_part = slash and number.isdecimal() and parts.isdecimal()
    if not is_part or int(number) > int(parts) or int(parts) == 0:
        raise click.BadParameter(f"{text!r}: give I/N, such as 1/4 to 4/4")
    part = int(number) % int(parts), int(parts)
    if value != text:
        click.echo(
            f"part {part[0]} of {part[1]}, counted from 0, as the environment says", err=True
        )
    return part


def _complete_part(value: str | None) -> str | None:
    """The text of --part, with what the environment of a Slurm or Kubernetes task adds."""
    environment = os.environ
    if value is None and "SLURM_ARRAY_TASK_ID" in environment:
        task = int(environment["SLURM_ARRAY_TASK_ID"])
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
        return f"{task - first}/{environment.get('SLURM_ARRAY_TASK_COUNT', 1)}"
    if value and value.startswith("/") and "JOB_COMPLETION_INDEX" in environment:
        return environment["JOB_COMPLETION_INDEX"] + value
    return value


def to_checkpoints(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, float | None]:
    """Return every --checkpoint `PATH[=WEIGHT]` as {path: weight}; None where there is none."""
    checkpoints: dict[str, float | None] = {}
    for value in values:
        path, equals, weight = value.rpartition("=")
        if not equals or Path(value).exists():  # an equals sign may be part of the path
            checkpoints[value] = None
            continue
        try:
            checkpoints[path] = float(weight)
        except ValueError:
            raise click.BadParameter(
                f"{value!r}: no such path, and {weight!r} is not a weight"
            ) from None
    return checkpoints


def to_whiten(whiten: bool, damping: float | None) -> bool | float:
    """Return --whiten and --damping as the one argument that `Index.query` takes."""
    if damping is not None and not whiten:
        raise click.UsageError("--no-whiten has no --damping; leave one of them out")
    return whiten if damping is None else damping

"""What the command line's options may be: text in, values out."""

import os
from collections.abc import Sequence
from pathlib import Path

import click

METHODS = click.Choice(["retrac", "tracin"])
DEVICE = click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda")
MODEL = click.option("--model", help="Where the model is now, when it was moved since the build.")
WHITEN = click.option(
    "--whiten/--no-whiten",
    default=True,
    show_default=True,
    help="Have what all pictures' gradients have in common count for little, or give the paper's plain scores (weak: on"
    " small models no better than pixel similarity).",
)
CLASS_LABEL = click.option("--class-label", type=int, help="Of the pictures, for a class-conditional model.")


def to_timesteps(context: click.Context, parameter: click.Parameter, value: str) -> int | list[int] | str:
    if value == "recorded":
        return value
    try:
        return [int(part) for part in value.split(",") if part] if "," in value else int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r}: give a number, timesteps with commas between them, or recorded") from None


def to_range(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int | None] | None:
    if value is None:
        return None
    parts = value.split(":")
    if len(parts) != 2 or not all(part == "" or part.isdecimal() for part in parts):
        raise click.BadParameter(f"{value!r}: give A:B, such as 0:500")
    return [int(part) if part else None for part in parts]


def to_batch_size(context: click.Context, parameter: click.Parameter, value: str) -> int | str:
    if value == "auto" or value.isdecimal():
        return value if value == "auto" else int(value)
    raise click.BadParameter(f"{value!r}: give a number, or auto")


def to_part(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int]:
    """I of N parts, counted from 0 or from 1: part N is part 0. Slurm's array tasks are parts by themselves."""
    given = value
    if value is None and "SLURM_ARRAY_TASK_ID" in os.environ:
        task, first = (int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", 0)) for name in ("ID", "MIN"))
        given = f"{task - first}/{os.environ.get('SLURM_ARRAY_TASK_COUNT', 1)}"
    elif value and value.startswith("/") and "JOB_COMPLETION_INDEX" in os.environ:
        given = os.environ["JOB_COMPLETION_INDEX"] + value
    if given is None:
        return 0, 1
    number, slash, parts = given.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal() and int(number) <= int(parts) and int(parts)):
        raise click.BadParameter(f"{given!r}: give I/N, such as 1/4 to 4/4")
    part = int(number) % int(parts), int(parts)
    if value != given:
        click.echo(f"part {part[0]} of {part[1]}, counted from 0, as the environment says", err=True)
    return part


def to_checkpoints(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, float | None]:
    checkpoints: dict[str, float | None] = {}
    for value in values:
        path, equals, weight = value.rpartition("=")
        whole = not equals or Path(value).exists()  # an equals sign may be part of the path
        try:
            checkpoints[value if whole else path] = None if whole else float(weight)
        except ValueError:
            raise click.BadParameter(f"{value!r}: no such path, and {weight!r} is not a weight") from None
    return checkpoints


def to_whiten(whiten: bool, damping: float | None) -> bool | float:
    """--whiten and --damping as `query` takes them."""
    if damping is not None and not whiten:
        raise click.UsageError("--no-whiten has no --damping; leave one of them out")
    return whiten if damping is None else damping

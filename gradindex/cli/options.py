"""Options that several commands share, and their values: text in, Python values out.

The functions `to_…` with a context and a parameter are callbacks of click.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem


class _PathType(click.ParamType):
    """A path or URL as it was typed; the shell completes the names of files."""

    name = "path"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Have the shell complete it."""
        return [CompletionItem(incomplete, type="file")]


PATH = _PathType()
INDEX = click.argument("index", type=PATH)


def to_prompt(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> str | Sequence[str] | None:
    """Return every --prompt: none, one for all pictures, or one each."""
    return (values[0] if len(values) == 1 else values) if values else None


def to_count(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    """Return -k: how many training pictures; None for all."""
    if value == "all":
        return None
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r}: give a number, or all") from None


GRIDS = ("even:", "weighted:")  # before a number of timesteps that is meant, however large
TIMESTEP = re.compile(r"\d+(\.\d*)?", re.ASCII)
METHOD_CHOICE = click.Choice(["retrac", "tracin"])
DEVICE = click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]")
MODEL = click.option(
    "--model", type=PATH, help="Where the model is now, when it was moved since the build."
)
DATA = click.option(
    "--data",
    type=PATH,
    help="Where the training pictures are now, when they were moved since the build.",
)
WHITEN = click.option(
    "--whiten/--no-whiten",
    default=True,
    show_default=True,
    help="Have what all pictures' gradients have in common count for little, or give the paper's"
    " plain scores (weak: on small models no better than pixel similarity).",
)
PROMPT = click.option(
    "--prompt",
    multiple=True,
    callback=to_prompt,
    metavar="TEXT",
    help="That the pictures were generated with, for a model that is given captions: one, or one"
    " each.  [default: what is in x.txt beside x.png, or in the picture]",
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
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | list[float] | str | None:
    """Return --timesteps of a build: how many, which, "even:N", "weighted:N" or "recorded"."""
    if value is None or value == "recorded" or value.startswith(GRIDS):
        return value
    try:
        if "," in value:
            return [_to_timestep(part) for part in _entries(value)]
        return int(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r}: give a number, timesteps with commas between them, even:N,"
            " weighted:N, or recorded"
        ) from None


def to_range(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> list[float | None] | None:
    """Return --timesteps of a query, `A:B`, as its two ends; None stands for an open end."""
    if value is None:
        return None
    ends = value.split(":")
    if len(ends) != 2 or not all(end == "" or TIMESTEP.fullmatch(end) for end in ends):
        raise click.BadParameter(f"{value!r}: give A:B, such as 0:500")
    return [_to_timestep(end) if end else None for end in ends]


def to_region(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> list[int] | None:
    """Return --region as four whole numbers."""
    if value is None:
        return None
    sides = value.split(",")
    if len(sides) != 4 or not all(map(_is_number, sides)):
        raise click.BadParameter(
            f"{value!r}: give X0,Y0,X1,Y1 in pixels of the picture, such as 0,0,256,512"
        )
    return [int(side) for side in sides]


def _to_timestep(text: str) -> float:
    """A timestep: a whole number, or for flow matching one with a decimal point.

    >>> _to_timestep("500"), _to_timestep("750.25")
    (500, 750.25)
    """
    return float(text) if "." in text and TIMESTEP.fullmatch(text) else int(text)


def to_resolution(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | tuple[int, int] | None:
    """Return --resolution: a side, or width and height."""
    if value is None:
        return None
    sides = value.lower().split("x")
    if not 1 <= len(sides) <= 2 or not all(map(_is_number, sides)):
        raise click.BadParameter(f"{value!r}: give a side, such as 512, or WxH, such as 768x512")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def to_buckets(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | list[tuple[int, int]] | None:
    """Return --buckets: a step of their sides, or widths and heights."""
    if value is None or _is_number(value):
        return None if value is None else int(value)
    sizes = [size.split("x") for size in _entries(value.lower())]
    if not all(len(sides) == 2 and all(map(_is_number, sides)) for sides in sizes):
        raise click.BadParameter(
            f"{value!r}: give the step of their sides, such as 64, or WxH,WxH,…, such as"
            " 512x768,512x512"
        )
    return [(int(width), int(height)) for width, height in sizes]


def _entries(value: str) -> list[str]:
    """The entries of a list with commas; one behind the last entry makes a list of one.

    >>> _entries("500,"), _entries("5,7"), _entries(",")
    (['500'], ['5', '7'], [''])
    """
    return value.removesuffix(",").split(",")


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
    """Return --part as (part counted from 0, N).

    It is `I/N`, where I may be counted from 0 or from 1: part N is part 0. `slurm` is the part of a
    Slurm array's task, and `/N` that of a task of a Kubernetes indexed job.
    """
    if value is None:
        if "SLURM_ARRAY_TASK_ID" in os.environ:
            click.echo(
                f"Slurm array task {os.environ['SLURM_ARRAY_TASK_ID']} makes the whole index;"
                " --part slurm shares it among the array's tasks",
                err=True,
            )
        return 0, 1
    if value == "slurm":
        part = _slurm_part()
    elif value.startswith("/"):
        part = _kubernetes_part(value[1:])
    else:
        number, slash, parts = value.partition("/")
        is_part = slash and _is_number(number) and _is_number(parts)
        if not is_part or int(number) > int(parts) or int(parts) == 0:
            raise click.BadParameter(f"{value!r}: give I/N, such as 1/4 to 4/4, or slurm")
        return int(number) % int(parts), int(parts)
    click.echo(f"part {part[0]} of {part[1]}, counted from 0, as the environment says", err=True)
    return part


def _slurm_part() -> tuple[int, int]:
    """The part of this task of a Slurm array, as (part counted from 0, N).

    Raises:
        BadParameter: this is no task of an array, or of one whose numbers are not evenly spaced:
            which part is whose cannot be told from inside a task.
    """
    numbers = {}
    for name in ("ID", "MIN", "MAX", "STEP", "COUNT"):
        value = os.environ.get(f"SLURM_ARRAY_TASK_{name}", "1" if name == "STEP" else "")
        if not _is_number(value):
            raise click.BadParameter(
                f"'slurm': SLURM_ARRAY_TASK_{name} is {value!r}; it works in tasks of"
                " `sbatch --array`, elsewhere give I/N"
            )
        numbers[name] = int(value)
    step, count = max(numbers["STEP"], 1), numbers["COUNT"]
    tasks = range(numbers["MIN"], numbers["MAX"] + 1, step)
    # Slurm says a step of 1 for a list of task numbers, whatever they are.
    if len(tasks) != count or numbers["ID"] not in tasks:
        raise click.BadParameter(
            f"'slurm': {count} tasks numbered {numbers['MIN']} to {numbers['MAX']} in steps of"
            f" {step} leave gaps; number them as in --array=1-{max(count, 1)}, or give I/N"
        )
    return tasks.index(numbers["ID"]), count


def _kubernetes_part(parts: str) -> tuple[int, int]:
    """The part of this task of a Kubernetes indexed job with so many completions.

    Raises:
        BadParameter: this is no such task, or the job has more completions than parts.
    """
    number = os.environ.get("JOB_COMPLETION_INDEX", "")
    if not _is_number(number) or not _is_number(parts):
        raise click.BadParameter(
            f"{'/' + parts!r}: give I/N, such as 1/4 to 4/4; /N works in a Kubernetes indexed job"
        )
    if int(number) >= int(parts):
        raise click.BadParameter(
            f"{'/' + parts!r}: JOB_COMPLETION_INDEX is {number}; give the job's number of"
            " completions, or I/N"
        )
    return int(number), int(parts)


def _is_number(text: str) -> bool:
    """Whether a text is a whole number in plain digits."""
    return text.isascii() and text.isdecimal()


def to_checkpoints(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, float | None]:
    """Return every --checkpoint `PATH[=WEIGHT]` as {path: weight}; None where there is none."""
    checkpoints: dict[str, float | None] = {}
    for value in values:
        path, equals, text = value.rpartition("=")
        weight = None
        if not equals or Path(value).exists():  # an equals sign may be part of the path
            path = value
        else:
            try:
                weight = float(text)
            except ValueError:
                raise click.BadParameter(
                    f"{value!r}: no such path, and {text!r} is not a weight"
                ) from None
        if path in checkpoints:
            raise click.BadParameter(f"{path!r}: given twice; give it once, with a weight")
        checkpoints[path] = weight
    return checkpoints


def to_whiten(whiten: bool, damping: float | None) -> bool | float:
    """Return --whiten and --damping as the one argument that `Index.query` takes."""
    if damping is not None and not whiten:
        raise click.UsageError("--no-whiten has no --damping; leave one of them out")
    return whiten if damping is None else damping


def to_output(
    context: click.Context, parameter: click.Parameter, value: Path | None
) -> Path | None:
    """Return --output, in a folder that is there: the answer must not be lost after its work."""
    if value is not None and not value.parent.is_dir():
        raise click.BadParameter(f"{str(value)!r}: there is no folder {str(value.parent)!r}")
    return value


METHOD = click.option(
    "--method",
    type=METHOD_CHOICE,
    default="retrac",
    show_default=True,
    help="Cosine, or inner product.",
)
RANGE = click.option(
    "--timesteps",
    callback=to_range,
    metavar="A:B",
    help="Only rows at timesteps from A to below B.",
)
GROUP_BY = click.option(
    "--group-by",
    type=PATH,
    metavar="folder|COLUMN|FILE.csv",
    help="Also the shares of groups of training pictures: of each folder, by a column of the data's"
    " table, or by a file of the columns id and group.",
)
DAMPING = click.option(
    "--damping",
    type=click.FloatRange(0, min_open=True),
    help="Of whitening, in mean squares of a row's norm; another than the default scans the store."
    "  [default: that of the index's factors, else 0.001]",
)
ADAPTERS = click.option(
    "--adapter",
    "adapters",
    type=PATH,
    multiple=True,
    metavar="PATH",
    help="Where an adapter is now, when it was moved since the build; all, in the build's order.",
)
RAY = click.option(
    "--ray", metavar="local|ADDRESS", help="Have a Ray cluster search the index files."
)
BY_ENDING = "[default: what the name of --output ends in; else table]"  # of --format
OUTPUT = click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=to_output,
    help="File to write, instead of the terminal.",
)

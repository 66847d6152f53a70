"""The commands that measure scores against models that were trained again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import click

from gradindex.cli.opening import open_index
from gradindex.cli.options import (
    ADAPTERS,
    CLASS_LABEL,
    DATA,
    DEVICE,
    INDEX,
    METHOD_CHOICE,
    MODEL,
    PAIRING,
    PATH,
    PROMPT,
    TABLE_OR_JSON,
    WHITEN,
)
from gradindex.errors import CallError, first_line

if TYPE_CHECKING:
    import numpy as np

    from gradindex.report.ceiling import Ceiling
    from gradindex.report.evaluate import LDS
    from gradindex.search.index import Index


@click.group(short_help="Measure scores against models that were trained again.")
def evaluate() -> None:
    """Measure what scores are worth, against models that were trained again."""


@evaluate.command(short_help="How well sums of scores predict losses (LDS).")
@INDEX
@click.argument("pictures", nargs=-1, type=PATH, required=True, metavar="PICTURE...")
@click.option(
    "--models",
    type=PATH,
    help="Folder of folders: a model or adapter each, and subset.txt, the ids of its training.",
)
@click.option(
    "--arrays",
    type=PATH,
    help="Or a .npz file: subsets [M, N] bool, columns in the order of the index, losses [M, Q], or"
    " [S, M, Q] of S trainings on each subset.",
)
@click.option(
    "--embeddings",
    type=PATH,
    help="A .npz file: training [N, E], queries [Q, E]; their cosine is compared, too.",
)
@PAIRING
@PROMPT
@CLASS_LABEL
@MODEL
@ADAPTERS
@DATA
@DEVICE
@TABLE_OR_JSON
def lds(
    index: str,
    pictures: tuple[str, ...],
    models: str | None,
    arrays: str | None,
    embeddings: str | None,
    model: str | None,
    adapters: tuple[str, ...],
    data: str | None,
    device: str,
    style: str,
    **options: Any,
) -> None:
    """The linear datamodeling score: how well summed scores of subsets predict the losses of models
    trained on them.

    Higher is better, 100 is perfect, 0 is chance. Both methods, plain and whitened, beside the
    cosine of pixels.
    """
    from gradindex.report.ceiling import ceiling
    from gradindex.report.evaluate import compare, require_comparable

    if (models is None) == (arrays is None):
        raise click.UsageError("give --models or --arrays")
    opened = open_index(index, model=model, device=device, adapters=adapters, data=data)
    vectors = None if embeddings is None else _read_arrays(embeddings, "training", "queries")
    require_comparable(opened, len(pictures), vectors)  # before the losses, which take long
    subsets, losses, are_trainings = _subsets_and_losses(opened, models, arrays, pictures, options)
    scores = compare(opened, pictures, subsets, losses.mean(0), vectors, **options)
    highest = ceiling(losses) if len(losses) > 1 else None
    rows = {name: _row(score, highest) for name, score in scores.items()}
    if style == "json":
        answer: dict[str, Any] = {"index": index, "subsets": len(subsets)}
        if highest is not None:
            answer["ceiling"] = {
                "lds": 100 * highest.value,
                "low": 100 * highest.low,
                "high": 100 * highest.high,
                "reliability": highest.reliability,
                "of": "trainings" if are_trainings else "timesteps",
            }
        click.echo(json.dumps({**answer, "scores": rows}, indent=1))
        return
    click.echo(
        f"linear datamodeling score × 100, {len(subsets)} subsets,"
        " 95 % interval over pictures and models"
    )
    click.echo(_table(rows))
    if highest is not None:
        click.echo(_ceiling_text(highest, are_trainings))


def _row(score: "LDS", highest: "Ceiling | None") -> dict[str, float]:
    """A score, its interval, and how much of the ceiling it reaches."""
    row = {"lds": 100 * score.mean, "low": 100 * score.low, "high": 100 * score.high}
    if highest is not None and highest.value > 0:
        share, low, high = highest.share(score)
        row |= {"share": 100 * share, "share_low": 100 * low, "share_high": 100 * high}
    return row


def _ceiling_text(highest: "Ceiling", are_trainings: bool) -> str:
    """What a ceiling is and where it is from, in words."""
    if highest.value <= 0:
        whose = "trainings on each subset" if are_trainings else "halves of the timesteps"
        return f"ceiling: not measurable, two {whose} agree no better than by chance"
    first = (
        f"ceiling: about {100 * highest.value:.1f} ({100 * highest.low:.1f} …"
        f" {100 * highest.high:.1f}), what perfect predictions would score, since the losses"
        " themselves are noisy. "
    )
    if are_trainings:
        return first + f"Measured by {highest.parts} trainings on each subset."
    return first + (
        "Measured by two halves of the timesteps of one training: two trainings on each subset"
        " (two folders with the same subset.txt) would show that it is lower."
    )


def _subsets_and_losses(
    opened: "Index",
    models: str | None,
    arrays: str | None,
    pictures: Sequence[str],
    options: Mapping[str, Any],
) -> tuple["np.ndarray", "np.ndarray", bool]:
    """The subsets and losses of models, from --models or --arrays.

    Returns:
        Subsets [M, N] bool, losses [S, M, Q], and whether these are of S trainings on each subset,
        not of S parts of the timesteps.
    """
    from gradindex.report.ceiling import by_subset
    from gradindex.report.evaluate import FEWEST_MODELS, half_losses, read_models

    if arrays is not None:
        subsets, losses = _read_arrays(arrays, "subsets", "losses")
        if losses.ndim == 3 and not len(losses):
            raise CallError(f"{arrays}: losses {losses.shape}: of no training; give one or more")
        if losses.ndim == 3:
            return subsets, losses, True
        is_table = subsets.ndim == losses.ndim == 2 and 0 < len(subsets) == len(losses)
        several = by_subset(subsets, losses) if is_table else None
        if several is None or len(several[0]) < FEWEST_MODELS or several[1].size < losses.size:
            return subsets, losses[None], True
        return *several, True
    assert models is not None, "the command checks that one of the two is given"
    folders, subsets = read_models(models, opened)
    halves = half_losses(opened, folders, pictures, options["prompt"], options["class_label"])
    several = by_subset(subsets, halves.mean(0))
    return (subsets, halves, False) if several is None else (*several, True)


def _read_arrays(file: str, first: str, second: str) -> tuple["np.ndarray", "np.ndarray"]:
    """Two arrays of numbers in a .npz file.

    Raises:
        CallError: there is no such file, or it does not hold them.
    """
    import numpy as np

    wanted = f"give a .npz file with the arrays {first} and {second}"
    try:
        # A file of ours: NumPy leaves one open that is damaged.
        with Path(file).open("rb") as stream, np.load(stream) as arrays:
            absent = [name for name in (first, second) if name not in arrays.files]
            if not absent:
                return _numbers(arrays[first]), _numbers(arrays[second])
            reason = f"it has {', '.join(arrays.files) or 'none'}"
    # AttributeError: a file of one array, .npy, which has no names.
    except (OSError, ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        if "If you trust the file" in reason:  # NumPy's advice for what is none of its files
            reason = "it is no such file"
    raise CallError(f"{file}: {wanted} ({reason})")


def _numbers(array: "np.ndarray") -> "np.ndarray":
    """The array; TypeError where it does not hold real numbers or bool."""
    if array.dtype.kind not in "biuf":
        raise TypeError(f"an array of {array.dtype} holds no numbers")
    return array


def _table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A line for each score: 100 × LDS, its interval, its share of the ceiling, its name."""
    lines = []
    for name, row in rows.items():
        line = f"{row['lds']:7.1f}  ({row['low']:.1f} … {row['high']:.1f})  "
        if "share" in row:
            line += f"{row['share']:4.0f} % of the ceiling  "
        lines.append(line + name)
    return "\n".join(lines)


@evaluate.command(short_help="Train again without the pictures of highest scores.")
@INDEX
@click.argument("pictures", nargs=-1, type=PATH, required=True, metavar="PICTURE...")
@click.option(
    "--command",
    required=True,
    help="Trains on the pictures in {data}, with the masks in {masks} if the index has some, and"
    " saves the model, or adapter, in {out}.",
)
@click.option(
    "--work",
    type=PATH,
    default="counterfactual",
    show_default=True,
    help="Folder for both; a second run uses them.",
)
@click.option("-k", default=50, show_default=True, help="How many pictures are left out.")
@click.option("--method", type=METHOD_CHOICE, default="retrac", show_default=True)
@click.option(
    "--random", default=2, show_default=True, help="How many times random ones are left out."
)
@WHITEN
@PAIRING
@PROMPT
@CLASS_LABEL
@MODEL
@ADAPTERS
@DATA
@DEVICE
@TABLE_OR_JSON
def counterfactual(
    index: str,
    pictures: tuple[str, ...],
    command: str,
    work: str,
    model: str | None,
    adapters: tuple[str, ...],
    data: str | None,
    device: str,
    style: str,
    **options: Any,
) -> None:
    """Train again without the k pictures of the highest scores, and without k random ones: what
    each PICTURE's loss is.

    The more it rises above that of random removals, the more these pictures mattered.
    """
    from dataclasses import asdict

    from gradindex.report.counterfactual import counterfactual as train_without
    from gradindex.report.printable import printable

    opened = open_index(index, model=model, device=device, adapters=adapters, data=data)
    removals = train_without(opened, pictures, command, work, **options)
    if style == "json":
        click.echo(json.dumps([asdict(removal) for removal in removals], indent=1))
        return
    for removal in removals:
        picture = printable(removal.picture)
        click.echo(f"{removal.loss:.6f}  {removal.which:<8}  {picture}")

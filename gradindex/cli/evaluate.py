"""The commands that measure scores against models that were trained again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import click

from gradindex.cli.options import (
    CLASS_LABEL,
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

    from gradindex.search.index import Index


@click.group()
def evaluate() -> None:
    """Measure what scores are worth, against models that were trained again."""


@evaluate.command()
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
    help="Or a .npz file: subsets [M, N] bool, columns in the order of the index, losses [M, Q].",
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
@DEVICE
@TABLE_OR_JSON
def lds(
    index: str,
    pictures: tuple[str, ...],
    models: str | None,
    arrays: str | None,
    embeddings: str | None,
    model: str | None,
    device: str,
    style: str,
    **options: Any,
) -> None:
    """The linear datamodeling score: how well summed scores of subsets predict the losses of models
    trained on them.

    Higher is better, 100 is perfect, 0 is chance. Both methods, plain and whitened, beside the
    cosine of pixels.
    """
    from gradindex.report.evaluate import compare
    from gradindex.search.index import open as open_index

    if (models is None) == (arrays is None):
        raise click.UsageError("give --models or --arrays")
    opened = open_index(index, model=model, device=device)
    vectors = None if embeddings is None else _read_arrays(embeddings, "training", "queries")
    subsets, losses = _subsets_and_losses(opened, models, arrays, pictures, options)
    scores = compare(opened, pictures, subsets, losses, vectors, **options)
    rows = {
        name: {"lds": 100 * score.mean, "low": 100 * score.low, "high": 100 * score.high}
        for name, score in scores.items()
    }
    if style == "json":
        click.echo(json.dumps({"index": index, "subsets": len(subsets), "scores": rows}, indent=1))
        return
    click.echo(
        f"linear datamodeling score × 100, {len(subsets)} subsets,"
        " 95 % interval over pictures and models"
    )
    click.echo(_table(rows))


def _subsets_and_losses(
    opened: "Index",
    models: str | None,
    arrays: str | None,
    pictures: Sequence[str],
    options: Mapping[str, Any],
) -> tuple["np.ndarray", "np.ndarray"]:
    """The subsets [M, N] bool of M models, and their losses [M, Q]: from --models or --arrays."""
    from gradindex.report.evaluate import model_losses, read_models

    if arrays is not None:
        return _read_arrays(arrays, "subsets", "losses")
    assert models is not None, "the command checks that one of the two is given"
    folders, subsets = read_models(models, opened)
    return subsets, model_losses(
        opened, folders, pictures, options["prompt"], options["class_label"]
    )


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
    raise CallError(f"{file}: {wanted} ({reason})")


def _numbers(array: "np.ndarray") -> "np.ndarray":
    """The array; TypeError where it does not hold real numbers or bool."""
    if array.dtype.kind not in "biuf":
        raise TypeError(f"an array of {array.dtype} holds no numbers")
    return array


def _table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A line for each score: 100 × LDS, its interval, its name."""
    return "\n".join(
        f"{row['lds']:7.1f}  ({row['low']:.1f} … {row['high']:.1f})  {name}"
        for name, row in rows.items()
    )


@evaluate.command()
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
@DEVICE
@TABLE_OR_JSON
def counterfactual(
    index: str,
    pictures: tuple[str, ...],
    command: str,
    work: str,
    model: str | None,
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
    from gradindex.search.index import open as open_index

    opened = open_index(index, model=model, device=device)
    removals = train_without(opened, pictures, command, work, **options)
    if style == "json":
        click.echo(json.dumps([asdict(removal) for removal in removals], indent=1))
        return
    for removal in removals:
        picture = printable(removal.picture)
        click.echo(f"{removal.loss:.6f}  {removal.which:<8}  {picture}")

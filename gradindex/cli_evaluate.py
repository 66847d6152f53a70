"""The commands that tell what an index and its scores are worth."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from gradindex import flags
from gradindex.memory import keep_freed_memory

STYLE = click.option("--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True)
PAIRING = click.option(
    "--pairing", type=click.Choice(["matched", "mean"]), help="[default: matched; mean with recorded timesteps]"
)


@click.command()
@click.argument("index")
@click.argument("pictures", nargs=-1, metavar="[PICTURE]...")
@click.option("-k", default=10, show_default=True, help="Length of the lists.")
@click.option("--queries", default=24, show_default=True, help="Training pictures as queries, when none are given.")
@click.option("--compared", default=100, show_default=True, help="Pictures for the agreement of noise seeds; 0: none.")
@click.option("--outliers/--no-outliers", default=True, show_default=True, help="Rank pictures by self-influence.")
@flags.WHITEN
@flags.CLASS_LABEL
@flags.MODEL
@flags.DEVICE
@STYLE
@click.option(
    "--out", default="diagnose-out", show_default=True, type=click.Path(path_type=Path), help="Folder to use."
)
def diagnose(
    index: str, pictures: tuple[str, ...], model: str, device: str, style: str, out: Path, **options: Any
) -> None:
    """Show what INDEX is worth: norms by timestep, who is influential for everything, how much is noise.

    Writes diagnose.json and norms.png, the gradient norm against the timestep.
    """
    from gradindex import diagnose as d
    from gradindex import search

    keep_freed_memory()
    found = d.report(search.open(index, model=model, device=device), pictures, **options)
    click.echo(json.dumps(found, indent=1) if style == "json" else d.to_text(found))
    for file in d.save(found, out):
        click.echo(f"wrote {file}", err=True)


@click.group()
def evaluate() -> None:
    """Measure what scores are worth, against models that were trained again."""


@evaluate.command()
@click.argument("index")
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE...")
@click.option("--models", help="Folder of folders: a model each, and subset.txt, the ids that it was trained on.")
@click.option("--arrays", help="Or a .npz file: subsets [M, N] bool, columns in the order of the index, losses [M, Q].")
@click.option("--embeddings", help="A .npz file: training [N, E], queries [Q, E]; their cosine is compared, too.")
@PAIRING
@flags.CLASS_LABEL
@flags.MODEL
@flags.DEVICE
@STYLE
def lds(
    index: str, pictures: tuple[str, ...], models: str | None, arrays: str | None, embeddings: str | None, model: str,
    device: str, style: str, **options: Any,
) -> None:  # fmt: skip
    """The linear datamodeling score: how well summed scores of subsets predict the losses of models trained on them.

    Higher is better, 100 is perfect, 0 is chance. Both methods, plain and whitened, beside the cosine of pixels.
    """
    import numpy as np

    from gradindex import evaluate as e
    from gradindex import search

    if (models is None) == (arrays is None):
        raise click.UsageError("give --models or --arrays")
    opened = search.open(index, model=model, device=device)
    if arrays is None:
        folders, subsets = e.read_models(models, opened)  # type: ignore[arg-type]
        losses = e.model_losses(opened, folders, pictures, options["class_label"])
    else:
        with np.load(arrays) as file:
            subsets, losses = file["subsets"], file["losses"]
    given = None
    if embeddings is not None:
        with np.load(embeddings) as file:
            given = file["training"], file["queries"]
    found = e.compare(opened, pictures, subsets, losses, given, **options)
    rows = {name: {"lds": 100 * one.mean, "low": 100 * one.low, "high": 100 * one.high} for name, one in found.items()}
    if style == "json":
        click.echo(json.dumps({"index": index, "subsets": len(subsets), "scores": rows}, indent=1))
    else:
        click.echo(f"linear datamodeling score × 100, {len(subsets)} subsets, 95 % interval over pictures and models")
        click.echo(_table(rows))


@evaluate.command()
@click.argument("index")
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE...")
@click.option("--command", required=True, help="Trains on the pictures in {data} and saves the model in {out}.")
@click.option("--work", default="counterfactual", show_default=True, help="Folder for both; a second run uses them.")
@click.option("-k", default=50, show_default=True, help="How many pictures are left out.")
@click.option("--method", type=flags.METHODS, default="retrac", show_default=True)
@click.option("--random", default=2, show_default=True, help="How many times random ones are left out.")
@flags.WHITEN
@PAIRING
@flags.CLASS_LABEL
@flags.MODEL
@flags.DEVICE
@STYLE
def counterfactual(
    index: str, pictures: tuple[str, ...], command: str, work: str, model: str, device: str, style: str, **options: Any
) -> None:
    """Train again without the k pictures of the highest scores, and without k random ones: what each PICTURE's loss is.

    The more it rises above that of random removals, the more these pictures mattered.
    """
    from dataclasses import asdict

    from gradindex import evaluate as e
    from gradindex import search

    removals = e.counterfactual(search.open(index, model=model, device=device), pictures, command, work, **options)
    if style == "json":
        click.echo(json.dumps([asdict(removal) for removal in removals], indent=1))
        return
    for removal in removals:
        click.echo(f"{removal.loss:.6f}  {removal.which:<8}  {removal.picture}")


def _table(rows: Mapping[str, Mapping[str, float]]) -> str:
    return "\n".join(f"{one['lds']:7.1f}  ({one['low']:.1f} … {one['high']:.1f})  {name}" for name, one in rows.items())

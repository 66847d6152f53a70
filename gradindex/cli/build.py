"""The command that builds an index."""

import shlex
from typing import TYPE_CHECKING, Any

import click

from gradindex.cli.messages import say
from gradindex.cli.options import (
    DEVICE,
    INDEX,
    PATH,
    to_batch_size,
    to_buckets,
    to_checkpoints,
    to_part,
    to_resolution,
    to_timesteps,
)
from gradindex.store.memory import keep_freed_memory
from gradindex.wording import counted, share

if TYPE_CHECKING:  # it imports NumPy and zarr, which take long
    from gradindex.store.store import Store


@click.command(short_help="Build INDEX over a training set, or go on where it was.")
@INDEX
@click.option(
    "--model",
    type=PATH,
    required=True,
    help="Diffusers pipeline folder, model folder, or training checkpoint.",
)
@click.option(
    "--data",
    type=PATH,
    required=True,
    help="Folder of pictures, or anything that `datasets` opens.",
)
@click.option(
    "--checkpoint",
    "checkpoints",
    type=PATH,
    multiple=True,
    callback=to_checkpoints,
    metavar="PATH[=WEIGHT]",
    help="Where the weights are, for several checkpoints or a file in the original layout (as of"
    " A1111, ComfyUI, kohya); weight 1/C when not given, or the"
    " training log's.",
)
@click.option(
    "--adapter",
    "adapters",
    type=PATH,
    multiple=True,
    callback=to_checkpoints,
    metavar="PATH[=WEIGHT]",
    help="LoRA file or folder trained on the model: gradients are of its parameters alone. Several"
    " are the checkpoints of one run.",
)
@click.option(
    "--scheduler",
    type=PATH,
    help="Scheduler folder or JSON file, when it does not lie beside the model.",
)
@click.option("--image-column", help="Column of a table that holds the pictures.")
@click.option("--id-column", help="Column that holds their ids.")
@click.option("--label-column", help="Column that holds their class labels.")
@click.option(
    "--timesteps",
    callback=to_timesteps,
    metavar="weighted:N|N|T,T,…|even:N|recorded",
    help="How many timesteps, closer together where a gradient tells more (weighted:N) or evenly"
    " spaced (N, more than 100: even:N), or which (a single one: `500,`), or those of the training"
    " log (weaker than a grid).  [default: those of an index that is there, else weighted:5]",
)
@click.option(
    "--log",
    type=PATH,
    help="Training log: a TrainingRecorder's folder, a CSV or a Parquet file.",
)
@click.option(
    "--events",
    default=1,
    show_default=True,
    help="How many of a picture's last recorded timesteps.",
)
@click.option(
    "--missing",
    type=click.Choice(["error", "skip", "grid"]),
    default="error",
    show_default=True,
    help="What to do with pictures that the log has too few events of.",
)
@click.option(
    "--draws", default=1, show_default=True, help="Noise draws averaged per picture and timestep."
)
@click.option(
    "--noise",
    type=click.Choice(["shared", "own", "recorded"]),
    help="One for all pictures and queries, each picture its own (weak, see docs/trust.md), or"
    " training's.  [default: shared; recorded with recorded timesteps]",
)
@click.option("--loss", type=click.Choice(["mse", "l1"]), default="mse", show_default=True)
@click.option(
    "--output",
    type=click.Choice(["loss", "mean-square"]),
    default="loss",
    show_default=True,
    help="What gradients are taken of: the loss, or the mean square of what the model gives.",
)
@click.option(
    "--projection",
    type=click.Choice(["auto", "rademacher", "sketch", "none"]),
    default="auto",
    show_default=True,
    help="Two-sided and sketched, dense, sketched only, or no projection at all.",
)
@click.option("--dim", default=4096, show_default=True, help="Width of a projected gradient.")
@click.option(
    "--rows",
    type=click.Choice(["full", "folded", "compact"]),
    default="full",
    show_default=True,
    help="One for each timestep and checkpoint; or all of a picture's folded into one: small,"
    " without timesteps; or as full ones, in 8 bits: a sixth of the bytes.",
)
@click.option(
    "--weighting",
    metavar="NAME[:G]",
    help="How the training weighted its loss by timestep: min-snr:5, min-snr-plus-one:5, snr,"
    " debiased, debiased-v; of flow matching sigma-sqrt, cosmap.",
)
@click.option(
    "--noise-offset", default=0.0, show_default=True, help="Noise offset of the training."
)
@click.option(
    "--input-perturbation",
    default=0.0,
    show_default=True,
    metavar="GAMMA",
    help="Input perturbation of the training: how much of another noise pictures are mixed with.",
)
@click.option(
    "--masks",
    type=PATH,
    metavar="FOLDER|alpha",
    help="Of a training with a masked loss: folder with a mask x.png of each picture x.png, or the"
    " pictures' own alpha channels.",
)
@click.option(
    "--params",
    metavar="all|NAME|REGEX",
    help="Which parameters count: a part of the model by its name (norms, attention, convolutions,"
    " biases, first, middle, second-half, last-block, last-unit, last, level-K), or those in whose"
    " name this is found. A part's whole name always means the part: for the regular expression"
    " write (norms).",
)
@click.option("--seed", default=0, show_default=True, help="Of noise and projection.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "tf32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the weights while gradients are taken. On a GPU, float32 multiplies without TF32, and"
    " tf32 keeps float32 weights and multiplies with it.",
)
@DEVICE
@click.option(
    "--batch-size",
    default="auto",
    show_default=True,
    callback=to_batch_size,
    metavar="auto|B",
)
@click.option("--caption", metavar="TEXT", help="One caption for all pictures.")
@click.option("--caption-column", metavar="NAME", help="Column that holds their captions.")
@click.option(
    "--missing-caption",
    type=click.Choice(["error", "empty"]),
    default="error",
    show_default=True,
    help="What a picture without a caption gets.",
)
@click.option(
    "--resolution",
    callback=to_resolution,
    metavar="N|WxH",
    help="Of the pictures that a model of latents encodes.  [default: the model's]",
)
@click.option(
    "--buckets",
    callback=to_buckets,
    metavar="STEP|WxH,WxH,…",
    help="Sizes of pictures, of which each gets the one of the nearest shape: those that kohya's"
    " scripts make with this step, up to the resolution's area, or these.",
)
@click.option(
    "--latents",
    type=click.Choice(["mean", "sample", "npz"]),
    default="mean",
    show_default=True,
    help="What the VAE makes of a picture: the mean, or one sample, drawn once; npz: what kohya's"
    " scripts left beside it.",
)
@click.option(
    "--guidance",
    type=float,
    metavar="SCALE",
    help="That a model with guidance embedding (Flux dev) was told in training.  [default: 3.5]",
)
@click.option("--skip-bad", is_flag=True, help="Leave out pictures that cannot be read.")
@click.option("--overwrite", is_flag=True, help="Replace an index of another recipe or data set.")
@click.option(
    "--check",
    is_flag=True,
    help="Read every byte of what is there and make anew what is damaged; without it sizes and"
    " sealed entries tell what is whole.",
)
@click.option(
    "--part",
    callback=to_part,
    metavar="I/N|slurm",
    help="Make one of N parts, I from 0 or from 1; slurm: a Slurm array's tasks share the index;"
    " /N in a Kubernetes indexed job. Done, a part has status 0 and says what the index still"
    " lacks.",
)
@click.option(
    "--ray",
    metavar="local|ADDRESS",
    help="Share the work among all GPUs, or CPUs where there are none, of this machine or of a Ray"
    " cluster.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Write nothing; say what it would make and take, from a timed batch.",
)
def build(
    index: str,
    image_column: str | None,
    id_column: str | None,
    label_column: str | None,
    caption_column: str | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Build INDEX over a training set; stopped and run again, it goes on where it was."""
    from gradindex.builder.build import build as build_index
    from gradindex.builder.continuation import as_begun_options
    from gradindex.data.dataset import Columns
    from gradindex.report.info import describe
    from gradindex.store.location import locate

    keep_freed_memory()
    options["columns"] = Columns(image_column, id_column, label_column, caption_column)
    if dry_run:
        asked = locate(index), options["timesteps"], options["log"]
        options["timesteps"], options["begun"] = as_begun_options(*asked)
        click.echo(_estimate(**options))
    else:
        store = build_index(index, **options).store
        say(describe(store))
        _say_what_is_next(store, options["part"])


def _say_what_is_next(store: "Store", part: tuple[int, int]) -> None:
    """Say that the index is ready and how to ask it, or after a part what is missing."""
    missing = len(store.missing())
    if missing:
        shards = share(missing, len(store.shards()), "shard", "is", "are")
        say(
            f"unfinished: part {part[0]} of {part[1]}, counted from 0, is done;"
            f" {shards} missing in {store.location} and no query is answered; run the other parts"
        )
        return
    pictures = counted(store.shape[1] - len(store.excluded), "training picture")
    prompt = ' --prompt "…"' if store.recipe.captioned else ""
    index = shlex.quote(str(store.location))
    say(f"ready: {pictures} to be found; next: gradindex query {index} PICTURE{prompt}")


def _estimate(
    device: str, part: object, ray: object, overwrite: bool, check: bool, **options: Any
) -> str:
    """What the whole build would make and take, whichever part of it, and where, is asked for."""
    from gradindex.builder.estimate import estimate
    from gradindex.builder.options import BuildOptions
    from gradindex.builder.plan import make_plan
    from gradindex.models.devices import resolve_device
    from gradindex.report.info import describe_plan

    plan = make_plan(BuildOptions(**options), resolve_device(device))
    for line in plan.dataset.describe():
        say(line)
    return describe_plan(estimate(plan))

"""The command line: parse, call, print. The only room that prints or exits."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from gradindex import cli_evaluate, flags
from gradindex.errors import GradindexError
from gradindex.memory import keep_freed_memory


class _Commands(click.Group):
    """A group whose commands end in one line and a status, not in a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        debug = "--debug" in sys.argv
        warnings.formatwarning = lambda message, *_: f"Warning: {message}\n"  # one line, as errors are
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as exit_:
            sys.exit(exit_.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _fail("interrupted; what was committed stays, run the same command again to go on", 1)
        except GradindexError as error:
            if debug:
                raise
            _fail(str(error), error.exit_status)
        except BrokenPipeError:  # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            if debug:
                raise
            _fail(f"{error.filename or 'disk'}: {error.strerror or error}; what was committed stays", 1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="gradindex")
def main(debug: bool) -> None:
    """Which training pictures shaped this generated picture?

    `build` walks a training set once and keeps a projected gradient of every picture; `query` looks a
    generated picture's neighbours up: by cosine (Diffusion-ReTrac) or inner product (Diffusion-TracIn).
    """


@main.command()
@click.argument("index")
@click.option("--model", required=True, help="Diffusers pipeline folder, model folder, or training checkpoint.")
@click.option("--data", required=True, help="Folder of pictures, or anything that `datasets` opens.")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    callback=flags.to_checkpoints,
    metavar="PATH[=WEIGHT]",
    help="Where the weights are, for several checkpoints; weight 1/C when not given, or the training log's.",
)
@click.option("--scheduler", help="Scheduler folder or JSON file, when it does not lie beside the model.")
@click.option("--image-column", help="Column of a table that holds the pictures.")
@click.option("--id-column", help="Column that holds their ids.")
@click.option("--label-column", help="Column that holds their class labels.")
@click.option(
    "--timesteps",
    default="10",
    show_default=True,
    callback=flags.to_timesteps,
    metavar="N|T,T,…|recorded",
    help="How many timesteps, evenly spaced, or which (a single one: `500,`), or those of the training log (weaker than"
    " a grid).",
)
@click.option("--log", help="Training log: a TrainingRecorder's folder, a CSV or a Parquet file.")
@click.option("--events", default=1, show_default=True, help="How many of a picture's last recorded timesteps.")
@click.option(
    "--missing",
    type=click.Choice(["error", "skip", "grid"]),
    default="error",
    show_default=True,
    help="What to do with pictures that the log has too few events of.",
)
@click.option("--draws", default=1, show_default=True, help="Noise draws averaged per picture and timestep.")
@click.option(
    "--noise",
    type=click.Choice(["shared", "own", "recorded"]),
    help="One for all pictures and queries, each picture its own (weak, see docs/trust.md), or training's."
    "  [default: shared; recorded with recorded timesteps]",
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
    type=click.Choice(["full", "folded"]),
    default="full",
    show_default=True,
    help="One for each timestep and checkpoint, or all of a picture's folded into one: small, without timesteps.",
)
@click.option("--params", metavar="REGEX", help="Only parameters in whose name this is found.")
@click.option("--seed", default=0, show_default=True, help="Of noise and projection.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the weights while gradients are taken.",
)
@flags.DEVICE
@click.option("--batch-size", default="auto", show_default=True, callback=flags.to_batch_size, metavar="auto|B")
@click.option("--skip-bad", is_flag=True, help="Leave out pictures that cannot be read.")
@click.option("--overwrite", is_flag=True, help="Replace an index of another recipe or data set.")
@click.option(
    "--part",
    callback=flags.to_part,
    metavar="I/N",
    help="Make one of N parts, I from 0 or from 1; /N in a Kubernetes indexed job; Slurm array tasks need no option.",
)
@click.option(
    "--ray",
    metavar="local|ADDRESS",
    help="Share the work among all GPUs, or CPUs where there are none, of this machine or of a Ray cluster.",
)
@click.option("--dry-run", is_flag=True, help="Write nothing; say what it would make and take, from a timed batch.")
def build(index: str, image_column: str, id_column: str, label_column: str, dry_run: bool, **options: Any) -> None:
    """Build INDEX over a training set; stopped and run again, it goes on where it was."""
    from gradindex.builder import build
    from gradindex.dataset import Columns
    from gradindex.denoiser import resolve_device
    from gradindex.info import describe, describe_plan
    from gradindex.plan import estimate, prepare

    keep_freed_memory()
    options["columns"] = Columns(image_column, id_column, label_column)
    if dry_run:
        device, *_ = resolve_device(options.pop("device")), *map(options.pop, ("part", "ray", "overwrite"))
        click.echo(describe_plan(estimate(prepare(device=device, **options))))
    else:
        _say(describe(build(index, **options).store))


@main.command()
@click.argument("index")
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE...")
@click.option("-k", default=10, show_default=True, help="How many training pictures.")
@click.option("--method", type=flags.METHODS, default="retrac", show_default=True, help="Cosine, or inner product.")
@click.option("--opponents", is_flag=True, help="Also the most negative ones.")
@click.option(
    "--pairing",
    type=click.Choice(["matched", "mean"]),
    help="Timestep by timestep, or means over them.  [default: matched; mean with recorded timesteps]",
)
@click.option("--query-timesteps", type=int, metavar="N", help="Timesteps of the mean pairing.  [default: 25]")
@click.option("--query-draws", type=int, metavar="M", help="Noise draws of the mean pairing.  [default: 2]")
@click.option("--timesteps", callback=flags.to_range, metavar="A:B", help="Only rows at timesteps from A to below B.")
@click.option("--by-timestep", is_flag=True, help="Also what each timestep adds to a score.")
@flags.WHITEN
@click.option(
    "--damping",
    type=click.FloatRange(0, min_open=True),
    help="Of whitening, in mean squares of a row's norm; another than the default scans the store.  [default: 0.0003]",
)
@flags.CLASS_LABEL
@flags.MODEL
@flags.DEVICE
@click.option("--ray", metavar="local|ADDRESS", help="Have a Ray cluster search the index files.")
@click.option("--format", "style", type=click.Choice(["table", "json", "html"]), default="table", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="File to write, instead of the terminal.")
def query(
    index: str, pictures: tuple[str, ...], k: int, method: str, whiten: bool, damping: float | None,
    model: str, device: str, ray: str | None, style: str, output: Path | None, **options: Any,
) -> None:  # fmt: skip
    """List the training pictures that shaped each PICTURE."""
    from gradindex import results as r
    from gradindex import search
    from gradindex.dataset import read_thumbnail

    keep_freed_memory()
    opened = search.open(index, model=model, device=device, ray=ray)
    options["whiten"] = flags.to_whiten(whiten, damping)
    results = opened.query(pictures, k, method, **options)
    _say(f"gradients {opened.seconds['gradients']:.2f} s, search {opened.seconds['search']:.2f} s")
    if style == "json":
        text = r.to_json(results, index, method, k, whiten)
    elif style == "table":
        text = r.to_table(results, method, whiten)
    else:
        shown = [read_thumbnail(path) for path in pictures]
        text = r.to_html([(method, results)], opened.thumbnail, shown, whitened=whiten)
    if output is None:
        click.echo(text)
    else:
        output.write_text(text + "\n", encoding="utf-8")
        _say(f"wrote {output}")


@main.command("index")
@click.argument("index")
@click.option("--method", type=flags.METHODS, help="Only this one.  [default: both]")
@click.option(
    "--factory",
    default="auto",
    show_default=True,
    metavar="auto|flat|store|FACTORY",
    help="Float vectors, none at all (a query scans the store), or a string of FAISS's index_factory;"
    " auto takes float vectors up to a gigabyte, then codes that have measured a recall of 0.995.",
)
@click.option(
    "--whiten/--no-whiten",
    default=None,
    help="Only those for whitened queries, or only the others.  [default: both]",
)
def index_(index: str, method: str | None, factory: str, whiten: bool | None) -> None:
    """Make the search files of INDEX anew from its store, and measure them."""
    from gradindex.index import build_index
    from gradindex.info import search_facts
    from gradindex.search_index import wanted
    from gradindex.store import Store

    store = Store.finished(index)
    names = [name for name in wanted(store, whiten) if method is None or name.startswith(method)]
    for name in names:
        click.echo(f"{name}: {search_facts(build_index(store, name, factory).facts)}")


@main.command()
@click.argument("index")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--file", type=click.File(), help="File with one id a line; - is standard input.")
def remove(index: str, ids: tuple[str, ...], file: Any) -> None:
    """Take training pictures out of INDEX: no query returns them, and no build adds them again."""
    from gradindex.upkeep import remove

    named = [*ids, *(line.rstrip("\r\n") for line in file or () if line.strip())]
    if not named:
        raise click.UsageError("give ids, or --file")
    click.echo(f"{index}: {remove(index, named)} of {len(set(named))} pictures removed")


@main.command()
@click.argument("index")
@click.option("--out", help="Write the new index there, and leave INDEX; needed in an object store.")
def compact(index: str, out: str | None) -> None:
    """Erase from INDEX what was removed: write it anew without these rows and ids, then exchange the two."""
    from gradindex.info import describe
    from gradindex.upkeep import compact

    click.echo(describe(compact(index, out)))


@main.command()
@click.argument("index")
def verify(index: str) -> None:
    """Read every byte of INDEX and name each file that is damaged or missing; a build mends them."""
    from gradindex.verify import damages

    count = 0
    for line in damages(index):
        click.echo(line)
        count += 1
    if count:
        _fail(f"{index}: {count} files are damaged or missing; run the same build again, it makes only those", 1)
    click.echo(f"{index}: whole")


@main.command()
@click.argument("index")
def info(index: str) -> None:
    """Show what INDEX holds and what is missing."""
    from gradindex.info import describe
    from gradindex.store import Store

    click.echo(describe(Store(index)))


@main.command()
@click.option("--out", default="demo-out", show_default=True, type=click.Path(path_type=Path), help="Folder to use.")
def demo(out: Path) -> None:
    """Train, index and query a small model on real pictures, and write report.html."""
    from gradindex.demo import run_demo

    keep_freed_memory()
    run_demo(out, click.echo)


main.add_command(cli_evaluate.diagnose)
main.add_command(cli_evaluate.evaluate)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _fail(text: str, status: int) -> None:
    click.echo(f"Error: {' '.join(text.split())}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()

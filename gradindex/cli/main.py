"""The command line: parse, call, print. No other package prints or exits."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from gradindex.cli.build import build
from gradindex.cli.diagnose import diagnose
from gradindex.cli.evaluate import evaluate
from gradindex.cli.messages import fail
from gradindex.cli.options import METHOD_CHOICE
from gradindex.cli.query import query
from gradindex.errors import GradindexError
from gradindex.store.memory import keep_freed_memory


class _Commands(click.Group):
    """A group whose commands end in one line and a status, not in a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; the arguments are those of `click.Group.main`."""
        debug = "--debug" in sys.argv
        warnings.formatwarning = _format_warning
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as stop:
            sys.exit(stop.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            fail("interrupted; what was committed stays, run the same command again to go on", 1)
        except GradindexError as error:
            if debug:
                raise
            fail(str(error), error.exit_status)
        except BrokenPipeError:
            # Whoever read our output has seen enough. Python would write the rest when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            if debug:
                raise
            subject = error.filename or "disk"
            fail(f"{subject}: {error.strerror or error}; what was committed stays", 1)


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning as one line, as errors are."""
    return f"Warning: {message}\n"


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="gradindex")
def main(debug: bool) -> None:
    """Which training pictures shaped this generated picture?

    `build` walks a training set once and keeps a projected gradient of every picture; `query` looks
    a generated picture's neighbours up: by cosine (Diffusion-ReTrac) or inner product
    (Diffusion-TracIn).
    """


main.add_command(build)
main.add_command(query)
main.add_command(diagnose)
main.add_command(evaluate)


@main.command("index")
@click.argument("index")
@click.option("--method", type=METHOD_CHOICE, help="Only this one.  [default: both]")
@click.option(
    "--factory",
    default="auto",
    show_default=True,
    metavar="auto|flat|store|FACTORY",
    help="Float vectors, none at all (a query scans the store), or a string of FAISS's"
    " index_factory; auto takes float vectors up to a gigabyte, then codes that have measured a"
    " recall of 0.995.",
)
@click.option(
    "--whiten/--no-whiten",
    default=None,
    help="Only those for whitened queries, or only the others.  [default: both]",
)
def index_command(index: str, method: str | None, factory: str, whiten: bool | None) -> None:
    """Make the search files of INDEX anew from its store, and measure them."""
    from gradindex.report.info import search_facts
    from gradindex.search.ann_builder import build_ann_index
    from gradindex.search.ann_index import default_index_names
    from gradindex.store.store import Store

    store = Store.finished(index)
    names = default_index_names(store, whiten)
    if method is not None:
        names = [name for name in names if name.startswith(method)]
    for name in names:
        ann_index = build_ann_index(store, name, factory)
        click.echo(f"{name}: {search_facts(ann_index.record)}")


@main.command()
@click.argument("index")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--file", type=click.File(), help="File with one id a line; - is standard input.")
def remove(index: str, ids: tuple[str, ...], file: Any) -> None:
    """Take training pictures out of INDEX: no query returns them, and no build adds them again."""
    from gradindex.builder.upkeep import remove as remove_pictures

    lines = [] if file is None else [line.rstrip("\r\n") for line in file if line.strip()]
    names = [*ids, *lines]
    if not names:
        raise click.UsageError("give ids, or --file")
    count = remove_pictures(index, names)
    click.echo(f"{index}: {count} of {len(set(names))} pictures removed")


@main.command()
@click.argument("index")
@click.option(
    "--out", help="Write the new index there, and leave INDEX; needed in an object store."
)
def compact(index: str, out: str | None) -> None:
    """Erase from INDEX what was removed: write it anew without these rows and ids, then exchange
    the two.
    """
    from gradindex.builder.upkeep import compact as compact_index
    from gradindex.report.info import describe

    click.echo(describe(compact_index(index, out)))


@main.command()
@click.argument("index")
def verify(index: str) -> None:
    """Read every byte of INDEX and name each file that is damaged or missing; a build mends
    them.
    """
    from gradindex.builder.verify import damages

    count = 0
    for line in damages(index):
        click.echo(line)
        count += 1
    if count:
        problem = f"{count} files are damaged or missing"
        fail(f"{index}: {problem}; run the same build again, it makes only those", 1)
    click.echo(f"{index}: whole")


@main.command()
@click.argument("index")
def info(index: str) -> None:
    """Show what INDEX holds and what is missing."""
    from gradindex.report.info import describe
    from gradindex.store.store import Store

    click.echo(describe(Store(index)))


@main.command()
@click.option(
    "--out",
    default="demo-out",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder to use.",
)
def demo(out: Path) -> None:
    """Train, index and query a small model on real pictures, and write report.html."""
    from gradindex.report.demo import run_demo

    keep_freed_memory()
    run_demo(out, click.echo)


if __name__ == "__main__":
    main()

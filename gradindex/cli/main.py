"""The command line: parse, call, print. No other package prints or exits."""

import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from gradindex.cli.audit import audit
from gradindex.cli.build import build
from gradindex.cli.diagnose import diagnose
from gradindex.cli.evaluate import evaluate
from gradindex.cli.messages import fail, flags_of, say, usage_text, with_flags
from gradindex.cli.options import INDEX, METHOD_CHOICE, PATH
from gradindex.cli.query import query
from gradindex.errors import CallError, GradindexError, first_line
from gradindex.report.printable import one_line
from gradindex.store.memory import keep_freed_memory

# Ids are any names of files. Windows' Notepad begins a text with a mark of its encoding.
IDS_FILE = click.File(encoding="utf-8-sig", errors="surrogateescape")


UNFINISHED = 3  # status of `info`; 1 is a failure, 2 a wrong call


class _Commands(click.Group):
    """A group whose commands end in one line and a status, not in a traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Any:
        """Run a command; the arguments are those of `click.Group.main`."""
        typed = list(sys.argv[1:] if args is None else args)
        args, debug = _take_debug(args)
        warnings.formatwarning = partial(_format_warning, typed=typed)
        _show_any_name()
        try:
            return super().main(args, *rest, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as stop:
            sys.exit(stop.exit_code)
        except click.ClickException as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # of click 8.2: its text is the help
                error.show()
                sys.exit(error.exit_code)
            fail(usage_text(error), error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            fail("interrupted; what was committed stays, run the same command again to go on", 1)
        except GradindexError as error:
            if debug:
                raise
            fail(with_flags(str(error), flags_of(self), typed), error.exit_status)
        except BrokenPipeError:
            # Whoever read our output has seen enough. Python would write the rest when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except MemoryError as error:
            if debug:
                raise
            way_out = "give a smaller resolution or batch; what was committed stays"
            fail(f"out of memory ({first_line(error)}); {way_out}", 1)
        except OSError as error:
            if debug:
                raise
            subject = error.filename or "disk"
            fail(f"{subject}: {error.strerror or error}; what was committed stays", 1)


def _take_debug(args: Sequence[str] | None) -> tuple[Sequence[str] | None, bool]:
    """Take `--debug` out of the arguments, before or after the subcommand; whether it was there."""
    given = list(sys.argv[1:] if args is None else args)
    end = given.index("--") if "--" in given else len(given)
    if "--debug" not in given[:end]:
        return args, False
    return [arg for arg in given[:end] if arg != "--debug"] + given[end:], True


def _show_any_name() -> None:
    """Have stdout and stderr escape what their encoding, such as Windows' cp1252, cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
    *,
    typed: Sequence[str] = (),
) -> str:
    """A warning as one line, as errors are; see `with_flags`."""
    return f"Warning: {one_line(with_flags(str(message), flags_of(main), typed))}\n"


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
main.add_command(audit)
main.add_command(diagnose)
main.add_command(evaluate)


@main.command("index")
@INDEX
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
@INDEX
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--file", type=IDS_FILE, help="File with one id a line; - is standard input.")
def remove(index: str, ids: tuple[str, ...], file: Any) -> None:
    """Take training pictures out of INDEX: no query returns them, and no build adds them again."""
    from gradindex.builder.upkeep import remove as remove_pictures

    lines = [] if file is None else [line.rstrip("\r\n") for line in file if line.strip()]
    names = [*ids, *lines]
    if not names:
        raise click.UsageError("give ids, or --file")
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise CallError(f"id {name!r}: these bytes are not UTF-8; the ids of an index are")
    count = remove_pictures(index, names)
    click.echo(f"{index}: {count} of {len(set(names))} pictures removed")


@main.command()
@INDEX
@click.option(
    "--out",
    type=PATH,
    help="Write the new index there, and leave INDEX; needed in an object store.",
)
def compact(index: str, out: str | None) -> None:
    """Erase from INDEX what was removed: write it anew without these rows and ids, then exchange
    the two.
    """
    from gradindex.builder.upkeep import compact as compact_index
    from gradindex.report.info import describe

    click.echo(describe(compact_index(index, out)))


@main.command()
@INDEX
@click.option(
    "--data",
    type=PATH,
    is_flag=False,
    flag_value="",
    metavar="[PATH]",
    help="Also read every training picture, where it was or at PATH, and name those that changed.",
)
def verify(index: str, data: str | None) -> None:
    """Read every byte of INDEX and name each file that is damaged or missing; a build mends
    them.
    """
    from gradindex.builder.verify import damages, data_damages

    count = _print_lines(damages(index))
    if count:
        problem = f"{count} files are damaged or missing"
        fail(f"{index}: {problem}; run the same build again, it makes only those", 1)
    changed = 0 if data is None else _print_lines(data_damages(index, data or None))
    if changed:
        problem = f"{changed} training pictures are not those that were indexed"
        fail(f"{index}: {problem}; put them back, remove their ids, or build it anew", 1)
    click.echo(f"{index}: whole")


def _print_lines(lines: Iterable[str]) -> int:
    """Print lines as they come, and return how many they were."""
    count = 0
    for line in lines:
        click.echo(one_line(line))
        count += 1
    return count


@main.command()
@INDEX
def info(index: str) -> None:
    """Show what INDEX holds and what is missing; status 3 while it is unfinished."""
    from gradindex.report.info import describe
    from gradindex.store.store import Store

    store = Store(index)
    click.echo(describe(store))
    missing = len(store.missing())
    if missing:
        shards = f"{missing} of {len(store.shards())} shards of {index} are missing"
        say(f"unfinished: {shards}; run the same build again, or its other parts")
        sys.exit(UNFINISHED)


@main.command()
@click.option(
    "--out",
    default="demo-out",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to use.",
)
def demo(out: Path) -> None:
    """Train, index and query a small model on real pictures, and write report.html."""
    from gradindex.report.demo import run_demo

    keep_freed_memory()
    run_demo(out, click.echo)


if __name__ == "__main__":
    main()

"""The command line: parse, call, print. No other package prints or exits."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from gradindex.cli.audit import audit
from gradindex.cli.build import build
from gradindex.cli.diagnose import diagnose
from gradindex.cli.duplicates import duplicates
from gradindex.cli.evaluate import evaluate
from gradindex.cli.messages import fail, flags_of, log_to_stderr, say, usage_text, with_flags
from gradindex.cli.options import INDEX, METHOD_CHOICE, PATH, TABLE_OR_JSON
from gradindex.cli.query import query
from gradindex.cli.serve import serve
from gradindex.cli.upkeep import compact, ids, remove
from gradindex.errors import GradindexError, first_line
from gradindex.report.printable import one_line
from gradindex.store.memory import keep_freed_memory
from gradindex.wording import counted, share

# What may stand before or after the subcommand, and which of them it is.
SWITCHES = {"--debug": "--debug", "-q": "-q", "--quiet": "-q", "-v": "-v", "--verbose": "-v"}
UNFINISHED = 3  # status of `info`; 1 is a failure, 2 a wrong call


# The commands in the order of work, each under one heading.
SECTIONS = {
    "Begin": ["demo", "build", "info"],
    "Ask": ["query", "audit", "serve"],
    "Know what an answer is worth": ["diagnose", "evaluate"],
    "Keep an index": ["verify", "ids", "duplicates", "remove", "compact", "index"],
}


class _Commands(click.Group):
    """A group whose commands end in one line and a status, not in a traceback."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands into the help, section by section."""
        width = max(map(len, self.commands))
        for title, names in SECTIONS.items():
            with formatter.section(title):
                limit = formatter.width - 6 - width
                lines = [(name, self.commands[name].get_short_help_str(limit)) for name in names]
                # Padded, so that all sections have their texts in one column.
                formatter.write_dl([(name.ljust(width), text) for name, text in lines])

    def main(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Any:
        """Run a command; the arguments are those of `click.Group.main`."""
        typed = list(sys.argv[1:] if args is None else args)
        args, switches = _take_switches(typed)
        debug = "--debug" in switches
        log_to_stderr(_level(switches))
        if "-q" in switches:
            os.environ["TQDM_DISABLE"] = "1"  # before any bar is made
        warnings.formatwarning = partial(_format_warning, typed=typed)
        _show_any_name()
        try:
            return super().main(args, *rest, **{**kwargs, "standalone_mode": False, "obj": typed})
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


def _take_switches(typed: Sequence[str]) -> tuple[list[str], set[str]]:
    """Take --debug, -q and -v out of the arguments, before or after the subcommand.

    >>> _take_switches(["build", "idx", "-q", "--", "-v"])
    (['build', 'idx', '--', '-v'], {'-q'})
    """
    end = typed.index("--") if "--" in typed else len(typed)
    switches = {SWITCHES[word] for word in typed[:end] if word in SWITCHES}
    return [word for word in typed[:end] if word not in SWITCHES] + [*typed[end:]], switches


def _level(switches: Collection[str]) -> int:
    """The least level of messages that is shown."""
    if "-v" in switches:
        return logging.DEBUG
    return logging.WARNING if "-q" in switches else logging.INFO


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
@click.option("-q", "--quiet", is_flag=True, help="Only results, warnings and errors.")
@click.option("-v", "--verbose", is_flag=True, help="More messages, with the time in each.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="gradindex")
def main(quiet: bool, verbose: bool, debug: bool) -> None:
    """Which training pictures shaped this generated picture?

    `build` walks a training set once and keeps a projected gradient of every picture; `query` looks
    a generated picture's neighbours up: by cosine (Diffusion-ReTrac) or inner product
    (Diffusion-TracIn).
    """


COMMANDS = (build, query, audit, serve, diagnose, evaluate, ids, duplicates, remove, compact)
for command in COMMANDS:
    main.add_command(command)


@main.command("index", short_help="Make the search files of INDEX anew, and measure them.")
@INDEX
@click.option("--method", type=METHOD_CHOICE, help="Only this one.  [default: both]")
@click.option(
    "--factory",
    default="auto",
    show_default=True,
    metavar="auto|flat|store|FACTORY",
    help="Float vectors, none at all (a query scans the store), or a string of FAISS's"
    " index_factory; auto takes none for fewer pictures than numbers in a row, float vectors up to"
    " a gigabyte, then codes that have measured a recall of 0.995.",
)
@click.option(
    "--whiten/--no-whiten",
    default=None,
    help="Only those for whitened queries, or only the others.  [default: both]",
)
def index_command(index: str, method: str | None, factory: str, whiten: bool | None) -> None:
    """Make the search files of INDEX anew from its store, and measure them."""
    from gradindex.report.info import search_facts
    from gradindex.search.ann_builder import build_ann_indexes
    from gradindex.search.ann_index import default_index_names
    from gradindex.store.store import Store

    store = Store.finished(index)
    names = default_index_names(store, whiten)
    if method is not None:
        names = [name for name in names if name.startswith(method)]
    for name, ann_index in build_ann_indexes(store, names, factory).items():
        click.echo(f"{name}: {search_facts(ann_index.record)}")


@main.command(short_help="Read every byte of INDEX and name what is damaged or missing.")
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
    """Read every byte of INDEX and name each file that is damaged or missing; `build --check` mends
    them.
    """
    from gradindex.builder.verify import damages, data_damages

    count = _print_lines(damages(index))
    if count:
        problem = f"{counted(count, 'file is', 'files are')} damaged or missing"
        fail(f"{index}: {problem}; run the same build again with --check, it makes only those", 1)
    changed = 0 if data is None else _print_lines(data_damages(index, data or None))
    if changed:
        wrong = "training picture is not what was", "training pictures are not those that were"
        problem = f"{counted(changed, *wrong)} indexed"
        fail(f"{index}: {problem}; put them back, remove their ids, or build it anew", 1)
    click.echo(f"{index}: whole")


def _print_lines(lines: Iterable[str]) -> int:
    """Print lines as they come, and return how many they were."""
    count = 0
    for line in lines:
        click.echo(one_line(line))
        count += 1
    return count


@main.command(short_help="Show what INDEX holds, where it came from, and what is missing.")
@INDEX
@TABLE_OR_JSON
def info(index: str, style: str) -> None:
    """Show what INDEX holds, where it came from, the bytes of each part and what is missing; status
    3 while it is unfinished.
    """
    from gradindex.report.index_facts import index_facts
    from gradindex.report.info import describe
    from gradindex.store.store import Store

    store = Store(index)
    click.echo(json.dumps(index_facts(store), indent=1) if style == "json" else describe(store))
    missing = len(store.missing())
    if missing:
        shards = share(missing, len(store.shards()), "shard", "is", "are")
        say(
            f"unfinished: {shards} missing in {index}; run the same build again, or its other parts"
        )
        sys.exit(UNFINISHED)


@main.command(short_help="Try it: draw pictures, train, index, query, write a report.")
@click.option(
    "--out",
    default="demo-out",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to use.",
)
def demo(out: Path) -> None:
    """Draw pictures, train a small model on them, index and query it, and write report.html."""
    say(f"the whole job, some minutes on two cores; everything goes to {out}")
    from gradindex.report.demo import run_demo

    keep_freed_memory()
    run_demo(out, click.echo)


if __name__ == "__main__":
    main()

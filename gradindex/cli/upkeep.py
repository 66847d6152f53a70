"""The commands that list an index's pictures, take some out, and erase them."""

import sys
from collections.abc import Iterable
from typing import Any

import click

from gradindex.cli.options import INDEX, PATH
from gradindex.errors import CallError, quoted
from gradindex.report.printable import printable
from gradindex.wording import share

# Ids are any names of files. Windows' Notepad begins a text with a mark of its encoding.
IDS_FILE = click.File(encoding="utf-8-sig", errors="surrogateescape")
NAMES = click.argument("names", nargs=-1, metavar="[ID|PATTERN]...")
UNDER = click.option(
    "--under", multiple=True, metavar="FOLDER", help="Those whose id begins with this folder."
)


@click.command()
@INDEX
@NAMES
@UNDER
@click.option("--skipped", "state", flag_value="skipped", help="Those that the build left out.")
@click.option("--removed", "state", flag_value="removed", help="Those that were taken out.")
def ids(index: str, names: tuple[str, ...], under: tuple[str, ...], state: str | None) -> None:
    """List the ids of INDEX's training pictures, one a line.

    Only those that are named, where some are: by id, by a pattern such as '*.jpg' (* stands for
    slashes too), or by --under. `remove` with the same words takes these out.
    """
    from gradindex.store.selection import select_ids
    from gradindex.store.store import Store

    store = Store.finished(index)
    removed = {row for row in store.header.removed.values() if row is not None}
    rows = {"skipped": set(store.summary.skipped) - removed, "removed": removed}.get(state or "")
    if rows is None:
        rows = set(range(store.shape[1])) - set(store.excluded)
    listed = [store.sample_ids[row] for row in sorted(rows) if row < store.shape[1]]
    if names or under:
        # Selected from all: what was removed since fits a pattern still, and is not listed.
        known = set(store.sample_ids)
        chosen = set(select_ids(list(store.sample_ids), names, under))
        if unknown := chosen - known:
            raise CallError(
                f"{quoted(min(unknown))}: no such id; `gradindex ids {index}` lists them"
            )
        listed = [name for name in listed if name in chosen]
    in_terminal = sys.stdout.isatty()
    for name in listed:
        click.echo(printable(name) if in_terminal else name)


@click.command(short_help="Take training pictures out of INDEX: no query returns them.")
@INDEX
@NAMES
@UNDER
@click.option("--file", type=IDS_FILE, help="File with one id a line; - is standard input.")
def remove(index: str, names: tuple[str, ...], under: tuple[str, ...], file: Any) -> None:
    """Take training pictures out of INDEX: no query returns them, and no build adds them again.

    They are named by id, by a pattern such as 'cats/*' (* stands for slashes too), by --under, or
    in a --file of ids; `ids` with the same words lists them before.
    """
    from gradindex.builder.upkeep import remove as remove_pictures
    from gradindex.store.selection import select_ids
    from gradindex.store.store import Store

    lines = [] if file is None else [line.rstrip("\r\n") for line in file if line.strip()]
    if not (names or under or lines):
        raise click.UsageError("give ids or patterns, --under, or --file")
    _require_utf8([*names, *lines])
    selected = select_ids(list(Store(index).sample_ids), names, under)
    chosen = list(dict.fromkeys([*selected, *lines]))
    count = remove_pictures(index, chosen)
    click.echo(f"{index}: {share(count, len(chosen), 'picture', 'removed', 'removed')}")


def _require_utf8(names: Iterable[str]) -> None:
    """Raise CallError for an id that cannot be one of an index."""
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise CallError(f"id {name!r}: these bytes are not UTF-8; the ids of an index are")


@click.command(short_help="Erase what was removed: write INDEX anew without it.")
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

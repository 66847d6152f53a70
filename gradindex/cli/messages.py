"""Messages to stderr; data goes to stdout."""

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from typing import NoReturn

import click

from gradindex.report.printable import one_line

# Options whose name is a word of English, too: they are meant only where a sentence names them so.
NAMED_BARE = "|".join(
    [
        r"(?<=\bwith )(?:overwrite|params)\b",
        r"(?<=\()overwrite\b",
        r"(?<=\bgive )out\b(?=,)",
        r"\blog\b(?= go together)",
        r"\bevents\b(?= and --)",
    ]
)

# What must not stand beside a name: then it is part of a path, of a quoted text, or of a flag.
NOT_BEFORE = r"(?<![\w./\\'\"?&-])"
NOT_AFTER = r"(?![\w/\\'\"-]|\.\w)"


def say(text: str) -> None:
    """Print a text to stderr."""
    click.echo(text, err=True)


def log_to_stderr() -> None:
    """Have what gradindex logs, such as the labels of classes, shown as lines on stderr."""
    logger = logging.getLogger("gradindex")
    if not logger.handlers:
        logger.addHandler(_Lines())
        logger.setLevel(logging.INFO)


class _Lines(logging.Handler):
    """A line for each record, on the stderr of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        say(one_line(record.getMessage()))


def fail(text: str, status: int) -> NoReturn:
    """Print an error as one line to stderr and exit with a status."""
    say(f"Error: {one_line(text)}")
    sys.exit(status)


def flags_of(command: click.Command) -> dict[str, str]:
    """Return {name in Python: flag} of the options of a command, or of all commands of a group.

    A switch has its other side, too: {"outliers=False": "--no-outliers"}.
    """
    return dict(_options(command))


def _options(command: click.Command) -> Iterator[tuple[str, str]]:
    """The options of a command and of the commands below it, each as (name, flag)."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name is not None:
            yield parameter.name, parameter.opts[0]
            for flag in parameter.secondary_opts:
                yield f"{parameter.name}=False", flag
    for below in getattr(command, "commands", {}).values():
        yield from _options(below)


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """Return a message with the names of options as on the command line.

    Messages name them as Python does: `dim = 0`, `skip_bad`, `overwrite=True`. What a path or a
    quoted text has in it stays.

    Args:
        flags: see `flags_of`.

    >>> flags = {"dim": "--dim", "noise": "--noise", "skip_bad": "--skip-bad"}
    >>> with_flags("dim = 0: give 1 or more", flags)
    '--dim 0: give 1 or more'
    >>> with_flags("noise of 'skip_bad.png'; skip_bad=True leaves it out, noise = 'own'", flags)
    "noise of 'skip_bad.png'; --skip-bad leaves it out, --noise own"
    """

    def with_flag(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        if value == "True":
            return flags[name]
        other_side = flags.get(f"{name}=False")
        if value == "False" and other_side is not None:
            return other_side
        return f"{flags[name]} {value}"

    names = [name for name in flags if name.isidentifier()]
    any_name = "|".join(sorted(names, key=len, reverse=True))
    # `name = value` of any value, of which a quoted word loses its quotes; `name=value` of a word.
    spaced = rf"{NOT_BEFORE}(?P<name>{any_name}) = (?P<quote>'?)(?P<value>[\w:.-]*\w)(?P=quote)"
    text = re.sub(spaced, with_flag, text)
    text = re.sub(rf"{NOT_BEFORE}(?P<name>{any_name}) = ", lambda m: f"{flags[m['name']]} ", text)
    tight = rf"{NOT_BEFORE}(?P<name>{any_name})=(?P<quote>'?)(?P<value>[\w-]+)(?P=quote){NOT_AFTER}"
    text = re.sub(tight, with_flag, text)
    for name in names:
        if "_" in name:
            text = re.sub(rf"{NOT_BEFORE}{name}{NOT_AFTER}", flags[name], text)
    return re.sub(NAMED_BARE, lambda match: flags.get(match[0], match[0]), text)

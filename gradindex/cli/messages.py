"""Messages to stderr; data goes to stdout."""

import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import click

from gradindex.report.printable import one_line

# Formats by the end of a file's name.
STYLES = {
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".html": "html",
    ".htm": "html",
}
# Options whose name is a word of English, too: they are meant only where a sentence names them so.
NAMED_BARE = [
    r"(?<=\bwith )(?:overwrite|params|check)\b",
    r"(?<=\()overwrite\b",
    r"(?<=\bgive )out\b(?=,)",
    r"\blog\b(?= go together)",
    r"\bevents\b(?= and noise = )",
]

# What must not stand beside a name: then it is part of a path, of a quoted text, or of a flag.
NOT_BEFORE = r"(?<![\w./\\'\"?&-])"
NOT_AFTER = r"(?![\w/\\'\"-]|\.\w)"
# A quoted text; the apostrophe of "the store's" begins none.
QUOTED = r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(?!\w)"""


LOGGER = logging.getLogger("gradindex")


def say(text: str) -> None:
    """Print a text to stderr, unless -q was given."""
    if LOGGER.isEnabledFor(logging.INFO):
        click.echo(text, err=True)


def log_to_stderr(level: int) -> None:
    """Have what gradindex logs, such as the labels of classes, shown as lines on stderr.

    Args:
        level: the least that is shown: WARNING, INFO, or DEBUG, which has the time in each line.
    """
    if not any(isinstance(handler, _Lines) for handler in LOGGER.handlers):
        LOGGER.addHandler(_Lines())
    LOGGER.setLevel(level)


class _Lines(logging.Handler):
    """A line for each record, on the stderr of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        time = f"{datetime.now():%H:%M:%S} " if LOGGER.isEnabledFor(logging.DEBUG) else ""
        click.echo(time + one_line(record.getMessage()), err=True)


def fail(text: str, status: int) -> NoReturn:
    """Print an error as one line to stderr and exit with a status."""
    click.echo(f"Error: {one_line(text)}", err=True)
    sys.exit(status)


def usage_text(error: click.ClickException) -> str:
    """Return what click says of a wrong call, and where it can be read what is allowed.

    A value that is refused has that in the message itself.
    """
    text = error.format_message().rstrip(".")
    if text.startswith("Got unexpected extra argument") and isinstance(error, click.UsageError):
        text += _way_to_repeat(error.ctx)
    is_refused_value = isinstance(error, click.BadParameter)
    is_missing = isinstance(error, click.MissingParameter)
    if (is_missing or not is_refused_value) and not text.endswith("?"):  # "Did you mean …?"
        context = error.ctx if isinstance(error, click.UsageError) else None
        words: list[str] = []
        while context is not None and context.parent is not None:
            words.insert(0, str(context.info_name))
            context = context.parent
        text += f"; see `{' '.join(['gradindex', *words])} --help`"
    return text


def _way_to_repeat(context: click.Context | None) -> str:
    """Return how several values are given, where options that take several were typed."""
    if context is None:
        return ""
    typed = {word.partition("=")[0] for word in context.obj or ()}  # of the command's arguments
    flags = [
        option.opts[0]
        for option in context.command.params
        if isinstance(option, click.Option) and option.multiple and typed & {*option.opts}
    ]
    return f"; write {' or '.join(flags)} before each of its values" if flags else ""


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


def with_flags(text: str, flags: Mapping[str, str], typed: Sequence[str] = ()) -> str:
    """Return a message with the names of options as on the command line.

    Messages name them as Python does: `dim = 0`, `skip_bad`, `overwrite=True`, `(model=)`. What a
    path or a quoted text has in it stays, and what the user has typed. A path with spaces that was
    neither quoted nor typed is taken for words of the message.

    Args:
        flags: see `flags_of`.
        typed: arguments of the command.

    >>> flags = {"dim": "--dim", "noise": "--noise", "skip_bad": "--skip-bad"}
    >>> with_flags("dim = 0: give 1 or more", flags)
    '--dim 0: give 1 or more'
    >>> with_flags("noise of 'a skip_bad.png'; skip_bad=True leaves it out, noise = 'own'", flags)
    "noise of 'a skip_bad.png'; --skip-bad leaves it out, --noise own"
    >>> with_flags("data my dim = 3: none; dim = 0", flags, ["my dim = 3"])
    'data my dim = 3: none; --dim 0'
    """
    values = [word.partition("=")[2] if word.startswith("--") else word for word in typed]
    # Longer ones first: one may be a part of another.
    kept = sorted({value for value in values if with_flags(value, flags) != value}, key=len)
    if kept:
        parts = re.split(f"({'|'.join(map(re.escape, reversed(kept)))})", text)
        parts[::2] = [with_flags(part, flags) for part in parts[::2]]
        return "".join(parts)
    return re.sub(_named_options(flags), lambda match: _with_flag(match, flags), text)


def _named_options(flags: Mapping[str, str]) -> str:
    """Return the pattern of quoted texts, which stay, and of options that a message names."""
    names = sorted(filter(str.isidentifier, flags), key=len, reverse=True)
    any_name = "|".join(names)
    long_name = "|".join(name for name in names if "_" in name) or "(?!)"
    forms = [
        QUOTED,
        # The flag itself, beside which the message names the argument of Python's call.
        rf"(?P<flag>--[\w-]+ )?\((?P<call>{any_name})=\)",
        # `name = value` of any value, of which a quoted word loses its quotes.
        rf"{NOT_BEFORE}(?P<spaced>{any_name}) = (?:(?P<quote>'?)(?P<value>[\w:.-]*\w)(?P=quote))?",
        # `name=value` of a word.
        rf"{NOT_BEFORE}(?P<tight>{any_name})=(?P<mark>'?)(?P<word>[\w-]+)(?P=mark){NOT_AFTER}",
        rf"{NOT_BEFORE}(?P<long>{long_name}){NOT_AFTER}",
        rf"(?P<bare>{'|'.join(NAMED_BARE)})",
    ]
    return "|".join(forms)


def _with_flag(match: re.Match[str], flags: Mapping[str, str]) -> str:
    """Return what stands in a message for a match of `_named_options`."""
    if match["call"]:
        flag = flags[match["call"]]
        before = match["flag"] or ""
        return flag if before.rstrip() == flag else f"{before}({flag})"
    name = match["spaced"] or match["tight"] or match["long"] or match["bare"]
    if name not in flags:
        return match[0]
    value = match["value"] or match["word"]
    if value == "True":
        return flags[name]
    if value == "False" and f"{name}=False" in flags:
        return flags[f"{name}=False"]
    if value or match["spaced"]:
        return f"{flags[name]} {value or ''}"
    return flags[name]


def say_seconds(seconds: Mapping[str, float], began: float) -> None:
    """Say how long an answer took, see `Result.seconds`, and the command since it began.

    Args:
        began: by `time.monotonic`.
    """
    parts = f"gradients {seconds['gradients']:.2f} s, search {seconds['search']:.2f} s"
    say(f"{time.monotonic() - began:.1f} s, loading included; {parts}")


def style_of(output: Path | None, styles: Sequence[str]) -> str:
    """Return the format that the name of a file stands for: a table where it is another one.

    Args:
        styles: formats that a command has.

    Raises:
        click.UsageError: the command has no such format.

    >>> style_of(Path("answer.HTML"), ["table", "html"]), style_of(None, ["table"])
    ('html', 'table')
    """
    style = "table" if output is None else STYLES.get(output.suffix.lower(), "table")
    if style not in styles:
        raise click.UsageError(
            f"--output {output}: this command writes no {style}; give --format {'|'.join(styles)}"
        )
    return style


def write_or_print(text: str, output: Path | None) -> None:
    """Write an answer to a file, and say so; or to the terminal where there is none."""
    if output is None:
        click.echo(text)
        return
    # A name of other bytes than UTF-8 has characters that no text file can hold.
    output.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    say(f"wrote {output}")

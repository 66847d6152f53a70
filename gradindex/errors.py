"""Everything that gradindex raises on purpose.

Catch `GradindexError` to catch them all. Its text is one line: what came, what is allowed, what to
do.

GradindexError           base of all; command line status 1
├── CallError            the call cannot work as written (also a ValueError); status 2
│   └── RecipeMismatch   two sets of gradients cannot be compared; `.differences` lists the fields
├── DataError            a training picture or data set cannot be read
├── ModelError           a model cannot be loaded, has a layer without a rule, or gives numbers that
│                        are not finite
├── StoreError           an index folder is damaged, unfinished or of another format version
└── MissingPackage       an optional package is not installed, or installed twice
"""

from collections.abc import Iterable

NONE_LEFT = "every picture was skipped or removed: there is none to answer with"
LONGEST_LINE = 400  # letters of another library's error that are repeated


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class if it has no text.

    A line that is very long, as where it repeats what a file holds, is cut.

    >>> first_line(ValueError("no such key\\nTraceback …"))
    'no such key'
    >>> first_line(KeyboardInterrupt())
    'KeyboardInterrupt'
    """
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…"


def quoted(value: object) -> str:
    """Return a text from a file in quotes, or a JSON value, in one line that is not too long.

    >>> print(quoted("a\\nb.png"))
    'a\\nb.png'
    """
    line = repr(value)
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[:LONGEST_LINE]}…" + "'" * isinstance(value, str)


class GradindexError(Exception):
    """Base of all errors raised on purpose."""

    exit_status = 1


class CallError(GradindexError, ValueError):
    """The call cannot work as written."""

    exit_status = 2


class RecipeMismatch(CallError):
    """Two recipes differ.

    Attributes:
        differences: one text per field, `field: left, right`.
    """

    def __init__(self, message: str, differences: Iterable[str]) -> None:
        self.differences = list(differences)
        # A Ray worker sends its errors pickled, and unpickling calls `RecipeMismatch(*args)`.
        super().__init__(message, self.differences)

    def __str__(self) -> str:
        return f"{self.args[0]}: {'; '.join(self.differences)}"


class DataError(GradindexError):
    """A training picture or data set cannot be read."""


class ModelError(GradindexError):
    """A model cannot be loaded, has a layer without a rule, or gives NaN or infinity."""


class StoreError(GradindexError):
    """An index folder is damaged, unfinished or of another format version."""


class MissingPackage(GradindexError):
    """An optional package is not installed, or installed twice."""

"""Everything that gradindex raises on purpose.

GradindexError           catch this one to catch them all; its text is one line: what came, what is allowed, what to do
├── CallError            the call cannot work as written (also a ValueError); command line status 2
│   └── RecipeMismatch   two sets of gradients cannot be compared; `.differences` lists the fields
├── DataError            a training picture or data set cannot be read
├── ModelError           a model cannot be loaded, has a layer without a rule, or gives numbers that are not finite
├── StoreError           an index folder is damaged, unfinished or of another format version
└── MissingPackage       an optional package is not installed, or installed twice
"""

from collections.abc import Iterable


def first_line(error: BaseException) -> str:
    """What a foreign error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class GradindexError(Exception):
    """Base of all errors raised on purpose."""

    exit_status = 1


class CallError(GradindexError, ValueError):
    """The call cannot work as written."""

    exit_status = 2


class RecipeMismatch(CallError):
    """Two recipes differ; `differences` holds one `field: left, right` text per field."""

    def __init__(self, message: str, differences: Iterable[str]) -> None:
        self.differences = list(differences)
        super().__init__(message, self.differences)  # what a pickled one is made of again

    def __str__(self) -> str:
        return f"{self.args[0]}: {'; '.join(self.differences)}"


class DataError(GradindexError):
    """A training picture or data set cannot be read."""


class ModelError(GradindexError):
    """A model cannot be loaded, has a layer without a rule, or gives numbers that are not finite."""


class StoreError(GradindexError):
    """An index folder is damaged, unfinished or of another format version."""


class MissingPackage(GradindexError):
    """An optional package is not installed, or installed twice."""

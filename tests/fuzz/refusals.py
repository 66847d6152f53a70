"""How many hostile inputs a test draws, and the one line that refuses an input."""

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from judging import bounded

from gradindex.errors import GradindexError


def budget(examples: int) -> hypothesis.settings:
    """The settings of a test that draws so many seeds, always the same ones."""
    return hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def refusal(
    act: Callable[[], Any],
    kind: type[GradindexError],
    *,
    seconds: float = 20,
    megabytes: int = 64,
) -> str:
    """The text of the error that something raises, with little memory."""
    with pytest.raises(kind) as caught, bounded(seconds=seconds, megabytes=megabytes):
        act()
    (line,) = str(caught.value).splitlines()
    return line

"""Opening an index whose model a command asks."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradindex.cli.messages import say

if TYPE_CHECKING:
    from gradindex.search.index import Index


def open_index(
    index: str,
    *,
    model: str | None,
    adapters: Sequence[str],
    data: str | None,
    device: str,
    ray: str | None = None,
) -> "Index":
    """Return an open index; see `gradindex.open`, also for the arguments.

    A terminal is told before that the model is loaded: with torch that takes some seconds.
    """
    from gradindex.store.store import Store

    if sys.stderr.isatty():
        say(f"loading {Store(index).recipe.model}")
    from gradindex.search.index import open as open_any

    return open_any(
        index, model=model, device=device, ray=ray, adapters=adapters or None, data=data
    )

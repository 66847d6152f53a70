"""Many pictures of a query, so many at a time that memory does not grow with their number."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradindex.errors import CallError
from gradindex.recipe import Recipe
from gradindex.search.embeddings import read_array
from gradindex.search.pictures import Picture, picture_list
from gradindex.search.results import Result

# Of the pictures of a batch and their gradients, each of which is there several times at once.
BATCH_BYTES = 64 << 20
# Options of which every picture may have its own.
OF_EACH = (*("prompt", "class_label", "against", "against_prompt", "ids"), "query_embedding")


def largest_batch(recipe: Recipe) -> int:
    """Return how many pictures of a query are taken at a time."""
    gradients = len(recipe.checkpoints) * recipe.per_picture * recipe.dim
    numbers = gradients + math.prod(recipe.pixels)
    return max(1, BATCH_BYTES // (4 * numbers))


def in_batches(
    pictures: Sequence[Picture], options: Mapping[str, Any], size: int
) -> Iterator[tuple[int, list[Picture], dict[str, Any]]]:
    """Yield the number of the first of some pictures, these, and what of the options is theirs.

    All come at once where an option has neither one value nor one for each picture: whoever checks
    the options then says what is wrong of all of them.

    >>> list(in_batches(["a", "b", "c"], {"prompt": ["x", "y", "z"], "whiten": True}, 2))
    [(0, ['a', 'b'], {'prompt': ['x', 'y'], 'whiten': True}), \
(2, ['c'], {'prompt': ['z'], 'whiten': True})]
    """
    options = {**options, **dict(_listed(options))}
    counts = {name: _count(options.get(name)) for name in OF_EACH}
    if not all(
        count in (None, len(pictures)) or (name == "against" and count == 1)
        for name, count in counts.items()
    ):
        size = len(pictures)
    for first in range(0, len(pictures), size) if len(pictures) > size else (0,):
        some = slice(first, first + size)
        own = {
            name: options[name][some]
            for name, count in counts.items()
            if count == len(pictures) and len(pictures) > size
        }
        yield first, list(pictures[some]), {**options, **own}


def joined(batches: Sequence[list[Result]]) -> list[Result]:
    """Return the results of all batches; each says the seconds that all of them took."""
    results = [result for batch in batches for result in batch]
    if len(batches) == 1:
        return results
    seconds: dict[str, float] = {}
    for batch in batches:
        for name, value in batch[0].seconds.items():
            seconds[name] = seconds.get(name, 0.0) + value
    return [replace(result, seconds=seconds) for result in results]


def _listed(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Those of OF_EACH as lists or arrays that came as something else."""
    for name, value in options.items():
        if name == "against" and value is not None:
            yield name, picture_list(value)  # one array is one picture
        elif name == "query_embedding" and isinstance(value, str | Path):
            with suppress(CallError):  # whoever checks it with the other options says so
                yield name, read_array(name, value)
        elif name in OF_EACH and isinstance(value, Iterator):
            yield name, list(value)


def _count(value: Any) -> int | None:
    """How many values an option has; None where it has one for all pictures."""
    try:
        return None if isinstance(value, str) else len(value)
    except TypeError:  # a number, or a tensor of one
        return None

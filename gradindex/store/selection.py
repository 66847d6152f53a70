"""Which pictures of an index are meant: by id, by pattern, by folder."""

import re
from collections.abc import Iterator, Sequence
from fnmatch import translate

from gradindex.errors import CallError

PATTERN = re.compile(r"[*?[]")


def select_ids(
    sample_ids: Sequence[str], names: Sequence[str] = (), folders: Sequence[str] = ()
) -> list[str]:
    """Return the ids that are named, each once, in the order of names and folders.

    Args:
        names: ids, or patterns with `*`, `?` and `[…]`, in which `*` stands for slashes too. What
            is an id stands for itself, whatever letters it has. An id that is not among
            `sample_ids` is returned as it is.
        folders: whose pictures are meant, those of folders in them too.

    Raises:
        CallError: no id fits a pattern, or is in a folder.

    >>> ids = ["cats/1.png", "cats/old/2.png", "dogs/1.png"]
    >>> select_ids(ids, ["dogs/?.png"], ["cats/"])
    ['dogs/1.png', 'cats/1.png', 'cats/old/2.png']
    """
    return list(dict.fromkeys(_selected(sample_ids, names, folders)))


def _selected(
    sample_ids: Sequence[str], names: Sequence[str], folders: Sequence[str]
) -> Iterator[str]:
    """The ids of `select_ids`; one may come again."""
    patterns = {name for name in names if PATTERN.search(name)}
    patterns -= patterns.intersection(sample_ids) if patterns else patterns
    for name in names:
        if name not in patterns:
            yield name
            continue
        fits = re.compile(translate(name)).match
        matching = [each for each in sample_ids if fits(each)]
        if not matching:
            raise CallError(f"{name!r}: fits no id; `gradindex ids INDEX` lists them")
        yield from matching
    for folder in folders:
        prefix = folder.rstrip("/") + "/"
        inside = [each for each in sample_ids if each.startswith(prefix)]
        if not inside:
            raise CallError(f"under {folder!r}: no id begins so; `gradindex ids INDEX` lists them")
        yield from inside

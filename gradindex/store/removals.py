"""The pictures that were removed from a store: one immutable file for each call of `remove`.

A removal is never written over, so a build that writes the header at the same time cannot lose it.
Its name is a digest of its content. A copy lies beside it.
"""

import re
from collections.abc import Iterator, Mapping

import msgspec

from gradindex.errors import StoreError
from gradindex.store.digests import sha256
from gradindex.store.location import Location
from gradindex.store.manifest import read_header, read_record, seal
from gradindex.store.records import Count, Header
from gradindex.wording import counted

REMOVED = "removed"
SUFFIXES = (".json", ".copy.json")  # of a removal's file and of its copy
NAME_DIGITS = 32
FILE = re.compile(r"([0-9a-f]{32})(\.copy)?\.json")  # drafts and files of others are none


class Removal(msgspec.Struct, frozen=True):
    """Pictures that were removed together: {`id_key` of an id: its row}."""

    removed: dict[str, Count]


def publish_removal(location: Location, row_of_key: Mapping[str, int]) -> str:
    """Write the removal of some pictures, {`id_key` of an id: its row}, and return its name."""
    content = seal(Removal(dict(sorted(row_of_key.items()))))
    name = sha256(content)[:NAME_DIGITS]
    for suffix in reversed(SUFFIXES):
        location.publish(f"{REMOVED}/{name}{suffix}", content)
    return name


def discard_removal(location: Location, name: str) -> None:
    """Delete a removal and its copy."""
    for suffix in SUFFIXES:
        location.discard(f"{REMOVED}/{name}{suffix}")


def read_removals(location: Location) -> dict[str, int]:
    """Return the rows of all pictures that were removed from the store there, by `id_key`.

    Raises:
        StoreError: a removal is damaged, and so is its copy: which pictures it names is not known.
    """
    removed: dict[str, int] = {}
    for name, contents in _contents(location).items():
        removed |= _whole(location, name, contents).removed
    return removed


def header_with_removals(location: Location) -> Header:
    """The header of a store; its `removed` holds the pictures removed since it was written too.

    Raises:
        CallError, StoreError: as `read_header` and `read_removals`, or a removal names a row that
            is none.
    """
    header = read_header(location)
    since = read_removals(location)
    last = max(since.values(), default=-1)
    if last >= header.pictures:
        header = read_header(location)  # pictures may have been added, and one of them removed
    if last >= header.pictures:
        raise StoreError(
            f"{location}: a removal names row {last}, and the index has"
            f" {counted(header.pictures, 'picture')};"
            " build it again with overwrite"
        )
    return msgspec.structs.replace(header, removed={**header.removed, **since})


def mend_removals(location: Location) -> None:
    """Write each removal, or its copy, anew where it is damaged.

    Raises:
        StoreError: see `read_removals`.
    """
    for name, contents in _contents(location).items():
        whole = seal(_whole(location, name, contents))
        for suffix, content in zip(SUFFIXES, contents, strict=True):
            if content != whole:
                location.publish(f"{REMOVED}/{name}{suffix}", whole)


def removal_damages(location: Location) -> Iterator[str]:
    """Yield which removals and copies of them are not as they were made, one line each."""
    for name, contents in _contents(location).items():
        for suffix, content in zip(SUFFIXES, contents, strict=True):
            if _parse(name, content) is None:
                problem = "is missing" if content is None else "was changed"
                yield f"{REMOVED}/{name}{suffix} {problem}"


def _contents(location: Location) -> dict[str, list[bytes | None]]:
    """The contents of each removal and of its copy, by name; None for a file that is not there."""
    matches = map(FILE.fullmatch, location.names(REMOVED))
    names = sorted({match[1] for match in matches if match})
    files = [f"{REMOVED}/{name}{suffix}" for name in names for suffix in SUFFIXES]
    contents = list(location.read_many(files))
    pairs = [contents[start : start + 2] for start in range(0, len(contents), 2)]
    return dict(zip(names, pairs, strict=True))


def _parse(name: str, content: bytes | None) -> Removal | None:
    """The removal in a file; None where it is not what was written under that name."""
    if content is None or sha256(content)[:NAME_DIGITS] != name:
        return None
    try:
        return read_record(content, Removal)
    except ValueError:
        return None


def _whole(location: Location, name: str, contents: list[bytes | None]) -> Removal:
    """The removal in a file or in its copy; StoreError where both are damaged."""
    for content in contents:
        removal = _parse(name, content)
        if removal is not None:
            return removal
    raise StoreError(
        f"{location}: {REMOVED}/{name}.json is damaged, and so is its copy;"
        " delete both and remove these pictures again"
    )

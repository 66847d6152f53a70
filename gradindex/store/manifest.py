"""A store's JSON files: its header, one entry per finished shard, and the summary.

Each carries a checksum of itself, so no flipped byte in them goes unseen.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from gradindex.errors import CallError, StoreError
from gradindex.recipe import Recipe
from gradindex.store.digests import sha256
from gradindex.store.location import Location
from gradindex.store.records import Header, Record, from_json, to_json
from gradindex.store.soundness import require_sound_header, require_sound_recipe

FORMAT = 1
HEADER, COPY = "zarr.json", "manifest/header.json"
SUMMARY = "manifest/summary.json"
COPIES = "manifest/copies/"  # of ids and the arrays' metadata
CHECK = "check"


@dataclass(frozen=True)
class Shard:
    """One unit of work: pictures `start` … `stop` − 1 at checkpoint number `checkpoint`."""

    checkpoint: int
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"c{self.checkpoint:03d}-s{self.number:06d}"

    @property
    def entry(self) -> str:
        """The file of its manifest entry."""
        return f"manifest/{self.name}.json"


def seal(record: msgspec.Struct | Mapping[str, Any]) -> bytes:
    """A JSON file of a record's fields and a SHA-256 over them."""
    return json.dumps(_checked(record), indent=1).encode()


def unseal(content: bytes | None) -> dict[str, Any]:
    """The fields of a sealed file.

    Raises:
        ValueError: there is no file, or it is not, byte for byte, what was sealed.
    """
    if content is None:
        raise ValueError("is missing")
    try:
        fields = json.loads(content)
        sound = isinstance(fields, dict) and seal(fields) == content
    except (ValueError, RecursionError) as error:
        raise ValueError("was changed") from error
    if not sound:
        raise ValueError("was changed")
    return {name: value for name, value in fields.items() if name != CHECK}


def read_record(content: bytes | None, kind: type[Record]) -> Record:
    """The record of a kind in a sealed file.

    Raises:
        ValueError: as `unseal`; "belongs elsewhere" where another kind of record was sealed.
    """
    fields = unseal(content)
    try:
        return from_json(fields, kind)
    except ValueError as error:
        raise ValueError("belongs elsewhere") from error


def is_store(location: Location) -> bool:
    """Whether a gradient store of any version lies there."""
    contents = location.read_many((HEADER, COPY))
    return any(_parse_header(content) is not None for content in contents)


def differences(location: Location, digests: Mapping[str, str]) -> list[str]:
    """Which files {name: SHA-256} are not as their digest says, one line each."""
    lines = []
    for name, digest in digests.items():
        try:
            if location.digest(name) != digest:
                lines.append(f"{name} was changed")
        except FileNotFoundError:
            lines.append(f"{name} is missing")
    return lines


def seal_header(header: Header | Mapping[str, Any]) -> bytes:
    """The header as a zarr group's metadata."""
    attributes = {"gradindex": _checked(header)}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(group, indent=1).encode()


def header_damages(location: Location) -> list[str]:
    """Which files that the header answers for, itself and copies among them, are not as made.

    Raises:
        CallError, StoreError: as `read_header`.
    """
    header = read_header(location)
    contents = dict(zip((HEADER, COPY), location.read_many((HEADER, COPY)), strict=True))
    whole = next(content for content in contents.values() if _is_sealed_header(content))
    lines = []
    for name, content in contents.items():
        if content is None:
            lines.append(f"{name} is missing")
        elif content != whole:
            lines.append(f"{name} was changed")
    copies = {COPIES + name: digest for name, digest in header.files.items()}
    return lines + differences(location, {**header.files, **copies})


def publish_header(location: Location, fields: Mapping[str, Any]) -> None:
    """Write the header with these fields and its copy, where they are not so already."""
    content = seal_header(fields)
    for name, before in zip((COPY, HEADER), location.read_many((COPY, HEADER)), strict=True):
        if before != content:
            location.publish(name, content)


def read_header(location: Location) -> Header:
    """The header, or its copy where it is damaged.

    Raises:
        CallError: no index lies there. StoreError: it is of another version, or damaged.
    """
    fields = read_header_fields(location)
    try:
        header = from_json(fields, Header)
    except ValueError as error:
        message = f"another version of gradindex wrote zarr.json ({error}): update gradindex"
        raise StoreError(f"{location}: {message}") from error
    recipe = Recipe.from_json(header.recipe)
    try:
        require_sound_recipe(recipe)
        require_sound_header(header, recipe)
    except ValueError as error:
        message = f"zarr.json cannot be right ({error}); build it again with overwrite"
        raise StoreError(f"{location}: {message}") from error
    return header


def read_header_fields(location: Location) -> dict[str, Any]:
    """The header's fields as JSON values, those that only another gradindex knows among them.

    Raises:
        CallError, StoreError: as `read_header`.
    """
    contents = [content for content in location.read_many((HEADER, COPY)) if content is not None]
    parsed = list(_parse_headers(contents))
    if not parsed:
        if not location.exists():
            raise CallError(f"{location}: no such index; make it with `gradindex build`")
        if contents == [b""]:  # it claims the name, see `give_new_name`
            message = "a build is beginning there, or was stopped as it began"
            raise StoreError(f"{location}: {message}; run it again in a minute")
        raise CallError(f"{location}: not a gradindex index (no zarr.json of one)")
    whole = [fields for fields in parsed if seal_header(fields) in contents]
    version = (whole or parsed)[0].get("format")
    if version != FORMAT:
        written = json.dumps(version)[:20]  # it may be anything JSON has
        message = f"format version {written}, this gradindex reads {FORMAT}: update gradindex"
        raise StoreError(f"{location}: {message}")
    if not whole:
        message = "zarr.json was changed by hand or damaged; build it again with overwrite"
        raise StoreError(f"{location}: {message}")
    return {name: value for name, value in whole[0].items() if name != CHECK}


def _checked(record: msgspec.Struct | Mapping[str, Any]) -> dict[str, Any]:
    """A record's fields as JSON values, and the SHA-256 over them at the end."""
    fields = to_json(record) if isinstance(record, msgspec.Struct) else record
    plain = {name: value for name, value in fields.items() if name != CHECK}
    return {**plain, CHECK: sha256(json.dumps(plain, sort_keys=True).encode())}


def _is_sealed_header(content: bytes | None) -> bool:
    fields = _parse_header(content)
    return fields is not None and seal_header(fields) == content


def _parse_headers(contents: list[bytes]) -> Iterator[dict[str, Any]]:
    for content in contents:
        fields = _parse_header(content)
        if fields is not None:
            yield fields


def _parse_header(content: bytes | None) -> dict[str, Any] | None:
    """The fields of a header of any version, unchecked; None where it is none."""
    try:
        fields = json.loads(content or b"")["attributes"]["gradindex"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def mend_file(location: Location, name: str, digest: str) -> None:
    """Make one of the header's files and its copy what they have to be, each from the other.

    Raises:
        StoreError: both are damaged.
    """
    copy = COPIES + name
    for damaged, twin in ((name, copy), (copy, name)):
        wrong = differences(location, {damaged: digest})
        if not wrong:
            continue
        try:
            location.publish(damaged, location.fetch(twin, digest))
        except (ValueError, FileNotFoundError) as error:
            message = f"{wrong[0]}, and so was {twin}; build it again with overwrite"
            raise StoreError(f"{location}: {message}") from error

"""A store's JSON files: its header and one entry per finished shard. Each carries a checksum of itself.

So no flipped byte in them goes unseen.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradindex.errors import CallError, StoreError
from gradindex.place import Place, sha256

FORMAT = 1
HEADER, COPY = "zarr.json", "manifest/header.json"
SUMMARY = "manifest/summary.json"
SUMMED = ("state", "skipped")  # in the summary, and together nowhere else
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


def seal(facts: Mapping[str, Any]) -> bytes:
    """A JSON file of these facts and a SHA-256 over them."""
    return json.dumps(_checked(facts), indent=1).encode()


def unseal(content: bytes | None, *fields: str) -> dict[str, Any]:
    """The facts of a sealed file; ValueError, saying what is wrong, unless it is what was sealed and has these fields.

    They tell the kinds of files apart.
    """
    if content is None:
        raise ValueError("is missing")
    try:
        facts = json.loads(content)
    except ValueError as error:
        raise ValueError("was changed") from error
    if not isinstance(facts, dict) or seal(facts) != content:
        raise ValueError("was changed")
    if not facts.keys() >= set(fields):
        raise ValueError("belongs elsewhere")
    return {name: value for name, value in facts.items() if name != CHECK}


def _checked(facts: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in facts.items() if name != CHECK}
    return {**plain, CHECK: sha256(json.dumps(plain, sort_keys=True).encode())}


def is_store(place: Place) -> bool:
    """Whether a gradient store of any version lies there."""
    return any(_parse_header(content) is not None for content in place.read_many((HEADER, COPY)))


def differences(place: Place, digests: Mapping[str, str]) -> list[str]:
    """Which files are not as their SHA-256 says, one line each."""
    found = []
    for name, digest in digests.items():
        try:
            if place.digest(name) != digest:
                found.append(f"{name} was changed")
        except FileNotFoundError:
            found.append(f"{name} is missing")
    return found


def seal_header(header: Mapping[str, Any]) -> bytes:
    """The header as a zarr group's metadata."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"gradindex": _checked(header)}}
    return json.dumps(group, indent=1).encode()


def header_files(header: Mapping[str, Any]) -> dict[str, str]:
    """Every file that the header answers for, itself and copies among them, with its SHA-256."""
    files = header["files"]
    own = dict.fromkeys((HEADER, COPY), sha256(seal_header(header)))
    return {**own, **files, **{COPIES + name: digest for name, digest in files.items()}}


def publish_header(place: Place, header: Mapping[str, Any]) -> None:
    """Write the header and its copy, where they are not so already."""
    content = seal_header(header)
    for name, before in zip((COPY, HEADER), place.read_many((COPY, HEADER)), strict=True):
        if before != content:
            place.publish(name, content)


def _parse_header(content: bytes | None) -> dict[str, Any] | None:
    """A header of any version, unchecked; None where it is none."""
    try:
        header = json.loads(content or b"")["attributes"]["gradindex"]
    except (ValueError, KeyError, TypeError):
        return None
    return header if isinstance(header, dict) else None


def read_header(place: Place) -> dict[str, Any]:
    """The header, or its copy where it is damaged."""
    contents = [content for content in place.read_many((HEADER, COPY)) if content is not None]
    parsed = [header for content in contents if (header := _parse_header(content)) is not None]
    if not parsed:
        if not place.exists():
            raise CallError(f"{place}: no such index; make it with `gradindex build`")
        raise CallError(f"{place}: not a gradindex index (no zarr.json of one)")
    whole = [header for header in parsed if seal_header(header) in contents]
    if (version := (whole or parsed)[0].get("format")) != FORMAT:
        raise StoreError(f"{place}: format version {version}, this gradindex reads {FORMAT}: update gradindex")
    if not whole:
        raise StoreError(f"{place}: zarr.json was changed by hand or damaged; build it again with overwrite")
    return {name: value for name, value in whole[0].items() if name != CHECK}

"""Hostile files of an index: header, manifest, zarr metadata, rows, ids, FAISS and whitening files.

A file is changed as it is, which its checksums tell; or by somebody who then makes all checksums
that cover it anew, so that only what the file says can tell.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import google_crc32c
from hostile import mutate_bytes, mutate_json, spell_json
from hostile_index import PICTURES, HostileIndex
from judging import Case

from gradindex.search.ann_index import INDEX_NAMES
from gradindex.search.scoring import METHODS
from gradindex.store.array_names import IDS, ROW_ARRAYS
from gradindex.store.digests import sha256
from gradindex.store.manifest import COPIES, COPY, HEADER, SUMMARY, seal, unseal


def header(folder: Path) -> Case:
    """Return the case of a header that is another."""
    index = HostileIndex(folder)

    def case(random: Random) -> bool:
        kind = random.randrange(5)
        if kind == 0:
            content = mutate_bytes(index.files[HEADER], random)
        elif kind == 1:
            whole = json.loads(index.files[HEADER])
            content = spell_json(mutate_json(whole, random), random)
        elif kind == 2:
            return index.judge(
                index.sealed_recipe(_mutated(index.fields["recipe"], random)), True, random
            )
        else:
            return index.judge(index.sealed_header(**_mutated(index.fields, random)), True, random)
        names = random.choice(((HEADER,), (COPY,), (HEADER, COPY)))
        return index.judge(dict.fromkeys(names, content), False, random)

    return case


def _mutated(fields: Any, random: Random) -> Any:
    """A JSON object of which something inside is another."""
    changed = mutate_json(fields, random)
    return changed if isinstance(changed, dict) else fields


def manifest(folder: Path) -> Case:
    """Return the case of a manifest entry, a summary or a removal that is another."""
    index = HostileIndex(folder)
    names = [name for name in index.files if name.startswith(("manifest/c0", "removed/"))]
    names.append(SUMMARY)

    def case(random: Random) -> bool:
        name = random.choice(names)
        return _judge_json(index, name, random, _sealed_removal)

    return case


def _sealed_removal(name: str, content: bytes) -> dict[str, bytes]:
    """The files of a sealed record; a removal has a name that is its digest, and a copy."""
    if not name.startswith("removed/"):
        return {name: content}
    digest = sha256(content)[:32]
    return {f"removed/{digest}.json": content, f"removed/{digest}.copy.json": content}


def _judge_json(
    index: HostileIndex,
    name: str,
    random: Random,
    sealed: Callable[[str, bytes], dict[str, bytes]] = lambda name, content: {name: content},
) -> bool:
    """Judge a sealed JSON file that is another: its bytes, its spelling, or what it says."""
    kind = random.randrange(4)
    if kind == 0:
        return index.judge({name: mutate_bytes(index.files[name], random)}, False, random)
    fields = _mutated(unseal(index.files[name]), random)
    if kind == 1:
        return index.judge({name: spell_json(fields, random)}, False, random)
    return index.judge(sealed(name, seal(fields)), True, random)


def zarr_metadata(folder: Path) -> Case:
    """Return the case of an array's zarr.json that is another."""
    index = HostileIndex(folder)

    def case(random: Random) -> bool:
        name = f"{random.choice((*ROW_ARRAYS, IDS))}/zarr.json"
        content = index.files[name]
        if random.random() < 0.3:
            changed = mutate_bytes(content, random)
        else:
            changed = spell_json(mutate_json(json.loads(content), random), random)
        if random.random() < 0.3:
            names = random.choice(((name,), (COPIES + name,), (name, COPIES + name)))
            return index.judge(dict.fromkeys(names, changed), False, random)
        return index.judge(index.sealed_copied(name, changed), True, random)

    return case


def rows_and_ids(folder: Path) -> Case:
    """Return the case of a shard's file, or of the file of ids, that is another."""
    index = HostileIndex(folder)
    shard_files = [name for name in index.files if "/c/" in name and "sample_ids" not in name]
    ids_file = f"{IDS}/c/0"

    def case(random: Random) -> bool:
        kind = random.randrange(4)
        if kind == 0:
            name = random.choice((*shard_files, ids_file, COPIES + ids_file))
            return index.judge({name: mutate_bytes(index.files[name], random)}, False, random)
        if kind == 1:
            return index.judge(_strange_ids(index, ids_file, random), True, random)
        name = random.choice(shard_files)
        content = mutate_bytes(index.files[name], random)
        if kind == 2:
            content = with_checksum(content)
        return index.judge(index.sealed_shard_file(name, content), True, random)

    return case


def _strange_ids(index: HostileIndex, name: str, random: Random) -> dict[str, bytes]:
    """The file of ids, changed where the ids are."""
    content = index.files[name]
    used = 4 + PICTURES * (4 + len("p000.png"))  # the rest are the empty ids of the chunk
    changed = mutate_bytes(content[:used], random) + content[used:]
    return index.sealed_copied(name, with_checksum(changed))


def with_checksum(content: bytes) -> bytes:
    """A chunk whose last four bytes are the crc32c of those before."""
    return content[:-4] + struct.pack("<I", google_crc32c.value(content[:-4]))


def search_files(folder: Path) -> Case:
    """Return the case of a FAISS file, or of its record, that is another."""
    factories = (None, "IVF2,Flat", "SQ8", "PCA4,SQ4")
    indexes = [HostileIndex(folder / str(number), name) for number, name in enumerate(factories)]

    def case(random: Random) -> bool:
        index = random.choice(indexes)
        name = random.choice(INDEX_NAMES)
        if random.random() < 0.4:
            return _judge_json(index, f"faiss/{name}.json", random)
        file = f"faiss/{name}.faiss"
        content = mutate_bytes(index.files[file], random)
        if random.random() < 0.2:
            return index.judge({file: content}, False, random)
        return index.judge(index.sealed_search_file(name, content), True, random)

    return case


def whitening_files(folder: Path) -> Case:
    """Return the case of a whitening factor, or of its record, that is another."""
    index = HostileIndex(folder)

    def case(random: Random) -> bool:
        method = random.choice(METHODS)
        if random.random() < 0.5:
            return _judge_json(index, f"whiten/{method}.json", random)
        file = f"whiten/{method}-0-0.f32"
        content = mutate_bytes(index.files[file], random)
        if random.random() < 0.2:
            return index.judge({file: content}, False, random)
        return index.judge(index.sealed_factor(method, content), True, random)

    return case


KINDS: dict[str, Callable[[Path], Case]] = {
    "header of an index": header,
    "manifest": manifest,
    "zarr metadata": zarr_metadata,
    "rows and ids": rows_and_ids,
    "FAISS files": search_files,
    "whitening files": whitening_files,
}

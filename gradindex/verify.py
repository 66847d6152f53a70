"""Every byte of an index against its checksums: which files are damaged, missing or not where they belong."""

from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from gradindex.index import ROWS_OF, facts_of, file_of, made_from
from gradindex.manifest import differences, header_files, read_header, unseal
from gradindex.place import Place, at
from gradindex.store import Store


def damages(path: str | Path | Place) -> Iterator[str]:
    """What is wrong with an index, one line for each file; nothing when it is whole.

    Raises:
        CallError: no index is there. StoreError: neither the header nor its copy is whole.
    """
    place = at(path)
    header = read_header(place)
    yield from differences(place, {**header_files(header), **header["files"]})
    store = Store(place)
    shards = store.shards()
    contents = place.read_many(shard.entry for shard in shards)
    bar = tqdm(zip(shards, contents, strict=True), "verify", len(shards), unit="shard", delay=2, disable=None)
    rows_are_whole = True
    for shard, content in bar:
        try:
            found = store.damaged(store.entry(shard, content))
        except ValueError as error:
            found = [f"{shard.entry} {error}: pictures {shard.start} to {shard.stop - 1} do not count"]
        rows_are_whole &= not found
        yield from found
    for method in ROWS_OF:
        yield from _search_files(store, method, rows_are_whole)


def _search_files(store: Store, method: str, rows_are_whole: bool) -> Iterator[str]:
    """What is wrong with a method's FAISS file; an index that is not built yet has none."""
    (facts,) = store.place.read_many([facts_of(method)])
    try:
        known = unseal(facts)
    except ValueError as error:
        if facts or rows_are_whole:
            yield f"{facts_of(method)} {error}"
        return
    found = differences(store.place, {file_of(method): known.pop("sha256")})
    yield from found
    if rows_are_whole and not found and known != made_from(store):
        yield f"{file_of(method)} was made from other rows"

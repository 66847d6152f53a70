"""Every byte of an index against its checksums: which files are damaged, missing or not where they belong."""

from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from gradindex import factors
from gradindex.factors import WHITENED
from gradindex.manifest import SUMMARY, SUMMED, differences, header_files, read_header, unseal
from gradindex.place import Place, at
from gradindex.search_index import METHODS, SearchIndex, facts_of
from gradindex.store import Store


def damages(path: str | Path | Place) -> Iterator[str]:
    """What is wrong with an index, one line for each file; nothing when it is whole.

    Raises:
        CallError: no index is there. StoreError: neither the header nor its copy is whole.
    """
    place = at(path)
    header = read_header(place)
    yield from differences(place, header_files(header))
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
    yield from _summary(store, rows_are_whole)
    for method in METHODS:
        yield from _search_files(store, method, rows_are_whole)
        yield from (found := list(_factors(store, method, rows_are_whole)))
        yield from _search_files(store, method + WHITENED, rows_are_whole and not found)


def _summary(store: Store, rows_are_whole: bool) -> Iterator[str]:
    """What is wrong with the summary; a store that no build has finished has none."""
    (content,) = store.place.read_many([SUMMARY])
    try:
        facts = unseal(content, *SUMMED)
    except ValueError as error:
        if content or rows_are_whole:
            yield f"{SUMMARY} {error}"
        return
    if rows_are_whole and facts != store.summarize():
        yield f"{SUMMARY} was made from other rows"


def _factors(store: Store, method: str, rows_are_whole: bool) -> Iterator[str]:
    """What is wrong with what whitens a method's queries; nothing, where nobody has asked for it."""
    name = factors.facts_of(method)
    content, searched = store.place.read_many([name, facts_of(method + WHITENED)])
    facts = factors.saved_factors(store, method)
    if facts and rows_are_whole and not factors.fits(store, method, facts):
        yield f"{name} was made from other rows, or for another method"
    elif facts:
        yield from factors.damages(store, facts)
    elif content is not None or searched:
        yield f"{name} {'is missing' if content is None else 'was changed'}"


def _search_files(store: Store, name: str, rows_are_whole: bool) -> Iterator[str]:
    """What is wrong with a search index; one that is not built yet has none, nor has one that nobody asked for."""
    (content,) = store.place.read_many([facts_of(name)])
    try:
        index = SearchIndex(store, name, unseal(content, "factory"))
    except ValueError as error:
        if content is not None or (rows_are_whole and name in METHODS):
            yield f"{facts_of(name)} {error}"
        return
    yield from (found := index.damages())
    if rows_are_whole and not found and not index.fits():
        yield f"{facts_of(name)} was made from other rows, or for another method"

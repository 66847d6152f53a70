"""The record of a search index: what it was made from, its files, and what was measured of it.

It needs no FAISS.
"""

from typing import NamedTuple

import msgspec

from gradindex.gradients.fold import FOLD_VERSION
from gradindex.search.factors import WHITENED, saved_factors
from gradindex.store.records import Count
from gradindex.store.store import Store

FLAT, STORE = "flat", "store"


class AnnFile(msgspec.Struct, frozen=True):
    """One file of an index: its pictures (first, one after the last), its size and SHA-256."""

    file: str
    rows: tuple[Count, Count]
    bytes: Count
    sha256: str


class AnnRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What an index was made from, and what was measured of it.

    Attributes:
        factory: what its files are: "flat", "store" (none), or a string of FAISS's index_factory.
        width: numbers in a search vector.
        recipe, state: the store's, which change with its rows.
        fold: version of the code that makes search vectors.
        whitened: SHA-256 of the factors that half-whitened the rows.
        files: one for about 64 MiB.
        candidates: how many have to be scored exactly for 10 hits.
        recall_at_10: the share of the true ten among them, measured when it was made.
        query_seconds: of a search, on the machine that made it.
        nprobe: how many lists of an inverted file are searched.
        asked: the factory that was asked for.
    """

    factory: str
    width: Count
    recipe: str
    state: str
    fold: int
    whitened: list[str] | None = None
    files: list[AnnFile]
    candidates: Count
    recall_at_10: float
    query_seconds: float | None = None
    nprobe: Count | None = None
    asked: str | None = None


class AnnOrigin(NamedTuple):
    """What an index must agree with: the rows, and how search vectors are made of them."""

    recipe: str
    state: str
    fold: int
    whitened: list[str] | None


def index_origin(store: Store, name: str) -> AnnOrigin:
    """The origin of an index of that name that is made now."""
    whitened = None
    if name.endswith(WHITENED):
        saved = saved_factors(store, name.removesuffix(WHITENED))
        if saved:
            whitened = [block.sha256 for block in saved.blocks]
    return AnnOrigin(store.recipe.digest, store.summary.state, FOLD_VERSION, whitened)


def index_file(name: str, number: int) -> str:
    """An index's file of that number.

    >>> index_file("tracin", 0), index_file("tracin", 1)
    ('faiss/tracin.faiss', 'faiss/tracin-1.faiss')
    """
    return f"faiss/{name}-{number}.faiss" if number else f"faiss/{name}.faiss"


def index_record_file(name: str) -> str:
    """The file with an index's AnnRecord."""
    return f"faiss/{name}.json"


def names_own_files(record: AnnRecord, name: str) -> bool:
    """Whether a record names the files of an index of that name, and no others."""
    files = [part.file for part in record.files]
    return files == [index_file(name, number) for number in range(len(files))]


def covers_rows(record: AnnRecord, store: Store) -> bool:
    """Whether the files are of all pictures, and the numbers those of an index of them."""
    if record.factory == STORE:
        return not record.files
    stop = 0
    for part in record.files:
        if part.rows[0] != stop or part.rows[1] <= stop:
            return False
        stop = part.rows[1]
    is_measured = record.candidates > 0 and record.nprobe != 0
    has_width = record.width == store.recipe.search_width
    return is_measured and has_width and stop == store.shape[1]

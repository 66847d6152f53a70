"""The record of a store's whitening factors: which rows they were made from, and their files.

It needs no torch, which searching does without. The factors themselves are `whitening`'s.
"""

from contextlib import suppress

import msgspec

from gradindex.store.manifest import differences, read_record
from gradindex.store.store import Store

WHITENED = "-whitened"  # at the end of a search index's name
WIDEST = 8192  # numbers in a row, up to which GᵀG is made
VERSION = 3  # raised whenever the same rows give other factors


class FactorBlock(msgspec.Struct, frozen=True):
    """The lower Cholesky factor of one block, [D, D] float32.

    Attributes:
        block: checkpoint number and timestep number.
        added: λ, what was added to the diagonal of GᵀG/N.
        file, sha256: where it lies, and its SHA-256 hex.
    """

    block: tuple[int, int]
    added: float = msgspec.field(name="lambda")
    file: str
    sha256: str


class FactorRecord(msgspec.Struct, frozen=True):
    """What a method's factors were made from.

    Attributes:
        version: of the code that makes them.
        method: "tracin" or "retrac".
        recipe, state: the store's, which change with its rows.
        pictures, counted: N, and those of them that were not skipped.
        damping: λ as a share of the rows' mean square norm.
    """

    version: int
    method: str
    recipe: str
    state: str
    pictures: int
    counted: int
    damping: float
    blocks: list[FactorBlock]


def is_wide(store: Store) -> bool:
    """Whether rows are too wide for a D × D matrix.

    There are then no search files of half-whitened rows.
    """
    return store.shape[3] > WIDEST


def factors_file(method: str) -> str:
    """The file of a method's FactorRecord."""
    return f"whiten/{method}.json"


def saved_factors(store: Store, method: str) -> FactorRecord | None:
    """The record of a method's factors, of whichever rows; None where there is none."""
    (content,) = store.location.read_many([factors_file(method)])
    with suppress(ValueError):
        return read_record(content, FactorRecord)
    return None


def new_factors(store: Store, method: str, damping: float) -> FactorRecord:
    """The record, still without blocks, of factors that are made now from all rows."""
    pictures = store.shape[1]
    return FactorRecord(
        version=VERSION,
        method=method,
        recipe=store.recipe.digest,
        state=store.summary.state,
        pictures=pictures,
        counted=pictures - len(store.summary.skipped),
        damping=damping,
        blocks=[],
    )


def factors_fit(store: Store, method: str, saved: FactorRecord) -> bool:
    """Whether factors are a method's, of the store's rows."""
    now = new_factors(store, method, saved.damping)
    return msgspec.structs.replace(saved, blocks=[]) == now


def can_extend(store: Store, method: str, saved: FactorRecord) -> bool:
    """Whether factors are whole, and of all pictures that the store had before some were added."""
    now = new_factors(store, method, saved.damping)
    same = (saved.version, saved.method, saved.recipe) == (now.version, now.method, now.recipe)
    return same and saved.pictures < now.pictures and not factor_damages(store, saved)


def factor_damages(store: Store, saved: FactorRecord) -> list[str]:
    """Which factors are not as they were made, one line each."""
    return differences(store.location, {block.file: block.sha256 for block in saved.blocks})

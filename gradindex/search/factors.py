"""The record of a store's whitening factors: which rows they were made from, and their files.

It needs no torch, which searching does without. The factors themselves are `whitening`'s.
"""

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from weakref import WeakKeyDictionary

import msgspec

from gradindex.search.scoring import METHODS
from gradindex.store.manifest import differences, read_record
from gradindex.store.records import Count
from gradindex.store.store import Store

WHITENED = "-whitened"  # at the end of a search index's name
WIDEST = 8192  # numbers in a row, up to which GᵀG is made
FEW_BYTES = 1 << 30  # of all rows, up to which a query holds them in memory
FACTOR_FILE = re.compile(r"whiten/[a-z]+-\d+-\d+\.f32")
DAMPING = 0.001  # of new factors, for five weighted timesteps: `tools/bench parts`
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
    pictures: Count
    counted: Count
    damping: float
    blocks: list[FactorBlock]


def is_wide(store: Store) -> bool:
    """Whether rows are too wide for a D × D matrix.

    There are then no search files of half-whitened rows.
    """
    return store.shape[3] > WIDEST


def is_few(store: Store) -> bool:
    """Whether there are so few pictures that a query takes their rows themselves.

    It is then whitened by way of an N × N matrix and scans the rows: there are neither factors nor
    search files, which would be larger than the rows and save no time.
    """
    return is_few_for(store.shape, store.shape[1] - len(store.summary.skipped))


def is_few_for(shape: Sequence[int], counted: int) -> bool:
    """The same of rows [C, N, T, D], so many of whose pictures were not skipped."""
    return counted < shape[3] and 4 * math.prod(shape) <= FEW_BYTES


def factor_bytes(shape: Sequence[int]) -> int:
    """The bytes of all factors of rows [C, N, T, D], of both methods."""
    checkpoints, _, timesteps, dim = shape
    return 4 * checkpoints * timesteps * dim**2 * len(METHODS)


def goes_by_rows(store: Store, method: str) -> bool:
    """Whether queries of a method are whitened by the rows themselves, without factors.

    Few pictures have factors where an earlier gradindex made them, or they were asked for.
    """
    if is_wide(store):
        return True
    if not is_few(store):
        return False
    saved = saved_factors(store, method)
    return not (saved and factors_fit(store, method, saved))


def factors_file(method: str) -> str:
    """The file of a method's FactorRecord."""
    return f"whiten/{method}.json"


def saved_factors(store: Store, method: str) -> FactorRecord | None:
    """The record of a method's factors, of whichever rows; None where there is none."""
    (content,) = store.location.read_many([factors_file(method)])
    with suppress(ValueError):
        return read_record(content, FactorRecord)
    return None


_USUAL_DAMPINGS: WeakKeyDictionary[Store, float] = WeakKeyDictionary()  # as first asked for


def usual_damping(store: Store) -> float:
    """The damping that a store's queries have unless told otherwise: that of its factors.

    Factors and search files that an earlier gradindex made may have another than new ones; a store
    that has none of its rows, or whose few pictures go without, gets `DAMPING`.
    """
    if store not in _USUAL_DAMPINGS:
        damping = DAMPING
        for method in METHODS:
            saved = saved_factors(store, method)
            if saved and _is_used(store, method, saved):
                damping = saved.damping
                break
        _USUAL_DAMPINGS[store] = damping
    return _USUAL_DAMPINGS[store]


def _is_used(store: Store, method: str, saved: FactorRecord) -> bool:
    """Whether a store's queries are whitened by these factors, or by what they are extended to."""
    if is_few(store):
        return factors_fit(store, method, saved)
    return _is_of_recipe(store, method, saved) and 0 < saved.damping < math.inf


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
    return msgspec.structs.replace(saved, blocks=[]) == now and _is_whole(store, saved)


def factor_file(method: str, checkpoint: int, timestep: int) -> str:
    """The file of a method's factor at a checkpoint number and timestep number."""
    return f"whiten/{method}-{checkpoint}-{timestep}.f32"


def can_extend(store: Store, method: str, saved: FactorRecord) -> bool:
    """Whether factors are whole, and of all pictures that the store had before some were added."""
    are_fewer = saved.counted <= saved.pictures < store.shape[1]
    return (
        _is_of_recipe(store, method, saved)
        and are_fewer
        and _is_whole(store, saved)
        and not factor_damages(store, saved)
    )


def _is_of_recipe(store: Store, method: str, saved: FactorRecord) -> bool:
    """Whether a record is of a method's rows of the store's recipe, however many they were."""
    made_from = saved.version, saved.method, saved.recipe
    return made_from == (VERSION, method, store.recipe.digest)


def _is_whole(store: Store, saved: FactorRecord) -> bool:
    """Whether a record has every block of the store, in order, with numbers above 0."""
    checkpoints, _, timesteps, _ = store.shape
    places = list(product(range(checkpoints), range(timesteps)))
    files = [factor_file(saved.method, *place) for place in places]
    numbers = [saved.damping, *(block.added for block in saved.blocks)]
    return (
        [block.block for block in saved.blocks] == places
        and [block.file for block in saved.blocks] == files
        and all(0 < number < math.inf for number in numbers)
    )


def factor_damages(store: Store, saved: FactorRecord) -> list[str]:
    """Which factors are not as they were made, one line each."""
    for block in saved.blocks:
        if not FACTOR_FILE.fullmatch(block.file):
            return [f"{factors_file(saved.method)} names other files"]
    return differences(store.location, {block.file: block.sha256 for block in saved.blocks})

"""The facts of a store's whitening factors: which rows they were made from. No torch, which searching does without.

The factors themselves are `whiten`'s.
"""

from contextlib import suppress
from typing import Any

from gradindex.manifest import differences, unseal
from gradindex.store import Store

WHITENED = "-whitened"  # at the end of a search index's name
WIDEST = 8192  # numbers in a row, up to which GᵀG is made
VERSION = 3  # raised whenever the same rows give other factors


def is_wide(store: Store) -> bool:
    """Whether rows are too wide for a D × D matrix; then there are no search files of half-whitened rows."""
    return store.shape[3] > WIDEST


def saved_factors(store: Store, method: str) -> dict[str, Any] | None:
    """The facts of a method's factors, of whichever rows; None where there are none."""
    (content,) = store.place.read_many([facts_of(method)])
    with suppress(ValueError):
        return unseal(content, "blocks", "state", "damping")
    return None


def facts_of(method: str) -> str:
    """The file with a method's facts."""
    return f"whiten/{method}.json"


def fits(store: Store, method: str, facts: dict[str, Any]) -> bool:
    """Whether factors are a method's, of the store's rows."""
    now = made_from_now(store, method)
    return {name: facts.get(name) for name in now} == now


def made_from_now(store: Store, method: str) -> dict[str, Any]:
    """What factors that are made now are made from."""
    pictures, skipped = store.shape[1], store.summary["skipped"]
    facts = {"version": VERSION, "method": method, "recipe": store.recipe.digest, "state": store.summary["state"]}
    return {**facts, "pictures": pictures, "counted": pictures - len(skipped)}


def damages(store: Store, facts: dict[str, Any]) -> list[str]:
    """Which factors are not as they were made, one line each."""
    return differences(store.place, {block["file"]: block["sha256"] for block in facts["blocks"]})


def extended_by(store: Store, method: str, facts: dict[str, Any]) -> bool:
    """Whether the store has all the pictures that these factors are of and more, and the factors are whole."""
    now = made_from_now(store, method)
    same = all(facts.get(name) == now[name] for name in ("version", "method", "recipe"))
    return same and facts["pictures"] < store.shape[1] and not damages(store, facts)

"""What an index lives through after its build: pictures are added, taken out, and their rows erased."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from gradindex.arrays import skeleton
from gradindex.errors import CallError
from gradindex.manifest import COPIES, read_header
from gradindex.place import Place, at, sha256
from gradindex.store import Store


def grow(store: Store, sample_ids: Sequence[str]) -> Store:
    """The store with these pictures after its own; until a build has finished, readers see the old ones only."""
    ids = [*store.sample_ids, *sample_ids]
    layout = {name: store.attributes[name] for name in ("shard_rows", "chunk_rows")}
    files, before = skeleton(store.recipe.shape(len(ids)), ids, **layout), store.attributes["files"]
    digests = {name: sha256(content) for name, content in files.items()}
    changed = {name: content for name, content in files.items() if digests[name] != before.get(name)}
    for name, content in changed.items():
        store.place.publish(COPIES + name, content)  # from here on a crash is mended from the one side or the other
    old = {name: before[name] for name in changed if name in before}
    store.set_attributes(pictures=len(ids), files=digests, before=old)
    for name, content in changed.items():
        store.place.publish(name, content)
    return Store(store.place)


def remove(path: str | Path | Place, sample_ids: Iterable[str]) -> int:
    """Take pictures out: no query returns them any more and no build adds them again. How many were still in.

    Their rows stay in the arrays until `compact`.

    Raises:
        CallError: an id was never in the index; nothing is removed.
    """
    store = Store(at(path))
    wanted = {id_key(name): name for name in sample_ids}
    known = store.attributes["removed"]
    rows = {key: row for row, name in enumerate(store.sample_ids) if (key := id_key(name)) in wanted}
    if unknown := [name for key, name in wanted.items() if key not in rows and key not in known]:
        raise CallError(f"{store.place}: {len(unknown)} of {len(wanted)} ids are not in it, such as {unknown[0]!r}")
    new = {key: row for key, row in rows.items() if key not in known}
    if new:
        store.set_attributes(removed={**read_header(store.place)["removed"], **new})
    return len(new)


def id_key(sample_id: str) -> str:
    """What is kept of a removed picture's id, when its rows are gone too: 128 bits of its SHA-256."""
    return sha256(sample_id.encode())[:32]

"""What an index lives through after its build: pictures are added, taken out, and their rows erased."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gradindex.arrays import skeleton
from gradindex.dataset import MARK
from gradindex.errors import CallError
from gradindex.index import build_index
from gradindex.manifest import COPIES, is_store, read_header
from gradindex.place import Disk, Place, at, sha256
from gradindex.search_index import NAMES, saved_index, wanted
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


def compact(path: str | Path | Place, out: str | Path | Place | None = None) -> Store:
    """Erase the rows and ids of removed pictures: the index is written anew without them, and takes its place.

    Stopped and run again, it goes on; until the new index is whole the old one stays. Rows keep their order.

    Args:
        out: where to write the new index, which leaves the old one; in an object store there is no other way.

    Raises:
        StoreError: the build has not finished. CallError: there is nothing to erase, or nothing else.
    """
    old = Store(at(path))
    removed = old.attributes["removed"]
    kept = np.setdiff1d(np.arange(old.shape[1]), [row for row in removed.values() if row is not None])
    if len(kept) in (0, old.shape[1]):
        raise CallError(f"{old.place}: {'all' if not len(kept) else 'none'} of its pictures are removed; nothing to do")
    if out is None and not isinstance(old.place, Disk):
        raise CallError(f"{old.place}: an object store exchanges nothing; give out, another URL")
    place = old.place.beside("compact") if out is None else at(out)  # type: ignore[union-attr]
    new = _shrunk(old, place, [old.sample_ids[row] for row in kept.tolist()])
    marks, skipped = _marks(old)
    for shard in new.missing():
        rows = kept[shard.start : shard.stop]
        names = ("unnormalized", "timestep", "normalized")
        u, t, units = (old.read(name, shard.checkpoint, rows) for name in names)
        out_of_it = shard.start + np.flatnonzero(skipped[shard.checkpoint, rows])
        new.write(shard, u, t, out_of_it.tolist(), b"".join(marks[rows]).decode(), units)
    new.finish()
    for name in NAMES:
        index = saved_index(old, name)
        if index or name in wanted(new):
            build_index(new, name, index.facts["asked"] if index else "auto")
    if out is None:
        old.place.exchange(place)  # type: ignore[union-attr,arg-type]
        place.delete()
    return Store.finished(path if out is None else place)


def _shrunk(old: Store, place: Place, sample_ids: list[str]) -> Store:
    """The store at a place, with these pictures of another one: a new one, or one that was begun."""
    if is_store(place) and Store(place).sample_ids != sample_ids:
        place.delete()  # begun before other pictures were removed, or what an exchange has left
    own = ("format", "recipe", "digest", "pictures", "shard_rows", "chunk_rows", "files", "before", "removed")
    passed_on = {name: value for name, value in old.attributes.items() if name not in own}
    return Store.create(place, old.recipe, sample_ids, **passed_on, removed=dict.fromkeys(old.attributes["removed"]))


def _marks(store: Store) -> tuple[np.ndarray, np.ndarray]:
    """The mark of each picture, [N] bytes, and which pictures each checkpoint skipped, [C, N] bool."""
    marks, skipped = np.empty(store.shape[1], f"S{MARK}"), np.zeros(store.shape[:2], bool)
    for entry in store.entries():
        start, stop = entry["rows"]
        marks[start:stop] = [entry["pictures"][i * MARK : (i + 1) * MARK] for i in range(stop - start)]
        skipped[entry["checkpoint"], entry["skipped"]] = True
    return marks, skipped


def id_key(sample_id: str) -> str:
    """What is kept of a removed picture's id, when its rows are gone too: 128 bits of its SHA-256."""
    return sha256(sample_id.encode())[:32]

"""The upkeep of an index after its build: pictures are added, removed, and their rows erased."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gradindex.data.dataset import FINGERPRINT_DIGITS
from gradindex.errors import CallError
from gradindex.search.ann_builder import build_ann_index
from gradindex.search.ann_index import INDEX_NAMES, default_index_names, saved_ann_index
from gradindex.store.arrays import skeleton
from gradindex.store.digests import sha256
from gradindex.store.disk import Disk
from gradindex.store.location import Location, locate
from gradindex.store.manifest import COPIES, is_store, read_header
from gradindex.store.store import Store


def grow(store: Store, sample_ids: Sequence[str]) -> Store:
    """Add pictures behind a store's own, without rows yet, and return the store with them.

    Until a build has finished, readers see the old pictures only.
    """
    ids = [*store.sample_ids, *sample_ids]
    header = store.header
    files = skeleton(
        store.recipe.shape(len(ids)),
        ids,
        shard_rows=header.shard_rows,
        chunk_rows=header.chunk_rows,
    )
    digests = {name: sha256(content) for name, content in files.items()}
    changed = [name for name in files if digests[name] != header.files.get(name)]
    # A crash while the copies are published leaves a store without the new pictures, and one after
    # the header a store with them. `Store.mended` makes files and copies equal again: from the
    # files in the first case, from the copies in the second.
    for name in changed:
        store.location.publish(COPIES + name, files[name])
    before = {name: header.files[name] for name in changed if name in header.files}
    store.update_header(pictures=len(ids), files=digests, before=before)
    for name in changed:
        store.location.publish(name, files[name])
    return Store(store.location)


def remove(path: str | Path | Location, sample_ids: Iterable[str]) -> int:
    """Remove pictures: no query returns them any more, and no build adds them again.

    Their rows stay in the arrays until `compact`.

    Returns:
        How many of them had not been removed before.

    Raises:
        CallError: an id was never in the index; nothing is removed.
    """
    store = Store(locate(path))
    id_of_key = {id_key(name): name for name in sample_ids}
    removed = store.header.removed
    row_of_key = {}
    for row, name in enumerate(store.sample_ids):
        key = id_key(name)
        if key in id_of_key:
            row_of_key[key] = row
    unknown = [
        name for key, name in id_of_key.items() if key not in row_of_key and key not in removed
    ]
    if unknown:
        raise CallError(
            f"{store.location}: {len(unknown)} of {len(id_of_key)} ids are not in it,"
            f" such as {unknown[0]!r}"
        )
    new = {key: row for key, row in row_of_key.items() if key not in removed}
    if new:
        # Another process may have removed pictures since the store was opened.
        store.update_header(removed={**read_header(store.location).removed, **new})
    return len(new)


def compact(path: str | Path | Location, out: str | Path | Location | None = None) -> Store:
    """Erase the rows and ids of removed pictures.

    The index is written anew without them, and takes the place of the old one, which stays until
    the new one is whole. Stopped and run again, it goes on. Rows keep their order.

    Args:
        out: where to write the new index, which leaves the old one; in an object store there is no
            other way.

    Returns:
        The new store.

    Raises:
        StoreError: the build has not finished.
        CallError: no picture was removed, or all were; or `out` is needed.
    """
    old = Store(locate(path))
    kept = _kept_rows(old)
    if out is not None:
        location = locate(out)
        _write_compacted(old, kept, location)
        return Store.finished(location)
    if not isinstance(old.location, Disk):
        raise CallError(f"{old.location}: an object store exchanges nothing; give out, another URL")
    beside = old.location.beside("compact")
    _write_compacted(old, kept, beside)
    old.location.exchange(beside)
    beside.delete()
    return Store.finished(path)


def _kept_rows(store: Store) -> np.ndarray:
    """Return the rows of a store whose pictures were not removed, ascending, int64.

    Raises:
        CallError: these are all rows, or none.
    """
    pictures = store.shape[1]
    removed = [row for row in store.header.removed.values() if row is not None]
    kept = np.setdiff1d(np.arange(pictures), removed)
    if len(kept) in (0, pictures):
        removed_share = "none" if len(kept) else "all"
        raise CallError(
            f"{store.location}: {removed_share} of its pictures are removed; nothing to do"
        )
    return kept


def _write_compacted(old: Store, kept: np.ndarray, location: Location) -> None:
    """Write the index of a store's kept rows, as far as it is not there yet.

    Args:
        kept: ascending row numbers of `old`.
    """
    new = _begin_compacted(old, location, [old.sample_ids[row] for row in kept.tolist()])
    fingerprints, skipped = _fingerprints(old)
    for shard in new.missing():
        rows = kept[shard.start : shard.stop]
        unnormalized = old.read("unnormalized", shard.checkpoint, rows)
        timestep = old.read("timestep", shard.checkpoint, rows)
        units = old.read("normalized", shard.checkpoint, rows)
        skipped_rows = shard.start + np.flatnonzero(skipped[shard.checkpoint, rows])
        pictures = b"".join(fingerprints[rows]).decode()
        new.write(shard, unnormalized, timestep, skipped_rows.tolist(), pictures, units)
    new.finish()
    for name in INDEX_NAMES:
        index = saved_ann_index(old, name)
        if index or name in default_index_names(new):
            factory = index.record.asked if index else None
            build_ann_index(new, name, factory or "auto")


def _begin_compacted(old: Store, location: Location, sample_ids: list[str]) -> Store:
    """Return the store at a location for these pictures of another one: begun before, or new."""
    if is_store(location) and Store(location).sample_ids != sample_ids:
        # It was begun before other pictures were removed, or it is what an exchange has left.
        location.delete()
    header = old.header
    return Store.create(
        location,
        old.recipe,
        sample_ids,
        removed=dict.fromkeys(header.removed),
        model=header.model,
        scheduler=header.scheduler,
        checkpoints=header.checkpoints,
        weights=header.weights,
        data=header.data,
        log=header.log,
    )


def _fingerprints(store: Store) -> tuple[np.ndarray, np.ndarray]:
    """Return what a store's manifest says of its pictures.

    Returns:
        The fingerprint of each picture, [N] bytes, and whether each checkpoint skipped it,
        [C, N] bool.
    """
    fingerprints = np.empty(store.shape[1], f"S{FINGERPRINT_DIGITS}")
    skipped = np.zeros(store.shape[:2], bool)
    for entry in store.entries():
        start, stop = entry.rows
        digits = range(0, (stop - start) * FINGERPRINT_DIGITS, FINGERPRINT_DIGITS)
        fingerprints[start:stop] = [
            entry.pictures[digit : digit + FINGERPRINT_DIGITS] for digit in digits
        ]
        skipped[entry.checkpoint, entry.skipped] = True
    return fingerprints, skipped


def id_key(sample_id: str) -> str:
    """Return what is kept of a removed picture's id when its rows are gone too.

    It is 128 bits of the id's SHA-256, as hex digits.

    >>> id_key("a.png")
    '7f071235805fbf58a2524f77bff76e13'
    """
    return sha256(sample_id.encode())[:32]

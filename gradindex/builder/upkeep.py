"""The upkeep of an index after its build: pictures are added, removed, and their rows erased."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradindex.builder.target import check_target
from gradindex.data.dataset import FINGERPRINT_DIGITS
from gradindex.data.picture_facts import NO_CONTENT, NO_STAT
from gradindex.errors import CallError, StoreError
from gradindex.search.ann_builder import build_ann_indexes
from gradindex.search.ann_index import INDEX_NAMES, default_index_names, saved_ann_index
from gradindex.store.arrays import skeleton
from gradindex.store.digests import sha256
from gradindex.store.disk import Disk
from gradindex.store.header_lock import header_lock
from gradindex.store.location import Location, locate
from gradindex.store.manifest import COPIES, is_store, read_header
from gradindex.store.removals import discard_removal, mend_removals, publish_removal
from gradindex.store.store import Store
from gradindex.wording import share

REMOVE_ATTEMPTS = 3  # of a removal while other processes change the rows of the index


def grow(store: Store, sample_ids: Sequence[str]) -> Store | None:
    """Add pictures behind a store's own, without rows yet, and return the store with them.

    Until a build has finished, readers see the old pictures only.

    Returns:
        None where another build has added pictures since the store was opened; nothing is changed.
    """
    with header_lock(store.location):
        if read_header(store.location).files != store.header.files:
            return None
        return _grow(store, sample_ids)


def _grow(store: Store, sample_ids: Sequence[str]) -> Store:
    ids = [*store.sample_ids, *sample_ids]
    header = store.header
    files = skeleton(
        store.arrays,
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
        StoreError: other processes change the rows of the index again and again.
    """
    location = locate(path)
    id_of_key = {id_key(name): name for name in sample_ids}
    for _ in range(REMOVE_ATTEMPTS):
        store = Store(location)
        mend_removals(location)
        new = _not_removed_yet(store, id_of_key)
        if not new:
            return 0
        removal = publish_removal(location, new)
        # `compact` may have put an index with other row numbers there meanwhile.
        ids = Store(location).sample_ids
        if all(row < len(ids) and ids[row] == id_of_key[key] for key, row in new.items()):
            return len(new)
        discard_removal(location, removal)
    raise StoreError(f"{location}: its rows are changed all the time; remove the pictures later")


def _not_removed_yet(store: Store, id_of_key: Mapping[str, str]) -> dict[str, int]:
    """Return the row of each picture that was not removed before, by `id_key`.

    Args:
        id_of_key: ids of pictures by `id_key`.

    Raises:
        CallError: an id was never in the index.
    """
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
            f"{store.location}: {share(len(unknown), len(id_of_key), 'id', 'is', 'are')} not in it,"
            f" such as {unknown[0]!r}; none is removed, give ids as a query shows them"
        )
    return {key: row for key, row in row_of_key.items() if key not in removed}


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
        CallError: no picture was removed, or all were; or `out` is needed, or another index or
            something else lies there, or beside the index where the new one is to be written.
    """
    old = Store(locate(path))
    kept = _kept_rows(old)
    if out is not None:
        location = locate(out)
        check_target(location)
        if is_store(location) and not _holds(location, old, kept):
            raise CallError(
                f"{location}: another index lies there, or one that was begun before more pictures"
                " were removed; choose another place"
            )
        _write_compacted(old, kept, location)
        _carry_removals(old.location, kept, location)
        return Store.finished(location)
    if not isinstance(old.location, Disk):
        raise CallError(f"{old.location}: an object store exchanges nothing; give out, another URL")
    beside = old.location.beside("compact")
    beside.require_free()
    if is_store(beside) and not _holds(beside, old, kept):
        # It was begun before other pictures were removed, or it is what an exchange has left.
        beside.delete()
    beside.mark()
    _write_compacted(old, kept, beside)
    _carry_removals(old.location, kept, beside)
    old.location.mark()
    old.location.exchange(beside)
    _carry_removals(beside, kept, old.location)
    old.location.unmark()
    beside.delete()
    return Store.finished(path)


def _holds(location: Location, old: Store, kept: np.ndarray) -> bool:
    """Whether the store at a location has the ids of the kept rows of another one."""
    return Store(location).sample_ids == [old.sample_ids[row] for row in kept.tolist()]


def _carry_removals(old: Location, kept: np.ndarray, new: Location) -> None:
    """Remove from a compacted store what was removed from the old one while it was written.

    Args:
        kept: ascending row numbers of the old store that the new one has.
    """
    known = Store(new).header.removed
    rows = Store(old).header.removed.items()
    later = {
        key: int(np.searchsorted(kept, row))
        for key, row in rows
        if key not in known and row is not None
    }
    if later:
        publish_removal(new, later)


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
    facts = _picture_facts(old)
    for shard in new.missing():
        rows = kept[shard.start : shard.stop]
        unnormalized = old.read("unnormalized", shard.checkpoint, rows)
        timestep = old.read("timestep", shard.checkpoint, rows)
        units = old.read("normalized", shard.checkpoint, rows)
        skipped = shard.start + np.flatnonzero(facts.skipped[shard.checkpoint, rows])
        texts = facts.texts(rows)
        new.write(shard, unnormalized, timestep, skipped.tolist(), units=units, **texts)
    new.finish()
    by_factory: dict[str, list[str]] = {}
    for name in INDEX_NAMES:
        index = saved_ann_index(old, name)
        if index or name in default_index_names(new):
            asked = (index and index.record.asked) or "auto"
            by_factory.setdefault(asked, []).append(name)
    for factory, names in by_factory.items():
        build_ann_indexes(new, names, factory)


def _begin_compacted(old: Store, location: Location, sample_ids: list[str]) -> Store:
    """Return the store at a location for these pictures of another one: begun before, or new."""
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
        trainer=header.trainer,
        parameters=header.parameters,
    )


@dataclass(frozen=True)
class PictureFacts:
    """What a store's manifest says of its pictures.

    Attributes:
        skipped: whether each checkpoint skipped a picture, [C, N] bool.
        fingerprints, contents, stats: of each picture, [N] bytes; see `ShardEntry`.
    """

    skipped: np.ndarray
    fingerprints: np.ndarray
    contents: np.ndarray
    stats: np.ndarray

    def texts(self, rows: np.ndarray) -> dict[str, str]:
        """Return the arguments of `Store.write` that say which pictures some rows are of."""
        columns = {
            "pictures": self.fingerprints,
            "contents": self.contents,
            "stats": self.stats,
        }
        return {name: b"".join(column[rows]).decode() for name, column in columns.items()}


def _picture_facts(store: Store) -> PictureFacts:
    """Return what a store's manifest says of its pictures."""
    pictures = store.shape[1]
    facts = PictureFacts(
        skipped=np.zeros(store.shape[:2], bool),
        fingerprints=np.empty(pictures, f"S{FINGERPRINT_DIGITS}"),
        contents=np.full(pictures, NO_CONTENT.encode()),
        stats=np.full(pictures, NO_STAT.encode()),
    )
    for entry in store.entries():
        facts.skipped[entry.checkpoint, entry.skipped] = True
        for row in range(*entry.rows):
            facts.fingerprints[row] = entry.fingerprint(row)
            # Where one checkpoint skipped a picture, another may have read it.
            if entry.content(row) != NO_CONTENT:
                facts.contents[row] = entry.content(row)
            facts.stats[row] = entry.stat(row)
    return facts


def id_key(sample_id: str) -> str:
    """Return what is kept of a removed picture's id when its rows are gone too.

    It is 128 bits of the id's SHA-256, as hex digits.

    >>> id_key("a.png")
    '7f071235805fbf58a2524f77bff76e13'
    """
    return sha256(sample_id.encode())[:32]

"""Which pictures are other ones than those that rows were made from."""

from collections.abc import Callable, Iterator

from gradindex.data.dataset import GONE, Dataset
from gradindex.data.picture_facts import NO_CONTENT, NO_STAT
from gradindex.store.records import ShardEntry


def changed_pictures(
    entry: ShardEntry,
    dataset: Dataset,
    content_of: Callable[[int], str],
    *,
    read_all: bool = False,
) -> Iterator[int]:
    """Yield the rows of a committed shard that were made of another picture than is there now.

    A picture that was skipped may have been repaired since, and does not count; nor does one that
    is gone.

    Args:
        dataset: in the order of the store's rows.
        content_of: `Dataset.content`, cached where several checkpoints have the same pictures.
        read_all: read every picture, not only those whose file has another size, time or inode.
    """
    start, stop = entry.rows
    for row in range(start, min(stop, len(dataset))):
        fingerprint = dataset.fingerprint(row)
        if row in entry.skipped or fingerprint == GONE:
            continue
        has_changed = fingerprint != entry.fingerprint(row)
        if not has_changed and (read_all or _may_have_changed(entry, dataset, row)):
            has_changed = _has_changed(entry, content_of, row)
        if has_changed:
            yield row


def stats_now(entry: ShardEntry, dataset: Dataset) -> str:
    """Return what an entry's `stats` are with the files as they are now.

    Empty where the entry has none, and as before for pictures that are gone.
    """
    if not entry.stats:
        return ""
    stats = []
    for row in range(*entry.rows):
        stat = dataset.stats[row].decode() if row < len(dataset) else NO_STAT
        stats.append(entry.stat(row) if stat == NO_STAT else stat)
    return "".join(stats)


def _may_have_changed(entry: ShardEntry, dataset: Dataset, row: int) -> bool:
    """Whether size, time or inode of a picture's file are other ones, as far as they are known."""
    before = entry.stat(row)
    return before != NO_STAT and before != dataset.stats[row].decode()


def _has_changed(entry: ShardEntry, content_of: Callable[[int], str], row: int) -> bool:
    """Whether a picture has other bytes, which are read, than those that its row was made from."""
    before = entry.content(row)
    return before != NO_CONTENT and before != content_of(row)

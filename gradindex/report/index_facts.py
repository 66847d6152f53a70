"""What an index holds, as JSON values: the answer of `gradindex info --format json`."""

import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from msgspec import UNSET, to_builtins

from gradindex.search.ann_index import INDEX_NAMES, saved_ann_index
from gradindex.search.ann_record import AnnRecord
from gradindex.search.factors import usual_damping
from gradindex.store.store import Store

# What the files in a folder of an index are; of others the folder's own name says it.
PARTS = {
    "sample_ids": "ids",
    "manifest": "manifest",
    "zarr.json": "manifest",
    "whiten": "whitening",
    "faiss": "search files",
    "prepared": "encoded pictures",
}

ENTRY = re.compile(r"manifest/c\d")  # of a shard


@dataclass(frozen=True)
class Files:
    """The files of an index.

    Attributes:
        bytes: {part: bytes of its files}, largest first.
        first, last: when the first and the last shard's entry were written, by the files' own
            times; None where there is none. A copy of an index may have other times.
    """

    bytes: dict[str, int]
    first: datetime | None
    last: datetime | None


def index_files(store: Store) -> Files:
    """Return the bytes of each part of an index, and when its shards were written.

    Every file is listed, none is read.
    """
    sizes: Counter[str] = Counter()
    times = []
    for name, size, written in store.location.files():
        folder = name.partition("/")[0]
        sizes[PARTS.get(folder, folder)] += size
        if ENTRY.match(name) and written:
            times.append(written)
    ends = (
        [datetime.fromtimestamp(pick(times), UTC) for pick in (min, max)] if times else [None] * 2
    )
    return Files(dict(sizes.most_common()), ends[0], ends[1])


def index_facts(store: Store) -> dict[str, Any]:
    """Return what an index holds and what is missing, as JSON values.

    The fields are those of docs/cli.md. Dates are in UTC, sizes in bytes.
    """
    header, recipe = store.header, store.recipe
    missing = store.missing()
    files = index_files(store)
    checkpoints = [
        {"path": checkpoint.path, "weight": weight}
        for checkpoint, weight in zip(header.checkpoints, header.weights, strict=False)
    ]
    names = ("checkpoints", "pictures", "timesteps", "numbers")
    return {
        "index": str(store.location),
        "finished": not missing,
        "pictures": store.shape[1],
        "skipped": None if missing else len(store.summary.skipped),
        "removed": sum(row is not None for row in header.removed.values()),
        "rows": dict(zip(names, store.shape, strict=True)),
        "shards": len(store.shards()),
        "missing": [shard.name for shard in missing],
        "data": None if header.data is None else to_builtins(header.data),
        "model": header.model,
        "checkpoints": checkpoints,
        "scheduler": header.scheduler,
        "log": header.log,
        "trainer": None if header.trainer is UNSET else header.trainer.describe(),
        "first_shard": _iso(files.first),
        "last_shard": _iso(files.last),
        "bytes": files.bytes,
        "recipe": recipe.to_json(),
        "digest": recipe.digest,
        "damping": None if missing else usual_damping(store),
        "search": {
            name: _search_facts(saved.record)
            for name in INDEX_NAMES
            if (saved := saved_ann_index(store, name))
        },
    }


def _search_facts(record: AnnRecord) -> dict[str, Any]:
    """What a search index is, and what was measured of it."""
    return {
        "factory": record.factory,
        "files": len(record.files),
        "bytes": sum(part.bytes for part in record.files),
        "candidates": record.candidates,
        "recall_at_10": record.recall_at_10,
        "query_seconds": record.query_seconds,
    }


def _iso(time: datetime | None) -> str | None:
    """A time in ISO 8601, to the second.

    >>> _iso(datetime(2026, 11, 27, 8, 5, tzinfo=UTC))
    '2026-11-27T08:05:00+00:00'
    """
    return None if time is None else time.isoformat(timespec="seconds")

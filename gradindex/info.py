"""What an index holds, for people to read."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradindex.manifest import Shard
from gradindex.search_index import NAMES, saved_index
from gradindex.store import Store


def describe(store: Store) -> str:
    """What an index holds and what is missing, a line each."""
    recipe, rows = store.recipe, store.shape[1]
    shards, missing = len(store.shards()), store.missing()
    removed = sum(row is not None for row in store.attributes["removed"].values())  # and not erased by `compact`
    less = {"skipped": 0 if missing else len(store.summary["skipped"]), "removed": removed}
    without = ", ".join(f"{count} {why}" for why, count in less.items() if count)
    searches = {name: saved_index(store, name) for name in NAMES}
    facts = {
        "index": store.place,
        "pictures": f"{rows} ({without})" if without else rows,
        "rows": _rows(store.shape),
        "shards": f"{shards - len(missing)} of {shards} done",
        "missing": _runs(missing),
        "model": f"{recipe.model}, {recipe.prediction_type}, {recipe.parameter_count:,} parameters in {recipe.dtype}",
        "timesteps": f"{recipe.events} recorded" if recipe.events else ", ".join(map(str, recipe.timesteps)),
        "noise": f"{recipe.noise}, {recipe.draws} draws, seed {recipe.seed}",
        "projection": recipe.projection,
        "folded": f"{len(recipe.checkpoints)} checkpoints × {recipe.per_picture} timesteps" if recipe.rows else "",
        "recipe": recipe.digest,
        **{name: search_facts(index.facts) for name, index in searches.items() if index},
    }
    return _lines(facts)


def describe_plan(facts: Mapping[str, Any]) -> str:
    """What a build would make and take, a line each, from `plan.estimate`."""
    arrays = ", ".join(f"{name} {_size(count)}" for name, count in facts["bytes"].items())
    lines = {
        "pictures": facts["pictures"],
        "rows": _rows(facts["rows"]),
        "disk": f"{_size(sum(facts['bytes'].values()))} ({arrays}), and search files",
        "shards": facts["shards"],
        "gradients": f"{facts['gradients']:,}, {facts['batch_size']} at once",
        "time": f"{_duration(facts['seconds'])} at the pace of a batch just timed, on one such device",
        "memory": f"{_size(facts['memory'])} of this process so far",
    }
    return _lines(lines)


def _lines(facts: Mapping[str, Any]) -> str:
    """Names and values in two columns; what is empty has no line."""
    width = max(11, *(len(name) for name, value in facts.items() if value))
    return "\n".join(f"{name:<{width}} {value}" for name, value in facts.items() if value)


def _rows(shape: Sequence[int]) -> str:
    """The shape [C, N, T, D] of rows in words."""
    checkpoints, pictures, timesteps, dim = shape
    return f"{checkpoints} checkpoints × {pictures} pictures × {timesteps} timesteps × {dim} numbers"


def _size(count: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} seconds"


def search_facts(facts: Mapping[str, Any]) -> str:
    """A search index in one line."""
    if not facts["files"]:
        return "scans the store"
    size = sum(part["bytes"] for part in facts["files"]) / 2**20
    return (
        f"{facts['factory']}, {size:.1f} MiB in {len(facts['files'])} files; recall@10 {facts['recall_at_10']:.3f} with"
        f" {facts['candidates']} candidates, {facts['query_seconds'] * 1e3:.1f} ms a query here"
    )


def _runs(shards: Sequence[Shard]) -> str:
    """Shards as runs of neighbours: c000-s000003 to c000-s000007 (pictures 768 to 2047)."""
    runs: list[list[Shard]] = []
    for shard in shards:
        if runs and (runs[-1][-1].checkpoint, runs[-1][-1].stop) == (shard.checkpoint, shard.start):
            runs[-1].append(shard)
        else:
            runs.append([shard])
    texts = [f"{run[0].name} to {run[-1].name} (pictures {run[0].start} to {run[-1].stop - 1})" for run in runs]
    return ", ".join([*texts[:8], f"and {len(texts) - 8} more runs"] if len(texts) > 8 else texts)

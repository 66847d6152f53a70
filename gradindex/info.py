"""What an index holds, for people to read."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradindex.index import METHODS, saved_index
from gradindex.manifest import Shard
from gradindex.store import Store


def describe(store: Store) -> str:
    """What an index holds and what is missing, a line each."""
    recipe, (checkpoints, rows, timesteps, dim) = store.recipe, store.shape
    shards, missing = len(store.shards()), store.missing()
    less = {"skipped": 0 if missing else len(store.summary["skipped"]), "removed": len(store.attributes["removed"])}
    without = ", ".join(f"{count} {why}" for why, count in less.items() if count)
    searches = {name: saved_index(store, name) for name in METHODS}
    facts = {
        "index": store.place,
        "pictures": f"{rows} ({without})" if without else rows,
        "rows": f"{checkpoints} checkpoints × {rows} pictures × {timesteps} timesteps × {dim} numbers",
        "shards": f"{shards - len(missing)} of {shards} done",
        "missing": _runs(missing),
        "model": f"{recipe.model}, {recipe.prediction_type}, {recipe.parameter_count:,} parameters in {recipe.dtype}",
        "timesteps": f"{recipe.events} recorded" if recipe.events else ", ".join(map(str, recipe.timesteps)),
        "noise": f"{recipe.noise}, {recipe.draws} draws, seed {recipe.seed}",
        "projection": recipe.projection,
        "recipe": recipe.digest,
        **{name: search_facts(index.facts) for name, index in searches.items() if index},
    }
    return "\n".join(f"{name:<11} {value}" for name, value in facts.items() if value)


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

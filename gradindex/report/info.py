"""What an index holds, and what a build would make, for people to read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType

from gradindex.data.buckets import sizes_text
from gradindex.recipe import ALPHA, FOLDED, NPZ, Recipe
from gradindex.report.index_facts import Files, index_files
from gradindex.report.printable import printable
from gradindex.search.ann_index import INDEX_NAMES, saved_ann_index
from gradindex.search.ann_record import AnnRecord
from gradindex.search.factors import goes_by_rows, usual_damping
from gradindex.search.scoring import METHODS
from gradindex.store.array_names import array_bytes
from gradindex.store.manifest import Shard
from gradindex.store.records import ParameterChoice, masks_of, one_caption
from gradindex.store.store import Store
from gradindex.wording import counted, duration_text, size_text, timestep_text

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from gradindex.builder.estimate import Estimate

NAME_WIDTH = 11  # columns of text, at the least
RUNS_SHOWN = 8  # of missing shards; also checkpoints
AXES = ("checkpoint", "picture", "timestep", "number")


def describe(store: Store) -> str:
    """Return what an index holds and what is missing, as text of a line each."""
    recipe = store.recipe
    missing = store.missing()
    shards = len(store.shards())
    files = index_files(store)
    lines = {
        "index": str(store.location),
        "data": _data(store),
        "pictures": _pictures(store, finished=not missing),
        "rows": _rows(store.shape),
        "shards": f"{shards - len(missing)} of {shards} done",
        "missing": _shard_runs(missing),
        "written": _written(files),
        "disk": _sizes(files.bytes),
        "model": f"{recipe.model}, {recipe.prediction_type}, in {recipe.dtype}",
        "parameters": _parameters(recipe, store.header.parameters),
        "a picture": _picture(recipe),
        "checkpoints": _checkpoints(store),
        "adapters": _adapters(store),
        "trained": _trained(store),
        "latents": _latents(recipe),
        "buckets": sizes_text(recipe.buckets or ()),
        "loss": _loss(recipe),
        "timesteps": _timesteps(recipe),
        "noise": f"{recipe.noise}, {counted(recipe.draws, 'draw')}, seed {recipe.seed}",
        "projection": _projection(recipe),
        "folded": _folded(recipe),
        "recipe": recipe.digest,
    }
    for name in INDEX_NAMES:
        ann_index = saved_ann_index(store, name)
        if ann_index:
            lines[name] = search_facts(ann_index.record)
    if not missing:
        lines["whitening"] = f"damping {usual_damping(store):g}"
        if all(goes_by_rows(store, method) for method in METHODS):
            lines["whitening"] += ", by the rows themselves, without factors or search files"
    return _aligned(lines)


def describe_plan(estimate: "Estimate") -> str:
    """Return what a build would make and take, as text of a line each."""
    prepared = f"; {size_text(estimate.prepared)} more until it is finished, for encoded pictures"
    duration = duration_text(estimate.seconds)
    memory = estimate.memory
    lines = {
        "pictures": str(estimate.pictures),
        "latents": _latents(estimate.recipe),
        "buckets": estimate.buckets,
        "loss": _loss(estimate.recipe),
        "timesteps": _timesteps(estimate.recipe),
        "parameters": _parameters(estimate.recipe, estimate.parameters),
        "projection": _projection(estimate.recipe),
        "a picture": _picture(estimate.recipe, estimate.forward_passes),
        "rows": _rows(estimate.rows),
        "disk": _sizes(estimate.bytes) + (prepared if estimate.prepared else ""),
        "shards": str(estimate.shards),
        "gradients": f"{estimate.gradients:,}, {estimate.batch_size} at once",
        "time": f"{duration} at the pace of a batch just timed, on one such device",
        "memory": f"{size_text(memory)} of this process so far" if memory else "",
    }
    return _aligned(lines)


def search_facts(record: AnnRecord) -> str:
    """Return what a search index is and what was measured of it, in one line."""
    if not record.files:
        return "scans the store, exactly"
    size = size_text(sum(part.bytes for part in record.files))
    milliseconds = (record.query_seconds or 0.0) * 1e3
    return (
        f"{record.factory}, {size} in {counted(len(record.files), 'file')}; recall@10"
        f" {record.recall_at_10:.3f} with {record.candidates} candidates,"
        f" {milliseconds:.1f} ms a query here"
    )


def _aligned(lines: Mapping[str, str]) -> str:
    """Names and texts in two columns; an empty text has no line.

    >>> print(_aligned({"noise": "shared", "missing": "", "projection": "none"}))
    noise       shared
    projection  none
    """
    texts = {name: text for name, text in lines.items() if text}
    width = max(NAME_WIDTH, *map(len, texts))
    return "\n".join(f"{name:<{width}} {text}" for name, text in texts.items())


def _pictures(store: Store, finished: bool) -> str:
    """How many pictures there are, and how many of them were skipped or removed."""
    skipped = len(store.summary.skipped) if finished else 0
    # A removed picture without a row was erased by `compact`: it is not among those of the store.
    removed = sum(row is not None for row in store.header.removed.values())
    counts = {"skipped": skipped, "removed": removed}
    notes = [f"{count} {reason}" for reason, count in counts.items() if count]
    pictures = str(store.shape[1])
    return f"{pictures} ({', '.join(notes)})" if notes else pictures


def _rows(shape: Sequence[int]) -> str:
    """The shape [C, N, T, D] of rows in words.

    >>> _rows([1, 9, 2, 16])
    '1 checkpoint × 9 pictures × 2 timesteps × 16 numbers'
    """
    return " × ".join(
        f"{count} {noun if count == 1 else noun + 's'}"
        for count, noun in zip(shape, AXES, strict=True)
    )


def _data(store: Store) -> str:
    """Where the training pictures were, and what else the build was told of them."""
    data = store.header.data
    if data is None:
        return ""
    parts = [f"{name} column {column}" for name, column in data.columns.items() if column]
    if (caption := one_caption(data)) is not None:
        parts.append(f"all with the caption {caption!r}")
    if (masks := masks_of(data)) is not None:
        parts.append(f"masks {masks}")
    return printable("; ".join([data.source, *parts]))


def _checkpoints(store: Store) -> str:
    """Where the weights were, and what each counts; empty for a denoiser of the user's own."""
    header = store.header
    paths = [checkpoint.path for checkpoint in header.checkpoints]
    if not any(paths):
        return ""
    texts = [
        path if len(paths) == 1 else f"{path} (weight {weight:.3g})"
        for path, weight in zip(paths, header.weights, strict=False)
    ]
    if len(texts) > RUNS_SHOWN:
        texts = [*texts[:RUNS_SHOWN], f"and {len(texts) - RUNS_SHOWN} more"]
    base = f" on {header.model}" if store.recipe.base is not None else ""
    return printable(", ".join(texts) + base)


def _written(files: Files) -> str:
    """When the shards were written, in the time of this machine; empty before the first."""
    if files.first is None or files.last is None:
        return ""
    first, last = (f"{time.astimezone():%Y-%m-%d %H:%M}" for time in (files.first, files.last))
    return first if first == last else f"{first} to {last}"


def _sizes(sizes: Mapping[str, int]) -> str:
    """Bytes of parts, and of all of them; a part that is empty is not named.

    >>> _sizes({"normalized": 2048, "norm": 512, "whitening": 0})
    '2.5 KiB (normalized 2 KiB, norm 512 bytes)'
    """
    parts = ", ".join(f"{name} {size_text(count)}" for name, count in sizes.items() if count)
    return f"{size_text(sum(sizes.values()))} ({parts})"


def _parameters(recipe: Recipe, choice: ParameterChoice | UnsetType) -> str:
    """Which parameters were chosen, and their share of all where that is known."""
    count = f"{recipe.parameter_count:,}"
    if recipe.part is None and recipe.params is None:
        return f"all {count}"
    text = f"{recipe.part or repr(recipe.params)}: {count}"
    if not isinstance(choice, UnsetType):
        share = 100 * recipe.parameter_count / choice.total
        text += f" of {choice.total:,} ({share:.3g} %), in {choice.places}"
    return printable(text)


def _picture(recipe: Recipe, forward_passes: float | None = None) -> str:
    """What a picture costs, and what of it is kept; the search files are not counted."""
    count = len(recipe.checkpoints) * recipe.per_picture * recipe.draws
    cost = counted(count, "gradient")
    if forward_passes is not None:
        cost += f", each as long as {forward_passes:.1f} forward passes"
    return f"{cost}; {size_text(sum(array_bytes(recipe, 1).values()))} of rows"


def _projection(recipe: Recipe) -> str:
    """The projection's name; none at all is explained."""
    return "none, rows are exact" if recipe.projection == "none" else recipe.projection


def _adapters(store: Store) -> str:
    """The names of the adapters that gradients are of; empty where there are none."""
    if store.recipe.base is None:
        return ""
    names = [Path(checkpoint.path).name for checkpoint in store.header.checkpoints]
    whose = "its" if len(names) == 1 else "their"
    return f"{', '.join(names)}; gradients are of {whose} parameters in the denoiser alone"


def _trained(store: Store) -> str:
    """What the adapter's trainer says of its run; empty where it says nothing."""
    trainer = store.header.trainer
    return "" if trainer is UNSET else trainer.describe()


def _latents(recipe: Recipe) -> str:
    """What pictures are encoded to; empty for a model of pixels."""
    if recipe.picture is None:
        return ""
    _, height, width = recipe.picture
    channels, rows, columns = recipe.image
    drawn = f", the VAE's {recipe.latents}" if recipe.latents else ""
    if recipe.latents == NPZ:
        drawn = ", as they lay beside the pictures"
    largest = ", the largest bucket" if recipe.buckets else ""
    return f"{channels} × {rows} × {columns} of pictures of {width}x{height}{largest}{drawn}"


def _loss(recipe: Recipe) -> str:
    """What gradients are of; empty where that is the mean squared error alone."""
    parts = [] if recipe.differentiated == "mse" else [recipe.differentiated]
    if recipe.weighting is not None:
        parts.append(f"weighted {recipe.weighting}")
    if recipe.noise_offset is not None:
        parts.append(f"noise offset {recipe.noise_offset:g}")
    if recipe.input_perturbation is not None:
        parts.append(f"input perturbation {recipe.input_perturbation:g}")
    if recipe.masks is not None:
        parts.append(f"masked by {'alpha channels' if recipe.masks == ALPHA else 'files'}")
    if recipe.guidance is not None:
        parts.append(f"guidance {recipe.guidance:g}")
    return ", ".join(parts)


def _timesteps(recipe: Recipe) -> str:
    if recipe.events:
        return f"{recipe.events} recorded"
    return ", ".join(map(timestep_text, recipe.timesteps))


def _folded(recipe: Recipe) -> str:
    """What was folded into one row; empty where rows are not folded."""
    if recipe.rows != FOLDED:
        return ""
    checkpoints = counted(len(recipe.checkpoints), "checkpoint")
    return f"{checkpoints} × {counted(recipe.per_picture, 'timestep')}"


def _shard_runs(shards: Sequence[Shard]) -> str:
    """Shards as runs of neighbours.

    >>> _shard_runs([Shard(0, 3, 768, 1024), Shard(0, 4, 1024, 1280)])
    'c000-s000003 to c000-s000004 (pictures 768 to 1279)'
    """
    runs: list[list[Shard]] = []
    for shard in shards:
        if runs and _are_neighbours(runs[-1][-1], shard):
            runs[-1].append(shard)
        else:
            runs.append([shard])
    texts = []
    for run in runs[:RUNS_SHOWN]:
        first, last = run[0], run[-1]
        texts.append(f"{first.name} to {last.name} (pictures {first.start} to {last.stop - 1})")
    if len(runs) > RUNS_SHOWN:
        texts.append(f"and {counted(len(runs) - RUNS_SHOWN, 'more run')}")
    return ", ".join(texts)


def _are_neighbours(first: Shard, second: Shard) -> bool:
    """Whether the second shard goes on where the first one ends."""
    return first.checkpoint == second.checkpoint and first.stop == second.start

"""What an index is worth: how norms depend on the timestep, who is influential for everything, how much is noise."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from gradindex.denoiser import Denoiser
from gradindex.errors import CallError, MissingPackage
from gradindex.gradients.rows import capture_for, grid_events, sample_gradients
from gradindex.queries import QUERY_DRAWS, QUERY_TIMESTEPS, Picture, picture_name, to_labels
from gradindex.ranking import influence, overlap, spearman
from gradindex.recipe import FOLDED, Recipe, grid, require_positive
from gradindex.scoring import row_pieces, unit
from gradindex.search import Index
from gradindex.search_index import METHODS
from gradindex.store import Store
from gradindex.whiten import whitened_by

ADVICE = "; give pictures, --compared 0 and, with recorded timesteps, --no-outliers"
BINS = 20  # of timesteps, where every picture has its own
FIT = 64  # training pictures whose gradients are in memory at once
SELF_TIMESTEPS, SELF_DRAWS = 5, 2  # of a picture as a query for itself, where its rows are recorded ones


def report(
    index: Index,
    pictures: Sequence[Picture] = (),
    *,
    k: int = 10,
    queries: int = 24,
    compared: int = 100,
    outliers: bool = True,
    whiten: bool = True,
    class_label: int | Sequence[int] | None = None,
) -> dict[str, Any]:
    """Everything that `gradindex diagnose` shows, as JSON values.

    Args:
        pictures: queries, as for `Index.query`; for none, `queries` training pictures, evenly spaced, each left out of
            its own list.
        k: length of the lists.
        compared: training pictures whose gradients are taken again for the agreement between noise seeds, 0 for none
            of it.
        outliers: whether to rank pictures by self-influence; with recorded timesteps that takes gradients of all.
        whiten: whether queries are whitened, as for `Index.query`.
        class_label: of the queries, for a class-conditional model; training pictures know theirs.

    Raises:
        CallError: the training pictures are not where they were, and no others are given.
    """
    require_positive(k=k, queries=queries)
    if index.store.recipe.rows == FOLDED:
        raise CallError(f"{index.store.place}: rows are folded into one for each picture; diagnose needs all of them")
    if compared < 0 or compared == 1:
        raise CallError(f"compared = {compared}: give 0, or at least 2 pictures")
    if compared or (outliers and index.store.recipe.events):
        index.require_dataset(ADVICE)
    arrays, names, own, labels = _queries(index, pictures, queries, class_label)
    scores = index.scores_by_method(arrays, *METHODS, whiten=whiten, class_label=labels)
    for table in scores.values():
        _leave_out(table, own)
    norm = picture_norms(index.store)
    found = {
        "index": str(index.store.place),
        "queries": names,
        "k": k,
        "whitened": whiten,
        "norm": norms(index.store),
        "influence": {method: influence(scores[method], norm, k) for method in METHODS},
    }
    if outliers:
        found["self_influence"] = {m: _outliers(index.store, v, m, k) for m, v in self_influence(index).items()}
    if compared:
        few = np.unique(np.linspace(0, len(arrays) - 1, 8).astype(int))
        classes = None if labels is None else [labels[number] for number in few]
        rows = [own[number] for number in few]
        found["noise"] = noise_agreement(index, arrays[few], classes, compared, k, rows, whiten)
    return found


def norms(store: Store) -> list[dict[str, float]]:
    """Gradient norms against the timestep: one entry per timestep of a grid, per bin of recorded ones.

    Each has `timestep` (a bin's mean), `count`, `mean`, `median`, `p10`, `p90`, over all pictures and checkpoints.
    """
    kept = np.setdiff1d(np.arange(store.shape[1]), store.left_out)
    t, norm = (_whole(store, name)[:, kept].ravel() for name in ("timestep", "norm"))
    bins = np.digitize(t, np.linspace(t.min(), t.max() + 1, BINS + 1)) if store.recipe.events else t
    found = []
    for number in np.unique(bins):
        mine = norm[bins == number]
        p10, median, p90 = (float(value) for value in np.percentile(mine, (10, 50, 90)))
        facts = {"mean": float(mine.mean()), "median": median, "p10": p10, "p90": p90}
        found.append({"timestep": float(t[bins == number].mean()), "count": len(mine), **facts})
    return found


def picture_norms(store: Store) -> np.ndarray:
    """The mean norm of each picture's rows, [N]."""
    return _whole(store, "norm").astype(np.float64).mean((0, 2))


def _whole(store: Store, name: str) -> np.ndarray:
    """The array of norms or timesteps, [C, N, T]."""
    return np.stack([store.read(name, checkpoint, slice(None)) for checkpoint in range(store.shape[0])])


def self_influence(index: Index) -> dict[str, np.ndarray]:
    """Each picture's plain score for itself, {method: [N] float64}; NaN for pictures that the build skipped.

    On a grid it comes from the stored rows. TracIn's is `Σ_c w_c mean_t ‖u‖²`, the matched score; ReTrac's matched
    score would be the same for all, so it is that of the mean pairing, `Σ_c w_c ‖mean_t n‖²`. Recorded rows are
    scored, in both methods, for the picture as a query of SELF_TIMESTEPS × SELF_DRAWS gradients, which are taken now.
    """
    store, recipe = index.store, index.store.recipe
    found = {method: np.zeros(store.shape[1]) for method in METHODS}
    for checkpoint, weight in enumerate(store.attributes["weights"]):
        if recipe.events is None:
            norm = store.read("norm", checkpoint, slice(None)).astype(np.float64)
            found["tracin"] += weight * np.square(norm).mean(1)
            for block in store.blocks():
                mean = store.read("normalized", checkpoint, block).astype(np.float32).mean(1)
                found["retrac"][block] += weight * np.square(mean).sum(1)
            continue
        denoiser = index.checkpoints[checkpoint]
        steps = grid(SELF_TIMESTEPS, denoiser.num_train_timesteps)
        setting = replace(recipe, timesteps=steps, draws=SELF_DRAWS, events=None)
        rows = np.setdiff1d(np.arange(store.shape[1]), store.left_out)
        for some, gradients in _taken(index, denoiser, setting, rows):
            for method, asked in (("tracin", gradients), ("retrac", unit(gradients))):
                stored = store.read("unnormalized" if method == "tracin" else "normalized", checkpoint, some)
                own = stored.astype(np.float32).mean(1)
                found[method][some] += weight * np.einsum("nd,nd->n", asked.mean(1), own)
    for values in found.values():
        values[store.left_out] = np.nan
    return found


def noise_agreement(
    index: Index,
    arrays: np.ndarray,
    labels: Sequence[int] | None,
    compared: int,
    k: int,
    own: Sequence[int | None] = (),
    whiten: bool = True,
) -> list[dict[str, Any]]:
    """How far two noise seeds agree on the scores, at the index's setting and at smaller and larger ones.

    A grid's training pictures are a sample of `compared`, whose gradients are taken anew for both seeds and whiten the
    queries; recorded rows are what they are, so that only the queries' noise differs. Queries that are training
    pictures (`own` has their rows) are not among the pictures. The last checkpoint alone is used.

    Returns:
        One entry per setting: `timesteps`, `draws`, `gradients` of one query, and for each method `spearman` and
        `overlap` of the k best, means over the queries.
    """
    recipe, denoiser = index.store.recipe, index.checkpoints[-1]
    recorded = recipe.events is not None
    usual = (QUERY_TIMESTEPS, QUERY_DRAWS) if recorded else (len(recipe.timesteps), recipe.draws)
    settings = [(max(usual[0] // 2, 1), usual[1]), usual, (2 * usual[0], usual[1]), (usual[0], 2 * usual[1])]
    kept = np.setdiff1d(np.arange(index.store.shape[1]), index.store.left_out)
    rows = np.setdiff1d(kept, [row for row in own if row is not None])
    rows = rows if len(rows) > 1 else kept
    if not recorded:
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, compared).astype(int))]
    most = denoiser.num_train_timesteps
    settings = [(min(timesteps, most), draws) for timesteps, draws in settings]
    found = []
    for timesteps, draws in tqdm(dict.fromkeys(settings), desc="noise", unit="setting", delay=2, disable=None):
        steps = grid(timesteps, most)
        steps = recipe.timesteps if timesteps == len(recipe.timesteps) else steps
        setting = replace(recipe, timesteps=steps, draws=draws, events=None)
        first, second = (
            _scores_of_seed(index, denoiser, replace(setting, seed=seed), arrays, labels, rows, whiten)
            for seed in (recipe.seed, recipe.seed + 1)
        )
        found.append(
            {"timesteps": timesteps, "draws": draws, "gradients": timesteps * draws, **_compared(first, second, k)}
        )
    return found


def _compared(left: dict[str, np.ndarray], right: dict[str, np.ndarray], k: int) -> dict[str, dict[str, float]]:
    return {
        method: {
            "spearman": spearman(left[method], right[method]),
            "overlap": overlap(left[method], right[method], k),
        }
        for method in left
    }


def _scores_of_seed(
    index: Index, denoiser: Denoiser, setting: Recipe, arrays: np.ndarray, labels: Sequence[int] | None,
    rows: np.ndarray, whiten: bool,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Scores [Q, pictures] of each method with the noise of a setting's seed; the projection stays the index's."""
    events = grid_events(setting, [f"query {number}" for number in range(len(arrays))])
    batch = index.fitting_batch  # which tries the model itself
    with capture_for(denoiser, index.store.recipe) as capture:
        asked = sample_gradients(denoiser, capture, setting, arrays, events, labels, batch_size=batch)
    both, found = {"tracin": asked, "retrac": unit(asked)}, {}
    if index.store.recipe.events is not None:
        for method, q in both.items():
            found[method] = _scores_of_means(index, method, q.mean(1), whiten)[:, rows]
        return found
    gradients = np.concatenate([some for _, some in _taken(index, denoiser, setting, rows)])
    for method, q in both.items():
        g = unit(gradients) if method == "retrac" else gradients
        if whiten:
            q = np.stack([whitened_by(g[:, t], q[:, t]) for t in range(q.shape[1])], axis=1)
        found[method] = np.einsum("qtd,ntd->qn", q, g)
    return found


def _scores_of_means(index: Index, method: str, q: np.ndarray, whiten: bool) -> np.ndarray:
    """The scores [Q, N] of recorded rows at the last checkpoint with means over a query's timesteps [Q, D]."""
    checkpoints, _, events, dim = index.store.shape
    block = np.zeros((len(q), checkpoints, events, dim), np.float32)
    block[:, -1] = q[:, None]
    asked = (index.whitened(method, block) if whiten else block)[:, -1] / events
    scores = []
    for rows in index.store.blocks():
        for g, divisor in row_pieces(index.store, checkpoints - 1, rows, method == "retrac", np.float32):
            scores.append(np.einsum("qed,ned->qn", asked, g / divisor[:, :, None]))
    return np.concatenate(scores, axis=1)


def _taken(
    index: Index, denoiser: Denoiser, setting: Recipe, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Gradients [·, T, D] of training pictures at a setting's timesteps and noise, in the index's projection."""
    batch = index.fitting_batch  # which tries the model itself
    with capture_for(denoiser, index.store.recipe) as capture:
        for some in np.array_split(rows, -(-len(rows) // FIT)):
            pictures, names, labels = _pictures(index, some)
            events = grid_events(setting, names)
            yield some, sample_gradients(denoiser, capture, setting, pictures, events, labels, batch_size=batch)


def _queries(
    index: Index, pictures: Sequence[Picture], count: int, class_label: int | Sequence[int] | None
) -> tuple[Any, list[str], list[int | None], Any]:
    """The queries' arrays, names, rows (None where they are not training pictures) and class labels."""
    if len(pictures):
        arrays = index.arrays(pictures)
        names = [picture_name(picture, number) for number, picture in enumerate(pictures)]
        labels = to_labels(class_label, len(names), index.store.recipe.classes)
        return arrays, names, [None] * len(names), labels
    rows = np.setdiff1d(np.arange(index.store.shape[1]), index.store.left_out)
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, count).astype(int))]
    arrays, names, labels = _pictures(index, chosen)
    return arrays, names, chosen.tolist(), labels


def _pictures(index: Index, rows: np.ndarray) -> tuple[np.ndarray, list[str], list[int] | None]:
    """Training pictures [·, channels, height, width], their ids and class labels."""
    dataset, recipe = index.require_dataset(ADVICE), index.store.recipe
    pictures = np.stack([dataset.picture(int(row), recipe.image) for row in rows])
    return pictures, [dataset.sample_ids[row] for row in rows], dataset.labels_of(rows.tolist(), recipe.classes)


def _leave_out(scores: np.ndarray, own: Sequence[int | None]) -> None:
    """Let no training picture be its own hit."""
    for query, row in enumerate(own):
        if row is not None:
            scores[query, row] = np.nan


def _outliers(store: Store, values: np.ndarray, method: str, k: int) -> dict[str, Any]:
    """The k pictures whose self-influence stands out, TracIn's highest or ReTrac's lowest, and the quartiles."""
    order = np.argsort(-values if method == "tracin" else values, kind="stable")
    order = order[~np.isnan(values[order])][:k]
    return {
        "outliers": [{"id": store.sample_ids[row], "row": int(row), "score": float(values[row])} for row in order],
        "quartiles": [float(value) for value in np.nanpercentile(values, (25, 50, 75))],
    }


def save(found: dict[str, Any], folder: Path) -> list[Path]:
    """Write diagnose.json and norms.png, the figure of gradient norms against timesteps.

    Raises:
        MissingPackage: matplotlib is not installed; the JSON is written then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "diagnose.json", folder / "norms.png"]
    files[0].write_text(json.dumps(found, indent=1) + "\n")
    _plot_norms(found["norm"], files[1])
    return files


def to_text(found: dict[str, Any]) -> str:
    """The report for people, some lines of text."""
    kind = "whitened" if found["whitened"] else "plain"
    lines = [f"{len(found['queries'])} queries, their {found['k']} highest {kind} scores", ""]
    lines.append(f"{'':<44}{'tracin':>10}{'retrac':>10}")

    def line(name: str, values: Sequence[Any], form: str = "") -> None:
        lines.append(f"{name:<44}" + "".join(f"{value:>10{form}}" for value in values))

    influences = [found["influence"][method] for method in METHODS]
    line(f"distinct pictures (of {influences[0]['most']} possible)", [each["distinct"] for each in influences])
    for share in influences[0]["general"]:
        line(f"pictures in {float(share):.0%} of the lists or more", [each["general"][share] for each in influences])
    line("correlation of mean score and gradient norm", [each["norm_correlation"] for each in influences], ".2f")
    for setting in found.get("noise", []):
        budget = f"{setting['timesteps']} timesteps × {setting['draws']} draws"
        both = [setting[method] for method in METHODS]
        line(f"two noise seeds agree, {budget}: ρ", [each["spearman"] for each in both], ".2f")
        line(f"{'overlap of the lists':>44}", [each["overlap"] for each in both], ".2f")
    for method, stands in found.get("self_influence", {}).items():
        end = "highest" if method == "tracin" else "lowest"
        names = ", ".join(hit["id"] for hit in stands["outliers"][:5])
        lines.append(f"outliers, {end} plain self-influence ({method}): {names}")
    return "\n".join(lines)


def _plot_norms(norm: Sequence[dict[str, float]], file: Path) -> None:
    figure_module = _matplotlib()
    figure = figure_module.Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    t = [each["timestep"] for each in norm]
    axes.fill_between(t, [each["p10"] for each in norm], [each["p90"] for each in norm], alpha=0.25, label="10–90 %")
    axes.plot(t, [each["median"] for each in norm], marker="o", markersize=3, label="median")
    axes.set(xlabel="timestep", ylabel="norm of the loss gradient", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def _matplotlib() -> ModuleType:
    try:
        import matplotlib.figure
    except ImportError as error:
        raise MissingPackage("no figure without matplotlib: pip install 'gradindex[plot]'") from error
    return matplotlib.figure

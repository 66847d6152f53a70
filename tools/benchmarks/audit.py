"""Whether an audit finds wrong labels and damaged pictures: `tools/bench audit`.

Both are planted in the training set of a model that is told classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record
from picture_sets import fashion_labels, small_fashion_mnist
from planted_faults import (
    CLASSES,
    CORRUPT,
    DAMAGES,
    WRONG,
    WRONG_LABEL,
    FaultySet,
    trained_with_labels,
    with_faults,
    write_classes,
)
from roc import auc
from seeded_models import (
    DEFAULT,
    SCORES,
    SMOKE,
    SMOKE_SUBJECT,
    USUAL_TIMESTEPS,
    measure_seeds,
    over_seeds,
)
from subset_models import DRAWS, FASHION, NOISE_SEED, TIMESTEPS

import gradindex
from gradindex.gradients.sampling import mean_losses
from gradindex.models.examples import Examples
from gradindex.report.self_influence import self_influence

HELD_OUT = (16, 64, 256)  # pictures
JUDGED = 64  # of them, in the page's text
NEIGHBOURS = 10
ANY_DAMAGE, AMONG_FIRST = "any damage", "found"
BY_CLASS = ", class by class"
DIGITS = 5  # of a file's name: the picture's number


def run(work: Path, device: str, only: list[str]) -> None:
    """Train, audit, print, and write docs/benchmarks/audit.json and .md.

    Args:
        only: "smoke" tries everything on few pictures.
    """
    seeds = measure_seeds("audit", measure, work, device, only)
    results = {"planted": [seed["planted"] for seed in seeds], "rows": pooled(seeds)}
    text = page(results)
    print(text)
    if not only:
        record.save("audit", device, "tools/bench audit", results, text)


def measure(work: Path, seed: int, smoke: bool) -> dict[str, Any]:
    """Return what was planted with a seed, and how well each score finds it.

    Returns:
        {"planted": {fault: how many}, "rows": [{"score", "held-out", fault: AUC, "found": share}]}.
    """
    subject = SMOKE_SUBJECT if smoke else FASHION
    folder = work / (f"audit-{SMOKE}" if smoke else "audit-models") / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    count = subject.pictures
    pictures, labels = small_fashion_mnist(work), fashion_labels(work)
    training = with_faults(pictures[:count], labels[:count], seed)
    model = trained_with_labels(folder / "model", training, subject.steps, seed)
    data = write_classes(folder / "pictures", training.pictures, training.labels)
    index = gradindex.build(
        folder / "index", model=model, data=data, timesteps=USUAL_TIMESTEPS, device="cpu"
    )
    rows = []
    for held_out in HELD_OUT:
        chosen = slice(count, count + held_out)
        source = write_classes(folder / f"held-out-{held_out}", pictures[chosen], labels[chosen])
        for score, (method, whiten) in SCORES.items():
            influence = audited(index, source, count, method, whiten)
            row = {"score": score, "held-out": held_out}
            rows.append({**row, **found_by(-influence, training.faults)})
    for score, (method, whiten) in SCORES.items():
        influence = np.zeros(count)
        for label in range(CLASSES):
            of_class = np.flatnonzero(labels[chosen] == label) + count
            source = write_classes(folder / f"class-{label}", pictures[of_class], labels[of_class])
            told = training.labels == label
            influence[told] = audited(index, source, count, method, whiten)[told]
        row = {"score": score + BY_CLASS, "held-out": held_out}
        rows.append({**row, **found_by(-influence, training.faults)})
    for score, values in baselines(index, training).items():
        rows.append({"score": score, "held-out": None, **found_by(values, training.faults)})
    names, counts = np.unique(training.faults[training.faults != ""], return_counts=True)
    return {"planted": dict(zip(names, counts.tolist(), strict=True)), "rows": rows}


def audited(
    index: gradindex.Index, held_out: Path, count: int, method: str, whiten: bool
) -> np.ndarray:
    """Return each training picture's mean influence on held-out pictures, [N], by its number.

    It is as `index.audit` lists it; what is in neither list has none.
    """
    result = index.audit(held_out, count, method, whiten=whiten)
    influence = np.zeros(count)
    for hit in [*result.hits, *(result.opponents or ())]:
        influence[number_of(hit.id)] = hit.score
    return influence


def number_of(sample_id: str) -> int:
    """Return a picture's number from its id.

    >>> number_of("3/00012.png")
    12
    """
    return int(Path(sample_id).stem)


def baselines(index: gradindex.Index, training: FaultySet) -> dict[str, np.ndarray]:
    """Return scores that take no held-out pictures, {name: [N]}, higher where a fault is likelier.

    The loss is of each picture with the label that training told, over 50 timesteps and 2 draws.
    """
    (denoiser,) = index.gradients.checkpoints
    examples = Examples.of_pictures(training.pictures, training.labels.tolist())
    timesteps = denoiser.process.grid(TIMESTEPS)
    loss = mean_losses(denoiser, examples, timesteps, DRAWS, NOISE_SEED, "mse")
    own = self_influence(index)
    numbers = [number_of(sample_id) for sample_id in index.ids]
    position = np.argsort(numbers)  # of each picture in the index
    distance, disagreement = neighbour_scores(training)
    return {
        "its own loss": loss,
        "self-influence, TracIn": own["tracin"][position],
        "self-influence, ReTrac (lowest)": -own["retrac"][position],
        "pixel outliers": distance,
        "labels of the nearest": disagreement,
    }


def neighbour_scores(training: FaultySet) -> tuple[np.ndarray, np.ndarray]:
    """Return of each picture what its ten nearest in pixels say.

    Returns:
        Their mean distance, [N], and the share of them that have another label, [N].
    """
    flat = training.pictures.reshape(len(training.pictures), -1).astype(np.float64)
    squares = np.square(flat).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * flat @ flat.T, 0))
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1)[:, :NEIGHBOURS]
    mean = np.take_along_axis(distances, nearest, 1).mean(1)
    others = training.labels[nearest] != training.labels[:, None]
    return mean, others.mean(1)


def found_by(suspicion: np.ndarray, faults: np.ndarray) -> dict[str, float]:
    """Return how well a score finds faults.

    Args:
        suspicion: [N], higher where a fault is likelier. faults: of each picture, "" for none.

    Returns:
        {fault: AUC against the pictures without any fault}, and as `found` the share of all faulty
        pictures among the F highest, where F is how many there are.
    """
    sound = suspicion[faults == ""]
    figures = {WRONG_LABEL: auc(suspicion[faults == WRONG_LABEL], sound)}
    figures[ANY_DAMAGE] = auc(suspicion[np.isin(faults, list(DAMAGES))], sound)
    for name in DAMAGES:
        figures[name] = auc(suspicion[faults == name], sound)
    faulty = faults != ""
    first = np.argsort(-suspicion, kind="stable")[: faulty.sum()]
    figures[AMONG_FIRST] = float(faulty[first].mean())
    return figures


def pooled(seeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of all seeds as one, each figure as a list with a value for each seed."""
    rows = []
    for of_seeds in zip(*(seed["rows"] for seed in seeds), strict=True):
        row = {name: of_seeds[0][name] for name in ("score", "held-out")}
        for name in of_seeds[0].keys() - row.keys():
            row[name] = [other[name] for other in of_seeds]
        rows.append(row)
    return rows


def page(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    planted = results["planted"][0]
    columns = (WRONG_LABEL, ANY_DAMAGE, *DAMAGES, AMONG_FIRST)
    table = []
    for row in results["rows"]:
        cells = {"score": row["score"], "held-out pictures": row["held-out"]}
        table.append({**cells, **{name: over_seeds(row[name]) for name in columns}})
    faulty = sum(planted.values())
    pictures = round(planted[WRONG_LABEL] / WRONG)
    row_of = {(row["score"], row["held-out"]): row for row in results["rows"]}
    default = row_of[DEFAULT, JUDGED]
    by_class = row_of[DEFAULT + BY_CLASS, HELD_OUT[-1]]
    baselines = [row for row in results["rows"] if row["held-out"] is None]
    return record.fill_page(
        "audit",
        pictures=pictures,
        wrong=planted[WRONG_LABEL],
        damaged=faulty - planted[WRONG_LABEL],
        wrong_share=f"{WRONG:.0%}",
        damaged_share=f"{CORRUPT:.0%}",
        faulty=faulty,
        chance=f"{faulty / pictures:.2f}",
        judged=JUDGED,
        found_wrong=over_seeds(default[WRONG_LABEL]),
        found_damaged=over_seeds(default[ANY_DAMAGE]),
        most=HELD_OUT[-1],
        class_wrong=over_seeds(by_class[WRONG_LABEL]),
        class_damaged=over_seeds(by_class[ANY_DAMAGE]),
        best_wrong=_best(baselines, WRONG_LABEL),
        best_damaged=_best(baselines, ANY_DAMAGE),
        table=record.table(table),
    )


def _best(rows: Sequence[Mapping[str, Any]], fault: str) -> str:
    """The name and figure of the score that finds a fault best on average, as text."""
    best = max(rows, key=lambda row: np.mean(row[fault]))
    return f"{over_seeds(best[fault])}, *{best['score']}*"

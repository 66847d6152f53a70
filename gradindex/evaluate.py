"""What scores are worth, against models that were trained again: the linear datamodeling score, and counterfactuals."""

import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from gradindex.denoiser import load_denoiser
from gradindex.errors import CallError, GradindexError
from gradindex.gradients.rows import mean_losses
from gradindex.queries import Picture, QueryOptions, to_labels
from gradindex.ranking import correlations, ranks
from gradindex.recipe import grid, require_positive
from gradindex.scoring import unit
from gradindex.search import Index
from gradindex.search_index import METHODS

RESAMPLES = 2000
TIMESTEPS, DRAWS = 50, 2  # of a picture's loss
SEED = 1 << 20  # of its noise, unlike any that rows are made with


@dataclass(frozen=True)
class LDS:
    """A linear datamodeling score: Spearman's ρ between predicted and true losses over subsets, mean over pictures.

    Attributes:
        per_picture: ρ of each picture, [Q]. mean: their mean. low, high: its 95 % bootstrap interval.
        resampled: the mean in 2,000 resamples of pictures and models, which are the same for all scores of a shape, so
            that the difference of two scores has an interval too.
    """

    per_picture: np.ndarray
    mean: float
    low: float
    high: float
    resampled: np.ndarray


def lds(scores: np.ndarray, subsets: np.ndarray, losses: np.ndarray) -> LDS:
    """How well summed scores predict what models that were trained on subsets make of a picture.

    Park et al. 2023 (TRAK, arXiv 2303.14186), Zheng et al. 2024 (D-TRAK, arXiv 2311.00500). A subset's prediction is
    the sum of its pictures' scores; a higher one is to go with a lower loss.

    Args:
        scores: [Q, N], of N training pictures for Q pictures; NaN counts as 0.
        subsets: [M, N] bool, which pictures each of M models was trained on.
        losses: [M, Q], each model's loss on each picture, averaged over training seeds where there are several.

    Raises:
        CallError: the shapes do not fit, or there are fewer than three subsets.
    """
    scores, subsets, losses = np.nan_to_num(np.asarray(scores, float)), np.asarray(subsets, bool), np.asarray(losses)
    queries, pictures = scores.shape
    if subsets.shape != (len(losses), pictures) or losses.shape[1:] != (queries,) or len(losses) < 3:
        shapes = f"scores {scores.shape}, subsets {subsets.shape}, losses {losses.shape}"
        raise CallError(f"{shapes}: give [Q, N], [M, N] and [M, Q], with three subsets or more")
    predicted, true = ranks(scores @ subsets.T.astype(float)), ranks(-losses.T)
    each = correlations(predicted, true, np.ones((1, len(losses))))[:, 0]
    random = np.random.default_rng(0)
    models, chosen = (random.multinomial(n, np.full(n, 1 / n), RESAMPLES) for n in (len(losses), queries))
    resampled = (correlations(predicted, true, models) * chosen.T).sum(0) / queries
    low, high = np.quantile(resampled, [0.025, 0.975])
    return LDS(each, float(each.mean()), float(low), float(high), resampled)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of some numbers, and the ends of its 95 % bootstrap interval."""
    picks = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def read_models(folder: str | Path, index: Index) -> tuple[list[Path], np.ndarray]:
    """Models that were trained on subsets: their folders, and the subsets [M, N] bool.

    Args:
        folder: holds a folder for each model, and in each `subset.txt`, the ids of its training pictures, one a line.

    Raises:
        CallError: there are fewer than three, or an id is not in the index.
    """
    files = sorted(Path(folder).glob("*/subset.txt"))
    if len(files) < 3:
        raise CallError(f"{folder}: {len(files)} folders with a subset.txt; give three models or more")
    rows = {name: row for row, name in enumerate(index.store.sample_ids)}
    subsets = np.zeros((len(files), len(rows)), bool)
    for subset, file in zip(subsets, files, strict=True):
        names = file.read_text(encoding="utf-8").splitlines()
        if unknown := [name for name in names if name not in rows]:
            raise CallError(f"{file}: {len(unknown)} ids are not in the index, such as {unknown[0]!r}")
        subset[[rows[name] for name in names]] = True
    return [file.parent for file in files], subsets


def model_losses(
    index: Index, models: Sequence[str | Path], pictures: Sequence[Picture],
    class_label: int | Sequence[int] | None = None,
) -> np.ndarray:  # fmt: skip
    """Each model's loss on each picture, [M, Q]: the mean over 50 timesteps × 2 draws, noise shared by all pictures."""
    recipe, scheduler = index.store.recipe, index.store.attributes["scheduler"]
    arrays = index.arrays(pictures)
    labels = to_labels(class_label, len(arrays), recipe.classes)
    losses = []
    for model in models:
        denoiser = load_denoiser(model, scheduler=scheduler, device=index.device)
        times = grid(TIMESTEPS, denoiser.num_train_timesteps)
        losses.append(mean_losses(denoiser, arrays, labels, times, DRAWS, SEED, recipe.loss))
    return np.stack(losses)


def pixel_scores(index: Index, pictures: Sequence[Picture]) -> np.ndarray:
    """The cosine of pixels of every training picture with each picture, [Q, N]; NaN for pictures that do not open."""
    dataset, image = index.require_dataset(), index.store.recipe.image
    asked = unit(index.arrays(pictures).reshape(len(pictures), -1))
    scores = np.full((len(asked), index.store.shape[1]), np.nan)
    left_out = {*index.store.left_out}
    for row in range(scores.shape[1]):
        if row not in left_out:
            scores[:, row] = asked @ unit(dataset.picture(row, image).reshape(-1))
    return scores


def compare(
    index: Index, pictures: Sequence[Picture], subsets: np.ndarray, losses: np.ndarray,
    embeddings: tuple[np.ndarray, np.ndarray] | None = None, **options: Unpack[QueryOptions],
) -> dict[str, LDS]:  # fmt: skip
    """The linear datamodeling scores of both methods, plain and whitened, beside those of pixels and of chance.

    Args:
        embeddings: of training pictures [N, E] and of the queries [Q, E], such as CLIP's; their cosine is one more.
        options: as for `Index.query`.
    """
    options["whiten"] = False
    found, question = {}, index.question(pictures, **options)
    for method, block in zip(METHODS, index.query_blocks(question, *METHODS), strict=True):
        for name, asked in ((method, block), (f"{method}, whitened", index.whitened(method, block))):
            found[name] = lds(index.block_scores(method, asked, question.span), subsets, losses)
    found["pixel cosine"] = lds(pixel_scores(index, pictures), subsets, losses)
    if embeddings is not None:
        training, asked = embeddings
        found["embedding cosine"] = lds(unit(asked) @ unit(training).T, subsets, losses)
    chance = np.random.default_rng(0).standard_normal((losses.shape[1], subsets.shape[1]))
    return {**found, "random": lds(chance, subsets, losses)}


@dataclass(frozen=True)
class Removal:
    """What a picture's loss becomes when training pictures are left out.

    Attributes:
        which: "highest" scores, or "random" ones. removed: their ids. loss: of the model that was trained without them.
    """

    picture: str
    which: str
    removed: list[str]
    loss: float


def counterfactual(
    index: Index, pictures: Sequence[Picture], command: str, work: str | Path, *, k: int = 50, method: str = "retrac",
    random: int = 2, **options: Unpack[QueryOptions],
) -> Iterator[Removal]:  # fmt: skip
    """Train again without the k pictures that score highest for each picture, and without k random ones.

    Args:
        command: what trains a model; `{data}` in it becomes a folder with the pictures that stay, `{out}` the folder
            where it has to save the model.
        work: folder for those. random: how many random removals, for all pictures together.

    Raises:
        CallError: the data set is not a folder of pictures. GradindexError: the command failed.
    """
    require_positive(k=k)
    results = index.query(pictures, k, method, **options)
    draw, every = np.random.default_rng(0), np.setdiff1d(np.arange(index.store.shape[1]), index.store.left_out)
    removals = [(result.picture, "highest", [hit.row for hit in result.hits]) for result in results]
    removals += [("", "random", draw.choice(every, k, replace=False).tolist()) for _ in range(random)]
    for number, (name, which, rows) in enumerate(removals):
        losses = _without(index, rows, command, Path(work) / str(number), pictures, options.get("class_label"))
        for result, loss in zip(results, losses, strict=True):
            if which == "random" or result.picture == name:
                yield Removal(result.picture, which, [index.store.sample_ids[row] for row in rows], float(loss))


def _without(
    index: Index, rows: Sequence[int], command: str, work: Path, pictures: Sequence[Picture], class_label: Any
) -> np.ndarray:
    """The losses of a model that the command trains without some rows' pictures; one that is there already serves."""
    dataset, left = index.require_dataset(), {*rows, *index.store.left_out}
    source, data, out, done = Path(dataset.source), work / "data", work / "model", work / "removed.txt"
    if not source.is_dir() or not (source / dataset.sample_ids[0]).is_file():
        raise CallError(f"{source}: pictures can only be left out of a folder of pictures")
    removed = "\n".join(index.store.sample_ids[row] for row in rows)
    if not done.exists() or done.read_text(encoding="utf-8") != removed:
        shutil.rmtree(work, ignore_errors=True)
        for row, name in enumerate(dataset.sample_ids):
            if row not in left:
                (data / name).parent.mkdir(parents=True, exist_ok=True)
                (data / name).symlink_to((source / name).resolve())
        line = command.replace("{data}", shlex.quote(str(data))).replace("{out}", shlex.quote(str(out)))
        if status := subprocess.run(line, shell=True).returncode:
            raise GradindexError(f"{line}: ended with status {status}; what was trained before stays, run it again")
        done.write_text(removed, encoding="utf-8")
    return model_losses(index, [out], pictures, class_label)[0]

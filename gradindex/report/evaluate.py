"""What scores are worth: the linear datamodeling score, against models trained on subsets."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np

from gradindex.errors import CallError, DataError
from gradindex.gradients.fold import unit
from gradindex.gradients.sampling import mean_losses
from gradindex.models.pipeline import make_examples
from gradindex.report.ranking import correlations, ranks
from gradindex.search.index import Index
from gradindex.search.pictures import Picture, picture_list, read_pictures
from gradindex.search.query import QueryOptions, read_query
from gradindex.search.scoring import METHODS
from gradindex.store.progress import progress
from gradindex.wording import counted

RESAMPLES = 2000  # of a bootstrap
INTERVAL = [0.025, 0.975]  # quantiles at the ends of a 95 % interval
FEWEST_MODELS = 3

# Where a picture's loss is taken.
TIMESTEPS = 50
DRAWS = 2
SEED = 1 << 20  # of its noise, unlike any that rows are made with


@dataclass(frozen=True)
class LDS:
    """A linear datamodeling score: Spearman's ρ between predicted and true losses over subsets.

    Attributes:
        per_picture: ρ of each picture, [Q].
        mean: their mean.
        low, high: its 95 % bootstrap interval.
        resampled: the mean in each of 2,000 resamples of pictures and models, [R]. The resamples
            are the same for all scores of a shape, so the difference of two scores has an interval
            too.
    """

    per_picture: np.ndarray
    mean: float
    low: float
    high: float
    resampled: np.ndarray


def lds(scores: np.ndarray, subsets: np.ndarray, losses: np.ndarray) -> LDS:
    """Return how well summed scores predict the losses of models that were trained on subsets.

    Park et al. 2023 (TRAK, arXiv 2303.14186), Zheng et al. 2024 (D-TRAK, arXiv 2311.00500). The
    prediction for a subset is the sum of its pictures' scores; a higher one should go with a lower
    loss.

    Args:
        scores: [Q, N], of N training pictures for Q pictures; NaN counts as 0.
        subsets: [M, N] bool, which pictures each of M models was trained on.
        losses: [M, Q], each model's loss on each picture, averaged over training seeds where there
            are several.

    Raises:
        CallError: the shapes do not fit, or there are fewer than three subsets.

    Examples:
        >>> scores = np.array([[3.0, 1.0, 2.0]])
        >>> subsets = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], bool)
        >>> losses = np.array([[0.2], [0.1], [0.3]])
        >>> round(lds(scores, subsets, losses).mean, 6)
        1.0
    """
    scores = np.nan_to_num(np.asarray(scores, float))
    subsets = np.asarray(subsets, bool)
    losses = np.asarray(losses)
    queries, pictures = scores.shape
    models = len(losses)
    fits = subsets.shape == (models, pictures) and losses.shape[1:] == (queries,)
    if not fits or models < FEWEST_MODELS:
        shapes = f"scores {scores.shape}, subsets {subsets.shape}, losses {losses.shape}"
        raise CallError(f"{shapes}: give [Q, N], [M, N] and [M, Q], with three subsets or more")
    predicted = ranks(scores @ subsets.T.astype(float))
    true = ranks(-losses.T)
    per_picture = correlations(predicted, true, np.ones((1, models)))[:, 0]
    # A bootstrap (Efron 1979) of models and pictures at once. A resample says how often each is in
    # it; ranks stay those among all models.
    random = np.random.default_rng(0)
    model_counts = random.multinomial(models, np.full(models, 1 / models), RESAMPLES)
    picture_counts = random.multinomial(queries, np.full(queries, 1 / queries), RESAMPLES)
    by_resample = correlations(predicted, true, model_counts)  # [Q, R]
    resampled = (by_resample * picture_counts.T).sum(0) / queries
    low, high = np.quantile(resampled, INTERVAL)
    return LDS(per_picture, float(per_picture.mean()), float(low), float(high), resampled)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of values [n], and the low and high end of its 95 % bootstrap interval.

    >>> interval(np.array([2.0, 2.0, 2.0]))
    (2.0, 2.0, 2.0)
    """
    picks = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(1), INTERVAL)
    return float(values.mean()), float(low), float(high)


def read_models(folder: str | Path, index: Index) -> tuple[list[Path], np.ndarray]:
    """Return the folders of M models that were trained on subsets, and the subsets [M, N] bool.

    Args:
        folder: holds a folder for each model, and in each `subset.txt`, the ids of its training
            pictures, one a line.

    Raises:
        CallError: there are fewer than three, or an id is not in the index.
    """
    if not Path(folder).is_dir():
        raise CallError(f"{folder}: no such folder")
    files = sorted(Path(folder).glob("*/subset.txt"))
    if len(files) < FEWEST_MODELS:
        raise CallError(
            f"{folder}: {counted(len(files), 'folder')} with a subset.txt;"
            " give three models or more"
        )
    row_of = {name: row for row, name in enumerate(index.store.sample_ids)}
    subsets = np.zeros((len(files), len(row_of)), bool)
    for subset, file in zip(subsets, files, strict=True):
        names = _read_names(file)
        unknown = [name for name in names if name not in row_of]
        if unknown:
            raise CallError(
                f"{file}: {counted(len(unknown), 'id is', 'ids are')} not in the index,"
                f" such as {unknown[0]!r}"
            )
        subset[[row_of[name] for name in names]] = True
    return [file.parent for file in files], subsets


def _read_names(file: Path) -> list[str]:
    """The lines of a file; names may hold any character but a line feed, and any bytes."""
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    return [line for line in text.split("\n") if line]


def model_losses(
    index: Index,
    models: Sequence[str | Path],
    pictures: Sequence[Picture],
    prompt: str | Sequence[str] | None = None,
    class_label: int | Sequence[int] | None = None,
) -> np.ndarray:
    """Return each model's loss on each picture, [M, Q] float64.

    It is the mean over 50 timesteps × 2 draws of noise that all pictures share. The arguments and
    errors are those of `half_losses`.
    """
    return half_losses(index, models, pictures, prompt, class_label).mean(0)


def half_losses(
    index: Index,
    models: Sequence[str | Path],
    pictures: Sequence[Picture],
    prompt: str | Sequence[str] | None = None,
    class_label: int | Sequence[int] | None = None,
) -> np.ndarray:
    """Return each model's loss at either half of the timesteps, every other one, [2, M, Q] float64.

    Args:
        models: M folders, each a model as `build` takes it; adapters on the base of an index of
            adapters.
        pictures, prompt, class_label: as for `Index.query`.

    Raises:
        CallError: a picture does not open. ModelError: a model does not load.
    """
    recipe = index.store.recipe
    queries = read_query(recipe, pictures, prompt=prompt, class_label=class_label)
    losses = []
    each = progress(index.gradients.others(models), "losses", len(models), unit="model")
    for denoiser in each:
        timesteps = denoiser.process.grid(TIMESTEPS)
        examples = make_examples(denoiser.encoder, queries)
        for half in (timesteps[::2], timesteps[1::2]):
            losses.append(mean_losses(denoiser, examples, half, DRAWS, SEED, recipe.loss))
    return np.reshape(losses, (-1, 2, len(pictures))).transpose(1, 0, 2)


def pixel_scores(index: Index, pictures: Sequence[Picture]) -> np.ndarray:
    """Return the cosine of the pixels of each picture and each training picture, [Q, N] float64.

    It is NaN for training pictures that no query returns, or that cannot be read any more.

    Raises:
        CallError: the training pictures are no longer where they were.
    """
    dataset = index.training_pictures.require()
    image = index.store.recipe.pixels
    queries = unit(read_pictures(pictures, image).reshape(len(pictures), -1))
    scores = np.full((len(queries), index.store.shape[1]), np.nan)
    excluded = set(index.store.excluded)
    for row in range(scores.shape[1]):
        if row in excluded:
            continue
        try:
            scores[:, row] = queries @ unit(dataset.picture(row, image).reshape(-1))
        except DataError as error:
            warnings.warn(f"{error}; pixels take it for unlike all others", stacklevel=2)
    return scores


def compare(
    index: Index,
    pictures: Picture | Iterable[Picture],
    subsets: np.ndarray,
    losses: np.ndarray,
    embeddings: tuple[np.ndarray, np.ndarray] | None = None,
    **options: Unpack[QueryOptions],
) -> dict[str, LDS]:
    """Return the LDS of both methods, plain and whitened, and beside them of pixels and of chance.

    Args:
        pictures: Q pictures.
        subsets: [M, N], see `lds`.
        losses: [M, Q], see `lds`.
        embeddings: of training pictures [N, E] and of the queries [Q, E], such as CLIP's; their
            cosine is one more.
        options: as for `Index.query`; `whiten` is set here.

    Returns:
        {name of the scores: their LDS}.

    Raises:
        CallError: before any gradient is taken: the shapes do not fit.
    """
    pictures = picture_list(pictures)
    require_comparable(index, len(pictures), embeddings)
    _require_losses(index, len(pictures), subsets, losses)
    options["whiten"] = False
    query = index.to_query(pictures, **options)
    blocks = index.query_blocks(query, *METHODS)
    results = {}
    for method, block in zip(METHODS, blocks, strict=True):
        plain = index.ranker.scores(method, block, query.span)
        results[method] = lds(plain, subsets, losses)
        whitened = index.ranker.scores(method, index.ranker.whitened(method, block), query.span)
        results[f"{method}, whitened"] = lds(whitened, subsets, losses)
    results["pixel cosine"] = lds(pixel_scores(index, pictures), subsets, losses)
    if embeddings is not None:
        training, queries = embeddings
        results["embedding cosine"] = lds(unit(queries) @ unit(training).T, subsets, losses)
    chance = np.random.default_rng(0).standard_normal((losses.shape[1], subsets.shape[1]))
    results["random"] = lds(chance, subsets, losses)
    return results


def _require_losses(index: Index, count: int, subsets: np.ndarray, losses: np.ndarray) -> None:
    """Raise CallError unless losses and subsets of `compare` fit the index and `count` pictures."""
    rows = index.store.shape[1]
    models = len(losses) if losses.ndim else 0
    if subsets.shape != (models, rows) or losses.shape != (models, count) or models < FEWEST_MODELS:
        raise CallError(
            f"subsets {subsets.shape}, losses {losses.shape}: give [M, {rows}] and [M, {count}],"
            f" {counted(rows, 'picture')} in the index and {count} asked, with three"
            " subsets or more"
        )
    broken = np.flatnonzero(~np.isfinite(losses).all(1))
    if len(broken):
        raise CallError(
            f"losses of {counted(len(broken), 'model')}, the first of subset {broken[0]}, are not"
            " finite: a model that came to nothing; leave it out"
        )
    if not subsets.any(1).all() or (subsets == subsets[0]).all():
        raise CallError("subsets: one is empty, or all are the same; give different ones")
    if (losses == losses[0]).all():
        raise CallError("losses: those of all models are the same; there is nothing to predict")


def require_comparable(
    index: Index, count: int, embeddings: tuple[np.ndarray, np.ndarray] | None
) -> None:
    """Raise CallError unless pixels, and embeddings if given, can be compared with `compare`.

    Args:
        count: of the pictures that are asked about.
    """
    index.training_pictures.require()
    if embeddings is None:
        return
    rows = index.store.shape[1]
    training, queries = embeddings
    fits = training.ndim == queries.ndim == 2 and training.shape[1] == queries.shape[1]
    if not fits or (len(training), len(queries)) != (rows, count):
        raise CallError(
            f"embeddings: training {training.shape}, queries {queries.shape}; give [{rows}, E] and"
            f" [{count}, E]"
        )
    if not (np.isfinite(training).all() and np.isfinite(queries).all()):
        raise CallError("embeddings: some numbers are not finite; give those of another encoder")

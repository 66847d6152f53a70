"""Scores of parts of a model at some timesteps, and what models of halves say of them.

A linear datamodeling score takes a half's summed scores alone. Sums of scores over timesteps are
sums of these sums, so that any set of timesteps is judged without the scores themselves.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from parts_kinds import EVERYTHING
from parts_products import SEEDS, products_file, read_products
from parts_timesteps import TIMESTEPS
from subset_models import Subject, subsets

from gradindex.report.evaluate import INTERVAL, lds
from gradindex.search.factors import DAMPING
from gradindex.search.scoring import METHODS

VERSION = 1  # of what is in the files
DAMPINGS = (1e-4, 3e-4, DAMPING, 3e-3)


class Scoring(NamedTuple):
    """How scores are made of gradients, matched timestep by timestep.

    Attributes:
        method: "tracin" or "retrac".
        damping: λ in mean squares of a row's norm; None for plain scores.
    """

    method: str
    damping: float | None

    @property
    def treatment(self) -> str:
        """Return "plain" or "whitened"."""
        return "plain" if self.damping is None else "whitened"

    def row(self) -> dict[str, str]:
        """Return it as JSON values."""
        return {"method": self.method, "treatment": self.treatment}


SCORINGS = [Scoring(method, damping) for method in METHODS for damping in (None, *DAMPINGS)]
USUAL = [scoring for scoring in SCORINGS if scoring.damping in (None, DAMPING)]


class Judgement(NamedTuple):
    """A linear datamodeling score, the mean of several seeds' of noise.

    Attributes:
        mean: × 100.
        resampled: × 100, in each resample of pictures and models, the same for all scores, [R].
    """

    mean: float
    resampled: np.ndarray

    def figures(self) -> list[float]:
        """Return the mean and the ends of its 95 % interval."""
        return [self.mean, *np.quantile(self.resampled, INTERVAL).tolist()]

    def minus(self, other: "Judgement") -> list[float]:
        """Return the difference from another on the same queries and models, with its interval."""
        difference = self.resampled - other.resampled
        return [self.mean - other.mean, *np.quantile(difference, INTERVAL).tolist()]

    def share_of(self, other: "Judgement") -> list[float] | None:
        """Return how many times another's score it is, with its interval.

        None where the other's interval reaches 0.
        """
        if other.figures()[1] <= 0:
            return None
        times = self.resampled / other.resampled
        return [self.mean / other.mean, *np.quantile(times, INTERVAL).tolist()]


def block_scores(products: np.ndarray, pictures: int, scoring: Scoring) -> np.ndarray:
    """Return the scores at one timestep, [Q, N] float64.

    Whitened ones are taken on the other side: G (GᵀG/N + λI)⁻¹ q = (GGᵀ/N + λI)⁻¹ G q.

    Args:
        products: of the gradients of N pictures, then of Q queries, [N + Q, N + Q] float64.
        pictures: N.
    """
    if scoring.method == "retrac":
        norms = np.sqrt(products.diagonal())
        norms = np.where(norms == 0, 1, norms)
        products = products / norms / norms[:, None]
    scores = products[:pictures, pictures:]
    if scoring.damping is not None:
        moments = products[:pictures, :pictures] / pictures
        load = scoring.damping * moments.trace() or 1.0
        scores = np.linalg.solve(moments + load * np.eye(pictures), scores)
    return scores.T


def mean_scores(
    folder: Path, subject: Subject, timesteps: Sequence[int], seed: int, scoring: Scoring
) -> np.ndarray:
    """Return the scores of all parameters, their mean over timesteps, [2 · queries, N] float64."""
    products = (
        read_products(products_file(folder, subject, t, seed), 1, EVERYTHING) for t in timesteps
    )
    return np.mean([block_scores(one, subject.pictures, scoring) for one in products], axis=0)


def predictions_file(folder: Path, subject: Subject, timestep: int, seed: int) -> Path:
    """Return the file with the sums of scores over halves; made now, unless it is there.

    It has an array "draws kind method damping" [2 · queries, subsets] for each of them.
    """
    file = folder / f"predictions{VERSION}-{timestep}-{seed}.npz"
    if not file.exists():
        halves = subsets(subject).T.astype(float)
        source = products_file(folder, subject, timestep, seed)
        arrays = {}
        for draws, kind in stored(source):
            products = read_products(source, draws, kind)
            for scoring in SCORINGS if draws == 1 else USUAL:
                scores = block_scores(products, subject.pictures, scoring)
                arrays[_key(kind, scoring, draws)] = scores @ halves
        draft = file.with_suffix(".draft.npz")
        np.savez(draft, **arrays)
        os.replace(draft, file)
    return file


def stored(file: Path) -> list[tuple[int, str]]:
    """Return the number of draws and the kind of each array in a file of products."""
    with np.load(file) as arrays:
        pairs = [name.partition(" ") for name in arrays]
    return [(int(draws), kind) for draws, _, kind in pairs]


def _key(kind: str, scoring: Scoring, draws: int) -> str:
    return f"{draws} {kind} {scoring.method} {scoring.damping}"


class Predictions:
    """What scores of each part predict of the models of halves.

    Attributes:
        kinds: of parameters.
    """

    def __init__(self, folder: Path, subject: Subject) -> None:
        self._subject = subject
        self.kinds = [
            kind
            for draws, kind in stored(products_file(folder, subject, TIMESTEPS[0], SEEDS[0]))
            if draws == 1
        ]
        self._files = [
            [np.load(predictions_file(folder, subject, t, seed)) for t in TIMESTEPS]
            for seed in SEEDS
        ]

    def of(self, kind: str, scoring: Scoring, draws: int = 1) -> np.ndarray:
        """Return the sums of scores over halves at each timestep, [seeds, T, Q, M] float64.

        They are NaN at timesteps that were not measured with so many draws.
        """
        key = _key(kind, scoring, draws)
        nothing = np.full((2 * self._subject.queries, self._subject.subsets), np.nan)
        return np.array([[file.get(key, nothing) for file in files] for files in self._files])


def over(predictions: np.ndarray, timesteps: Sequence[int]) -> np.ndarray:
    """Return the predictions of scores that are means over some timesteps, [seeds, Q, M].

    Args:
        predictions: [seeds, T, Q, M].
        timesteps: some of TIMESTEPS.
    """
    return predictions[:, [TIMESTEPS.index(t) for t in timesteps]].mean(1)


def judge_query_sets(
    subject: Subject, predicted: np.ndarray, losses: np.ndarray
) -> dict[str, Judgement]:
    """Return what all models say of predictions [seeds, 2 · queries, M], for each query set."""
    return {
        name: judge(predicted[:, queries], losses[:, queries])
        for name, queries in subject.query_sets.items()
    }


def mean_judgement(judgements: Sequence[Judgement]) -> Judgement:
    """Return the mean of judgements by models and pictures that were resampled in the same way."""
    return Judgement(
        float(np.mean([judgement.mean for judgement in judgements])),
        np.mean([judgement.resampled for judgement in judgements], axis=0),
    )


def judge(predicted: np.ndarray, losses: np.ndarray) -> Judgement:
    """Return the linear datamodeling score of predictions.

    Args:
        predicted: [seeds, Q, M].
        losses: of the models, [M, Q].
    """
    each_model = np.eye(len(losses), dtype=bool)  # scores are summed over halves already
    results = [lds(sums, each_model, losses) for sums in predicted]
    return Judgement(
        100 * float(np.mean([result.mean for result in results])),
        100 * np.mean([result.resampled for result in results], axis=0),
    )

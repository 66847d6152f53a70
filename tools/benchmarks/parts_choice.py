"""Timesteps and parts that one half of pictures and models chooses, and the other half judges.

So nothing is tuned on what judges it. Each half chooses once and judges once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from parts_costs import row_bytes
from parts_scores import Judgement, Scoring, judge, mean_judgement, over
from parts_timesteps import COUNTS, TIMESTEPS
from subset_models import Subject

from gradindex.report.ranking import correlations, ranks

Judgements = tuple[dict[str, Judgement], ...]  # by each half, {query set: judgement}


@dataclass(frozen=True)
class Part:
    """A kind of parameters.

    Attributes:
        numbers: of its parameters. steps: what a gradient costs, in training steps.
    """

    kind: str
    numbers: int
    steps: float

    def row(self, timesteps: int, draws: int = 1) -> dict[str, Any]:
        """Return as JSON values what so many timesteps of it cost a picture."""
        return {
            "kind": self.kind,
            "timesteps": timesteps,
            "draws": draws,
            "steps": self.steps * timesteps * draws,
            "bytes": row_bytes(self.numbers) * timesteps,
        }


@dataclass(frozen=True)
class Choice:
    """So many timesteps of a part, chosen by each half and judged by the other.

    Attributes:
        timesteps: chosen by each half.
        values: what each half says of its own choice, LDS × 100.
        judgements: by the other half, in the same order.
    """

    part: Part
    scoring: Scoring
    timesteps: tuple[tuple[int, ...], ...]
    values: tuple[float, ...]
    judgements: Judgements

    @property
    def cost(self) -> dict[str, Any]:
        """Return as JSON values what it costs."""
        return self.part.row(len(self.timesteps[0]))


class Aim(NamedTuple):
    """What the best of all parts and timesteps may cost a picture; None: any cost.

    Attributes:
        method: allowed; None: both.
    """

    name: str
    treatment: str
    method: str | None
    steps: float | None
    bytes: int | None

    def allows(self, choice: Choice) -> bool:
        """Return whether a choice is within the costs, and of the right scores."""
        cost = choice.cost
        return (
            choice.scoring.treatment == self.treatment
            and self.method in (None, choice.scoring.method)
            and (self.steps is None or cost["steps"] <= self.steps)
            and (self.bytes is None or cost["bytes"] <= self.bytes)
        )


AIMS = (
    Aim("whitened, 1.5 training steps and 16 KB", "whitened", None, 1.5, 16_000),
    Aim("whitened, 4 training steps and 50 KB", "whitened", None, 4, 50_000),
    Aim("whitened, any cost", "whitened", None, None, None),
    Aim("plain ReTrac, 1.5 training steps and 16 KB", "plain", "retrac", 1.5, 16_000),
    Aim("plain ReTrac, 4 training steps and 50 KB", "plain", "retrac", 4, 50_000),
    Aim("plain ReTrac, any cost", "plain", "retrac", None, None),
    Aim("plain TracIn, any cost", "plain", "tracin", None, None),
)


class Halves:
    """Two halves of a subject's queries and models, every other one.

    Args:
        losses: of all models on all queries, [M, Q].

    Attributes:
        values: what each half says of predictions [seeds, Q, M]: their mean LDS × 100 over query
            sets, to choose by.
    """

    def __init__(self, subject: Subject, losses: np.ndarray) -> None:
        self._losses = losses
        rows, models = np.arange(losses.shape[1]), np.arange(len(losses))
        self._queries = [
            {name: rows[queries][start::2] for name, queries in subject.query_sets.items()}
            for start in (0, 1)
        ]
        self._models = [models[start::2] for start in (0, 1)]
        self.values = [self._value_by(half) for half in (0, 1)]

    def judge(self, predicted: np.ndarray) -> Judgements:
        """Return what the second half says of predictions [seeds, Q, M], then the first."""
        return self.judge_by(1, predicted), self.judge_by(0, predicted)

    def choose(self, part: Part, scoring: Scoring, predictions: np.ndarray) -> list[Choice]:
        """Return a part's best timesteps, COUNTS of them.

        Args:
            predictions: [seeds, T, Q, M].
        """
        orders = [choose_timesteps(predictions, value, max(COUNTS)) for value in self.values]
        choices = []
        for size in COUNTS:
            chosen = [tuple(sorted(order[:size])) for order in orders]
            predicted = [over(predictions, timesteps) for timesteps in chosen]
            values = [value(of_half) for value, of_half in zip(self.values, predicted, strict=True)]
            judgements = (self.judge_by(1, predicted[0]), self.judge_by(0, predicted[1]))
            choices.append(Choice(part, scoring, tuple(chosen), tuple(values), judgements))
        return choices

    def judge_by(self, half: int, predicted: np.ndarray) -> dict[str, Judgement]:
        """Return what a half says of predictions [seeds, Q, M], for each query set."""
        models = self._models[half]
        return {
            name: judge(predicted[:, rows][:, :, models], self._losses[models][:, rows])
            for name, rows in self._queries[half].items()
        }

    def _value_by(self, half: int) -> Callable[[np.ndarray], float]:
        """The function that says what a half says of predictions."""
        models, queries = self._models[half], self._queries[half]
        true = {name: ranks(-self._losses[models][:, rows].T) for name, rows in queries.items()}
        equal = np.ones((1, len(models)))

        def value(predicted: np.ndarray) -> float:
            means = [
                correlations(ranks(sums[rows][:, models]), true[name], equal).mean()
                for name, rows in queries.items()
                for sums in predicted
            ]
            return 100 * float(np.mean(means))

        return value


def choose_timesteps(
    predictions: np.ndarray, value: Callable[[np.ndarray], float], most: int
) -> list[int]:
    """Return `most` of TIMESTEPS, each the one that adds most to those before it.

    Args:
        predictions: [seeds, T, Q, M].
        value: of predictions [seeds, Q, M].
    """
    chosen: list[int] = []
    total = np.zeros_like(predictions[:, 0])
    while len(chosen) < most:
        left = [position for position in range(len(TIMESTEPS)) if position not in chosen]
        values = [value(total + predictions[:, position]) for position in left]
        best = left[int(np.argmax(values))]
        chosen.append(best)
        total = total + predictions[:, best]
    return [TIMESTEPS[position] for position in chosen]


def chosen_rows(choices: Sequence[Choice], today: Judgements) -> list[dict[str, Any]]:
    """Return all choices as JSON values.

    Args:
        today: what both halves say of the former default.
    """
    return [
        {
            **choice.cost,
            **choice.scoring.row(),
            "chosen": choice.timesteps,
            "value": sum(choice.values) / len(choice.values),
            **_results(choice.judgements, today),
        }
        for choice in choices
    ]


def aims(choices: Sequence[Choice], today: Judgements, pixels: Judgements) -> list[dict[str, Any]]:
    """Return the best choice within each aim's costs: of each half, judged by the other.

    Args:
        today, pixels: what both halves say of the former default, and of the cosine of pixels.
    """
    rows = []
    for aim in AIMS:
        allowed = [choice for choice in choices if aim.allows(choice)]
        if not allowed:
            continue
        best = [max(allowed, key=lambda choice: choice.values[half]) for half in (0, 1)]
        judgements = (best[0].judgements[0], best[1].judgements[1])
        picks = [
            {
                **choice.cost,
                **choice.scoring.row(),
                "chosen": choice.timesteps[half],
            }
            for half, choice in enumerate(best)
        ]
        results = _results(judgements, today)
        against = _results(judgements, pixels)
        rows.append({"aim": aim.name, "picks": picks, **results, "pixels": against["share"]})
    return rows


def _results(judgements: Judgements, others: Judgements) -> dict[str, Any]:
    """Both halves' judgements together, the difference from others and the share of them."""
    together, other = mean_of_halves(judgements), mean_of_halves(others)
    return {
        **{name: judgement.figures() for name, judgement in together.items()},
        "difference": {name: result.minus(other[name]) for name, result in together.items()},
        "share": {name: result.share_of(other[name]) for name, result in together.items()},
    }


def mean_of_halves(judgements: Judgements) -> Mapping[str, Judgement]:
    """Return the mean of both halves' judgements, for each query set."""
    first, second = judgements
    return {name: mean_judgement([first[name], second[name]]) for name in first}

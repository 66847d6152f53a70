"""Rules for timesteps compared with the even grid: which is best, and whether it carries."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from parts_choice import Halves, mean_of_halves
from parts_scores import (
    USUAL,
    Judgement,
    Predictions,
    Scoring,
    judge_query_sets,
    mean_judgement,
    over,
)
from parts_timesteps import COUNTS, EVEN, candidate_rules
from subset_models import Subject

KINDS = ("everything", "norms", "modulation", "attention", "middle", "last block")
FEW = (2, 3, 5)  # timesteps by which a rule is chosen

Rows = list[dict[str, Any]]


def rule_rows(subject: Subject, predictions: Predictions, losses: np.ndarray) -> Rows:
    """Return what every rule's ReTrac scores are worth: the mean over KINDS of parameters.

    A difference is from the even grid of as many timesteps.

    Args:
        losses: of all models on all queries, [M, Q].
    """
    sets = {
        (family, name, count): rule(count)
        for family, rules in candidate_rules().items()
        for name, rule in rules.items()
        for count in COUNTS
    }
    rows: Rows = []
    for scoring in _retrac():
        of_kinds = [predictions.of(kind, scoring) for kind in _kinds(predictions)]
        judged = {
            timesteps: _mean_over_kinds(
                [judge_query_sets(subject, over(part, timesteps), losses) for part in of_kinds]
            )
            for timesteps in set(sets.values())
        }
        for (family, name, count), timesteps in sets.items():
            rows.append(
                {
                    "family": family,
                    "rule": name,
                    "treatment": scoring.treatment,
                    "timesteps": count,
                    "chosen": timesteps,
                    **_beside(judged[timesteps], judged[_even(count)]),
                }
            )
    return rows


def chosen_rule_rows(halves: Halves, predictions: Predictions) -> Rows:
    """Return the best rule of each family: chosen by each half, judged by the other.

    One rule is chosen for all KINDS and FEW timesteps.
    """
    rows: Rows = []
    for scoring in _retrac():
        of_kinds = [predictions.of(kind, scoring) for kind in _kinds(predictions)]
        for family, rules in candidate_rules().items():
            if family == EVEN:
                continue
            names = [_best_rule(half, halves, of_kinds, rules) for half in (0, 1)]
            for count in COUNTS:
                chosen = [rules[name](count) for name in names]
                results = _judged_by_others(halves, of_kinds, chosen)
                even = _judged_by_others(halves, of_kinds, [_even(count)] * 2)
                rows.append(
                    {
                        "family": family,
                        "rules": names,
                        "treatment": scoring.treatment,
                        "timesteps": count,
                        "chosen": chosen,
                        **_beside(results, even),
                    }
                )
    return rows


def _retrac() -> list[Scoring]:
    return [scoring for scoring in USUAL if scoring.method == "retrac"]


def _kinds(predictions: Predictions) -> list[str]:
    return [kind for kind in KINDS if kind in predictions.kinds]


def _even(count: int) -> tuple[int, ...]:
    return candidate_rules()[EVEN][EVEN](count)


def _best_rule(
    half: int, halves: Halves, of_kinds: Sequence[np.ndarray], rules: Mapping[str, Any]
) -> str:
    """The name of the rule that a half says most for: the mean over kinds and FEW timesteps."""

    @cache
    def value(timesteps: tuple[int, ...]) -> float:
        values = [halves.values[half](over(of_kind, timesteps)) for of_kind in of_kinds]
        return float(np.mean(values))

    return max(rules, key=lambda name: sum(value(rules[name](count)) for count in FEW))


def _judged_by_others(
    halves: Halves, of_kinds: Sequence[np.ndarray], chosen: Sequence[tuple[int, ...]]
) -> Mapping[str, Judgement]:
    """What the other half says of each half's timesteps: the mean over kinds and halves."""
    first, second = (
        _mean_over_kinds(
            [halves.judge_by(1 - half, over(of_kind, timesteps)) for of_kind in of_kinds]
        )
        for half, timesteps in enumerate(chosen)
    )
    return mean_of_halves((first, second))


def _mean_over_kinds(results: Sequence[Mapping[str, Judgement]]) -> dict[str, Judgement]:
    return {name: mean_judgement([result[name] for result in results]) for name in results[0]}


def _beside(results: Mapping[str, Judgement], even: Mapping[str, Judgement]) -> dict[str, Any]:
    """Judgements as JSON values, and the differences from those of the even grid."""
    return {
        **{name: result.figures() for name, result in results.items()},
        "difference": {name: result.minus(even[name]) for name, result in results.items()},
    }

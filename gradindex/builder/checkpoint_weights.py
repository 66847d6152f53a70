"""The checkpoints of a build and how much each of them counts."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gradindex.data.log_events import LoggedCheckpoint
from gradindex.data.training_log import TrainingLog, training_weights
from gradindex.store.soundness import to_weights


class WeightedCheckpoint(NamedTuple):
    """A checkpoint of a build.

    Attributes:
        path: where its weights are.
        step: how many training steps were done before it was saved; 0 without a training log.
        weight: what its gradients' inner products are multiplied with in a score.
    """

    path: str
    step: int
    weight: float


def choose_checkpoints(
    checkpoints: Mapping[str, float | None] | Sequence[str | Path] | None,
    model: str | Path,
    log: TrainingLog | None,
) -> list[WeightedCheckpoint]:
    """Return the checkpoints of a build, in the order given, or of the log's steps.

    Args:
        checkpoints: {path: weight}, or paths; a weight of None is the usual one: without a log
            1 / C for each of C checkpoints, with one the learning rate times the share of training,
            see `training_weights`.
        model: holds the only checkpoint, of weight 1, where neither `checkpoints` nor the log name
            one.
        log: what the training run drew.

    Raises:
        CallError: the log does not know a checkpoint; a weight is not finite, or all are zero.

    >>> choose_checkpoints({"a": 2.0, "b": None}, "model", None)  # doctest: +NORMALIZE_WHITESPACE
    [WeightedCheckpoint(path='a', step=0, weight=2.0),
     WeightedCheckpoint(path='b', step=0, weight=0.5)]
    """
    explicit = _explicit_checkpoints(checkpoints)
    if log is None:
        chosen = [LoggedCheckpoint(0, path, 1.0) for path in explicit or [str(model)]]
        usual = [1 / len(chosen)] * len(chosen)
    else:
        chosen = log.find([Path(path) for path in explicit]) or [_last_checkpoint(model, log)]
        usual = training_weights(chosen)
    explicit_weights = list(explicit.values()) or [None] * len(chosen)
    weights = []
    for explicit_weight, usual_weight in zip(explicit_weights, usual, strict=True):
        weights.append(usual_weight if explicit_weight is None else explicit_weight)
    weights = to_weights(weights)
    for checkpoint, weight in zip(chosen, weights, strict=True):
        if weight == 0:
            warnings.warn(
                f"checkpoint {checkpoint.path} counts for nothing:"
                " its weight or learning rate is 0",
                stacklevel=4,  # the caller of `build`
            )
    return [
        WeightedCheckpoint(checkpoint.path, checkpoint.step, weight)
        for checkpoint, weight in zip(chosen, weights, strict=True)
    ]


def _explicit_checkpoints(
    checkpoints: Mapping[str, float | None] | Sequence[str | Path] | None,
) -> Mapping[str, float | None]:
    """Return {path: weight} of the checkpoints that were given; None for one without a weight."""
    if not checkpoints:
        return {}
    if isinstance(checkpoints, Mapping):
        return checkpoints
    return dict.fromkeys(map(str, checkpoints))


def _last_checkpoint(model: str | Path, log: TrainingLog) -> LoggedCheckpoint:
    """Return the model as it was after the last step of the log."""
    return LoggedCheckpoint(int(log.events["step"].max()) + 1, str(model), 1.0)

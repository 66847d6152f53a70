"""What gradients of a part of a model cost: training steps and bytes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from gradient_methods import median_ratio, time_in_turns
from parts_kinds import EVERYTHING, kinds_of
from subset_models import Subject
from torch import Tensor

from gradindex.builder.plan import DIM, RANK
from gradindex.gradients.capture import Capture
from gradindex.gradients.projection import CountSketch, Exact, Projection

BATCH, ROUNDS = 32, 9
ROW_BYTES = 4 + 2  # of a number in the store: as it is, and normalized in half precision
STEP, FORWARD = "training step", "forward"

Losses = Callable[[], Tensor]


def row_bytes(numbers: int) -> int:
    """Return how many bytes the store keeps of a picture at a timestep.

    Args:
        numbers: of the chosen parameters; those of more than a projection has are projected.
    """
    return ROW_BYTES * min(numbers, DIM)


def costs(
    subject: Subject, untrained: Callable[[], Any], sizes: Mapping[str, int]
) -> dict[str, float]:
    """Return {kind: the time of its gradients in training steps}, and that of the forward pass.

    Gradients are taken as a build does: projected to DIM numbers with RANK, or exact where the
    parameters are no more. All take turns in this process.

    Args:
        subject: says how the model is called.
        untrained: makes the model that is measured.
        sizes: {kind: how many numbers it has in the subject's model, which may be smaller}.
    """
    torch.manual_seed(0)
    model = untrained().eval().requires_grad_(False)
    config = model.config
    x = torch.randn(BATCH, config.in_channels, config.sample_size, config.sample_size)
    epsilon, t = torch.randn_like(x), torch.randint(1000, (BATCH,))

    def losses() -> Tensor:
        return (subject.predict(model, x, t) - epsilon).square().flatten(1).mean(1)

    kinds = kinds_of(model)
    trained = [model.get_parameter(name) for name in kinds[EVERYTHING]]
    methods: dict[str, Callable[[], object]] = {
        STEP: partial(_training_step, trained, losses),
        FORWARD: torch.no_grad()(losses),
    }
    for kind, names in kinds.items():
        methods[kind] = partial(_take, _capture(model, names, sizes[kind]), losses)
    seconds = time_in_turns(methods, ROUNDS, "cpu")
    return {kind: median_ratio(seconds, kind, STEP) for kind in methods if kind != STEP}


def _capture(model: Any, names: tuple[str, ...], size: int) -> Capture:
    """The capture of some parameters, as a build would make it of so many numbers."""
    sizes = {name: model.get_parameter(name).numel() for name in names}
    is_narrow = size <= DIM
    projection: Projection = Exact(sizes) if is_narrow else CountSketch(DIM, 0, RANK)
    return Capture(model, names, projection)


def _take(capture: Capture, losses: Losses) -> None:
    with capture:
        capture.gradients(losses)


def _training_step(trained: Sequence[Tensor], losses: Losses) -> None:
    """Forward and backward pass with the gradients of the trained weights, summed over a batch."""
    for value in trained:
        value.requires_grad_(True)
    losses().sum().backward()
    for value in trained:
        value.grad = None
        value.requires_grad_(False)

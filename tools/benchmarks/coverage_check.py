"""A tiny model of a class that people use, and the comparison of its captured gradients."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradindex.errors import GradindexError
from gradindex.gradients.capture import Capture
from gradindex.gradients.captured_layers import captured_layers
from gradindex.gradients.findings import findings_of
from gradindex.gradients.projection import Exact
from gradindex.gradients.self_check import TOLERANCES

SAMPLES = 3
BATCHES = (1, 2, 3)
# A parameter is right where its captured gradient is autograd's up to this share of its norm, and
# up to this share of the whole gradient's: what float32 loses where a gradient nearly cancels.
PARAMETER_TOLERANCE = 1e-3
GRADIENT_TOLERANCE = 1e-6
CHECK = TOLERANCES[torch.float32]  # of the check before a build


class Case(NamedTuple):
    """A model with random weights and what it is called with.

    Attributes:
        model: in eval mode; its parameters that require gradients are captured.
        inputs: {argument: one value for each of SAMPLES samples}, the noisy sample first.
        fixed: {argument: what all samples share}.
    """

    model: Any
    inputs: Mapping[str, Any]
    fixed: Mapping[str, Any] = {}


@dataclass
class Coverage:
    """How a case came out.

    Attributes:
        parameters: how many were captured.
        wrong: the names of those that differ from autograd for some sample of some batch.
        unseen: those of them that the check before a build would not name.
        followed: how many stand in no layer with a rule, and are followed to where they meet the
            samples.
        by_autograd: how many autograd itself takes the gradient of.
        several_rows: whether layers are called with several rows for each sample.
        largest_error: share of a parameter's norm.
        refused: the error that names what cannot be captured; None where nothing was refused.
    """

    parameters: int
    wrong: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    followed: int = 0
    by_autograd: int = 0
    several_rows: bool = False
    largest_error: float = 0.0
    refused: str | None = None

    @property
    def is_right(self) -> bool:
        """Whether every parameter's gradient is autograd's."""
        return not self.wrong and self.refused is None

    def json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def noise(*shape: int) -> Tensor:
    """Return random numbers for each sample, [SAMPLES, *shape]."""
    return torch.randn(SAMPLES, *shape)


def timesteps() -> Tensor:
    """Return an early, a middle and a late timestep of 1,000, [SAMPLES]."""
    return torch.tensor([5, 500, 900])


def flow_times() -> Tensor:
    """Return three times between 0 and 1, [SAMPLES]."""
    return torch.tensor([0.1, 0.5, 0.9])


def shaken(model: Any) -> Any:
    """Return the model in eval mode without the zeros that gates and output layers begin at."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def compare(make: Callable[[], Case]) -> Coverage:
    """Compare the gradients of every sample and parameter with autograd's, in every batch size."""
    torch.manual_seed(0)
    case = make()
    model = case.model
    chosen = {name: value for name, value in model.named_parameters() if value.requires_grad}
    names = list(chosen)
    truth = [_autograd_row(case, sample, chosen) for sample in range(SAMPLES)]
    model.requires_grad_(False)
    exact = Exact({name: parameter.numel() for name, parameter in chosen.items()})
    coverage = Coverage(len(names))
    wrong: set[str] = set()
    seen: set[str] = set()
    for batch in BATCHES:
        try:
            with Capture(model, names, exact) as capture:
                rows = capture.gradients(lambda size=batch: _losses(case, slice(size)))
        except GradindexError as error:
            coverage.refused = str(error)
            return coverage
        for sample, (row, expected) in enumerate(zip(rows, truth, strict=False)):
            for name, part in exact.slices.items():
                error_norm = float((row[part] - expected[part]).norm())
                norm = float(expected[part].norm())
                rounding = GRADIENT_TOLERANCE * float(expected.norm())
                if not error_norm <= PARAMETER_TOLERANCE * norm + rounding:
                    wrong.add(name)
                    # The check compares the first sample of a batch of two.
                    check_allows = CHECK.parameter * norm + CHECK.gradient * float(expected.norm())
                    if (batch, sample) == (2, 0) and not error_norm <= check_allows:
                        seen.add(name)
                if norm > rounding:
                    coverage.largest_error = max(coverage.largest_error, error_norm / norm)
    coverage.wrong, coverage.unseen = sorted(wrong), sorted(wrong - seen)
    coverage.several_rows = bool(findings_of(model).rows_per_sample)
    by_autograd = findings_of(model).by_autograd & {*names}
    coverage.by_autograd = len(by_autograd)
    without_rule = {
        name
        for layer in captured_layers(model, {*names})
        for name in layer.names.values()
        if layer.rule is None
    }
    coverage.followed = len(without_rule - by_autograd)
    return coverage


def _autograd_row(case: Case, sample: int, chosen: Mapping[str, nn.Parameter]) -> Tensor:
    """The whole gradient of one sample's loss, one sample in the batch, [all numbers]."""
    loss = _losses(case, slice(sample, sample + 1)).sum()
    gradients = torch.autograd.grad(
        loss, list(chosen.values()), allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.flatten() for gradient in gradients])


def _losses(case: Case, samples: slice) -> Tensor:
    """The loss of some samples, in which each number of the output has a weight of its own, [n]."""
    inputs = {name: value[samples] for name, value in case.inputs.items()}
    output = case.model(**inputs, **case.fixed)
    while not isinstance(output, Tensor):  # a tuple with the output first, or a list of samples
        first = output[0]
        is_list_of_samples = isinstance(output, list) and isinstance(first, Tensor)
        output = torch.stack(output) if is_list_of_samples else first
    numbers = output.flatten(1)
    weights = torch.linspace(-1, 1, numbers.shape[1])
    return (numbers * weights).square().mean(1)

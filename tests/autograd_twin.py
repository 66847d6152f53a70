"""The slow, obvious twin of a capture: autograd, one sample at a time; and small models for it."""

from typing import Any

import torch
from torch import Tensor, nn

from gradindex.gradients.capture import Capture
from gradindex.gradients.projection import Exact


def assert_equals_autograd(layer: nn.Module, *inputs: Tensor) -> None:
    """Captured rows = one backward pass per sample, for a loss that weighs outputs differently."""
    device = inputs[0].device
    layer = layer.double().to(device)
    chosen = {
        name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad
    }
    names = list(chosen)

    def losses(*batch: Tensor) -> Tensor:
        output = layer(*batch)
        weights = torch.linspace(-1, 1, output[0].numel(), device=device).double()
        return (output.flatten(1) * weights).square().sum(1)

    expected = []
    for sample in zip(*inputs, strict=True):
        loss = losses(*(part[None] for part in sample)).sum()
        gradients = torch.autograd.grad(
            loss, list(chosen.values()), allow_unused=True, materialize_grads=True
        )
        expected.append(torch.cat([gradient.flatten() for gradient in gradients]))
    layer.requires_grad_(False)
    exact = Exact({name: layer.get_parameter(name).numel() for name in names})
    with Capture(layer, names, exact) as capture:
        rows = capture.gradients(lambda: losses(*inputs))
    truth = torch.stack(expected)
    # An element that nearly cancels has the rounding errors of its terms.
    scale = max(1.0, float(truth.abs().max()))
    torch.testing.assert_close(rows.double(), truth, rtol=1e-5, atol=1e-6 * scale)


class Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT


def randomized(layer: nn.Module) -> nn.Module:
    """A norm whose scale is not one and whose shift is not zero."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def autograd_rows(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """One sample at a time, in the given precision; float64."""
    model, rows = model.to(x.device, dtype), []
    for sample in x.to(dtype):
        gradients = torch.autograd.grad(
            model(sample[None]).square().sum(), list(model.parameters())
        )
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows).double()


class Twice(nn.Module):
    """One layer called twice, and its weight shared with a second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(torch.tanh(self.first(torch.tanh(self.first(x)))))


class Bare(nn.Module):
    """Parameters used in every way that is followed.

    Tables, gates, tokens, learned positions; in place, cast, cut.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2, 4))
        self.gate = nn.Parameter(torch.randn(()))
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.positions = nn.Parameter(torch.randn(1, 4, 4))
        self.other = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:  # [n, 3, 4]
        x = torch.cat([self.token.expand(len(x), -1, -1), x * torch.tanh(self.gate)], 1)
        x = x + self.positions[:, : x.shape[1]].to(x.dtype)
        scale, shift = (self.table[None] + x.mean(1, keepdim=True)).chunk(2, 1)
        x = x * (1 + scale) + shift
        first, rest = self.other.split([1, 2])
        x -= first.exp()
        return x * self.other.repeat(len(x), 1, 1)[:, :1] / (2 + rest.square().sum(0))


class Conditioned(nn.Module):
    """A diffusers model with its further inputs in the order of `keys`, and only its output."""

    def __init__(self, model: nn.Module, *keys: str, **fixed: Any) -> None:
        super().__init__()
        self.model, self.keys, self.fixed = model, keys, fixed

    def forward(self, x: Tensor, *inputs: Tensor) -> Tensor:
        named = dict(zip(self.keys, inputs, strict=True))
        return self.model(x, **named, **self.fixed, return_dict=False)[0]

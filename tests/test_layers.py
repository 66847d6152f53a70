"""Each layer's captured gradient equals autograd's, one sample at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradindex.errors import ModelError
from gradindex.gradients.capture import Capture
from gradindex.gradients.projection import CountSketch, Exact

fast = settings(max_examples=30, deadline=None)


def assert_equals_autograd(layer: nn.Module, *inputs: Tensor, mix: Callable[[Tensor], Tensor] | None = None) -> None:
    """Captured rows = one backward pass per sample, for a loss that weighs every output differently."""
    layer = layer.double()
    names = [name for name, _ in layer.named_parameters()]

    def losses(*batch: Tensor) -> Tensor:
        output = layer(*batch)
        output = mix(output) if mix else output
        return (output.flatten(1) * torch.linspace(-1, 1, output[0].numel()).double()).square().sum(1)

    expected = []
    for sample in zip(*inputs, strict=True):
        gradients = torch.autograd.grad(losses(*(part[None] for part in sample)).sum(), list(layer.parameters()))
        expected.append(torch.cat([gradient.flatten() for gradient in gradients]))
    layer.requires_grad_(False)
    with Capture(layer, names, Exact({name: layer.get_parameter(name).numel() for name in names})) as capture:
        rows = capture.gradients(lambda: losses(*inputs))
    torch.testing.assert_close(rows.double(), torch.stack(expected), rtol=1e-5, atol=1e-6)


@fast
@given(
    n=st.integers(1, 3),
    i=st.integers(1, 5),
    o=st.integers(1, 5),
    inner=st.lists(st.integers(1, 3), max_size=2),
    bias=st.booleans(),
)
def test_linear(n: int, i: int, o: int, inner: list[int], bias: bool) -> None:
    assert_equals_autograd(nn.Linear(i, o, bias=bias), torch.randn(n, *inner, i).double())


@fast
@given(
    n=st.integers(1, 3),
    groups=st.integers(1, 3),
    ins=st.integers(1, 2),
    outs=st.integers(1, 2),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.one_of(st.integers(0, 2), st.tuples(st.integers(0, 2), st.integers(0, 1))),
    dilation=st.integers(1, 2),
    padding_mode=st.sampled_from(["zeros", "reflect", "circular", "replicate"]),
    bias=st.booleans(),
)
def test_conv2d(n: int, groups: int, ins: int, outs: int, kernel: tuple[int, int], **options: Any) -> None:
    layer = nn.Conv2d(groups * ins, groups * outs, kernel, groups=groups, **options)
    assert_equals_autograd(layer, torch.randn(n, groups * ins, 6, 7).double())


def test_conv2d_with_same_padding() -> None:
    assert_equals_autograd(nn.Conv2d(2, 3, (3, 1), padding="same"), torch.randn(2, 2, 5, 4).double())


@fast
@given(
    n=st.integers(1, 3),
    groups=st.integers(1, 3),
    width=st.integers(1, 2),
    inner=st.lists(st.integers(2, 4), min_size=1, max_size=3),
)
def test_group_norm(n: int, groups: int, width: int, inner: list[int]) -> None:
    layer = nn.GroupNorm(groups, groups * width)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    assert_equals_autograd(layer, torch.randn(n, groups * width, *inner).double())


@fast
@given(n=st.integers(1, 3), length=st.integers(0, 3), padding_idx=st.sampled_from([None, 1]))
def test_embedding(n: int, length: int, padding_idx: int | None) -> None:
    shape = (n, length) if length else (n,)
    layer = nn.Embedding(4, 3, padding_idx=padding_idx)
    assert_equals_autograd(layer, torch.randint(4, shape))


class Twice(nn.Module):
    """One layer called twice, and its weight shared with a second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(torch.tanh(self.first(torch.tanh(self.first(x)))))


def test_a_layer_called_twice_and_a_tied_weight_add_up() -> None:
    assert_equals_autograd(Twice(), torch.randn(3, 4).double())


def test_layers_without_a_rule_are_listed_all_at_once() -> None:
    model = nn.Sequential(nn.Bilinear(2, 2, 2), nn.Linear(2, 2), nn.PReLU())
    with pytest.raises(ModelError, match=r"no gradient rule for: Bilinear \(0: weight, bias\); PReLU \(2: weight\)"):
        Capture(model, [name for name, _ in model.named_parameters()], CountSketch(8, 0))


class MixesSamples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.tensor([1]))


def test_a_layer_that_sees_another_batch_is_refused() -> None:
    model = MixesSamples().requires_grad_(False)
    with (
        Capture(model, ["table.weight"], CountSketch(8, 0)) as capture,
        pytest.raises(ModelError, match="layer table sees a batch of 1 where 4 samples came in"),
    ):
        capture.gradients(lambda: model(torch.randn(4, 2)).square().sum(1))


def test_the_hooks_are_gone_after_the_block() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with Capture(model, ["weight"], CountSketch(8, 0)):
        assert model._forward_hooks
    assert not model._forward_hooks

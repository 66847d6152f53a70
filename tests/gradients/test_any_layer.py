"""Parameters that no rule fits, and layers that are called in other ways, equal autograd too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from autograd_twin import assert_equals_autograd, randomized
from torch import Tensor, nn

from gradindex.errors import ModelError
from gradindex.gradients.capture import Capture
from gradindex.gradients.findings import findings_of
from gradindex.gradients.projection import CountSketch, Exact


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class Module(nn.Module):
    """A model made of parts and of a function of them and of its inputs."""

    def __init__(self, run: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        return self.run(self, *inputs, **named)


# Layers called by keyword.


def by_keyword(self: Any, x: Tensor) -> Tensor:
    x = self.norm(input=self.conv(input=x))
    x = self.linear(input=x.mT).mT
    return self.scale(input=x) + self.table(input=torch.arange(4).expand(len(x), 4))


def test_layers_called_by_keyword() -> None:
    model = Module(
        by_keyword,
        conv=nn.Conv1d(2, 4, 1),
        norm=randomized(nn.GroupNorm(2, 4)),
        linear=nn.Linear(4, 4),
        scale=randomized(nn.LayerNorm(4)),
        table=nn.Embedding(4, 4),
    )
    assert_equals_autograd(model, noise(3, 2, 4))


# Layers called with several rows for each sample, or with none of its own.


def frames_as_rows(self: Any, x: Tensor) -> Tensor:  # [n, frames, 2, 4, 4]
    rows = self.norm(self.conv(x.flatten(0, 1)))
    rows = self.scale(self.linear(rows.flatten(2)))
    rows = rows + self.instance(rows) + self.table(torch.ones(len(rows), 4, dtype=torch.long))
    return rows.unflatten(0, x.shape[:2])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_a_layer_called_with_the_frames_of_every_sample(n: int) -> None:
    """[n·k, …], the rows of a sample one after the other."""
    model = Module(
        frames_as_rows,
        conv=nn.Conv2d(2, 4, 3, padding=1),
        norm=randomized(nn.GroupNorm(2, 4)),
        linear=nn.Linear(16, 6),
        scale=randomized(nn.LayerNorm(6)),
        instance=randomized(nn.InstanceNorm1d(4, affine=True)),
        table=nn.Embedding(3, 6),
    )
    assert_equals_autograd(model, noise(n, 3, 2, 4, 4))
    assert not findings_of(model).by_autograd
    paths = {"conv", "norm", "linear", "scale", "instance", "table"}
    expected = {(path, 3) for path in paths} if n > 1 else set()
    assert findings_of(model).rows_per_sample == expected


def samples_within_rows(self: Any, x: Tensor) -> Tensor:  # [n, frames, 4]
    return self.linear(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (-1, len(x))).transpose(0, 1)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_rows_in_another_order_are_seen(n: int) -> None:
    model = Module(samples_within_rows, linear=nn.Linear(4, 2))
    assert_equals_autograd(model, noise(n, 6, 4))
    assert findings_of(model).by_autograd == {"linear.weight", "linear.bias"}


def shared_rows(self: Any, x: Tensor) -> Tensor:  # [n, 4]
    positions = self.table(torch.arange(12))
    return x + self.linear(positions).sum(0) + self.one(positions[:1])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_layers_called_once_for_all_samples(n: int) -> None:
    """12 rows, which are a multiple of most numbers of samples, and one row."""
    parts = {"table": nn.Embedding(12, 3), "linear": nn.Linear(3, 4), "one": nn.Linear(3, 4)}
    assert_equals_autograd(Module(shared_rows, **parts), noise(n, 4))


def packed_rows(self: Any, x: Tensor) -> Tensor:  # [n, 6]: 3 and 5 numbers of every two samples
    lengths = [3 if sample % 2 == 0 else 5 for sample in range(len(x))]
    tokens = torch.cat([row[:length] for row, length in zip(x, lengths, strict=True)])
    outputs = self.linear(tokens[:, None])
    return torch.stack([part.sum(0) for part in outputs.split(lengths)])


def test_samples_of_different_lengths_packed_into_one_row() -> None:
    """Eight tokens of two samples: not four for each."""
    model = Module(packed_rows, linear=nn.Linear(1, 3)).double()
    model.requires_grad_(False)
    x = noise(2, 6)
    exact = Exact({"linear.weight": 3, "linear.bias": 3})
    with Capture(model, list(exact.slices), exact) as capture:
        rows = capture.gradients(lambda: model(x).square().sum(1)).double()
    model.requires_grad_()
    for row, loss in zip(rows, model(x).square().sum(1), strict=True):
        truth = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        torch.testing.assert_close(
            row, torch.cat([part.flatten() for part in truth]).float().double()
        )


# Bare parameters.


def padded(self: Any, x: Tensor, mask: Tensor) -> Tensor:  # [n, 3, 4], [n, 3]
    x = torch.where(mask[..., None], x, self.padding)
    return x * torch.where(mask.any(1)[:, None, None], torch.sigmoid(self.mix)[..., None], 0.5)


@pytest.mark.parametrize("n", [1, 3])
def test_where_chooses_a_bare_parameter(n: int) -> None:
    parts = {
        "padding": nn.Parameter(torch.randn(3, 4)),
        "mix": nn.Parameter(torch.randn(1)),
    }
    mask = torch.tensor([[True, False, True], [False] * 3, [True] * 3])[:n]
    model = Module(padded, **parts)
    assert_equals_autograd(model, noise(n, 3, 4), mask)
    assert not findings_of(model).by_autograd


def scaled_norms(self: Any, x: Tensor) -> Tensor:
    x = F.rms_norm(x, (4,), weight=1 + self.scale, eps=1e-5)
    x = F.layer_norm(x, (4,), self.weight, self.bias, 1e-5)
    return F.layer_norm(x, (4,), bias=self.bias)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_norms_that_are_handed_their_scale(n: int) -> None:
    names = ("scale", "weight", "bias")
    model = Module(scaled_norms, **{name: nn.Parameter(torch.randn(4)) for name in names})
    assert_equals_autograd(model, noise(n, 3, 4))
    assert not findings_of(model).by_autograd


def divided_by_a_constant(self: Any, x: Tensor) -> Tensor:
    """As a DoRA adapter does."""
    norm = self.linear.weight.detach().norm(dim=1)
    scale = (self.magnitude / norm).view(1, -1)
    return scale * self.linear(x) + (self.magnitude.detach() - self.magnitude.data) * x.sum()


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_magnitude_divided_by_a_constant_of_its_shape(n: int) -> None:
    parts = {"linear": nn.Linear(3, 4), "magnitude": nn.Parameter(torch.rand(4) + 1)}
    model = Module(divided_by_a_constant, **parts)
    assert_equals_autograd(model, noise(n, 5, 3))
    assert not findings_of(model).by_autograd


# What is left to autograd.


def by_functions(self: Any, x: Tensor) -> Tensor:
    """A low-rank weight, a layer's weight used by a function, a convolution, tokens in a list."""
    x = F.linear(x, self.down @ self.up) + F.linear(x, self.layer.weight, self.layer.bias)
    return torch.cat([self.token[None].expand(len(x), -1, -1), F.prelu(x, self.slope)], 1)


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_weights_used_by_functions(n: int) -> None:
    model = Module(
        by_functions,
        down=nn.Parameter(torch.randn(4, 2)),
        up=nn.Parameter(torch.randn(2, 4)),
        layer=nn.Linear(4, 4),
        token=nn.Parameter(torch.randn(1, 4)),
        slope=nn.Parameter(torch.rand(3)),
    )
    assert_equals_autograd(model, noise(n, 3, 4))
    left = {"down", "up", "slope", "layer.weight", "layer.bias"}
    assert findings_of(model).by_autograd == left


def test_multi_head_attention_of_torch() -> None:
    """Its output layer is never called: a function takes the weight."""

    def attend(self: Any, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]

    assert_equals_autograd(
        Module(attend, attention=nn.MultiheadAttention(4, 2, batch_first=True)), noise(3, 5, 4)
    )


class Cubed(torch.autograd.Function):
    """An operation without a batching rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(delta.numpy() * 3) * x**2


def test_an_operation_without_a_batching_rule() -> None:
    def cubed(self: Any, x: Tensor) -> Tensor:
        return x @ Cubed.apply(self.weight)

    model = Module(cubed, weight=nn.Parameter(torch.randn(4, 4)))
    assert_equals_autograd(model, noise(3, 2, 4))


def test_a_weight_shared_by_layers_with_different_rules() -> None:
    def tied(self: Any, x: Tensor) -> Tensor:
        return self.out(self.table(x).tanh())

    table, out = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    out.weight = table.weight
    assert_equals_autograd(Module(tied, table=table, out=out), torch.randint(5, (3, 2)))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Linear(36, 40),
        lambda: nn.Conv1d(24, 48, 3, groups=2),
        lambda: nn.ConvTranspose1d(48, 24, 3, groups=2),
    ],
    ids=["linear", "convolution", "transposed"],
)
def test_autograd_and_hooks_give_the_same_projection(layer: Callable[[], nn.Module]) -> None:
    """Else two captures that found different things out could not be compared."""
    model = layer().requires_grad_(False)
    x = torch.randn(3, 36) if isinstance(model, nn.Linear) else torch.randn(3, 24 * 2, 7)
    if isinstance(model, nn.Conv1d):
        x = x[:, :24]
    names = ["weight", "bias"]

    def rows(scale: float) -> Tensor:
        with Capture(model, names, CountSketch(64, seed=1, rank=4)) as capture:
            return capture.gradients(lambda: model(x).flatten(1).square().mean(1), scale)

    by_hooks = rows(1)
    findings_of(model).by_autograd.add("weight")
    torch.testing.assert_close(rows(16), by_hooks, rtol=1e-4, atol=1e-5)


# What a capture does not do again, and what it cannot do.


def test_a_model_that_rules_fit_runs_once() -> None:
    calls = []
    model = nn.Sequential(nn.Linear(3, 3), nn.GroupNorm(1, 3), nn.Linear(3, 2))
    model.requires_grad_(False)
    model.register_forward_hook(lambda *call: calls.append(1))
    names = [name for name, _ in model.named_parameters()]
    with Capture(model, names, CountSketch(8, 0)) as capture:
        capture.gradients(lambda: model(torch.randn(2, 3)).sum(1))
        assert len(calls) == 1
        assert not capture.takes_single_samples


def test_what_one_capture_found_out_the_next_one_knows() -> None:
    calls = []
    model = nn.Sequential(nn.Linear(3, 3), nn.PReLU()).requires_grad_(False)
    model.register_forward_hook(lambda *call: calls.append(1))
    names = [name for name, _ in model.named_parameters()]
    for passes in (2, 1):
        calls.clear()
        with Capture(model, names, CountSketch(8, 0)) as capture:
            capture.gradients(lambda: model(torch.randn(2, 3)).sum(1))
            assert capture.takes_single_samples
        assert len(calls) == passes
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert all(parameter.grad is None for parameter in model.parameters())


def test_the_samples_need_not_come_first() -> None:
    """Sixteen positions, then three samples: a bare parameter meets the samples."""

    def gated(self: Any, positions: Tensor, x: Tensor) -> Tensor:
        return (x + positions.sum()) * self.gate

    calls = []
    model = Module(gated, gate=nn.Parameter(torch.randn(4))).requires_grad_(False)
    model.register_forward_hook(lambda *call: calls.append(1))
    positions, x = torch.randn(16, 4), torch.randn(3, 4)
    with Capture(model, ["gate"], Exact({"gate": 4})) as capture:
        for passes in (2, 1):
            calls.clear()
            rows = capture.gradients(lambda: model(positions=positions, x=x).sum(1))
            torch.testing.assert_close(rows, x + positions.sum())
            assert len(calls) == passes


def test_samples_in_a_list() -> None:
    def scaled(self: Any, xs: list[Tensor]) -> Tensor:
        return torch.stack(xs) * self.gate

    model = Module(scaled, gate=nn.Parameter(torch.randn(4))).requires_grad_(False)
    x = torch.randn(3, 4)
    with Capture(model, ["gate"], Exact({"gate": 4})) as capture:
        torch.testing.assert_close(capture.gradients(lambda: model(list(x)).sum(1)), x)


def test_layers_that_run_without_gradients_are_named() -> None:
    """As HiDream's experts in evaluation mode: autograd has no gradient there either."""

    def experts(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.expert(x)
        return self.out(x + hidden)

    model = Module(experts, expert=nn.Linear(3, 3), out=nn.Linear(3, 3)).requires_grad_(False)
    message = r"the model runs expert under torch\.no_grad, where gradients end: leave them out"
    with (
        Capture(model, ["expert.weight", "out.weight"], CountSketch(8, 0)) as capture,
        pytest.raises(ModelError, match=message),
    ):
        capture.gradients(lambda: model(torch.randn(2, 3)).sum(1))
    with Capture(model, ["out.weight"], Exact({"out.weight": 9})) as capture:
        assert capture.gradients(lambda: model(torch.randn(2, 3)).sum(1)).any()

"""The check before a build finds what no rule can see, and holds no second copy of the model."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradindex.errors import ModelError
from gradindex.gradients.parameter_sketches import WIDTH, ParameterSketches
from gradindex.gradients.self_check import check_capture

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PICTURE = (1, 4, 4)
RECIPE: Any = SimpleNamespace(
    params=None, part=None, image=PICTURE, seed=0, timesteps=(5,), differentiated="mse"
)


class Denoiser:
    """What the check needs of a denoiser: a model of flat pictures and its loss.

    With `memory` of 0 the check runs in the model's own precision.
    """

    device = torch.device("cpu")

    def __init__(self, model: nn.Module, dtype: torch.dtype, memory: int = 0) -> None:
        self.model = model.to(dtype).requires_grad_(False)
        self.dtype, self.memory = dtype, memory
        self.trainable = [name for name, _ in model.named_parameters()]
        self.casts: list[torch.dtype] = []

    def cast(self, dtype: torch.dtype) -> None:
        self.casts.append(dtype)
        self.model.to(dtype)
        self.dtype = dtype

    def random_conditions(self, size: int, image: tuple[int, int, int]) -> dict[str, Tensor]:
        return {}

    def losses(
        self, x: Tensor, t: Tensor, epsilon: Tensor, conditions: Mapping[str, Tensor], loss: str
    ) -> Tensor:
        return self.model(x.flatten(1).to(self.dtype)).float().square().mean(1)


def check(model: nn.Module, dtype: torch.dtype, memory: int = 0) -> Denoiser:
    denoiser: Any = Denoiser(model, dtype, memory)
    check_capture(denoiser, RECIPE)
    return denoiser


@pytest.fixture(autouse=True)
def fixed_weights() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_right_capture_passes_in_every_precision(dtype: torch.dtype) -> None:
    layers = [nn.Linear(16, 64), nn.SiLU(), nn.LayerNorm(64), nn.Linear(64, 128), nn.PReLU()]
    denoiser = check(nn.Sequential(*layers), dtype)
    assert denoiser.dtype == dtype
    assert all(parameter.grad is None for parameter in denoiser.model.parameters())
    assert not any(parameter.requires_grad for parameter in denoiser.model.parameters())


class UsedTwice(nn.Module):
    """A layer that is called, and whose weight a function uses besides."""

    def __init__(self) -> None:
        super().__init__()
        self.right, self.twice = nn.Linear(16, 16), nn.Linear(16, 300)

    def forward(self, x: Tensor) -> Tensor:
        x = self.right(x)
        return self.twice(x) + F.linear(x, self.twice.weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_that_is_not_autograds_is_named(dtype: torch.dtype) -> None:
    message = r"the captured gradient is not autograd's for: twice\.weight; leave them out"
    with pytest.raises(ModelError, match=message):
        check(UsedTwice(), dtype)


class OfAnotherLayer(nn.Linear):
    """A linear layer that gives more than its rule knows, by one part in `share`."""

    share = 20

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(x, self.weight) / self.share


def test_a_difference_of_a_twentieth_is_found_in_float32() -> None:
    with pytest.raises(ModelError, match=r"for: 1\.weight;"):
        check(nn.Sequential(nn.Linear(16, 64), OfAnotherLayer(64, 512)), torch.float32)


class Centred(nn.Module):
    """Takes the mean over the batch away."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class CentredInSecret(nn.Module):
    """The same, but autograd does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.detach().mean(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mixing", [Centred, CentredInSecret])
def test_samples_that_mix_are_found(dtype: torch.dtype, mixing: type[nn.Module]) -> None:
    half = r"the loss of a picture is .* alone and .* beside another one: the model mixes"
    message = half if dtype != torch.float32 else "the captured gradient is not autograd's for"
    with pytest.raises(ModelError, match=message):
        check(nn.Sequential(nn.Linear(16, 16), mixing(), nn.Linear(16, 16)), dtype)


def test_a_gradient_that_is_not_finite() -> None:
    model = nn.Linear(16, 16)
    with torch.no_grad():
        model.bias[3] = torch.inf
    message = "the model's gradient is not finite, for a random picture at timestep 5"
    with pytest.raises(ModelError, match=message):
        check(model, torch.float32)


@pytest.mark.parametrize(("memory", "casts"), [(0, 0), (4 * 4 * 272, 2)])
def test_weights_are_widened_where_memory_allows_it(memory: int, casts: int) -> None:
    denoiser = check(nn.Linear(16, 16), torch.bfloat16, memory)
    assert denoiser.casts == [torch.float32, torch.bfloat16][:casts]


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor of floating-point numbers that an operation made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return result


def test_no_whole_gradient_and_no_wide_copy_are_made() -> None:
    """The largest tensor is one layer's gradient of both samples, in float32."""
    model = nn.Sequential(nn.Linear(16, 512), *[nn.Linear(512, 512) for _ in range(20)])
    model_bytes = 2 * sum(parameter.numel() for parameter in model.parameters())
    with LargestTensor() as mode:
        check(model, torch.bfloat16)
    assert mode.largest == 2 * 512 * 512 * 4 < model_bytes / 5


def test_sketches_keep_norms_and_add_up() -> None:
    sizes = {"small": 40, "large": 50 * WIDTH + 7}
    sketches = ParameterSketches(sizes, torch.device("cpu"))
    assert sketches.dim == 40 + WIDTH
    first, second = torch.randn(2, 3, sizes["large"])
    row = sketches.sketch("large", first)
    assert ((row.norm(dim=1) / first.norm(dim=1) - 1).abs() < 0.1).all()
    together = sketches.sketch("large", first + second)
    torch.testing.assert_close(together, row + sketches.sketch("large", second))
    small = torch.randn(3, 40)
    assert torch.equal(sketches.sketch("small", small), small)
    # A single column of a weight is spread over the buckets.
    column = torch.zeros(1, 200, 1024)
    column[..., 5] = 1
    spread = sketches.sketch("large", column.flatten(1))
    assert float(spread.norm()) == pytest.approx(200**0.5)

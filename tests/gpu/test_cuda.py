"""Rows taken on a GPU are those of the CPU: each projection, precision, layer rule and family."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from autograd_twin import Bare, Transpose, Twice, assert_equals_autograd, autograd_rows, randomized
from conftest import make_model
from on_cuda import DEVICE, FORMATS, STEP, assert_close_in, needs_cuda, relative_errors, tf32
from torch import Tensor, nn

from gradindex.errors import ModelError
from gradindex.gradients.batch_size import fitting_batch
from gradindex.gradients.capture import Capture
from gradindex.gradients.events import grid_events
from gradindex.gradients.parameters import capture_for
from gradindex.gradients.projection import Exact
from gradindex.gradients.sampling import sample_gradients
from gradindex.gradients.self_check import check_capture
from gradindex.models.denoiser import Denoiser
from gradindex.models.examples import Examples
from gradindex.models.loading import load_denoiser
from gradindex.recipe import Recipe

pytestmark = needs_cuda

PROJECTIONS = ("two-sided", "sketch", "none", "rademacher")
HALF = ("bfloat16", "float16")


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    with tf32(False):
        yield


def recipe_of(denoiser: Denoiser, projection: str = "two-sided") -> Recipe:
    count = sum(parameter.numel() for parameter in denoiser.model.parameters())
    two_sided = projection == "two-sided"
    return Recipe(
        **denoiser.description.recipe_fields(),
        checkpoints=(denoiser.digest,),
        params=None,
        parameter_count=count,
        timesteps=(50, 500, 900),
        draws=2,
        noise="own",
        seed=3,
        loss="mse",
        projection=projection,
        rank=2 if two_sided else None,
        high_rank=("conv_in.weight", "conv_out.weight") if two_sided else (),
        dim=count if projection == "none" else 64,
    )


def unet_rows(model: Path, device: str, dtype: str, projection: str = "two-sided") -> Tensor:
    """The rows [B, T, D] of three random pictures."""
    denoiser = load_denoiser(model, device=device, dtype=dtype)
    recipe, ids = recipe_of(denoiser, projection), list("abc")
    shape = len(ids), *recipe.image
    pictures = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    events = grid_events(recipe, ids)
    with capture_for(denoiser, recipe) as capture:
        rows = sample_gradients(denoiser, capture, recipe, Examples(pictures), events, batch_size=5)
    return torch.from_numpy(rows)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_rows_of_a_unet_are_those_of_the_cpu(model: Path, projection: str) -> None:
    here, there = (unet_rows(model, device, "float32", projection) for device in ("cpu", DEVICE))
    assert_close_in("float32", there, here, here)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("name", ["tf32", *HALF])
def test_rows_of_a_unet_in_less_precision(model: Path, name: str, projection: str) -> None:
    here, truth = (unet_rows(model, "cpu", kind, projection) for kind in (name, "float32"))
    there = unet_rows(model, DEVICE, name, projection)
    assert_close_in(name, there, here, truth)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


LAYERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (nn.Linear(5, 4), noise(3, 5)),
    "linear, one sample": lambda: (nn.Linear(5, 4), noise(1, 6, 5)),
    "linear, positions": lambda: (nn.Linear(5, 4, bias=False), noise(3, 2, 6, 5)),
    "conv1d": lambda: (nn.Conv1d(4, 6, 3, 2, 1, dilation=2, groups=2), noise(3, 4, 9)),
    "conv2d": lambda: (nn.Conv2d(4, 6, 3, padding=1), noise(3, 4, 7, 6)),
    "conv2d, 1 × 1": lambda: (nn.Conv2d(4, 6, 1), noise(3, 4, 7, 6)),
    "conv2d, strided": lambda: (
        nn.Conv2d(4, 6, (3, 2), (2, 3), (1, 0), groups=2),
        noise(3, 4, 7, 6),
    ),
    "conv2d, depthwise": lambda: (nn.Conv2d(4, 4, 3, padding=1, groups=4), noise(3, 4, 7, 6)),
    "conv2d, same": lambda: (nn.Conv2d(2, 3, (3, 5), padding="same"), noise(2, 2, 5, 6)),
    "conv2d, valid": lambda: (nn.Conv2d(2, 3, (3, 5), padding="valid"), noise(2, 2, 5, 6)),
    "conv2d, reflect": lambda: (
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
        noise(2, 2, 5, 6),
    ),
    "conv2d, circular": lambda: (
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        noise(2, 2, 5, 6),
    ),
    "conv2d, replicate": lambda: (
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"),
        noise(2, 2, 5, 6),
    ),
    "conv2d, channels last": lambda: (
        nn.Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last),
        noise(3, 4, 7, 6).contiguous(memory_format=torch.channels_last),
    ),
    "conv3d": lambda: (nn.Conv3d(2, 3, 3, (1, 2, 1), 1), noise(2, 2, 5, 6, 4)),
    "transposed conv1d": lambda: (nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, groups=2), noise(3, 4, 6)),
    "transposed conv2d": lambda: (
        nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, dilation=2),
        noise(3, 4, 5, 4),
    ),
    "transposed conv3d": lambda: (nn.ConvTranspose3d(2, 3, 2, 2), noise(2, 2, 3, 4, 3)),
    "group norm": lambda: (randomized(nn.GroupNorm(2, 6)), noise(3, 6, 5, 4)),
    "group norm, transposed": lambda: (
        nn.Sequential(Transpose(), randomized(nn.GroupNorm(2, 4)), Transpose()),
        noise(3, 6, 4),
    ),
    "layer norm": lambda: (randomized(nn.LayerNorm((3, 4))), noise(3, 2, 3, 4)),
    "rms norm": lambda: (randomized(nn.RMSNorm(6)), noise(3, 2, 6)),
    "instance norm": lambda: (randomized(nn.InstanceNorm2d(3, affine=True)), noise(3, 3, 5, 4)),
    "batch norm": lambda: (randomized(nn.BatchNorm2d(3)).eval(), noise(3, 3, 5, 4)),
    "embedding": lambda: (nn.Embedding(4, 3, padding_idx=1), torch.randint(4, (3, 5))),
    "one layer twice, one weight tied": lambda: (Twice(), noise(3, 4)),
    "bare parameters": lambda: (Bare(), noise(5, 3, 4)),
    "inputs let go": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(3, 3, 3, padding=1, groups=3),
            nn.SiLU(),
            nn.ConvTranspose2d(3, 2, 2, 2),
            nn.SiLU(),
            nn.Linear(8, 4),
        ),
        noise(3, 2, 4, 4),
    ),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_every_rule_gives_the_gradient_of_autograd(
    make: Callable[[], tuple[nn.Module, Tensor]],
) -> None:
    torch.manual_seed(0)
    layer, x = make()
    assert_equals_autograd(layer, x.to(DEVICE))


@pytest.mark.parametrize(
    "norm",
    [nn.GroupNorm(2, 6), nn.LayerNorm(6), nn.RMSNorm(6)],
    ids=["group", "layer", "rms"],
)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "kind",
    ["linear, positions", "conv2d, strided", "transposed conv2d", "conv3d"],
)
def test_rules_are_as_exact_as_autograd_in_that_precision(
    kind: str,
    name: str,
    norm: nn.Module,
) -> None:
    """No further from the gradient in float64 than four times autograd's own error."""
    torch.manual_seed(0)
    (layer, x), (dtype, fast) = LAYERS[kind](), FORMATS[name]
    x = x.to(DEVICE)
    width = layer.to(DEVICE, x.dtype)(x)[0].numel()
    model = nn.Sequential(layer, nn.Flatten(1), nn.Linear(width, 6), norm, nn.Linear(6, 2)).to(
        DEVICE,
    )
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    with tf32(fast):
        truth = autograd_rows(model.requires_grad_(True), x, torch.float64)
        reference = autograd_rows(model, x, dtype)
        model.to(dtype).requires_grad_(False)
        with Capture(model, list(sizes), Exact(sizes)) as capture:
            rows = capture.gradients(lambda: model(x.to(dtype)).square().sum(1))
    assert rows.dtype == torch.float32
    allowed = 4 * relative_errors(reference, truth) + 16 * STEP[name]
    assert (relative_errors(rows, truth) <= allowed).all()


@pytest.mark.parametrize("dtype", ["float32", *HALF])
def test_the_check_before_a_build_passes(model: Path, dtype: str) -> None:
    denoiser = load_denoiser(model, device=DEVICE, dtype=dtype)
    check_capture(denoiser, recipe_of(denoiser))
    assert fitting_batch(denoiser, recipe_of(denoiser)) > 1


def test_the_check_passes_with_tf32(model: Path) -> None:
    """As torch has it by default, in convolutions."""
    denoiser = load_denoiser(model, device=DEVICE)
    with tf32(True):
        check_capture(denoiser, recipe_of(denoiser))


def test_the_check_finds_a_weight_used_without_its_layer(model: Path) -> None:
    denoiser = load_denoiser(model, device=DEVICE)
    inner = denoiser.model.conv_out.forward
    denoiser.model.conv_out.forward = lambda x: inner(x) * (1 + denoiser.model.conv_in.weight.sum())
    with pytest.raises(
        ModelError,
        match=r"the captured gradient is not autograd's for: conv_in\.weight",
    ):
        check_capture(denoiser, recipe_of(denoiser))


def test_a_class_conditional_model_through_the_denoiser(tmp_path: Path) -> None:
    place = make_model(tmp_path / "model", num_class_embeds=3)
    found = []
    for device in ("cpu", DEVICE):
        denoiser = load_denoiser(place, device=device)
        recipe = recipe_of(denoiser)
        pictures = np.random.default_rng(0).uniform(-1, 1, (3, 1, 8, 8)).astype(np.float32)
        events = grid_events(recipe, list("abc"))
        with capture_for(denoiser, recipe) as capture:
            rows = sample_gradients(
                denoiser,
                capture,
                recipe,
                Examples.of_pictures(pictures, [2, 0, 1]),
                events,
                batch_size=4,
            )
        found.append(torch.from_numpy(rows))
    assert_close_in("float32", found[1], found[0], found[0])

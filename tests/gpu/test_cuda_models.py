"""Gradients of diffusers' model families on a GPU: autograd's, and those of the CPU."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from autograd_twin import Conditioned, assert_equals_autograd
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from on_cuda import DEVICE, FORMATS, assert_close_in, needs_cuda, tf32
from peft import LoraConfig
from torch import Tensor, nn

from gradindex.gradients.capture import Capture
from gradindex.gradients.projection import CountSketch

pytestmark = needs_cuda


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    with tf32(False):
        yield


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def shaken(model: Any) -> Any:
    """Gates and output layers that begin at zero would hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def class_conditional() -> tuple[nn.Module, list[Tensor]]:
    model = UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=3,
    )
    inputs = [noise(3, 2, 8, 8), torch.tensor([5, 500, 900]), torch.tensor([0, 2, 1])]
    return Conditioned(shaken(model), "timestep", "class_labels"), inputs


def text_conditional(lora: bool = False) -> tuple[nn.Module, list[Tensor]]:
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=4,
    )
    model = shaken(model)
    if lora:
        targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
        model.requires_grad_(False)
        model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    inputs = [noise(3, 2, 8, 8), torch.tensor([5, 500, 900]), noise(3, 5, 6)]
    return Conditioned(model.eval(), "timestep", "encoder_hidden_states"), inputs


def transformer() -> tuple[nn.Module, list[Tensor]]:
    model = DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=4,
        num_embeds_ada_norm=3,
        norm_num_groups=2,
    )
    inputs = [noise(3, 2, 8, 8), torch.tensor([5, 500, 900]), torch.tensor([0, 2, 1])]
    return Conditioned(shaken(model), "timestep", "class_labels"), inputs


FAMILIES = {
    "class-conditional UNet": class_conditional,
    "text-conditional UNet": text_conditional,
    "LoRA": lambda: text_conditional(lora=True),
    "DiT": transformer,
}


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_a_family_gives_the_gradients_of_autograd(
    make: Callable[[], tuple[nn.Module, list[Tensor]]],
) -> None:
    torch.manual_seed(0)
    layer, inputs = make()
    assert_equals_autograd(layer, *(x.to(DEVICE) for x in inputs))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_rows_of_a_family_are_those_of_the_cpu(
    make: Callable[[], tuple[nn.Module, list[Tensor]]],
    name: str,
) -> None:
    torch.manual_seed(0)
    (layer, inputs), (dtype, fast) = make(), FORMATS[name]
    chosen = [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
    layer.requires_grad_(False)

    def rows(device: str, dtype: torch.dtype) -> Tensor:
        layer.to(device, dtype)
        given = [x.to(device, dtype if x.is_floating_point() else None) for x in inputs]

        def losses() -> Tensor:
            return layer(*given).float().flatten(1).square().mean(1)

        with Capture(layer, chosen, CountSketch(64, 0, 2)) as capture:
            return capture.gradients(losses, scale=128)

    with tf32(fast):
        truth = rows("cpu", torch.float32)
        there, here = (rows(device, dtype) for device in (DEVICE, "cpu"))
    assert_close_in(name, there, here, truth)

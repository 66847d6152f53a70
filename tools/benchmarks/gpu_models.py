"""The four models that a GPU is measured with, with random weights, and what a batch of each is."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from peft import LoraConfig
from torch import Tensor
from trained_models import CIFAR10, SMALL

from gradindex.builder.plan import DIM, RANK
from gradindex.gradients.capture import Capture
from gradindex.gradients.graphs import GraphedCapture
from gradindex.gradients.high_rank import VARIANCE_PRICE
from gradindex.gradients.projection import CountSketch, Energies

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # as diffusers' scripts train them


class Kind(NamedTuple):
    """How a model is made, and how large a batch of it is in each precision."""

    title: str
    batches: dict[str, int]
    make: Callable[[bool], "Case"]  # whether it shall be tiny, to try the benchmark → the model


class Case:
    """A frozen model and its training loss.

    Attributes:
        model: in eval mode, no parameter requires a gradient.
        names: of the parameters that are trained.
        shape: of a sample.
        conditions: how many → what the model is called with besides sample and timestep.
        strong: the weights that `auto` shrinks less.
    """

    strong: tuple[str, ...] = ()

    def __init__(
        self,
        model: Any,
        shape: tuple[int, ...],
        conditions: Callable[[int], dict[str, Tensor]],
    ) -> None:
        parameters = model.named_parameters()
        self.names = [name for name, value in parameters if value.requires_grad]
        self.model, self.shape, self.conditions = (
            model.eval().requires_grad_(False),
            shape,
            conditions,
        )

    def batch(self, size: int) -> "Batch":
        """Random samples on the model's device, in its precision."""
        first = next(self.model.parameters())
        x, epsilon = torch.randn(2, size, *self.shape, device=first.device, dtype=first.dtype)
        conditions = {
            name: value.to(first.device, first.dtype if value.is_floating_point() else None)
            for name, value in self.conditions(size).items()
        }
        return Batch(
            self,
            x,
            torch.randint(1000, (size,), device=first.device),
            epsilon,
            conditions,
        )

    def capture(self, strong: tuple[str, ...]) -> Capture:
        """The hooks of a build's default, `auto`."""
        return Capture(self.model, self.names, CountSketch(DIM, 0, RANK, strong))

    def graphed(self, capture: Capture) -> GraphedCapture:
        """The graphs of a build."""
        device = next(self.model.parameters()).device
        stand_in: Any = SimpleNamespace(device=device, is_repeatable=True, make_ready=lambda: None)
        return GraphedCapture(stand_in, capture)

    def strong_weights(self) -> tuple[str, ...]:
        """What a build would shrink less, from eight random samples: see `choose_strong`."""
        energies = Energies(self.names, RANK)
        with Capture(self.model, self.names, energies) as capture:
            rows = capture.gradients(self.batch(8).losses).double().cpu().numpy()
        shares = rows / rows.sum(1, keepdims=True).clip(min=1e-30)
        variances = np.array([energies.added_variance.get(name, 0.0) for name in self.names])
        sizes = np.array([self.model.get_parameter(name).numel() for name in self.names])
        chosen = np.square(shares).mean(0) * variances > VARIANCE_PRICE * sizes / sizes.sum()
        return tuple(sorted(np.array(self.names)[chosen].tolist()))


class Batch(NamedTuple):
    """The inputs of one step, and three ways to take it."""

    case: Case
    x: Tensor
    t: Tensor
    epsilon: Tensor
    conditions: dict[str, Tensor]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What `losses_of` takes."""
        return {"x": self.x, "t": self.t, "epsilon": self.epsilon, **self.conditions}

    def losses(self) -> Tensor:
        """The mean-square error of each sample, [n]; without the half that is a learned sigma."""
        return self.losses_of(self.inputs)

    def losses_of(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The losses of other samples, [n]."""
        conditions = dict(inputs)
        x, t, epsilon = (conditions.pop(name) for name in ("x", "t", "epsilon"))
        output = self.case.model(x, t, return_dict=False, **conditions)[0]
        error = output[:, : x.shape[1]].float() - epsilon.float()
        return error.square().flatten(1).mean(1)

    def training_step(self) -> None:
        """Forward and backward with the gradients of the trained weights, summed over the batch."""
        parameters = [self.case.model.get_parameter(name) for name in self.case.names]
        for parameter in parameters:
            parameter.requires_grad_(True)
        self.losses().sum().backward()
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None

    def least(self) -> None:
        """Forward and backward to the input, weights frozen: what any hooks must pay."""
        self._replace(x=self.x.clone().requires_grad_()).losses().sum().backward()


def _pixels(config: dict[str, Any], tiny: dict[str, Any]) -> Callable[[bool], Case]:
    def make(small: bool) -> Case:
        model = UNet2DModel(**{**config, **(tiny if small else {})})
        size = model.config.sample_size
        return Case(model, (model.config.in_channels, size, size), lambda count: {})

    return make


def _stable_diffusion(small: bool) -> Case:
    """SD 1.5's UNet with LoRA of rank 16 on its attention, the text of 77 tokens."""
    if small:
        return lora_case(16, 16, block_out_channels=(32, 32, 32, 32), layers_per_block=1)
    return lora_case(64, 768, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2)


def lora_case(size: int, width: int, **config: Any) -> Case:
    """Return a UNet of Stable Diffusion 1 with a LoRA of rank 16 on its attention.

    Args:
        size: of its latents, 4 × size × size.
        width: of the 77 tokens of text.
        config: what else a UNet2DConditionModel is made of.
    """
    model = UNet2DConditionModel(sample_size=size, cross_attention_dim=width, **config)
    model.requires_grad_(False)
    lora = LoraConfig(r=16, lora_alpha=16, target_modules=LORA_TARGETS, init_lora_weights=False)
    model.add_adapter(lora)
    return Case(
        model,
        (4, size, size),
        lambda count: {"encoder_hidden_states": torch.randn(count, 77, width)},
    )


def _dit(small: bool) -> Case:
    """DiT-L/2 over 1,000 classes, sigma learned."""
    model = DiTTransformer2DModel(
        sample_size=8 if small else 32,
        in_channels=4,
        out_channels=8,
        num_layers=2 if small else 24,
        num_attention_heads=2 if small else 16,
        attention_head_dim=16 if small else 64,
        num_embeds_ada_norm=10 if small else 1000,
    )
    size, classes = model.config.sample_size, model.config.num_embeds_ada_norm
    return Case(
        model,
        (4, size, size),
        lambda count: {"class_labels": torch.randint(classes, (count,))},
    )


KINDS = {
    "small": Kind(
        "(a) UNet2DModel (32, 64, 128), 2.7 M parameters",
        {"float32": 512, "tf32": 1024, "bfloat16": 1024},
        _pixels(SMALL, {"sample_size": 8, "block_out_channels": (8, 16, 16)}),
    ),
    "cifar10": Kind(
        "(b) DDPM CIFAR-10 architecture, 35.7 M parameters",
        {"float32": 256, "tf32": 512, "bfloat16": 512},
        _pixels(CIFAR10, {"sample_size": 16, "block_out_channels": (64, 64, 64, 64)}),
    ),
    "lora": Kind(
        "(c) SD 1.5's UNet, 860 M parameters, LoRA of rank 16 on attention",
        {"float32": 8, "tf32": 32, "bfloat16": 64},
        _stable_diffusion,
    ),
    "dit": Kind(
        "(d) DiT-L/2, latents 4 × 32 × 32", {"float32": 32, "tf32": 128, "bfloat16": 256}, _dit
    ),
}


def made(kind: Kind, device: str, small: bool) -> Case:
    """A kind's model with random weights, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        case = kind.make(small)
    case.model.to(device)
    return case

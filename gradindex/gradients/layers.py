"""One pure rule per layer kind: its parameters' gradients, one per sample.

`x` is what came into the layer and `delta` the gradient of the loss with respect to what left it, both with the
sample axis first. Two kinds of rule cover every layer:

- **factors**: the weight gradient is a sum over positions of outer products, `Δ Aᵀ` with `A` [n, g, i, s] and
  `Δ` [n, g, o, s] (n sample, g group, i in, o out, s position). Either factor can be projected before they meet.
- **direct**: a function gives the few numbers themselves.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Factors(NamedTuple):
    """Weight gradient = outputs @ inputsᵀ, [n, g, o, i]; bias gradient = outputs summed over s."""

    inputs: Callable[[Any, Tensor, Tensor | None], Tensor]  # (layer, x, P [k, i]) → [n, g, i or k, s]
    outputs: Callable[[Any, Tensor], Tensor]  # (layer, delta) → [n, g, o, s]

    def shape(self, layer: Any) -> tuple[int, int]:
        """(o, i): how wide the two factors of a layer are."""
        return layer.weight.shape[0] // getattr(layer, "groups", 1), layer.weight[0].numel()


Direct = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]  # (layer, x, delta) → {parameter: [n, *shape]}


def linear_inputs(layer: nn.Linear, x: Tensor, projection: Tensor | None) -> Tensor:
    if projection is not None:
        x = F.linear(x, projection)
    return x.reshape(x.shape[0], 1, -1, x.shape[-1]).mT


def linear_outputs(layer: nn.Linear, delta: Tensor) -> Tensor:
    return delta.reshape(delta.shape[0], 1, -1, delta.shape[-1]).mT


def conv2d_inputs(layer: nn.Conv2d, x: Tensor, projection: Tensor | None) -> Tensor:
    """The patches under the kernel; projected, they are the output of a convolution with k channels."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    if projection is None:
        patches = F.unfold(x, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
        return patches.unflatten(1, (layer.groups, -1))
    kernel = projection.reshape(-1, *layer.weight.shape[1:]).repeat(layer.groups, 1, 1, 1)
    y = F.conv2d(x, kernel, stride=layer.stride, dilation=layer.dilation, groups=layer.groups)
    return y.flatten(2).unflatten(1, (layer.groups, -1))


def conv2d_outputs(layer: nn.Conv2d, delta: Tensor) -> Tensor:
    return delta.flatten(2).unflatten(1, (layer.groups, -1))


def group_norm(layer: nn.GroupNorm, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    normalized = F.group_norm(x, layer.num_groups, eps=layer.eps)
    return {"weight": (delta * normalized).flatten(2).sum(2), "bias": delta.flatten(2).sum(2)}


def embedding(layer: nn.Embedding, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    index = x.reshape(x.shape[0], -1, 1).expand(-1, -1, layer.embedding_dim)
    rows = delta.new_zeros(x.shape[0], *layer.weight.shape)
    rows.scatter_add_(1, index, delta.reshape(index.shape))
    if layer.padding_idx is not None:
        rows[:, layer.padding_idx] = 0
    return {"weight": rows}


RULES: dict[type[nn.Module], Factors | Direct] = {
    nn.Linear: Factors(linear_inputs, linear_outputs),
    nn.Conv2d: Factors(conv2d_inputs, conv2d_outputs),
    nn.GroupNorm: group_norm,
    nn.Embedding: embedding,
}


def rule_of(layer: nn.Module) -> Factors | Direct | None:
    """The rule of a layer's class or of its nearest ancestor that has one."""
    return next((RULES[kind] for kind in type(layer).__mro__ if kind in RULES), None)


def weight_gradient(outputs: Tensor, inputs: Tensor) -> Tensor:
    """`"ngos,ngis->ngoi"`, flattened to [n, g·o·i] float32."""
    return torch.matmul(outputs, inputs.mT).flatten(1).float()

"""One pure rule per layer kind: its parameters' gradients, one per sample.

`x` is what came into the layer and `delta` the gradient of the loss with respect to what left it, both with the
sample axis first. Two kinds of rule cover every layer:

- **factors**: the weight gradient is a sum over positions of outer products, `Δ Aᵀ` (and over nothing else), so each
  factor can be projected to fewer channels before they meet.
- **direct**: a function gives the few numbers themselves.

In the shapes: n sample, g group, i channels in, o channels out, h w and s positions.
"""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Factors(NamedTuple):
    """Both factors of a weight gradient, and how they meet."""

    inputs: Callable[[Any, Tensor, Tensor | None], Tensor]  # (layer, x, P [k, i] or None) → A, kept until backward
    outputs: Callable[[Any, Tensor, Tensor | None], Tensor]  # (layer, delta, P [k, o] or None) → Δ
    weight: Callable[[Any, Tensor, Tensor], Tensor]  # (layer, A, Δ) → [n, …], unprojected in the weight's order
    bias: Callable[[Tensor], Tensor]  # delta → [n, o]

    def widths(self, layer: Any) -> tuple[int, int, int]:
        """(o, i, all numbers of the weight): the channels out and in of one group."""
        return layer.weight.shape[0] // getattr(layer, "groups", 1), layer.weight.shape[1], layer.weight.numel()


Direct = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]  # (layer, x, delta) → {parameter: [n, *shape]}


def linear_side(layer: nn.Linear, x: Tensor, projection: Tensor | None) -> Tensor:
    """Either factor, [n, s, k]."""
    x = x if projection is None else F.linear(x, projection)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def linear_weight(layer: nn.Linear, inputs: Tensor, outputs: Tensor) -> Tensor:
    return torch.bmm(outputs.mT, inputs)  # "nso,nsi->noi"


def linear_bias(delta: Tensor) -> Tensor:
    return delta.reshape(delta.shape[0], -1, delta.shape[-1]).sum(1)


def conv2d_inputs(layer: nn.Conv2d, x: Tensor, projection: Tensor | None) -> Tensor:
    """The padded input, its channels projected, [n·g, k, h, w]. Kernel positions stay apart: nothing mixes them."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(_by_group(x, projection, layer.groups), layer._reversed_padding_repeated_twice, mode=mode)


def conv2d_outputs(layer: nn.Conv2d, delta: Tensor, projection: Tensor | None) -> Tensor:
    return _by_group(delta, projection, layer.groups)


def conv2d_weight(layer: nn.Conv2d, inputs: Tensor, outputs: Tensor) -> Tensor:
    """One matrix product per kernel position, [n, g·o·i·kernel].

    With stride 1 and the output widened by zeros to the input's width, moving the kernel is moving the start in the
    flattened input: no patches are copied.
    """
    (down, right), (dilate_down, dilate_right) = layer.stride, layer.dilation
    height, width = outputs.shape[2:]
    kernel = [(y * dilate_down, x * dilate_right) for y, x in product(*map(range, layer.kernel_size))]
    if (down, right) == (1, 1):
        row = inputs.shape[3]
        span = (height - 1) * row + width
        flat = F.pad(outputs, (0, row - width)).flatten(2)[:, :, :span]
        source = inputs.flatten(2).mT
        taps = [torch.bmm(flat, source.narrow(1, y * row + x, span)) for y, x in kernel]
    else:
        flat = outputs.flatten(2)
        moved = (inputs[:, :, y:, x:][:, :, ::down, ::right][:, :, :height, :width] for y, x in kernel)
        taps = [torch.bmm(flat, part.flatten(2).mT) for part in moved]
    return torch.stack(taps, dim=-1).reshape(len(outputs) // layer.groups, -1)


def conv2d_bias(delta: Tensor) -> Tensor:
    return delta.flatten(2).sum(2)


def group_norm(layer: nn.GroupNorm, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    normalized = F.group_norm(x, layer.num_groups, eps=layer.eps).flatten(2)
    delta = delta.flatten(2)
    return {"weight": torch.linalg.vecdot(delta, normalized), "bias": delta.sum(2)}


def embedding(layer: nn.Embedding, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    index = x.reshape(x.shape[0], -1, 1).expand(-1, -1, layer.embedding_dim)
    rows = delta.new_zeros(x.shape[0], *layer.weight.shape)
    rows.scatter_add_(1, index, delta.reshape(index.shape))
    if layer.padding_idx is not None:
        rows[:, layer.padding_idx] = 0
    return {"weight": rows}


RULES: dict[type[nn.Module], Factors | Direct] = {
    nn.Linear: Factors(linear_side, linear_side, linear_weight, linear_bias),
    nn.Conv2d: Factors(conv2d_inputs, conv2d_outputs, conv2d_weight, conv2d_bias),
    nn.GroupNorm: group_norm,
    nn.Embedding: embedding,
}


def rule_of(layer: nn.Module) -> Factors | Direct | None:
    """The rule of a layer's class or of its nearest ancestor that has one."""
    return next((RULES[kind] for kind in type(layer).__mro__ if kind in RULES), None)


def _by_group(x: Tensor, projection: Tensor | None, groups: int) -> Tensor:
    """[n, g·c, h, w] → [n·g, k, h, w], the same projection [k, c] in every group; k = c without one."""
    x = x.reshape(x.shape[0] * groups, -1, *x.shape[2:])
    if projection is None:
        return x
    return torch.bmm(projection.expand(len(x), -1, -1), x.flatten(2)).unflatten(2, x.shape[2:])

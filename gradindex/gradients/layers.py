"""One pure rule per layer kind: its parameters' gradients, one per sample.

`x` is what came into the layer and `delta` the gradient of the loss with respect to what left it, both with the
sample axis first. Three kinds of rule cover every layer:

- **factors**: the weight gradient is a sum over positions of outer products, `Δ Aᵀ` (and over nothing else), so each
  factor can be projected to fewer channels before they meet.
- **direct**: a function gives the few numbers themselves.
- **copies**: the layer computes its output with a copy of its parameters for every sample, and autograd keeps their
  gradients apart at no further cost.

In the shapes: n sample, g group, i channels in, o channels out, s positions, … the axes of a picture or a kernel.
"""

import math
from collections.abc import Callable
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
    widths: Callable[[Any], tuple[int, int]]  # layer → (o, i) of one group


Direct = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]  # (layer, x, delta) → {parameter: [n, *shape]}


class Copies(NamedTuple):
    """A layer's forward with a weight and a bias for every sample."""

    forward: Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]  # (layer, x, weight [n, *shape], bias) → output


def linear_side(layer: nn.Linear, x: Tensor, projection: Tensor | None) -> Tensor:
    """Either factor, [n, s, k]."""
    x = x if projection is None else F.linear(x, projection)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def linear_weight(layer: nn.Linear, inputs: Tensor, outputs: Tensor) -> Tensor:
    return torch.bmm(outputs.mT, inputs)  # "nso,nsi->noi"


def linear_bias(delta: Tensor) -> Tensor:
    return delta.reshape(delta.shape[0], -1, delta.shape[-1]).sum(1)


def linear_widths(layer: nn.Linear) -> tuple[int, int]:
    return layer.out_features, layer.in_features


def conv_side(layer: Any, x: Tensor, projection: Tensor | None) -> Tensor:
    """Either factor, [n, g·k, …]: channels projected, the same in every group; positions stay apart."""
    if projection is None:
        return x
    flat = x.reshape(len(x) * layer.groups, projection.shape[1], -1)
    return torch.bmm(projection.expand(len(flat), -1, -1), flat).view(len(x), -1, *x.shape[2:])


def conv_weight(layer: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
    """[n, g·o·i·kernel]."""
    return _correlate(layer, outputs, inputs)


def conv_transpose_weight(layer: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
    """[n, g·i·o·kernel]: a convolution's, with input and output in each other's place."""
    return _correlate(layer, inputs, outputs)


def conv_bias(delta: Tensor) -> Tensor:
    return delta.flatten(2).sum(2)


def conv_widths(layer: Any) -> tuple[int, int]:
    return layer.out_channels // layer.groups, layer.in_channels // layer.groups


def group_norm(layer: nn.GroupNorm, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """All samples beside each other, as the channels of one."""
    one, bias = x.reshape(1, -1, *x.shape[2:]), None if bias is None else bias.flatten()
    return F.group_norm(one, len(x) * layer.num_groups, weight.flatten(), bias, layer.eps).view(x.shape)


def instance_norm(layer: Any, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    return _per_channel(F.instance_norm(x, eps=layer.eps), delta)


def batch_norm(layer: Any, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """In eval mode, where the statistics are constants."""
    return _per_channel(F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps), delta)


def layer_norm(layer: nn.LayerNorm, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    return _per_place(F.layer_norm(x, layer.normalized_shape, eps=layer.eps), delta, layer.normalized_shape)


def rms_norm(layer: nn.RMSNorm, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    return _per_place(F.rms_norm(x, layer.normalized_shape, eps=layer.eps), delta, layer.normalized_shape)


def embedding(layer: nn.Embedding, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    index = x.reshape(x.shape[0], -1, 1).expand(-1, -1, layer.embedding_dim)
    rows = torch.zeros(x.shape[0], *layer.weight.shape, device=delta.device)
    rows.scatter_add_(1, index, delta.reshape(index.shape).float())
    if layer.padding_idx is not None:
        rows[:, layer.padding_idx] = 0
    return {"weight": rows}


GROUPED = {"cpu"}  # devices on which a grouped convolution is faster than copied patches
VECTOR = 16  # numbers in the widest vector register of a CPU

Rule = Factors | Direct | Copies

LINEAR = Factors(linear_side, linear_side, linear_weight, linear_bias, linear_widths)
CONV = Factors(conv_side, conv_side, conv_weight, conv_bias, conv_widths)
CONV_TRANSPOSE = CONV._replace(weight=conv_transpose_weight)

RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: LINEAR,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), CONV),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), CONV_TRANSPOSE),
    nn.GroupNorm: Copies(group_norm),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), instance_norm),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), batch_norm),
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.Embedding: embedding,
}


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule of a layer's class or of its nearest ancestor that has one."""
    rule = next((RULES[kind] for kind in type(layer).__mro__ if kind in RULES), None)
    return None if isinstance(rule, Copies) and not runs_its_own_forward(layer) else rule


def runs_its_own_forward(layer: nn.Module) -> bool:
    """Whether a layer computes what the class that its rule is for computes, and not what a subclass makes of it."""
    kind: Any = next(kind for kind in type(layer).__mro__ if kind in RULES)
    return type(layer).forward is kind.forward


def mixes_samples(layer: nn.Module) -> bool:
    """Whether a batch norm takes its statistics from the batch: then no sample has a gradient of its own."""
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None)


def _correlate(layer: Any, inner: Tensor, outer: Tensor) -> Tensor:
    """`Σ_p inner[a, p] · outer[b, stride·p + dilation·kernel]`, [n, g·a, …] × [n, g·b, …] → [n, g·a·b·kernel]."""
    grouped = outer.device.type in GROUPED and math.prod(layer.kernel_size) > 1
    padding: tuple[int, ...] = (0,) * len(layer.kernel_size)
    if grouped and layer.padding_mode == "zeros" and not any(layer.output_padding) and layer.padding != "same":
        padding = padding if layer.padding == "valid" else layer.padding
    else:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        outer = F.pad(outer, layer._reversed_padding_repeated_twice, mode=mode)
        sizes = zip(inner.shape[2:], layer.stride, layer.dilation, layer.kernel_size, strict=True)
        reach = [(places - 1) * stride + dilation * (kernel - 1) + 1 for places, stride, dilation, kernel in sizes]
        window: Any = (..., *(slice(end) for end in reach))
        outer = outer[window]
    count, groups = len(inner), len(inner) * layer.groups
    inner, outer = (x.reshape(groups, -1, *x.shape[2:]) for x in (inner, outer))
    return (_grouped(layer, inner, outer, padding) if grouped else _patches(layer, inner, outer)).reshape(count, -1)


def _grouped(layer: Any, inner: Tensor, outer: Tensor, padding: tuple[int, ...]) -> Tensor:
    """As torch computes the weight gradient of a convolution, every sample a group of its own: fast on a CPU."""
    width, axes = inner.shape[1], len(layer.kernel_size)
    if width < VECTOR:  # fewer channels than a vector register holds are slower than as many zeros beside them
        inner = F.pad(inner, (0, 0) * axes + (0, VECTOR - width))
    weight = outer.new_empty(inner.shape[0] * inner.shape[1], outer.shape[1], *layer.kernel_size)
    flat = (part.reshape(1, -1, *part.shape[2:]) for part in (inner, outer))
    settings = layer.stride, padding, layer.dilation, False, (0,) * axes, len(inner), (False, True, False)
    gradient = torch.ops.aten.convolution_backward(*flat, weight, None, *settings)[1]
    return gradient.view(len(inner), -1, *weight.shape[1:])[:, :width]


def _patches(layer: Any, inner: Tensor, outer: Tensor) -> Tensor:
    """One matrix product with the patches under the kernel, copied out."""
    outer = outer.contiguous()
    steps = outer.stride()[2:]
    moves = [step * dilation for step, dilation in zip(steps, layer.dilation, strict=True)]
    places = [step * stride for step, stride in zip(steps, layer.stride, strict=True)]
    sizes = *outer.shape[:2], *layer.kernel_size, *inner.shape[2:]
    patches = outer.as_strided(sizes, (*outer.stride()[:2], *moves, *places))
    return torch.bmm(inner.flatten(2), patches.reshape(len(outer), -1, math.prod(inner.shape[2:])).mT)


def _per_channel(normalized: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Scale and shift of the channels, axis 1; [n, i] each."""
    delta, normalized = (part.reshape(*part.shape[:2], -1).float() for part in (delta, normalized))
    return {"weight": torch.linalg.vecdot(delta, normalized), "bias": delta.sum(2)}


def _per_place(normalized: Tensor, delta: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Scale and shift of the last axes; [n, *shape] each."""
    delta, normalized = (part.reshape(len(part), -1, *shape).float() for part in (delta, normalized))
    return {"weight": (delta * normalized).sum(1), "bias": delta.sum(1)}

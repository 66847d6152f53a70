"""One pure rule per kind of layer: its parameters' gradients, one per sample.

`x` is what came into the layer and `delta` the gradient of the loss with respect to what left it,
both with the sample axis first. Three forms of rule cover every layer:

- **Factors**: the weight gradient is a sum over positions of outer products, `Δ Aᵀ` (and over
  nothing else), so that each factor can be projected to fewer channels before they meet.
- **Direct**: a function gives the few numbers themselves.
- **Copies**: the layer computes its output with a copy of its parameters for every sample, and
  autograd keeps their gradients apart at no further cost.

A new kind of layer is a rule of one of these forms and a call of `register`, and a case in
tests/gradients/test_layers.py that compares it with autograd, one sample at a time.

In the einsum strings: n sample, s position, g group, i channel in, o channel out. In the shapes, …
are the axes of a picture or a kernel.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradindex.gradients.convolution import correlate


class Factors(NamedTuple):
    """Both factors of a weight gradient, and how they meet.

    Attributes:
        inputs: (layer, x, P [k, i] or None) → A, which is kept until the backward pass.
        outputs: (layer, delta, P [k, o] or None) → Δ.
        weight: (layer, A, Δ) → [n, …], unprojected in the order of the weight's own numbers.
        bias: delta → [n, o].
        widths: layer → (o, i) of one group.
        joins_rows: whether A and Δ are [n, s, …], so that several rows can be one sample's s.
    """

    inputs: Callable[[Any, Tensor, Tensor | None], Tensor]
    outputs: Callable[[Any, Tensor, Tensor | None], Tensor]
    weight: Callable[[Any, Tensor, Tensor], Tensor]
    bias: Callable[[Tensor], Tensor]
    widths: Callable[[Any], tuple[int, int]]
    joins_rows: bool


class Copies(NamedTuple):
    """A layer's forward with a weight and a bias for every sample.

    Attributes:
        forward: (layer, x, weight [n, *shape], bias [n, *shape] or None) → the layer's output.
    """

    forward: Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]


# (layer, x, delta) → {parameter: [n, *shape]}
Direct = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]

Rule = Factors | Direct | Copies

RULES: dict[type[nn.Module], Rule] = {}


def register(rule: Rule, *layer_classes: type[nn.Module]) -> None:
    """Make `rule` that of these classes and of their subclasses."""
    RULES.update(dict.fromkeys(layer_classes, rule))


def rule_of(layer: nn.Module) -> Rule | None:
    """Return the rule of a layer's class or of its nearest ancestor that has one.

    >>> rule_of(nn.Linear(2, 3)) is RULES[nn.Linear]
    True
    >>> rule_of(nn.PReLU()) is None
    True
    """
    rule_class = _rule_class(layer)
    if rule_class is None:
        return None
    rule = RULES[rule_class]
    # Copies take the place of the layer's forward: a subclass that computes something else would
    # get its parent's.
    if isinstance(rule, Copies) and not runs_its_own_forward(layer):
        return None
    return rule


def runs_its_own_forward(layer: nn.Module) -> bool:
    """Return whether a layer computes what the class that its rule is for computes.

    False for a layer whose own class has another `forward`. The layer must have a rule.
    """
    rule_class: Any = _rule_class(layer)
    return type(layer).forward is rule_class.forward


def mixes_samples(layer: nn.Module) -> bool:
    """Return whether a batch norm takes its statistics from the batch.

    Then no sample has a gradient of its own.

    >>> mixes_samples(nn.BatchNorm1d(2)), mixes_samples(nn.BatchNorm1d(2).eval())
    (True, False)
    """
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and (
        layer.training or layer.running_mean is None
    )


def _rule_class(layer: nn.Module) -> type[nn.Module] | None:
    """The layer's class, or its nearest ancestor, that has a rule."""
    return next((cls for cls in type(layer).__mro__ if cls in RULES), None)


def shrink_weight_gradient(
    rule: Factors, layer: Any, gradient: Tensor, outputs: Tensor | None, inputs: Tensor | None
) -> Tensor:
    """Project a whole weight gradient [n, *weight.shape] as its factors would have been.

    Args:
        rule: of the layer.
        layer: a linear layer, a convolution or a transposed convolution.
        outputs: P [k, o] or None.
        inputs: P [k, i] or None.

    Returns:
        [n, …], the same numbers in the same order as `rule.weight` gives.
    """
    first, second = rule.widths(layer)
    if getattr(layer, "transposed", False):  # its weight is [g·i, o, kernel]
        first, second = second, first
        outputs, inputs = inputs, outputs
    whole = gradient.reshape(len(gradient), -1, first, second, layer.weight[0, 0].numel())
    if outputs is not None:
        whole = torch.einsum("ngoip,ko->ngkip", whole, outputs.to(whole.dtype))
    if inputs is not None:
        whole = torch.einsum("ngoip,ki->ngokp", whole, inputs.to(whole.dtype))
    return whole.flatten(1)


# Linear layers: weight [o, i], bias [o].


def linear_factor(layer: nn.Linear, x: Tensor, projection: Tensor | None) -> Tensor:
    """Return either factor, [n, …, i] → [n, s, i], or [n, s, k] with a projection [k, i]."""
    if projection is not None:
        x = F.linear(x, projection)  # "n...i,ki->n...k"
    return x.reshape(x.shape[0], -1, x.shape[-1])


def linear_weight(layer: nn.Linear, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return the weight gradient of each sample, [n, s, i] and [n, s, o] → [n, o, i]."""
    return torch.bmm(outputs.mT, inputs)  # "nso,nsi->noi"


def linear_bias(delta: Tensor) -> Tensor:
    """Return the bias gradient of each sample, [n, …, o] → [n, o]."""
    return delta.reshape(delta.shape[0], -1, delta.shape[-1]).sum(1)  # "nso->no"


def linear_widths(layer: nn.Linear) -> tuple[int, int]:
    """Return how many outputs and inputs the layer has."""
    return layer.out_features, layer.in_features


register(
    Factors(
        inputs=linear_factor,
        outputs=linear_factor,
        weight=linear_weight,
        bias=linear_bias,
        widths=linear_widths,
        joins_rows=True,
    ),
    nn.Linear,
)


# Convolutions: weight [g·o, i, kernel], transposed [g·i, o, kernel]; bias [g·o].


def conv_factor(layer: Any, x: Tensor, projection: Tensor | None) -> Tensor:
    """Return either factor, [n, g·i, …] → itself, or [n, g·k, …] with a projection [k, i].

    Channels are projected, in every group by the same matrix; positions stay apart.
    """
    if projection is None:
        return x
    flat = x.reshape(len(x) * layer.groups, projection.shape[1], -1)
    projected = torch.bmm(projection.expand(len(flat), -1, -1), flat)  # "ki,nis->nks"
    return projected.view(len(x), -1, *x.shape[2:])


def conv_weight(layer: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return the weight gradient of each sample, [n, g·i, …] and [n, g·o, …] → [n, g·o·i·kernel].

    "nops,nips->noip" with p the positions in the kernel: the input that it meets at position s.
    """
    return correlate(layer, outputs, inputs)


def conv_transpose_weight(layer: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return a transposed convolution's weight gradient of each sample, [n, g·i·o·kernel].

    As a convolution's, with input and output in each other's place.
    """
    return correlate(layer, inputs, outputs)


def conv_bias(delta: Tensor) -> Tensor:
    """Return the bias gradient of each sample, [n, g·o, …] → [n, g·o]."""
    return delta.flatten(2).sum(2)  # "nos->no"


def conv_widths(layer: Any) -> tuple[int, int]:
    """Return how many outputs and inputs one group has."""
    return layer.out_channels // layer.groups, layer.in_channels // layer.groups


_CONVOLUTION = Factors(
    inputs=conv_factor,
    outputs=conv_factor,
    weight=conv_weight,
    bias=conv_bias,
    widths=conv_widths,
    joins_rows=False,
)
register(_CONVOLUTION, nn.Conv1d, nn.Conv2d, nn.Conv3d)
register(
    _CONVOLUTION._replace(weight=conv_transpose_weight),
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


# Norms: weight and bias [i] for channels, or [*normalized_shape].


def group_norm(layer: nn.GroupNorm, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a group norm's output, with weight and bias [n, i] of each sample.

    All samples stand beside each other as the channels of one: [n, i, …] is normalized as
    [1, n·i, …] in n times as many groups.
    """
    side_by_side = x.reshape(1, -1, *x.shape[2:])
    groups = len(x) * layer.num_groups
    flat_bias = None if bias is None else bias.flatten()
    output = F.group_norm(side_by_side, groups, weight.flatten(), flat_bias, layer.eps)
    return output.view(x.shape)


register(Copies(group_norm), nn.GroupNorm)


def instance_norm(layer: Any, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Return the gradients of scale and shift, [n, i] each."""
    return _per_channel(F.instance_norm(x, eps=layer.eps), delta)


register(instance_norm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def batch_norm(layer: Any, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Return the gradients of scale and shift, [n, i] each; in eval mode, with fixed statistics."""
    normalized = F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)
    return _per_channel(normalized, delta)


register(batch_norm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def layer_norm(layer: nn.LayerNorm, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Return the gradients of scale and shift, [n, *normalized_shape] each."""
    normalized = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    return _per_element(normalized, delta, layer.normalized_shape)


register(layer_norm, nn.LayerNorm)


def rms_norm(layer: nn.RMSNorm, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Return the gradient of the scale, [n, *normalized_shape], and of a shift it does not have."""
    normalized = F.rms_norm(x, layer.normalized_shape, eps=layer.eps)
    return _per_element(normalized, delta, layer.normalized_shape)


register(rms_norm, nn.RMSNorm)


def _per_channel(normalized: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Gradients of scale and shift of the channels, axis 1; [n, i] each."""
    normalized = normalized.reshape(*normalized.shape[:2], -1).float()
    delta = delta.reshape(*delta.shape[:2], -1).float()
    return {
        "weight": torch.linalg.vecdot(delta, normalized),  # "nis,nis->ni"
        "bias": delta.sum(2),  # "nis->ni"
    }


def _per_element(normalized: Tensor, delta: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Gradients of scale and shift of each element of the last axes; [n, *shape] each."""
    normalized = normalized.reshape(len(normalized), -1, *shape).float()
    delta = delta.reshape(len(delta), -1, *shape).float()
    return {
        "weight": (delta * normalized).sum(1),  # "ns...,ns...->n..."
        "bias": delta.sum(1),  # "ns...->n..."
    }


# Embeddings: weight [rows of the table, i].


def embedding(layer: nn.Embedding, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Return the gradient of the table, [n, rows, i]: what each index got, added to its row."""
    index = x.reshape(x.shape[0], -1, 1).expand(-1, -1, layer.embedding_dim)
    table = torch.zeros(x.shape[0], *layer.weight.shape, device=delta.device)
    table.scatter_add_(1, index, delta.reshape(index.shape).float())
    if layer.padding_idx is not None:
        table[:, layer.padding_idx] = 0
    return {"weight": table}


register(embedding, nn.Embedding)

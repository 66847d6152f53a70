"""The weight gradient of a convolution for every sample, from its input and output gradient.

For one sample and group, with stride s, dilation d and padded input x̂,

    ∇W[o, i, κ] = Σ_p δ[o, p] · x̂[i, s·p + d·κ]  p: output position, κ: position in the kernel

which is a correlation of the input with the output gradient, stride and dilation in each other's
place. A transposed convolution is the same with input and output gradient in each other's place.
There are two ways to compute it: as torch does for a whole batch, with every sample a group of its
own, or as one matrix product with the patches of the input under the kernel.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Devices on which a grouped convolution is faster than a matrix product with copied patches.
GROUPED_CONVOLUTION_DEVICES = {"cpu"}
VECTOR_REGISTER_FLOATS = 16  # float32 numbers in the widest vector register of a CPU (512 bits)


def correlate(layer: Any, inner: Tensor, outer: Tensor) -> Tensor:
    """Return `Σ_p inner[a, p] · outer[b, stride·p + dilation·κ]` of each sample and group.

    Args:
        layer: a convolution or transposed convolution over 1 to 3 axes.
        inner: [n, g·a, …], its last axes those of positions p: a convolution's output gradient, or
            a transposed convolution's input.
        outer: [n, g·b, …], of the other side, not padded.

    Returns:
        [n, g·a·b·kernel].
    """
    samples = len(inner)
    by_groups = (
        outer.device.type in GROUPED_CONVOLUTION_DEVICES and math.prod(layer.kernel_size) > 1
    )
    padding: tuple[int, ...] = (0,) * len(layer.kernel_size)
    if by_groups and _pads_like_torch(layer):
        padding = padding if layer.padding == "valid" else layer.padding
    else:
        outer = _pad_and_cut(layer, outer, inner.shape[2:])
    # Samples and groups become one axis: [n·g, a, …] and [n·g, b, …].
    inner = inner.reshape(samples * layer.groups, -1, *inner.shape[2:])
    outer = outer.reshape(samples * layer.groups, -1, *outer.shape[2:])
    if by_groups:
        return _correlate_by_groups(layer, inner, outer, padding).reshape(samples, -1)
    return _correlate_by_patches(layer, inner, outer).reshape(samples, -1)


def _pads_like_torch(layer: Any) -> bool:
    """Whether torch's own backward pass can pad: with as many zeros at both ends of an axis."""
    return (
        layer.padding_mode == "zeros" and not any(layer.output_padding) and layer.padding != "same"
    )


def _pad_and_cut(layer: Any, outer: Tensor, positions: torch.Size) -> Tensor:
    """`outer` with its padding, cut to what the kernel reaches from all of the positions."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(outer, layer._reversed_padding_repeated_twice, mode=mode)
    axes = zip(positions, layer.stride, layer.dilation, layer.kernel_size, strict=True)
    reach = [
        (count - 1) * stride + dilation * (kernel - 1) + 1
        for count, stride, dilation, kernel in axes
    ]
    window: Any = (..., *map(slice, reach))
    return padded[window]


def _correlate_by_groups(
    layer: Any, inner: Tensor, outer: Tensor, padding: tuple[int, ...]
) -> Tensor:
    """torch's weight gradient of a convolution with m groups; [m, a, …], [m, b, …] → [m, a, b, …].

    This is the fastest on a CPU.
    """
    groups, channels = inner.shape[:2]
    axes = len(layer.kernel_size)
    # Fewer channels than a vector register holds take longer than with as many zeros beside them.
    if channels < VECTOR_REGISTER_FLOATS:
        zeros = VECTOR_REGISTER_FLOATS - channels
        inner = F.pad(inner, (0, 0) * axes + (0, zeros))
    weight = outer.new_empty(groups * inner.shape[1], outer.shape[1], *layer.kernel_size)
    gradient = torch.ops.aten.convolution_backward(
        inner.reshape(1, -1, *inner.shape[2:]),  # gradient of the output
        outer.reshape(1, -1, *outer.shape[2:]),  # input
        weight,  # only its shape matters here
        None,  # sizes of the bias
        layer.stride,
        padding,
        layer.dilation,
        False,  # transposed
        (0,) * axes,  # output padding
        groups,
        (False, True, False),  # of input, weight and bias, compute the weight's gradient alone
    )[1]
    return gradient.view(groups, -1, *weight.shape[1:])[:, :channels]


def _correlate_by_patches(layer: Any, inner: Tensor, outer: Tensor) -> Tensor:
    """One matrix product with the patches under the kernel; [m, a, …], [m, b, …] → [m, a, b·κ].

    "map,mbκp->mabκ", κ and p being positions in the kernel and in `inner`.
    """
    outer = outer.contiguous()
    sample_stride, channel_stride, *axis_strides = outer.stride()
    kernel_strides = [
        stride * dilation for stride, dilation in zip(axis_strides, layer.dilation, strict=True)
    ]
    position_strides = [
        stride * step for stride, step in zip(axis_strides, layer.stride, strict=True)
    ]
    patches = outer.as_strided(
        (*outer.shape[:2], *layer.kernel_size, *inner.shape[2:]),
        (sample_stride, channel_stride, *kernel_strides, *position_strides),
    )
    columns = patches.reshape(len(outer), -1, math.prod(inner.shape[2:]))
    return torch.bmm(inner.flatten(2), columns.mT)

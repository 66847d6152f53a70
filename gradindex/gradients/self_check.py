"""The hooks' gradient against plain autograd, before a build starts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gradindex.errors import CallError, ModelError, first_line
from gradindex.gradients.capture import Capture
from gradindex.gradients.parameter_sketches import ParameterSketches
from gradindex.gradients.parameters import choose_parameters
from gradindex.gradients.random_batch import random_batch
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import plain_torch, products_in
from gradindex.recipe import Recipe


class Tolerance(NamedTuple):
    """How far a captured gradient may be from autograd's.

    Attributes:
        parameter: share of the norm of the parameter's gradient.
        gradient: share of the norm of the whole gradient, which is added: what a parameter loses to
            rounding whose gradient is small or nearly cancels.
        loss: by which share a sample's loss may change with the sample beside it. Zero in float32,
            where autograd's gradient is of the sample alone.
    """

    parameter: float
    gradient: float
    loss: float


# In half precision the same pass is compared, so that only the last sums are rounded differently.
# Four to ten times what was measured on the models of tools/bench coverage in bfloat16 (5e-2 of a
# parameter's norm, 2e-5 of the whole's, 1.3e-3 of a loss) and float16 (3e-3, 2e-6, 3e-4). What half
# precision hides: an error of less than `parameter`, where a wrong rule's is about as large as the
# gradient itself, and any error of a parameter that holds less than `gradient` of the whole.
TOLERANCES = {
    torch.float32: Tolerance(1e-2, 1e-5, 0),
    torch.float16: Tolerance(3e-2, 3e-5, 3e-3),
    torch.bfloat16: Tolerance(2e-1, 2e-4, 2e-2),
}
# Weights in half precision are widened for the check where that takes at most this share of the
# device's memory.
WIDENED_SHARE = 1 / 4


@plain_torch()
@products_in("float32")
def check_capture(denoiser: Denoiser, recipe: Recipe) -> None:
    """Compare the hooks on a batch of two events with plain autograd.

    Guards against what no rule can see: a weight that is used without its layer being called,
    samples that mix, a subclass that computes something else. Both gradients are made parameter by
    parameter and kept as sketches, so that no whole gradient is in memory. In float32 autograd gets
    the first event alone; in half precision, where a batch of one is rounded differently, it gets
    the same batch, and the first event's loss must be what it is alone.

    Raises:
        ModelError: some parameter's captured gradient is not the gradient, or samples mix.
    """
    names = choose_parameters(denoiser, recipe.params, recipe.part)
    x, t, conditions = random_batch(denoiser, recipe, 2)
    epsilon = torch.zeros_like(x)
    # As in a build: in float16 the gradient of the mean over a picture's numbers would underflow.
    scale = float(np.prod(recipe.image)) if denoiser.dtype == torch.float16 else 1.0

    def losses(count: int) -> Tensor:
        some = {name: values[:count] for name, values in conditions.items()}
        return denoiser.losses(x[:count], t[:count], epsilon[:count], some, recipe.differentiated)

    try:
        with _widened(denoiser):
            parameters = {name: denoiser.model.get_parameter(name) for name in names}
            sizes = {name: parameter.numel() for name, parameter in parameters.items()}
            tolerance = TOLERANCES[denoiser.dtype]
            sketches = ParameterSketches(sizes, denoiser.device)
            with Capture(denoiser.model, names, sketches) as capture:
                captured = capture.gradients(lambda: losses(2), scale)[0]
            is_alone = denoiser.dtype == torch.float32
            truth = _autograd_sketches(
                lambda: losses(1 if is_alone else 2)[0], parameters, sketches, scale
            )
            if not is_alone:
                _require_separate_losses(losses, tolerance)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            "two pictures at one timestep do not fit into the device's memory"
        ) from error
    if not truth.isfinite().all():
        raise ModelError(
            f"the model's gradient is not finite, for a random picture at timestep {t[0]:g}"
        )
    wrong = _differing_parameters(captured, truth, sketches.slices, tolerance)
    if wrong:
        raise ModelError(
            f"the captured gradient is not autograd's for: {', '.join(wrong)};"
            " leave them out with params"
        )


@plain_torch()
@torch.no_grad()
def check_buckets(denoiser: Denoiser, recipe: Recipe) -> None:
    """Try the model on a random picture of each size that the recipe's buckets have.

    Raises:
        CallError: it does not take a size.
    """
    for (height, width), image in zip(recipe.buckets or (), recipe.images, strict=False):
        x, t, conditions = random_batch(denoiser, recipe, 1, image)
        try:
            denoiser.losses(x, t, torch.zeros_like(x), conditions, recipe.differentiated)
        except ModelError as error:
            raise CallError(
                f"buckets: the model takes no pictures of {width}x{height} ({first_line(error)})"
            ) from error


@contextmanager
def _widened(denoiser: Denoiser) -> Iterator[None]:
    """Have the weights in float32 inside, if memory allows it."""
    dtype = denoiser.dtype
    numbers = sum(parameter.numel() for parameter in denoiser.model.parameters())
    float32_bytes = 4 * numbers
    if float32_bytes <= WIDENED_SHARE * denoiser.memory:
        denoiser.cast(torch.float32)
    try:
        yield
    finally:
        if denoiser.dtype != dtype:
            denoiser.cast(dtype)


def _autograd_sketches(
    loss: Callable[[], Tensor],
    parameters: Mapping[str, nn.Parameter],
    sketches: ParameterSketches,
    scale: float,
) -> Tensor:
    """Autograd's gradient of a loss, as a row of sketches [D]; each is let go of when sketched."""
    row = torch.zeros(1, sketches.dim, device=next(iter(parameters.values())).device)
    handles = []

    def take(name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        sketches.add(row, name, parameter.grad.flatten()[None])
        parameter.grad = None

    for name, parameter in parameters.items():
        parameter.requires_grad_()
        handles.append(parameter.register_post_accumulate_grad_hook(partial(take, name)))
    try:
        with torch.enable_grad():
            value = loss()
            if value.requires_grad:  # not when no chosen parameter was used
                (value * scale).backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    return row[0] / scale


@torch.no_grad()
def _require_separate_losses(losses: Callable[[int], Tensor], tolerance: Tolerance) -> None:
    """Raise ModelError if the loss of a sample changes with the sample beside it."""
    alone, together = float(losses(1)[0]), float(losses(2)[0])
    if abs(alone - together) > tolerance.loss * abs(alone):
        raise ModelError(
            f"the loss of a picture is {alone:.6g} alone and {together:.6g} beside another one:"
            " the model mixes the samples of a batch, which gradindex cannot take apart"
        )


def _differing_parameters(
    captured: Tensor, truth: Tensor, slices: Mapping[str, slice], tolerance: Tolerance
) -> list[str]:
    """The parameters whose captured gradient is not the true one; NaN differs from everything."""
    whole_norm = truth.norm()
    wrong = []
    for name, part in slices.items():
        error = (captured[part] - truth[part]).norm()
        allowed = tolerance.parameter * truth[part].norm() + tolerance.gradient * whole_norm
        if not error <= allowed:
            wrong.append(name)
    return wrong

"""The hooks' gradient against plain autograd, before a build starts."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gradindex.errors import ModelError
from gradindex.gradients.capture import Capture
from gradindex.gradients.parameters import choose_parameters
from gradindex.gradients.projection import Exact
from gradindex.gradients.random_batch import random_batch
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import plain_torch
from gradindex.recipe import Recipe

# A parameter's captured gradient may differ from autograd's by this share of its norm, and by this
# share of the whole gradient's: what a small one loses to rounding.
PARAMETER_TOLERANCE = 1e-2
GRADIENT_TOLERANCE = 1e-5


@plain_torch()
def check_capture(denoiser: Denoiser, recipe: Recipe) -> None:
    """Compare the hooks on a batch of two events with plain autograd on the first alone.

    Guards against what no rule can see: a weight that is used without its layer being called,
    samples that mix, a subclass that computes something else. Weights in half precision are widened
    for it.

    Raises:
        ModelError: some parameter's captured gradient is not the gradient, or a parameter has no
            rule.
    """
    names = choose_parameters(denoiser.trainable, recipe.params)
    dtype = denoiser.model.dtype
    denoiser.cast(torch.float32)
    parameters = {name: denoiser.model.get_parameter(name) for name in names}
    x, t, labels = random_batch(denoiser, recipe, 2)
    epsilon = torch.zeros_like(x)

    def losses(count: int) -> Tensor:
        some_labels = None if labels is None else labels[:count]
        return denoiser.losses(
            x[:count], t[:count], epsilon[:count], some_labels, recipe.differentiated
        )

    exact = Exact({name: parameter.numel() for name, parameter in parameters.items()})
    try:
        with Capture(denoiser.model, names, exact) as capture:
            row = capture.gradients(lambda: losses(2))[0]
        for parameter in parameters.values():
            parameter.requires_grad_()
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                losses(1).sum(),
                list(parameters.values()),
                allow_unused=True,
                materialize_grads=True,
            )
    except torch.OutOfMemoryError as error:
        raise ModelError(
            "two pictures at one timestep do not fit into the device's memory"
        ) from error
    finally:
        denoiser.model.requires_grad_(False)
        denoiser.cast(dtype)
    truth = dict(zip(names, gradients, strict=True))
    if not all(gradient.isfinite().all() for gradient in truth.values()):
        raise ModelError(
            f"the model's gradient is not finite, for a random picture at timestep {int(t[0])}"
        )
    captured = {name: row[exact.slices[name]] for name in names}
    wrong = _differing_parameters(captured, truth)
    if wrong:
        raise ModelError(
            f"the captured gradient is not autograd's for: {', '.join(wrong)};"
            " leave them out with params"
        )


def _differing_parameters(captured: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> list[str]:
    """The parameters whose captured gradient is not the true one; NaN differs from everything."""
    whole_norm = float(torch.stack([gradient.norm() for gradient in truth.values()]).norm())
    wrong = []
    for name, gradient in truth.items():
        error = (captured[name] - gradient.flatten()).norm()
        tolerance = PARAMETER_TOLERANCE * gradient.norm() + GRADIENT_TOLERANCE * whole_norm
        if not error <= tolerance:
            wrong.append(name)
    return wrong

"""Which parameters a recipe's gradients are taken of."""

import re
from collections.abc import Sequence

from gradindex.errors import CallError
from gradindex.gradients.capture import Capture
from gradindex.gradients.projection import make_projection
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import plain_torch
from gradindex.recipe import Recipe


def choose_parameters(names: Sequence[str], params: str | None) -> list[str]:
    """Return the names in which the regular expression `params` occurs; all of them for None.

    Raises:
        CallError: it is not a regular expression, or occurs in none.

    >>> choose_parameters(["conv_in.weight", "conv_in.bias", "conv_out.weight"], "weight$")
    ['conv_in.weight', 'conv_out.weight']
    """
    try:
        chosen = [name for name in names if params is None or re.search(params, name)]
    except re.error as error:
        raise CallError(f"params = {params!r}: not a regular expression ({error})") from error
    if not chosen:
        raise CallError(
            f"params = {params!r}: matches none of the {len(names)} parameters,"
            f" such as {names[0]!r}"
        )
    return chosen


@plain_torch()
def capture_for(denoiser: Denoiser, recipe: Recipe) -> Capture:
    """Return the capture of a recipe's parameters and projection on a denoiser's model."""
    names = choose_parameters(denoiser.trainable, recipe.params)
    sizes = {name: denoiser.model.get_parameter(name).numel() for name in names}
    projection = make_projection(
        recipe.projection, recipe.dim, recipe.seed, recipe.rank, recipe.high_rank, sizes
    )
    return Capture(denoiser.model, names, projection)

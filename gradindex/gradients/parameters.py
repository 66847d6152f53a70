"""Which parameters a recipe's gradients are taken of."""

import re
from collections.abc import Iterator, Sequence

from gradindex.errors import CallError, RecipeMismatch
from gradindex.gradients.capture import Capture
from gradindex.gradients.parts import ALL, is_part, part_names, parts_text
from gradindex.gradients.projection import Projection, make_projection
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import plain_torch
from gradindex.recipe import Recipe

SHOWN = 4  # places of chosen parameters that are named


def split_params(text: str | None) -> tuple[str | None, str | None]:
    """Return the fields `params` and `part` of a `Recipe` by what a caller asks for.

    A text that is the name of a part, and a regular expression as well, means the part.

    Raises:
        CallError: the text is empty.

    >>> split_params("attention"), split_params("attentions?"), split_params("all")
    ((None, 'attention'), ('attentions?', None), (None, None))
    """
    if text == "":
        raise CallError("params = '': give a part of the model, or a regular expression")
    if text is None or not is_part(text):
        return text, None
    return None, None if text == ALL else text


def choose_parameters(denoiser: Denoiser, params: str | None, part: str | None) -> list[str]:
    """Return the names of the trainable parameters of a part, or in which an expression occurs.

    Args:
        params: a regular expression; None: all of them.
        part: of the model, see `parts`; None: `params` counts.

    Raises:
        CallError: the model has none of that part; or it is not a regular expression, or occurs in
            none.
    """
    if part is not None:
        return part_names(denoiser, part)
    names = denoiser.trainable
    try:
        chosen = [name for name in names if params is None or re.search(params, name)]
    except re.error as error:
        raise CallError(f"params = {params!r}: not a regular expression ({error})") from error
    if not chosen:
        raise CallError(
            f"params = {params!r}: no part of a model, and found in none of the {len(names)}"
            f" parameters' names, such as {names[0]!r}; {parts_text(denoiser)}"
        )
    return chosen


@plain_torch()
def capture_for(
    denoiser: Denoiser, recipe: Recipe, projection: Projection | None = None
) -> Capture:
    """Return the capture of a recipe's parameters and projection on a denoiser's model.

    Args:
        projection: of an earlier capture by the same recipe, on the same device: what it has drawn
            is drawn once; None: a new one.

    Raises:
        RecipeMismatch: another gradindex chose other parameters by the same name.
    """
    names = choose_parameters(denoiser, recipe.params, recipe.part)
    count = count_parameters(denoiser, names)
    if recipe.part is not None and count != recipe.parameter_count:
        raise RecipeMismatch(
            f"params = {recipe.part!r}: another version of gradindex chose other parameters of the"
            " model by this name; build the index again",
            [f"parameter_count: {recipe.parameter_count}, now {count}"],
        )
    if projection is None:
        sizes = {name: denoiser.model.get_parameter(name).numel() for name in names}
        projection = make_projection(
            recipe.projection, recipe.dim, recipe.seed, recipe.rank, recipe.high_rank, sizes
        )
    return Capture(denoiser.model, names, projection)


def count_parameters(denoiser: Denoiser, names: Sequence[str]) -> int:
    """Return how many numbers are in these parameters of a denoiser's model."""
    return sum(denoiser.model.get_parameter(name).numel() for name in names)


def places_text(trainable: Sequence[str], chosen: Sequence[str]) -> str:
    """Return in short where in the model chosen parameters are.

    A module of which all trainable parameters are chosen is named by its path alone. Of many places
    the numbers in paths are left out.

    >>> names = ["conv_in.bias", "ups.0.conv.bias", "ups.1.norm.bias", "ups.1.conv.bias"]
    >>> places_text(names, names[2:])
    'ups.1'
    >>> places_text(names, [names[0], names[3]])
    'conv_in, ups.1.conv'
    """
    others = set(trainable) - set(chosen)
    partly = {path for name in others for path in _paths_above(name)}
    places = []
    for name in chosen:
        whole = (path for path in _paths_above(name) if path not in partly)
        places.append(next(whole, name))
    places = list(dict.fromkeys(places))
    if len(places) > SHOWN:
        places = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", place) for place in places))
    if len(places) > SHOWN:
        places[SHOWN:] = [f"and {len(places) - SHOWN} more"]
    return ", ".join(places)


def _paths_above(name: str) -> Iterator[str]:
    """The paths of the modules that a parameter is in, the shortest first."""
    steps = name.split(".")
    return (".".join(steps[:depth]) for depth in range(1, len(steps)))

"""What a build says of the parameters that its rows are the gradients of."""

from gradindex.gradients.parameters import choose_parameters, count_parameters, places_text
from gradindex.models.denoiser import Denoiser
from gradindex.recipe import Recipe
from gradindex.store.records import ParameterChoice


def parameter_choice(denoiser: Denoiser, recipe: Recipe) -> ParameterChoice:
    """Return which of a denoiser's trainable parameters a recipe chooses."""
    chosen = choose_parameters(denoiser, recipe.params, recipe.part)
    return ParameterChoice(
        total=count_parameters(denoiser, denoiser.trainable),
        places=places_text(denoiser.trainable, chosen),
    )

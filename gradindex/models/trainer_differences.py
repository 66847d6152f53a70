"""In what a trainer's notes say that its loss differed from a build's, each with the way out."""

import json

from gradindex.data.buckets import sizes_text
from gradindex.models.trainer_notes import TrainerNotes
from gradindex.recipe import LOSSES, Recipe
from gradindex.wording import fewest_digits


def loss_differences(notes: TrainerNotes, recipe: Recipe) -> list[str]:
    """Return in what a training's loss differs from that of a build, a text for each difference.

    Args:
        recipe: of the build.
    """
    differences = []
    weighting = notes.weighting
    if notes.weightings > 1:
        differences.append("multiplied several weightings of its loss, of which a build takes one")
    elif weighting != recipe.weighting:
        differences.append(
            f"weighted its loss ({weighting}), this build does"
            f" {f'otherwise ({recipe.weighting})' if recipe.weighting else 'not'};"
            f" weighting = {weighting!r} does"
            if weighting
            else f"did not weight its loss, this build does ({recipe.weighting}); leave weighting"
            " out"
        )
    if notes.noise_offset != recipe.noise_offset:
        offset, here = (fewest_digits(each.noise_offset or 0) for each in (notes, recipe))
        differences.append(
            f"had a noise offset of {offset}, this build: {here}; noise_offset = {offset} takes it"
        )
    if difference := _bucket_difference(notes, recipe):
        differences.append(difference)
    if notes.input_noise != recipe.input_perturbation:
        gamma = fewest_digits(notes.input_noise or 0)
        differences.append(
            f"had an input perturbation (ip_noise_gamma) of {gamma}, this build:"
            f" {fewest_digits(recipe.input_perturbation or 0)}; input_perturbation = {gamma} takes"
            " it"
        )
    if notes.masked and recipe.masks is None:
        differences.append("masked its loss, this build does not; give its masks (masks=)")
    loss = {"l2": "mse"}.get(notes.loss or "", notes.loss)
    if loss is not None and loss != recipe.loss:
        option = f"loss = {loss!r}" if loss in LOSSES else "no option"
        schedule = f" (huber_schedule {notes.huber_schedule})" if notes.huber_schedule else ""
        differences.append(
            f"had the loss {notes.loss}{schedule}, this build: {recipe.loss}; {option} takes it"
        )
    told, tells = notes.guidance, recipe.guidance
    if told is not None and tells is not None and told != tells:
        differences.append(
            f"told the model a guidance of {fewest_digits(told)}, this build:"
            f" {fewest_digits(tells)}; guidance = {fewest_digits(told)} does"
        )
    rescaled = json.loads(recipe.scheduler).get("rescale_betas_zero_snr", False)
    if notes.zero_terminal_snr and not rescaled:
        differences.append(
            "rescaled betas to zero terminal SNR, the scheduler here does not; give one with"
            " rescale_betas_zero_snr (scheduler=)"
        )
    if notes.prediction is not None and notes.prediction != recipe.prediction_type:
        differences.append(
            f"predicted {notes.prediction}, the scheduler here has {recipe.prediction_type}; give"
            " one with that prediction_type (scheduler=)"
        )
    if notes.prior_loss_weight is not None and notes.prior_loss_weight != 1:
        differences.append(
            f"had {notes.regularization_pictures} regularization pictures with weight"
            f" {fewest_digits(notes.prior_loss_weight)}: where they are in the data, their TracIn"
            " scores are to be multiplied with it; other pictures' are right"
        )
    if notes.clip_skip is not None and notes.clip_skip > 1:
        differences.append(
            f"encoded captions with clip_skip {notes.clip_skip}, here the pipeline's own layer"
            " does; no option takes it"
        )
    differences += [f"{setting}; no option takes it" for setting in notes.unmatched]
    return differences


def _bucket_difference(notes: TrainerNotes, recipe: Recipe) -> str | None:
    """In what the sizes of a training's pictures differ from those of a build; None: in nothing."""
    if notes.buckets is None or (not notes.buckets and recipe.buckets is None):
        return None
    if not notes.buckets:
        return "cut all pictures to one size, this build has buckets"
    trained = [(height, width) for width, height in notes.bucket_sizes]
    built = recipe.buckets or ()
    if recipe.buckets is not None and set(trained) <= set(built):
        return None
    advice = "give buckets, the step of their sides"
    if trained:
        advice = f"buckets = {sizes_text(trained)} takes them"
    here = "to others" if recipe.buckets else "all to one size"
    return f"cut pictures to buckets, this build cuts them {here}; {advice}"

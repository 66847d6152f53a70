"""Which weights a two-sided projection must shrink less."""

from collections.abc import Sequence

import numpy as np

from gradindex.gradients.capture import Capture
from gradindex.gradients.events import grid_events
from gradindex.gradients.parameters import choose_parameters
from gradindex.gradients.projection import Energies
from gradindex.gradients.sampling import sample_gradients
from gradindex.models.denoiser import Denoiser
from gradindex.models.examples import Examples
from gradindex.recipe import Recipe

TIMESTEPS = 10  # at most so many of a grid are looked at

# The work that a weight makes goes with its size. A weight is worth more of it where shrinking adds
# more variance than this, times its share of the numbers of all chosen parameters. It was chosen on
# the two models of tools/bench gradients, see docs/method.md.
VARIANCE_PRICE = 0.035


def choose_high_rank(
    denoiser: Denoiser,
    recipe: Recipe,
    examples: Examples,
    sample_ids: Sequence[str],
    batch_size: int,
) -> tuple[str, ...]:
    """Return the names of weights that a two-sided projection must shrink less, sorted.

    What shrinking adds to the relative variance of an inner product is at most `variance(…) e²`, e
    being the weight's share of the gradient's squared norm, and what it saves is work in proportion
    to the weight's size. A few weights near input and output hold most of the gradient: they are
    those that add more, at the worst timestep, than `VARIANCE_PRICE` times their share of the
    model's numbers.

    Args:
        recipe: of a two-sided projection.
        examples: a few of the data set's pictures, B, as the model takes them.
        sample_ids: their B ids.
        batch_size: how many events go through the model at once.
    """
    assert recipe.rank is not None
    names = choose_parameters(denoiser, recipe.params, recipe.part)
    energies = Energies(names, recipe.rank)
    if recipe.timesteps:
        stride = -(-len(recipe.timesteps) // TIMESTEPS)
        timesteps = recipe.timesteps[::stride]
    else:
        timesteps = denoiser.process.grid(TIMESTEPS)
    events = grid_events(recipe, sample_ids, timesteps, draws=1)
    with Capture(denoiser.model, names, energies) as capture:
        squared_norms = sample_gradients(
            denoiser, capture, recipe, examples, events, batch_size=batch_size
        )
    # [B, T, parameters] → [parameters]: the mean over pictures at the worst timestep. A picture
    # with no gradient at all has no shares.
    shares = squared_norms / squared_norms.sum(-1, keepdims=True).clip(min=1e-30)
    variances = np.array([energies.added_variance.get(name, 0.0) for name in names])
    added_variance = np.square(shares).mean(0).max(0) * variances
    sizes = np.array([denoiser.model.get_parameter(name).numel() for name in names])
    is_high_rank = added_variance > VARIANCE_PRICE * sizes / sizes.sum()
    return tuple(sorted(np.array(names)[is_high_rank].tolist()))

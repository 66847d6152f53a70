"""Where gradients are taken: the timesteps and the noise of each picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from gradindex.random_numbers import noise
from gradindex.recipe import FLOW, Recipe

Shape = tuple[int, ...]

# (recipe, id that keys the noise, timestep, draw, shape) → float32 of that shape
DrawNoise = Callable[[Recipe, str | None, float, int, Shape], np.ndarray]

SHARED_NOISE_CACHED = 4096  # draws of shared noise kept in memory, each as large as a picture


@dataclass(frozen=True)
class Events:
    """Where the gradients of B pictures are taken.

    Attributes:
        names: B names that say in an error which picture it was.
        timesteps: [B, T] whole numbers, or float32 for flow matching.
        draws: M, how many times noise is drawn at each timestep.
        noise: (picture i, position j of the timestep, draw m, shape) → float32 of that shape, which
            is [channels, height, width] of what the model takes of that picture.
        input_noise: what is added to that noise where a picture is mixed with it, and not in the
            target; arguments and result are those of `noise`. None: nothing.
    """

    names: Sequence[str]
    timesteps: np.ndarray
    draws: int
    noise: Callable[[int, int, int, Shape], np.ndarray]
    input_noise: Callable[[int, int, int, Shape], np.ndarray] | None = None


def timestep_array(timesteps: Any) -> np.ndarray:
    """Return timesteps as the store and the model have them: int64, or float32 where not whole.

    >>> timestep_array([50, 150]).dtype, timestep_array([500.0, 750.5]).dtype
    (dtype('int64'), dtype('float32'))
    """
    array = np.asarray(timesteps)
    return array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)


def grid_events(
    recipe: Recipe,
    sample_ids: Sequence[str],
    timesteps: Sequence[float] | None = None,
    draws: int | None = None,
) -> Events:
    """Return the events at the same T timesteps for every picture, with the recipe's noise.

    Args:
        sample_ids: B ids; they key the noise unless it is shared.
        timesteps: T timesteps in place of the recipe's (a query with its own grid).
        draws: in place of the recipe's, likewise.
    """
    chosen = timesteps or recipe.timesteps

    @lru_cache(SHARED_NOISE_CACHED)
    def shared(draw_noise: DrawNoise, j: int, m: int, shape: Shape) -> np.ndarray:
        return draw_noise(recipe, None, chosen[j], m, shape)

    def draw(draw_noise: DrawNoise, i: int, j: int, m: int, shape: Shape) -> np.ndarray:
        if recipe.noise == "shared":
            return shared(draw_noise, j, m, shape)
        return draw_noise(recipe, sample_ids[i], chosen[j], m, shape)

    grid = timestep_array(np.tile(chosen, (len(sample_ids), 1)))
    return _drawn_events(recipe, sample_ids, grid, draws or recipe.draws, draw)


def recorded_events(recipe: Recipe, sample_ids: Sequence[str], events: np.ndarray) -> Events:
    """Return each picture's own events of a training log.

    The noise is the very noise of training where the recipe's is "recorded". Noise that was not
    recorded comes from the recipe's seed, as if each picture had its own.

    Args:
        sample_ids: B ids.
        events: [B, T] records with the fields timestep, noise_seed (below 0: not recorded), draw.
    """
    is_flow = recipe.prediction_type == FLOW
    timesteps = events["timestep"].astype(np.float32 if is_flow else np.int64)

    def draw(draw_noise: DrawNoise, i: int, j: int, m: int, shape: Shape) -> np.ndarray:
        sample_id = None if recipe.noise == "shared" else sample_ids[i]
        return draw_noise(recipe, sample_id, float(timesteps[i, j]), m, shape)

    def recorded(i: int, j: int, m: int, shape: Shape) -> np.ndarray:
        recorded_seed = int(events["noise_seed"][i, j])
        seed = recipe.seed if recorded_seed < 0 else recorded_seed
        drawn = int(events["draw"][i, j])
        return noise(seed, sample_ids[i], float(timesteps[i, j]), drawn, shape)

    if recipe.noise == "recorded":
        return Events(sample_ids, timesteps, recipe.draws, recorded)
    return _drawn_events(recipe, sample_ids, timesteps, recipe.draws, draw)


def _drawn_events(
    recipe: Recipe,
    sample_ids: Sequence[str],
    timesteps: np.ndarray,
    draws: int,
    draw: Callable[[DrawNoise, int, int, int, Shape], np.ndarray],
) -> Events:
    """Events whose noise is drawn anew, with what the recipe's loss adds to it."""
    perturbed = recipe.input_perturbation is not None
    return Events(
        sample_ids,
        timesteps,
        draws,
        partial(draw, _offset_noise),
        partial(draw, _input_noise) if perturbed else None,
    )


def _offset_noise(
    recipe: Recipe, sample_id: str | None, timestep: float, draw: int, shape: Shape
) -> np.ndarray:
    """`noise`, and of a recipe with noise offset a number for each whole channel beside it."""
    epsilon = noise(recipe.seed, sample_id, timestep, draw, shape)
    if recipe.noise_offset is None:
        return epsilon
    key = "offset" if sample_id is None else f"offset of {sample_id}"
    offset = noise(recipe.seed, key, timestep, draw, (shape[0], *[1] * (len(shape) - 1)))
    return epsilon + np.float32(recipe.noise_offset) * offset


def _input_noise(
    recipe: Recipe, sample_id: str | None, timestep: float, draw: int, shape: Shape
) -> np.ndarray:
    """The other noise of a recipe with input perturbation, scaled."""
    assert recipe.input_perturbation is not None
    key = "perturbation" if sample_id is None else f"perturbation of {sample_id}"
    return np.float32(recipe.input_perturbation) * noise(recipe.seed, key, timestep, draw, shape)

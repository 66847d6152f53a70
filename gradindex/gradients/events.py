"""Where gradients are taken: the timesteps and the noise of each picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gradindex.random_numbers import noise
from gradindex.recipe import Recipe

SHARED_NOISE_CACHED = 4096  # draws of shared noise kept in memory, each as large as a picture


@dataclass(frozen=True)
class Events:
    """Where the gradients of B pictures are taken.

    Attributes:
        names: B names that say in an error which picture it was.
        timesteps: [B, T] whole numbers.
        draws: M, how many times noise is drawn at each timestep.
        noise: (picture i, position j of the timestep, draw m) → [channels, height, width] float32.
    """

    names: Sequence[str]
    timesteps: np.ndarray
    draws: int
    noise: Callable[[int, int, int], np.ndarray]


def grid_events(
    recipe: Recipe,
    sample_ids: Sequence[str],
    timesteps: Sequence[int] | None = None,
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
    def shared_noise(j: int, m: int) -> np.ndarray:
        return noise(recipe.seed, None, chosen[j], m, recipe.image)

    def event_noise(i: int, j: int, m: int) -> np.ndarray:
        if recipe.noise == "shared":
            return shared_noise(j, m)
        return noise(recipe.seed, sample_ids[i], chosen[j], m, recipe.image)

    grid = np.tile(chosen, (len(sample_ids), 1))
    return Events(sample_ids, grid, draws or recipe.draws, event_noise)


def recorded_events(recipe: Recipe, sample_ids: Sequence[str], events: np.ndarray) -> Events:
    """Return each picture's own events of a training log.

    The noise is the very noise of training where the recipe's is "recorded". Noise that was not
    recorded comes from the recipe's seed, as if each picture had its own.

    Args:
        sample_ids: B ids.
        events: [B, T] records with the fields timestep, noise_seed (below 0: not recorded), draw.
    """
    timesteps = events["timestep"].astype(np.int64)

    def event_noise(i: int, j: int, m: int) -> np.ndarray:
        t = int(timesteps[i, j])
        if recipe.noise == "shared":
            return noise(recipe.seed, None, t, m, recipe.image)
        if recipe.noise == "own":
            return noise(recipe.seed, sample_ids[i], t, m, recipe.image)
        recorded_seed = int(events["noise_seed"][i, j])
        seed = recipe.seed if recorded_seed < 0 else recorded_seed
        return noise(seed, sample_ids[i], t, int(events["draw"][i, j]), recipe.image)

    return Events(sample_ids, timesteps, recipe.draws, event_noise)

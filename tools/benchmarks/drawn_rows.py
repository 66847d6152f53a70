"""Stores of as many rows as one likes, drawn after real gradients."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import gradindex
from gradindex.gradients.fold import unit
from gradindex.store.store import Store

TIMESTEP = 500  # that a store says its rows are of


@dataclass(frozen=True)
class RowDistribution:
    """What rows are drawn from: R real rows of D numbers, in their principal directions.

    Attributes:
        mean: of the real unit rows, [D].
        directions: their principal directions as columns, the strongest first, [D, D].
        coordinates: of the real unit rows in these directions, [R, D].
        norms: of the real rows, [R].
        joint: how many of the first coordinates are drawn together with the norm.
    """

    mean: np.ndarray
    directions: np.ndarray
    coordinates: np.ndarray
    norms: np.ndarray
    joint: int

    @classmethod
    def of(cls, store: Store, joint: int) -> "RowDistribution":
        """Return the distribution of a store's rows at its first checkpoint and timestep."""
        rows = store.read("unnormalized", 0, slice(None))[:, 0]
        norms = store.read("norm", 0, slice(None))[:, 0]
        units = unit(rows).astype(np.float64)
        mean = units.mean(0)
        _, directions = np.linalg.eigh((units - mean).T @ (units - mean))
        directions = directions[:, ::-1]
        return cls(mean, directions, (units - mean) @ directions, norms, joint)

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Return rows [count, D].

        The first coordinates and the norm are those of one real row, every other coordinate is that
        of another.
        """
        dim = len(self.mean)
        real_rows = random.integers(len(self.norms), size=count)
        sources = random.integers(len(self.norms), size=(count, dim))
        sources[:, : self.joint] = real_rows[:, None]
        coordinates = self.coordinates[sources, np.arange(dim)].astype(np.float32)
        directions, mean = self.directions.astype(np.float32), self.mean.astype(np.float32)
        units = coordinates @ directions.T + mean
        return unit(units) * self.norms[real_rows, None]


def drawn_store(folder: Path, real: Store, distribution: RowDistribution, count: int) -> Store:
    """Return a store of drawn rows; an unfinished one is gone on with.

    Args:
        real: the store whose recipe it has.
        count: how many pictures.
    """
    try:
        store = Store(folder)
    except gradindex.GradindexError:
        ids = [f"{row:07d}" for row in range(count)]
        store = Store.create(folder, real.recipe, ids, weights=[1.0])
    for shard in store.missing():
        random = np.random.default_rng([1, shard.number])
        rows = distribution.draw(shard.stop - shard.start, random)
        timesteps = np.full((len(rows), 1), TIMESTEP, np.float32)
        store.write(shard, rows[:, None], timesteps)
    store.finish()
    return Store.finished(folder)

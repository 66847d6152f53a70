"""A trained model whose projected gradients are held against its exact ones."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gradindex.gradients.events import grid_events
from gradindex.gradients.high_rank import choose_high_rank
from gradindex.gradients.parameters import capture_for
from gradindex.gradients.projection import TWO_SIDED, CountSketch
from gradindex.gradients.sampling import sample_gradients
from gradindex.models.checkpoints import Checkpoints
from gradindex.models.denoiser import Denoiser
from gradindex.models.examples import Examples
from gradindex.random_numbers import noise
from gradindex.recipe import Recipe, grid
from gradindex.search.scoring import METHODS

TRAINING, QUERIES = 500, 24  # pictures
GRID = grid(10, 1000)
BLOCK = 8  # training gradients in memory at once, beside those of all queries
HIGH_RANK_PICTURES = 8  # that tell which weights hold much of the gradient, as for `build`

Scores = dict[str, np.ndarray]  # {method: [T, Q, N]}


class SideBySideSketches:
    """Sketches of several widths of the same gradients, side by side: one pass serves them all."""

    def __init__(self, sketches: Sequence[CountSketch]) -> None:
        self.sketches = sketches
        self.widths = [sketch.dim for sketch in sketches]
        self.dim = sum(self.widths)

    def sides(self, *arguments: object) -> tuple[Tensor | None, Tensor | None]:
        """Return what shrinks a weight gradient's factors, which is the same for all widths."""
        sides = [sketch.sides(*arguments) for sketch in self.sketches]
        return sides[0]

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        """Add each sketch of the parameter's gradient [n, m] into its part of rows [n, dim]."""
        for sketch, part in zip(self.sketches, rows.split(self.widths, 1), strict=True):
            sketch.add(part, name, block)


class MeasuredModel:
    """A trained model with training pictures that it saw and query pictures that it did not.

    Args:
        folder: of the trained pipeline.
        pictures: [·, channels, height, width]; the first `training` and the last QUERIES count.
        device: "cpu" or "cuda".
        dtype: of the weights while gradients are taken.

    Attributes:
        pictures: training pictures, then queries. ids: of all of them.
        recipe: of their gradients.
    """

    def __init__(
        self,
        folder: Path,
        pictures: np.ndarray,
        device: str,
        dtype: str = "float32",
        *,
        training: int = TRAINING,
    ) -> None:
        checkpoints = Checkpoints([folder], folder, None, device, dtype)
        self.denoiser: Denoiser = checkpoints[0]
        self.training = training
        self.pictures = np.concatenate([pictures[:training], pictures[-QUERIES:]])
        self.ids = [f"picture {number}" for number in range(len(self.pictures))]
        model = self.denoiser.model
        parameters = [model.get_parameter(name) for name in self.denoiser.trainable]
        self.recipe = Recipe(
            **checkpoints.recipe_fields(),
            params=None,
            parameter_count=sum(parameter.numel() for parameter in parameters),
            timesteps=GRID,
            draws=1,
            noise="shared",
            seed=0,
            loss="mse",
            projection=TWO_SIDED,
            rank=16,
            high_rank=(),
            dim=1024,
        )

    def high_rank(self, rank: int, batch: int = 16) -> tuple[str, ...]:
        """Return the weights that `build` would find to hold much of the gradient."""
        rows = np.linspace(0, self.training - 1, HIGH_RANK_PICTURES).astype(int)
        ids = [self.ids[row] for row in rows]
        recipe = replace(self.recipe, rank=rank)
        return choose_high_rank(self.denoiser, recipe, Examples(self.pictures[rows]), ids, batch)

    def scores(
        self,
        timesteps: Sequence[int],
        widths: Sequence[int],
        seed: int,
        rank: int | None,
        high_rank: Sequence[str],
    ) -> dict[int, Scores]:
        """Return the scores from projected gradients, {width: {method: [T, Q, N]}}.

        Args:
            rank: of a two-sided projection; None for a plain sketch.
            high_rank: weights that it shrinks less.
        """
        projection = TWO_SIDED if rank else "sketch"
        recipe = replace(
            self.recipe,
            projection=projection,
            rank=rank,
            high_rank=tuple(high_rank),
            timesteps=tuple(timesteps),
        )
        sketches = [CountSketch(width, seed, rank, high_rank) for width in widths]
        events = grid_events(recipe, self.ids)
        total = len(self.pictures) * len(timesteps)
        title = f"{projection} {rank}, seed {seed}"
        with (
            capture_for(self.denoiser, recipe) as capture,
            tqdm(total=total, desc=title, mininterval=10) as bar,
        ):
            capture.projection = SideBySideSketches(sketches)
            rows = sample_gradients(
                self.denoiser,
                capture,
                recipe,
                Examples(self.pictures),
                events,
                batch_size=16,
                progress=bar.update,
            )
        parts = np.split(rows.transpose(1, 0, 2), np.cumsum(widths)[:-1], axis=2)
        return {width: scores_of(part) for width, part in zip(widths, parts, strict=True)}

    def exact_gradients(self, t: int, rows: Sequence[int]) -> Tensor:
        """Return full gradients by plain autograd, one picture at a time.

        Returns:
            [rows, parameters] float32.
        """
        model, device = self.denoiser.model, self.denoiser.device
        model.requires_grad_(True)
        parameters = list(model.parameters())
        count = sum(parameter.numel() for parameter in parameters)
        gradients = torch.empty(len(rows), count, device=device)
        epsilon = torch.from_numpy(noise(0, None, t, 0, self.recipe.image))[None].to(device)
        timestep = torch.tensor([t], device=device)
        with torch.enable_grad():
            for row, gradient in zip(rows, gradients, strict=True):
                x = torch.from_numpy(self.pictures[row])[None].to(device)
                loss = self.denoiser.losses(x, timestep, epsilon, {}, "mse").sum()
                blocks = torch.autograd.grad(loss, parameters)
                torch.cat([block.flatten() for block in blocks], out=gradient)
        model.requires_grad_(False)
        return gradients

    def exact_scores(self, timesteps: Sequence[int], cache: Path) -> Scores:
        """Return the scores of full gradients, timestep by timestep; kept in the folder `cache`."""
        cache.mkdir(parents=True, exist_ok=True)
        scores: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
        for t in tqdm(timesteps, desc="exact scores"):
            file = cache / f"t{t:03d}.npz"
            if not file.exists():
                tracin, retrac = self._exact_scores_at(t)
                np.savez(file, tracin=tracin, retrac=retrac)
            with np.load(file) as tables:
                for method in METHODS:
                    scores[method].append(tables[method])
        return {method: np.stack(tables) for method, tables in scores.items()}

    def _exact_scores_at(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """TracIn and ReTrac of full gradients at a timestep, [Q, N] each."""
        queries = self.exact_gradients(t, range(TRAINING, len(self.pictures)))
        products, norms = [], []
        for start in range(0, TRAINING, BLOCK):
            stop = min(start + BLOCK, TRAINING)
            block = self.exact_gradients(t, range(start, stop))
            products.append((queries @ block.T).cpu().numpy())
            norms.append(block.norm(dim=1).cpu().numpy())
        tracin = np.concatenate(products, 1)
        query_norms = queries.norm(dim=1).cpu().numpy()[:, None]
        return tracin, tracin / np.concatenate(norms) / query_norms


def scores_of(rows: np.ndarray) -> Scores:
    """Return TracIn and ReTrac of rows [T, training + queries, D], {method: [T, Q, N]}."""
    unit_rows = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    scores = {}
    for method, vectors in (("tracin", rows), ("retrac", unit_rows)):
        training, queries = vectors[:, :TRAINING], vectors[:, TRAINING:]
        scores[method] = np.einsum("tqd,tnd->tqn", queries, training)
    return scores

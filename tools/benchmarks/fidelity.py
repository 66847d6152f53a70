"""How well projected gradients rank 500 training pictures for 24 queries, against exact full gradients."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gradindex.denoiser import Checkpoints, Denoiser
from gradindex.gradients.noise import noise
from gradindex.gradients.projection import TWO_SIDED, CountSketch
from gradindex.gradients.rows import capture_for, choose_strong, grid_events, sample_gradients
from gradindex.ranking import overlap, spearman
from gradindex.recipe import Recipe, grid

TRAINING, QUERIES = 500, 24
GRID = grid(10, 1000)
BLOCK = 8  # training gradients in memory at once, beside those of all queries

Scores = dict[str, np.ndarray]  # {method: [T, Q, N]}


class Several:
    """Sketches of several widths of the same gradients, side by side: one pass serves them all."""

    def __init__(self, sketches: Sequence[CountSketch]) -> None:
        self.sketches, self.dim = sketches, sum(sketch.dim for sketch in sketches)

    def sides(self, *arguments: object) -> tuple[Tensor | None, Tensor | None]:
        first, *_ = [sketch.sides(*arguments) for sketch in self.sketches]  # type: ignore[arg-type]
        return first

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        for sketch, part in zip(self.sketches, rows.split([sketch.dim for sketch in self.sketches], 1), strict=True):
            sketch.add(part, name, block)


class Subject:
    """A trained model with training pictures that it saw and query pictures that it did not."""

    def __init__(
        self, folder: Path, pictures: np.ndarray, device: str, dtype: str = "float32", *, training: int = TRAINING
    ) -> None:
        checkpoints = Checkpoints([folder], folder, None, device, dtype)
        self.denoiser: Denoiser = checkpoints[0]
        self.training = training
        self.pictures = np.concatenate([pictures[:training], pictures[-QUERIES:]])
        self.ids = [f"picture {number}" for number in range(len(self.pictures))]
        count = sum(self.denoiser.model.get_parameter(name).numel() for name in self.denoiser.trainable)
        self.recipe = Recipe(
            **checkpoints.facts(), params=None, parameter_count=count, timesteps=GRID, draws=1, noise="shared", seed=0,
            loss="mse", projection=TWO_SIDED, rank=16, strong=(), dim=1024,
        )  # fmt: skip

    def strong(self, rank: int, batch: int = 16) -> tuple[str, ...]:
        """The weights that `build` would find to hold much of the gradient."""
        some = np.linspace(0, self.training - 1, 8).astype(int)
        recipe = replace(self.recipe, rank=rank)
        return choose_strong(self.denoiser, recipe, self.pictures[some], [self.ids[i] for i in some], None, batch)

    def scores(
        self, timesteps: Sequence[int], widths: Sequence[int], seed: int, rank: int | None, strong: Sequence[str]
    ) -> dict[int, Scores]:
        """The scores of every width, timestep by timestep, from projected gradients."""
        projection = TWO_SIDED if rank else "sketch"
        recipe = replace(
            self.recipe, projection=projection, rank=rank, strong=tuple(strong), timesteps=tuple(timesteps)
        )
        with capture_for(self.denoiser, recipe) as capture, tqdm(
            total=len(self.pictures) * len(timesteps), desc=f"{projection} {rank}, seed {seed}", mininterval=10
        ) as bar:  # fmt: skip
            capture.projection = Several([CountSketch(width, seed, rank, strong) for width in widths])  # type: ignore[assignment]
            rows = sample_gradients(
                self.denoiser,
                capture,
                recipe,
                self.pictures,
                grid_events(recipe, self.ids),
                None,
                batch_size=16,
                progress=bar.update,
            )
        parts = np.split(rows.transpose(1, 0, 2), np.cumsum(widths)[:-1], axis=2)
        return {width: scores_of(part) for width, part in zip(widths, parts, strict=True)}

    def exact_gradients(self, t: int, rows: Sequence[int]) -> Tensor:
        """Full gradients by plain autograd, one picture at a time, [rows, parameters] float32."""
        model, device = self.denoiser.model, self.denoiser.device
        model.requires_grad_(True)
        parameters = list(model.parameters())
        found = torch.empty(len(rows), sum(parameter.numel() for parameter in parameters), device=device)
        epsilon = torch.from_numpy(noise(0, None, t, 0, self.recipe.image))[None].to(device)
        with torch.enable_grad():
            for row, out in zip(rows, found, strict=True):
                x = torch.from_numpy(self.pictures[row])[None].to(device)
                loss = self.denoiser.losses(x, torch.tensor([t], device=device), epsilon, None, "mse").sum()
                torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)], out=out)
        model.requires_grad_(False)
        return found

    def exact(self, timesteps: Sequence[int], cache: Path) -> Scores:
        """The scores of full gradients, timestep by timestep; kept in the folder `cache`."""
        cache.mkdir(parents=True, exist_ok=True)
        scores = []
        for t in tqdm(timesteps, desc="exact scores"):
            file = cache / f"t{t:03d}.npz"
            if not file.exists():
                queries = self.exact_gradients(t, range(TRAINING, len(self.pictures)))
                inner, norms = [], []
                for start in range(0, TRAINING, BLOCK):
                    block = self.exact_gradients(t, range(start, min(start + BLOCK, TRAINING)))
                    inner.append((queries @ block.T).cpu().numpy())
                    norms.append(block.norm(dim=1).cpu().numpy())
                tracin = np.concatenate(inner, 1)
                retrac = tracin / np.concatenate(norms) / queries.norm(dim=1).cpu().numpy()[:, None]
                np.savez(file, tracin=tracin, retrac=retrac)
            scores.append(dict(np.load(file)))
        return {method: np.stack([each[method] for each in scores]) for method in ("tracin", "retrac")}


def scores_of(rows: np.ndarray) -> Scores:
    """TracIn and ReTrac of rows [T, training + queries, D], [T, Q, N] each."""
    unit = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    return {
        method: np.einsum("tqd,tnd->tqn", part[:, TRAINING:], part[:, :TRAINING])
        for method, part in (("tracin", rows), ("retrac", unit))
    }


def agreement(found: Scores, truth: Scores, *, over: Sequence[int] | None = None) -> dict[str, float]:
    """Spearman and recall@10 with the exact scores, means over queries.

    Args:
        over: positions of timesteps whose scores are averaged first, as `build`'s grid does; each by itself for None,
            and then the agreement is averaged.
    """
    result = {}
    for method in ("tracin", "retrac"):
        pairs = [found[method], truth[method]]
        left, right = pairs if over is None else [scores[list(over)].mean(0, keepdims=True) for scores in pairs]
        left, right = (scores.reshape(-1, scores.shape[-1]) for scores in (left, right))
        result[f"{method} spearman"] = spearman(left, right)
        result[f"{method} recall@10"] = overlap(left, right, 10)
    return result

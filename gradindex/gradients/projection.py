"""Random projections of a gradient row: code plus a seed, never stored.

Every projection `P` is linear and unbiased, `E[⟨Px, Py⟩] = ⟨x, y⟩`, and its numbers depend on (seed, parameter
name) alone. Linear means that a layer called twice, or a parameter shared by two layers, just adds its parts up.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gradindex.errors import CallError
from gradindex.gradients.noise import random_offset, random_signs

NAMES = ("auto", "sketch", "none")  # what a caller may ask for
TWO_SIDED = "two-sided"  # what `auto` stands for
RANK = 32

Sides = tuple[Tensor | None, Tensor | None]


class Exact:
    """No projection: the gradients of all parameters, one after the other in the model's order."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        ends = torch.tensor(list(sizes.values())).cumsum(0).tolist()
        self.slices = {name: slice(end - sizes[name], end) for name, end in zip(sizes, ends, strict=True)}
        self.dim = ends[-1]

    def sides(self, name: str, outs: int, ins: int, device: torch.device) -> Sides:
        return None, None

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        rows[:, self.slices[name]] += block


class CountSketch:
    """Each parameter's block is added into the row with random signs, from a random place on, around the end.

    A count sketch (Charikar, Chen and Farach-Colton 2002) whose buckets go round robin. With a `rank` k, a large
    weight gradient Δ Aᵀ is first shrunk on both sides to `(P_o Δ)(P_i A)ᵀ`, k × k, by independent sign matrices
    with `E[PᵀP] = I`.
    """

    def __init__(self, dim: int, seed: int, rank: int | None = None) -> None:
        self.dim, self.seed, self.rank = dim, seed, rank
        self._cache: dict[tuple[str, str], Tensor] = {}

    def sides(self, name: str, outs: int, ins: int, device: torch.device) -> Sides:
        """`(P_o [k, o], P_i [k, i])`, float32; None for a side that is not wider than k, or a small weight."""
        if self.rank is None or outs * ins <= self.rank**2:
            return None, None
        return self._side(name, "out", outs, device), self._side(name, "in", ins, device)

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        """Add the sketch of `block` [n, m] into `rows` [n, D]."""
        block = block * self._signs(name, "fold", block.shape[1], block.device)
        folds = -(-block.shape[1] // self.dim)
        if folds > 1:
            block = F.pad(block, (0, folds * self.dim - block.shape[1])).unflatten(1, (folds, self.dim)).sum(1)
        start = random_offset(self.seed, name, below=self.dim)
        head = min(block.shape[1], self.dim - start)
        rows[:, start : start + head] += block[:, :head]
        rows[:, : block.shape[1] - head] += block[:, head:]

    def _side(self, name: str, side: str, width: int, device: torch.device) -> Tensor | None:
        if self.rank is None or width <= self.rank:
            return None
        return self._signs(name, side, self.rank * width, device).view(self.rank, width) * self.rank**-0.5

    def _signs(self, name: str, purpose: str, size: int, device: torch.device) -> Tensor:
        if (name, purpose) not in self._cache:
            signs = torch.from_numpy(random_signs(self.seed, name, purpose, size=size))
            self._cache[name, purpose] = signs.to(device, torch.float32 if size < 2**20 else torch.int8)
        return self._cache[name, purpose]


def make_projection(name: str, dim: int, seed: int, rank: int | None, sizes: Mapping[str, int]) -> Exact | CountSketch:
    """The projection of a recipe for the parameters `sizes` {name: how many numbers}."""
    if name == "none":
        return Exact(sizes)
    if name in ("sketch", TWO_SIDED):
        return CountSketch(dim, seed, rank)
    raise CallError(f"projection = {name!r}: allowed are {', '.join(NAMES)}")

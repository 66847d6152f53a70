"""Random projections of a gradient row: code plus a seed, never stored.

Every projection `P` is linear and unbiased, `E[⟨Px, Py⟩] = ⟨x, y⟩`, and its numbers depend on (seed, parameter
name) alone. Linear means that a layer called twice, or a parameter shared by two layers, just adds its parts up.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from gradindex.errors import CallError
from gradindex.gradients.noise import random_offset, random_signs

NAMES = ("auto", "sketch", "none")  # what a caller may ask for
TWO_SIDED = "two-sided"  # what `auto` stands for

Sides = tuple[Tensor | None, Tensor | None]


class Exact:
    """No projection: the gradients of all parameters, one after the other in the model's order."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        ends = torch.tensor(list(sizes.values())).cumsum(0).tolist()
        self.slices = {name: slice(end - sizes[name], end) for name, end in zip(sizes, ends, strict=True)}
        self.dim = ends[-1]

    def sides(self, name: str, outs: int, ins: int, size: int, device: torch.device) -> Sides:
        return None, None

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        rows[:, self.slices[name]] += block


class CountSketch:
    """Each parameter's block is added into the row with random signs, D numbers at a time.

    A count sketch (Charikar, Chen and Farach-Colton 2002) whose buckets go round robin; a block of fewer than D
    numbers starts at a random place. With a `rank` k, a large weight gradient Δ Aᵀ is first shrunk on both sides to
    `(P_o Δ)(P_i A)ᵀ` by independent sign matrices with `E[PᵀP] = I`.
    """

    def __init__(self, dim: int, seed: int, rank: int | None = None) -> None:
        self.dim, self.seed, self.rank = dim, seed, rank
        self._cache: dict[tuple[str, str], Tensor] = {}
        self._starts: dict[str, int] = {}

    def sides(self, name: str, outs: int, ins: int, size: int, device: torch.device) -> Sides:
        """`(P_o [k, o], P_i [k / 2, i])`, float32; None for a side that is no wider, both for a small weight.

        Half the width serves for inputs: a convolution keeps that many at every kernel position.
        """
        if self.rank is None or size <= 4 * self.rank**2:
            return None, None
        return self._side(name, "out", self.rank, outs, device), self._side(name, "in", self.rank // 2, ins, device)

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        """Add the sketch of `block` [n, m] into `rows` [n, D]."""
        size = block.shape[1]
        signs, start = self._signs(name, "fold", size, block.device), self._start(name, size)
        for begin in range(0, size, self.dim):
            part = block[:, begin : begin + self.dim]
            weights = signs[begin : begin + self.dim].to(block.dtype)
            rows.narrow(1, start, part.shape[1]).addcmul_(part, weights)

    def _start(self, name: str, size: int) -> int:
        if name not in self._starts:
            self._starts[name] = random_offset(self.seed, name, below=max(1, self.dim - size + 1))
        return self._starts[name]

    def _side(self, name: str, side: str, rank: int, width: int, device: torch.device) -> Tensor | None:
        if width <= rank:
            return None
        return self._signs(name, side, rank * width, device).float().view(rank, width) * rank**-0.5

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

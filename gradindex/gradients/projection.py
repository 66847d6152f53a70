"""Random projections of a gradient row: code plus a seed, never stored.

Every projection `P` is linear and unbiased, `E[⟨Px, Py⟩] = ⟨x, y⟩`, and its numbers depend on (seed, parameter
name) alone. Linear means that a layer called twice, or a parameter shared by two layers, just adds its parts up.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from gradindex.errors import CallError
from gradindex.gradients.noise import random_offset, random_signs

NAMES = ("auto", "rademacher", "sketch", "none")  # what a caller may ask for
TWO_SIDED = "two-sided"  # what `auto` stands for
STRONG = 4  # times the rank serves for weights that hold much of the gradient

Sides = tuple[Tensor | None, Tensor | None]


class Exact:
    """No projection: the gradients of all parameters, one after the other in the model's order."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        ends = torch.tensor(list(sizes.values())).cumsum(0).tolist()
        self.slices = {name: slice(end - sizes[name], end) for name, end in zip(sizes, ends, strict=True)}
        self.dim = ends[-1]

    def sides(self, name: str, outs: int, ins: int, size: int, like: Tensor) -> Sides:
        """What shrinks the factors of a weight gradient of `size` numbers: [k, outs] and [k, ins], or None."""
        return None, None

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        """Add the projection of the parameter's gradient `block` [n, m] into `rows` [n, D], float32 both."""
        rows[:, self.slices[name]] += block


class Energies(Exact):
    """Of every parameter only the squared norm of its gradient, [n, parameters].

    Attributes:
        shrinkable: the weights that a two-sided projection of this rank would shrink.
    """

    def __init__(self, names: Collection[str], rank: int) -> None:
        super().__init__(dict.fromkeys(names, 1))
        self.rank, self.shrinkable = rank, set[str]()

    def sides(self, name: str, outs: int, ins: int, size: int, like: Tensor) -> Sides:
        if size > small_size(self.rank):
            self.shrinkable.add(name)
        return None, None

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        super().add(rows, name, block.square().sum(1, keepdim=True))


class Rademacher:
    """The textbook baseline: a dense matrix of random signs over √D, made anew for every batch."""

    CHUNK = 2**22  # signs in memory at once; a matter of their numbers, not only of memory

    def __init__(self, dim: int, seed: int) -> None:
        self.dim, self.seed = dim, seed

    def sides(self, name: str, outs: int, ins: int, size: int, like: Tensor) -> Sides:
        return None, None

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        height = max(1, self.CHUNK // self.dim)
        for number, part in enumerate(block.split(height, dim=1)):
            signs = random_signs(self.seed, name, "dense", number, size=part.shape[1] * self.dim)
            matrix = torch.from_numpy(signs).to(rows.device, torch.float32).view(-1, self.dim)
            rows.addmm_(part, matrix, alpha=self.dim**-0.5)


class CountSketch:
    """Each parameter's block is added into the row with random signs, D numbers at a time.

    A count sketch (Charikar, Chen and Farach-Colton 2002) whose buckets go round robin; a block of fewer than D
    numbers starts at a random place. With a `rank` k, a large weight gradient Δ Aᵀ is first shrunk on both sides to
    `(P_o Δ)(P_i A)ᵀ` by independent sign matrices with `E[PᵀP] = I`: to k outputs and k / 2 inputs, or four times
    as many of each if the weight's name is in `strong`.
    """

    def __init__(self, dim: int, seed: int, rank: int | None = None, strong: Collection[str] = ()) -> None:
        self.dim, self.seed, self.rank, self.strong = dim, seed, rank, frozenset(strong)
        self._cache: dict[tuple[str, str], Tensor] = {}
        self._starts: dict[str, int] = {}
        self._scales: dict[str, float] = {}

    def sides(self, name: str, outs: int, ins: int, size: int, like: Tensor) -> Sides:
        """Signs [k, outs] and [k / 2, ins]; None for a side that is no wider, both for a small weight.

        Half the width serves for inputs: a convolution keeps that many at every kernel position. Their scale is
        applied in `add`, in float32.
        """
        if self.rank is None or size <= small_size(self.rank):
            return None, None
        rank = self.rank * (STRONG if name in self.strong else 1)
        ranks = {"out": (rank, outs), "in": (rank // 2, ins)}
        scale = 1.0
        for rank, width in ranks.values():
            scale *= rank**-0.5 if rank < width else 1
        self._scales[name] = scale
        out, into = (
            self._signs(name, side, rank * width, like.device).to(like.dtype).view(rank, width)
            if rank < width
            else None
            for side, (rank, width) in ranks.items()
        )
        return out, into

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        """Add the sketch of `block` [n, m] into `rows` [n, D]."""
        size, scale = block.shape[1], self._scales.get(name, 1)
        signs, start = self._signs(name, "fold", size, block.device), self._start(name, size)
        for begin in range(0, size, self.dim):
            part = block[:, begin : begin + self.dim]
            weights = signs[begin : begin + self.dim].to(block.dtype)
            rows.narrow(1, start, part.shape[1]).addcmul_(part, weights, value=scale)

    def _start(self, name: str, size: int) -> int:
        if name not in self._starts:
            self._starts[name] = random_offset(self.seed, name, below=max(1, self.dim - size + 1))
        return self._starts[name]

    def _signs(self, name: str, purpose: str, size: int, device: torch.device) -> Tensor:
        if (name, purpose) not in self._cache:
            signs = torch.from_numpy(random_signs(self.seed, name, purpose, size=size))
            self._cache[name, purpose] = signs.to(device, torch.float32 if size < 2**20 else torch.int8)
        return self._cache[name, purpose]


Projection = Exact | CountSketch | Rademacher


def small_size(rank: int) -> int:
    """Up to how many numbers a weight's gradient is not worth shrinking."""
    return 16 * rank**2


def make_projection(
    name: str, dim: int, seed: int, rank: int | None, strong: Collection[str], sizes: Mapping[str, int]
) -> Projection:
    """The projection of a recipe for the parameters `sizes` {name: how many numbers}."""
    if name == "none":
        return Exact(sizes)
    if name == "rademacher":
        return Rademacher(dim, seed)
    if name in ("sketch", TWO_SIDED):
        return CountSketch(dim, seed, rank, strong)
    raise CallError(f"projection = {name!r}: allowed are {', '.join(NAMES)}")

"""Random projections of a gradient row: code plus a seed, never stored.

Every projection `P` is linear and unbiased, `E[⟨Px, Py⟩] = ⟨x, y⟩`, and its numbers depend on (seed, parameter
name) alone. Linear means that a layer called twice, or a parameter shared by two layers, just adds its parts up.
"""

import math
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from gradindex.errors import CallError
from gradindex.gradients.noise import random_offset, random_signs

NAMES = ("auto", "rademacher", "sketch", "none")  # what a caller may ask for
TWO_SIDED = "two-sided"  # what `auto` stands for
STRONG = 4  # times the rank serves for weights that hold much of the gradient
WIDE = 2**20  # signs that are kept in a byte each

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
        added: {weight: the relative variance of its inner products under a two-sided projection of this rank}.
    """

    def __init__(self, names: Collection[str], rank: int) -> None:
        super().__init__(dict.fromkeys(names, 1))
        self.rank, self.added = rank, dict[str, float]()

    def sides(self, name: str, outs: int, ins: int, size: int, like: Tensor) -> Sides:
        self.added[name] = variance(shrunk(self.rank, outs, ins, size, strong=False), outs, ins)
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
    numbers starts at a random place. With a `rank`, a large weight gradient Δ Aᵀ is first shrunk on both sides to
    `(P_o Δ)(P_i A)ᵀ` by independent sign matrices with `E[PᵀP] = I` of `shrunk` widths.
    """

    def __init__(self, dim: int, seed: int, rank: int | None = None, strong: Collection[str] = ()) -> None:
        self.dim, self.seed, self.rank, self.strong = dim, seed, rank, frozenset(strong)
        self._sides: dict[str, Sides] = {}
        self._scales: dict[str, float] = {}
        self._folds: dict[str, list[tuple[int, int, Tensor]]] = {}

    def sides(self, name: str, outs: int, ins: int, size: int, like: Tensor) -> Sides:
        """Signs [k, outs] and [k, ins], None for a side that stays whole; `add` scales them, in float32."""
        if name not in self._sides:
            widths = shrunk(self.rank, outs, ins, size, name in self.strong)
            pairs = list(zip(widths, (outs, ins), strict=True))
            self._scales[name] = math.prod(k**-0.5 for k, width in pairs if k < width)
            out, into = (
                self._signs(name, side, k * width).to(like).view(k, width) if k < width else None
                for side, (k, width) in zip(("out", "in"), pairs, strict=True)
            )
            self._sides[name] = out, into
        return self._sides[name]

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        """Add the sketch of `block` [n, m] into `rows` [n, D]."""
        if name not in self._folds:
            self._folds[name] = list(self._fold(name, block.shape[1], block.device))
        scale = self._scales.get(name, 1.0)
        for begin, start, signs in self._folds[name]:
            width = signs.shape[0]
            part = block if width == block.shape[1] else block.narrow(1, begin, width)
            rows.narrow(1, start, width).addcmul_(part, signs.float(), value=scale)

    def _fold(self, name: str, size: int, device: torch.device) -> Iterator[tuple[int, int, Tensor]]:
        """Which numbers of a block go where, D at a time: (from, to, signs)."""
        start = random_offset(self.seed, name, below=max(1, self.dim - size + 1))
        signs = self._signs(name, "fold", size).to(device, torch.float32 if size < WIDE else torch.int8)
        for number, part in enumerate(signs.split(self.dim)):
            yield number * self.dim, start, part

    def _signs(self, name: str, purpose: str, size: int) -> Tensor:
        return torch.from_numpy(random_signs(self.seed, name, purpose, size=size))


Projection = Exact | CountSketch | Rademacher


def shrunk(rank: int | None, outs: int, ins: int, size: int, strong: bool) -> tuple[int, int]:
    """To how many outputs and inputs a weight gradient of `size` numbers is shrunk.

    `rank` of each, or four times as many if it is strong; a side of at most twice that stays whole, and so does a
    weight that is not worth the work.
    """
    if rank is None or size <= 16 * rank**2:
        return outs, ins
    rank *= STRONG if strong else 1
    return (rank if outs > 2 * rank else outs), (rank if ins > 2 * rank else ins)


def variance(widths: tuple[int, int], outs: int, ins: int) -> float:
    """The relative variance that shrinking adds, at most, to an inner product of two gradients of this weight."""
    kept = [1 + 2 / k for k, width in zip(widths, (outs, ins), strict=True) if k < width]
    return math.prod(kept) - 1


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

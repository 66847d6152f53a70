"""Random projections of a gradient row: code plus a seed, never stored.

Every projection `P` is linear and unbiased, `E[⟨Px, Py⟩] = ⟨x, y⟩` over seeds, and its numbers
depend on (seed, parameter name) alone. Linear means that a layer called twice, or a parameter
shared by two layers, just adds its parts up.

A projection works parameter by parameter, in two steps. `sides` may shrink the two factors of a
weight gradient before they meet, while the hooks still hold them apart; `add` then adds the
gradient that came of it into the row. A new projection is a class with these two methods
(`Projection`), a name in `PROJECTIONS` and a line in `make_projection`.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gradindex.errors import CallError
from gradindex.random_numbers import random_offset, random_signs

PROJECTIONS = ("auto", "rademacher", "sketch", "none")  # what a caller may ask for
TWO_SIDED = "two-sided"  # what `auto` stands for

HIGH_RANK_FACTOR = 4  # times the rank serves for weights that hold much of the gradient
# Blocks of at least so many numbers keep their signs as int8 in place of float32: they take a
# quarter of the memory, and are widened at each use.
INT8_SIGNS_FROM = 2**20
# Devices on which one slice of D numbers after the other is as fast as all of them at once: what is
# added fits a core's cache, and nothing is copied.
SLICEWISE_DEVICES = {"cpu"}


class Sides(NamedTuple):
    """What shrinks the factors of a weight gradient, [k, outs] and [k, ins]; None: stays whole."""

    outputs: Tensor | None
    inputs: Tensor | None


WHOLE = Sides(None, None)  # both factors stay as they are


class _Fold(NamedTuple):
    """How a gradient of m numbers is added into a row, D at a time."""

    start: int  # where it begins; 0 where it has D numbers or more
    signs: Tensor  # [m], float32 or int8


class Projection(Protocol):
    """What `Capture` needs of a projection.

    Attributes:
        dim: D, numbers in a row.
    """

    dim: int

    def sides(self, name: str, outs: int, ins: int, size: int, like: Tensor) -> Sides:
        """Return what both factors of a weight's gradient are multiplied with.

        Args:
            name: of the weight.
            outs: width of the output gradient, of one group.
            ins: width of the input, of one group.
            size: numbers in the weight.
            like: a tensor of the device and dtype that the sides shall have.
        """

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        """Add the projection of a parameter's gradient into the rows, in place.

        Args:
            rows: [n, D] float32.
            name: of the parameter.
            block: its gradients, [n, m] float32; m is smaller than the parameter where `sides`
                shrank its factors.
        """


class Exact:
    """No projection: the gradients of all parameters, one after the other in the model's order.

    Args:
        sizes: {parameter: how many numbers it has}.

    Attributes:
        slices: {parameter: where in a row its gradient is}.

    >>> rows = torch.zeros(1, 5)
    >>> exact = Exact({"weight": 3, "bias": 2})
    >>> exact.add(rows, "bias", torch.tensor([[7.0, 8.0]]))
    >>> rows
    tensor([[0., 0., 0., 7., 8.]])
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.slices: dict[str, slice] = {}
        end = 0
        for name, size in sizes.items():
            self.slices[name] = slice(end, end + size)
            end += size
        self.dim = end

    def sides(self, name: str, outs: int, ins: int, size: int, like: Tensor) -> Sides:
        """Return neither side: both factors stay whole."""
        return WHOLE

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        """Add the gradient `block` [n, m] where its parameter is in `rows` [n, D]."""
        rows[:, self.slices[name]] += block


class Energies(Exact):
    """Of every parameter only the squared norm of its gradient, rows [n, parameters].

    Not a projection of gradients, but it takes the place of one to choose those of high rank.

    Args:
        names: the parameters.
        rank: of the two-sided projection that is to be chosen for.

    Attributes:
        added_variance: {weight: the relative variance that shrinking it to `rank` adds}; filled
            while gradients are taken.
    """

    def __init__(self, names: Collection[str], rank: int) -> None:
        super().__init__(dict.fromkeys(names, 1))
        self.rank = rank
        self.added_variance: dict[str, float] = {}

    def sides(self, name: str, outs: int, ins: int, size: int, like: Tensor) -> Sides:
        """Note what shrinking this weight would add, and return neither side."""
        widths = shrunk(self.rank, outs, ins, size, high_rank=False)
        self.added_variance[name] = variance(widths, outs, ins)
        return WHOLE

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        """Add the squared norms of `block` [n, m] into the parameter's column of `rows`."""
        super().add(rows, name, block.square().sum(1, keepdim=True))


class Rademacher:
    """The textbook baseline: a dense matrix of random signs over √D (Achlioptas 2003).

    The matrix [parameters, D] is made anew for every batch, in chunks, for no memory would hold it.

    Args:
        dim: D.
        seed: of the signs.
    """

    # Signs in memory at once. It decides which signs a number gets, so it cannot change without a
    # new PROJECTION_VERSION.
    CHUNK_SIGNS = 2**22

    def __init__(self, dim: int, seed: int) -> None:
        self.dim = dim
        self.seed = seed

    def sides(self, name: str, outs: int, ins: int, size: int, like: Tensor) -> Sides:
        """Return neither side: both factors stay whole."""
        return WHOLE

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        """Add `block` [n, m] times signs [m, D] over √D into `rows` [n, D]."""
        chunk_rows = max(1, self.CHUNK_SIGNS // self.dim)
        for number, part in enumerate(block.split(chunk_rows, dim=1)):
            signs = random_signs(self.seed, name, "dense", number, size=part.shape[1] * self.dim)
            matrix = torch.from_numpy(signs).to(rows.device, torch.float32).view(-1, self.dim)
            rows.addmm_(part, matrix, alpha=self.dim**-0.5)


class CountSketch:
    """Each parameter's gradient is added into the row with random signs, D numbers at a time.

    **Count sketch** (Charikar, Chen and Farach-Colton 2002). Each number of a gradient is
    multiplied by a random sign and added into one of D buckets. Two numbers that meet in a bucket
    add a product to ⟨Px, Py⟩ whose signs are independent, so that its mean is zero: the sketch is
    unbiased. Here the buckets are not drawn but go round robin, so that the work is adding slices,
    and a gradient of fewer than D numbers starts at a random bucket.

    **Two-sided projection.** With a rank k, a large weight's gradient is first shrunk. It is
    `Δ Aᵀ`, a sum over positions of the output gradient Δ [outs, s] times the input A [ins, s] (one
    such matrix for each position in the kernel of a convolution). `P_o (Δ Aᵀ) P_iᵀ`, which is
    `(P_o Δ)(P_i A)ᵀ`, needs the projected factors alone, so that the whole gradient is never made:
    the Kronecker-structured projection of LoGra (Choe et al. 2024, arXiv 2405.13954). P_o [k, outs]
    and P_i [k, ins] are independent matrices of random signs over √k, so that `E[PᵀP] = I`. What
    this adds to the variance is in `variance`.

    Args:
        dim: D.
        seed: of signs and offsets.
        rank: k, the width to which both sides are shrunk; None for a count sketch alone.
        high_rank: weights that are shrunk to `HIGH_RANK_FACTOR` times k.

    >>> rows = torch.zeros(1, 2)
    >>> CountSketch(2, seed=0).add(rows, "weight", torch.tensor([[1.0, 10.0, 100.0]]))
    >>> rows.abs()  # the first and the third number share a bucket
    tensor([[101.,  10.]])
    """

    def __init__(
        self, dim: int, seed: int, rank: int | None = None, high_rank: Collection[str] = ()
    ) -> None:
        self.dim = dim
        self.seed = seed
        self.rank = rank
        self.high_rank = frozenset(high_rank)
        # Made when a parameter comes for the first time, then kept: by its name.
        self._sides: dict[str, Sides] = {}
        self._scales: dict[str, float] = {}
        self._folds: dict[str, _Fold] = {}

    def sides(self, name: str, outs: int, ins: int, size: int, like: Tensor) -> Sides:
        """Return signs [k, outs] and [k, ins], None for a side that stays whole.

        They are not divided by √k: in half precision the signs are exact, and `add` divides what
        comes of them, in float32.
        """
        if name not in self._sides:
            out_width, in_width = shrunk(self.rank, outs, ins, size, name in self.high_rank)
            self._scales[name] = _scale(out_width, outs) * _scale(in_width, ins)
            self._sides[name] = Sides(
                self._side(name, "out", out_width, outs, like),
                self._side(name, "in", in_width, ins, like),
            )
        return self._sides[name]

    def _side(self, name: str, side: str, width: int, whole: int, like: Tensor) -> Tensor | None:
        """Signs [width, whole], or None where that shrinks nothing."""
        if width == whole:
            return None
        return self._signs(name, side, width * whole).to(like).view(width, whole)

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        """Add the sketch of `block` [n, m] into `rows` [n, D]."""
        if name not in self._folds:
            self._folds[name] = self._fold(name, block.shape[1], block.device)
        start, signs = self._folds[name]
        scale = self._scales.get(name, 1.0)
        size, begin = block.shape[1], 0
        if block.device.type not in SLICEWISE_DEVICES and size >= 2 * self.dim:
            # All whole slices in a few kernels: a GPU would wait for thousands of launches.
            begin = size - size % self.dim
            slices = block[:, :begin].unflatten(1, (-1, self.dim))
            signed = slices * signs[:begin].view(-1, self.dim)
            rows.add_(signed.sum(1), alpha=scale)
        for first in range(begin, size, self.dim):
            width = min(self.dim, size - first)
            part = block if width == size else block.narrow(1, first, width)
            part_signs = signs.narrow(0, first, width).float()
            rows.narrow(1, start, width).addcmul_(part, part_signs, value=scale)

    def _fold(self, name: str, size: int, device: torch.device) -> "_Fold":
        """Where a block of so many numbers starts in the row, and its signs, [m]."""
        start = random_offset(self.seed, name, below=max(1, self.dim - size + 1))
        dtype = torch.float32 if size < INT8_SIGNS_FROM else torch.int8
        return _Fold(start, self._signs(name, "fold", size).to(device, dtype))

    def _signs(self, name: str, purpose: str, size: int) -> Tensor:
        return torch.from_numpy(random_signs(self.seed, name, purpose, size=size))


def shrunk(rank: int | None, outs: int, ins: int, size: int, high_rank: bool) -> tuple[int, int]:
    """Return to how many outputs and inputs a weight's gradient is shrunk.

    To `rank` of each, or `HIGH_RANK_FACTOR` times as many for a weight of high rank. A side of at
    most twice that stays whole, and so does a weight of at most 16 times rank² numbers: they are
    not worth the work.

    Args:
        rank: None shrinks nothing.
        outs: width of the output gradient, of one group.
        ins: width of the input, of one group.
        size: numbers in the weight.
        high_rank: whether the weight is of high rank.

    >>> shrunk(16, 512, 256, 512 * 256, high_rank=False)
    (16, 16)
    >>> shrunk(16, 512, 20, 512 * 20, high_rank=True)
    (64, 20)
    """
    if rank is None or size <= 16 * rank**2:
        return outs, ins
    width = rank * HIGH_RANK_FACTOR if high_rank else rank
    out_width = width if outs > 2 * width else outs
    in_width = width if ins > 2 * width else ins
    return out_width, in_width


def variance(widths: tuple[int, int], outs: int, ins: int) -> float:
    """Return the relative variance that shrinking adds, at most, to an inner product.

    Signs [k, m] give ⟨Px, Py⟩ a variance of at most `(2/k) ‖x‖² ‖y‖²`. The two sides are
    independent, so that of two gradients of one weight it is `(1 + 2/k_o)(1 + 2/k_i) − 1`, times
    their squared norms; a side that stays whole counts 1.

    Args:
        widths: k_o and k_i, from `shrunk`.
        outs: width of the output gradient before.
        ins: width of the input before.

    >>> variance((4, 20), 100, 20)
    0.5
    """
    second_moment = 1.0
    for width, whole in zip(widths, (outs, ins), strict=True):
        if width < whole:
            second_moment *= 1 + 2 / width
    return second_moment - 1


def _scale(width: int, whole: int) -> float:
    """What signs [width, whole] are multiplied with so that E[PᵀP] = I."""
    return width**-0.5 if width < whole else 1.0


def make_projection(
    name: str,
    dim: int,
    seed: int,
    rank: int | None,
    high_rank: Collection[str],
    sizes: Mapping[str, int],
) -> Projection:
    """Return the projection of a recipe.

    Args:
        name: "two-sided", "sketch", "rademacher" or "none".
        dim: D; "none" has as many as the parameters.
        seed: of its random numbers.
        rank: of a two-sided projection, else None.
        high_rank: weights that it shrinks less.
        sizes: {parameter: how many numbers it has}.

    Raises:
        CallError: there is no projection of that name.
    """
    if name == "none":
        return Exact(sizes)
    if name == "rademacher":
        return Rademacher(dim, seed)
    if name in ("sketch", TWO_SIDED):
        return CountSketch(dim, seed, rank, high_rank)
    raise CallError(f"projection = {name!r}: allowed are {', '.join(PROJECTIONS)}")

"""A short sketch of each parameter's gradient, to compare gradients that no memory holds whole.

The sketch S of a gradient g is linear, and E‖S g‖² = ‖g‖² over the random signs, so that the sketch
of a difference tells how large the difference is. Gradients of up to `WIDTH` numbers stay whole. Of
larger ones every number gets a random sign and goes into the bucket of its place modulo `WIDTH`
(Charikar, Chen and Farach-Colton 2002): the relative standard deviation of ‖S g‖² is √(2/WIDTH),
2 %, where the numbers are of like size. `WIDTH` is prime, so that a column of a weight does not
fall into one bucket.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from gradindex.gradients.projection import WHOLE, Sides
from gradindex.random_numbers import random_offset, random_signs

WIDTH = 4093
# Signs are read from a list of this length, from a place of the parameter's own. It is prime too:
# two numbers with the same sign in the list are never in the same bucket.
SIGNS = 2**24 - 3
CHUNK = 1024 * WIDTH  # numbers that get their signs at once


class ParameterSketches:
    """Takes the place of a projection: rows [n, D] of one sketch after the other.

    Args:
        sizes: {parameter: how many numbers it has}.
        device: where the gradients are.

    Attributes:
        dim: D.
        slices: {parameter: where in a row its sketch is}.

    >>> sketches = ParameterSketches({"weight": 2}, torch.device("cpu"))
    >>> sketches.sketch("weight", torch.tensor([[3.0, 4.0]]))
    tensor([[3., 4.]])
    """

    def __init__(self, sizes: Mapping[str, int], device: torch.device) -> None:
        self.slices: dict[str, slice] = {}
        end = 0
        for name, size in sizes.items():
            width = min(size, WIDTH)
            self.slices[name] = slice(end, end + width)
            end += width
        self.dim = end
        self._signs = torch.empty(0, dtype=torch.int8)
        if max(sizes.values()) > WIDTH:
            signs = torch.from_numpy(random_signs(0, "sketch", size=SIGNS)).to(device)
            self._signs = torch.cat([signs, signs[:CHUNK]])  # a chunk can begin anywhere

    def sides(self, name: str, outs: int, ins: int, size: int, like: Tensor) -> Sides:
        """Return neither side: both factors stay whole."""
        return WHOLE

    def add(self, rows: Tensor, name: str, block: Tensor) -> None:
        """Add the sketches of `block` [n, m] where their parameter is in `rows` [n, D]."""
        rows[:, self.slices[name]] += self.sketch(name, block)

    def sketch(self, name: str, block: Tensor) -> Tensor:
        """Return the sketches of a parameter's gradients, [n, m] → [n, at most WIDTH] float32."""
        if block.shape[1] <= WIDTH:
            return block.float()
        offset = random_offset(0, "sketch", name, below=SIGNS)
        sketches = torch.zeros(len(block), WIDTH, device=block.device)
        for start in range(0, block.shape[1], CHUNK):
            part = block[:, start : start + CHUNK].float()
            first = (start + offset) % SIGNS
            signed = part * self._signs[first : first + part.shape[1]]
            whole = signed.shape[1] - signed.shape[1] % WIDTH
            sketches += signed[:, :whole].unflatten(1, (-1, WIDTH)).sum(1)
            sketches[:, : signed.shape[1] - whole] += signed[:, whole:]
        return sketches

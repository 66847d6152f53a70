"""Counter-based random numbers: the same for every batch size, order, worker, device and restart."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np


def noise(seed: int, sample_id: str | None, timestep: float, draw: int, shape: Sequence[int]) -> np.ndarray:
    """The Gaussian noise of one draw, float32 of the given shape, from NumPy's Philox generator.

    The key is (seed, sample id, timestep, draw) alone. `sample_id=None` gives the noise that all pictures
    and queries share. This is the very noise that `build` and `query` use.

    Draws come in antithetic pairs: an odd draw is the negative of the even one before it, so that in a mean over both
    every part of a gradient that is odd in the noise cancels.

    >>> noise(0, None, 500, 1, (2,)) == -noise(0, None, 500, 0, (2,))
    array([ True,  True])
    """
    timestep = int(timestep) if float(timestep).is_integer() else float(timestep)
    generator = np.random.Generator(_philox(seed, "noise", sample_id, timestep, draw - draw % 2))
    drawn = generator.standard_normal(tuple(shape), dtype=np.float32)
    return -drawn if draw % 2 else drawn


def random_timestep(seed: int, sample_id: str, step: int, *, below: int) -> int:
    """The timestep 0 … below − 1 of a picture at a training step; the key's hash is random enough, and quick."""
    return int.from_bytes(_digest(seed, "timestep", sample_id, step)[:8], "little") % below


def random_signs(seed: int, *key: str | int, size: int) -> np.ndarray:
    """`size` independent signs, int8 −1 or 1, that depend on (seed, key) alone."""
    words = _philox(seed, "signs", *key).random_raw(-(-size // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=size, bitorder="little")
    return bits.astype(np.int8) * 2 - 1


def random_offset(seed: int, *key: str | int, below: int) -> int:
    """One whole number in 0 … below − 1 that depends on (seed, key) alone."""
    return int(_philox(seed, "offset", *key).random_raw()) % below


def _philox(*key: str | float | None) -> np.random.Philox:
    return np.random.Philox(key=int.from_bytes(_digest(*key)[:16], "little"))


def _digest(*key: str | float | None) -> bytes:
    return hashlib.sha256(json.dumps(key).encode()).digest()

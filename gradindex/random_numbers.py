"""Counter-based random numbers: the same for every batch size, order, worker, device and restart.

Each function derives its numbers from a key (a seed and what the numbers are for) and keeps no
state: the key is written as JSON and hashed with SHA-256. Where more than one number is needed, the
hash is the key of a Philox generator (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3").
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cache

import numpy as np

from gradindex.errors import StoreError

# SHA-256 of 4,096 numbers of noise, in steps of 1/64. NumPy promises the raw words of Philox for
# good, but not the normals that it makes of them (NEP 19): a release may change these.
GOLDEN_SEED = 8  # two of its numbers are from the tail beyond 3.65, which is drawn another way
GOLDEN_SIZE = 4096
NUMPY = "2.4.6"  # a version that draws them
GOLDEN_DIGEST = "7b6e4d16ed63891bb97ef9e1985591898b944e4eec340c5b98494877827ebed9"


def noise(
    seed: int, sample_id: str | None, timestep: float, draw: int, shape: Sequence[int]
) -> np.ndarray:
    """Return the Gaussian noise of one draw, float32 of the given shape.

    It depends on (seed, sample id, timestep, draw) alone, and is the very noise that `build` and
    `query` use.

    Draws come in antithetic pairs: an odd draw is the negative of the even one before it, so that
    in a mean over both every part of a gradient that is odd in the noise cancels.

    Args:
        sample_id: id of the picture; None gives the noise that all pictures and queries share.
        draw: number of the draw, from 0.

    Raises:
        StoreError: this version of NumPy draws other normals than indexes and logs are made with.

    Examples:
        >>> noise(0, None, 500, 1, (2,)) == -noise(0, None, 500, 0, (2,))
        array([ True,  True])
    """
    _require_golden_noise()
    return _noise(seed, sample_id, timestep, draw, shape)


def _noise(
    seed: int, sample_id: str | None, timestep: float, draw: int, shape: Sequence[int]
) -> np.ndarray:
    """Return what `noise` returns, whichever normals this version of NumPy draws."""
    # 500 and 500.0 are the same timestep, but not the same JSON.
    timestep = int(timestep) if float(timestep).is_integer() else float(timestep)
    even_draw = draw - draw % 2
    generator = np.random.Generator(_philox(seed, "noise", sample_id, timestep, even_draw))
    numbers = generator.standard_normal(tuple(shape), dtype=np.float32)
    return numbers if draw == even_draw else -numbers


@cache
def _require_golden_noise() -> None:
    """Raise StoreError unless this process draws the noise that every index and log is made with.

    Only the first call takes any time, a tenth of a millisecond.
    """
    numbers = _noise(GOLDEN_SEED, None, 0, 0, (GOLDEN_SIZE,))
    # Another machine's logarithm may differ in the last bit; in steps of 1/64 that does not show.
    steps = np.floor(numbers.astype(np.float64) * 64).astype("<i2")
    if hashlib.sha256(steps.tobytes()).hexdigest() != GOLDEN_DIGEST:
        raise StoreError(
            f"NumPy {np.__version__} draws other normal numbers than gradindex's indexes and logs"
            " are made with: install a version of NumPy that gradindex was released with, such as"
            f" numpy=={NUMPY}"
        )


def random_timestep(seed: int, sample_id: str, step: int, *, below: int) -> int:
    """Return the timestep, 0 … below − 1, of a picture at a training step.

    >>> 0 <= random_timestep(0, "a.png", 7, below=1000) < 1000
    True
    """
    # One number needs no generator, which would take longer to make than the hash.
    first_bytes = _digest(seed, "timestep", sample_id, step)[:8]
    return int.from_bytes(first_bytes, "little") % below


def random_signs(seed: int, *key: str | int, size: int) -> np.ndarray:
    """Return independent signs −1 or 1 that depend on (seed, key) alone, [size] int8.

    >>> random_signs(7, "w", size=6)
    array([ 1, -1,  1,  1, -1,  1], dtype=int8)
    """
    # Every bit of the generator's 64-bit words gives a sign, in an order that is the same on
    # machines of either byte order.
    word_count = -(-size // 64)
    words = _philox(seed, "signs", *key).random_raw(word_count).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=size, bitorder="little")
    return bits.astype(np.int8) * 2 - 1


def random_offset(seed: int, *key: str | int, below: int) -> int:
    """Return one whole number in 0 … below − 1 that depends on (seed, key) alone.

    >>> random_offset(0, "w", below=1)
    0
    """
    return int(_philox(seed, "offset", *key).random_raw()) % below


def _philox(*key: str | float | None) -> np.random.Philox:
    return np.random.Philox(key=int.from_bytes(_digest(*key)[:16], "little"))


def _digest(*key: str | float | None) -> bytes:
    return hashlib.sha256(json.dumps(key).encode()).digest()

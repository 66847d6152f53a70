"""Aspect-ratio buckets: the sizes that pictures are cut to, each picture to the nearest one."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from gradindex.data.dataset import Dataset
from gradindex.data.images import Size
from gradindex.errors import CallError

MOST_BUCKETS = 1000

Buckets = int | Sequence[Size]  # a step of their sides; or the sizes, height and width


def bucket_sizes(buckets: Buckets, resolution: Size | None) -> tuple[Size, ...]:
    """Return the sizes of buckets, height and width, in the order of their widths.

    With a step they are those of `make_bucket_resolutions` in kohya's sd-scripts: for each width
    that is a multiple of the step, the largest such height with which the area is no larger than
    the resolution's; the same with height and width exchanged; and the largest square. Its sides go
    from 256 to 1024 at a resolution of 512x512. Here they go in proportion, from half to twice the
    side of a square of the resolution's area.

    Args:
        resolution: height and width, for a step.

    Raises:
        CallError: the step is larger than the resolution, or there are more than `MOST_BUCKETS`.

    >>> bucket_sizes(64, (128, 128))
    ((192, 64), (256, 64), (128, 128), (64, 192), (64, 256))
    """
    if not isinstance(buckets, int):
        sizes = set(buckets)
    else:
        assert resolution is not None, "a step needs a resolution"
        sizes = _stepped_sizes(buckets, resolution)
    if len(sizes) > MOST_BUCKETS:
        raise CallError(
            f"buckets: more than {MOST_BUCKETS:,} sizes; give a larger step, or fewer sizes"
        )
    return tuple(sorted(sizes, key=lambda size: (size[1], size[0])))


def _stepped_sizes(step: int, resolution: Size) -> set[Size]:
    """The sizes whose sides are multiples of a step; see `bucket_sizes`."""
    area = resolution[0] * resolution[1]
    side = math.isqrt(area)
    shortest = max(side // 2 // step * step, step)
    longest = -(-2 * side // step) * step
    square = side // step * step
    if not square:
        raise CallError(
            f"buckets = {step}: no square of such sides has at most the area of the resolution,"
            f" {sizes_text([resolution])}; give a smaller step"
        )
    sizes = {(square, square)}
    for width in range(shortest, longest + 1, step):
        height = min(longest, area // width // step * step)
        if height >= shortest:
            sizes |= {(height, width), (width, height)}
        if len(sizes) > MOST_BUCKETS:
            break
    return sizes


def largest_size(sizes: Sequence[Size]) -> Size:
    """Return the size of the largest area; of several the one nearest to a square."""
    return max(sizes, key=lambda size: (size[0] * size[1], min(size)))


def sizes_text(sizes: Sequence[Size]) -> str:
    """Return sizes as the command line takes them, width first.

    >>> sizes_text([(768, 512), (512, 512)])
    '512x768,512x512'
    """
    return ",".join(f"{width}x{height}" for height, width in sizes)


def describe_buckets(dataset: Dataset, sizes: Sequence[Size] | None, rows: np.ndarray) -> str:
    """Return which buckets hold how many pictures; an empty text where there are no buckets.

    At most 2,000 pictures are looked at, evenly spaced; none is decoded.

    Args:
        rows: numbers of the pictures.
    """
    looked_at, sample = dataset.looked_at(rows)
    if not sizes or not looked_at:
        return ""
    counts: Counter[Size] = Counter()
    for row in looked_at:
        try:
            counts[dataset.bucket_of(row, sizes)] += 1
        except Exception:  # Pillow raises anything; who reads the pictures says which are bad
            continue
    held = ", ".join(f"{sizes_text([size])} ({counts[size]})" for size in sizes if counts[size])
    return f"{held}; {len(sizes)} sizes{sample}"

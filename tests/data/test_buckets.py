"""Aspect-ratio buckets: which sizes there are, and which one a picture goes to."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gradindex.data.buckets import bucket_sizes, describe_buckets, largest_size
from gradindex.data.dataset import Columns
from gradindex.data.folder import open_folder
from gradindex.data.images import nearest_size
from gradindex.errors import CallError

# What kohya's sd-scripts make of a resolution of 512x512 with their defaults (steps of 64, sides
# of 256 to 1024), widths and heights.
KOHYA_512 = [
    *((256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640)),
    *((448, 576), (512, 512), (576, 448), (640, 384), (704, 320), (768, 320), (832, 256)),
    *((896, 256), (960, 256), (1024, 256)),
]

sides = st.integers(40, 300)


def slow_sizes(step: int, height: int, width: int) -> set[tuple[int, int]]:
    """Of all sizes in the range those with which no side can be made longer, and one square."""
    side = math.isqrt(height * width)
    shortest = max(step, side // 2 - side // 2 % step)
    longest = 2 * side + -2 * side % step
    fitting = {
        (h, w)
        for h in range(step, longest + 1, step)
        for w in range(step, longest + 1, step)
        if h * w <= height * width
    }
    square = max(h for h, w in fitting if h == w)
    fitting = {size for size in fitting if min(size) >= shortest}
    edge = {
        (h, w) for h, w in fitting if (h + step, w) not in fitting or (h, w + step) not in fitting
    }
    return edge | {(square, square)}


@given(st.integers(3, 40), sides, sides)
def test_sizes_are_those_that_no_step_makes_longer(step: int, height: int, width: int) -> None:
    sizes = bucket_sizes(step, (height, width))
    assert set(sizes) == slow_sizes(step, height, width)
    assert list(sizes) == sorted(sizes, key=lambda size: (size[1], size[0]))
    area = max(h * w for h, w in sizes)
    assert math.prod(largest_size(sizes)) == area


def test_sizes_are_those_of_kohyas_scripts() -> None:
    assert [(w, h) for h, w in bucket_sizes(64, (512, 512))] == KOHYA_512
    assert largest_size(bucket_sizes(64, (512, 512))) == (512, 512)


def test_listed_sizes_are_sorted_and_taken_once() -> None:
    assert bucket_sizes([(8, 16), (16, 8), (8, 16)], None) == ((16, 8), (8, 16))


def test_sizes_that_there_are_not() -> None:
    with pytest.raises(CallError, match=r"buckets = 64: no square of such sides .* 16x32; give a"):
        bucket_sizes(64, (32, 16))
    with pytest.raises(CallError, match="buckets: more than 1,000 sizes; give a larger step, or"):
        bucket_sizes(1, (600, 600))


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([8, 32, 64]))
def test_a_picture_goes_to_the_nearest_shape(height: int, width: int, step: int) -> None:
    """As in `BucketManager.select_bucket` of kohya's scripts, with NumPy."""
    sizes = bucket_sizes(step, (128, 128))
    ratios = np.array([w / h for h, w in sizes])
    truth = sizes[int(np.abs(ratios - width / height).argmin())]
    if (height, width) in sizes:
        truth = height, width
    assert nearest_size(Image.new("L", (width, height)), sizes) == truth


def test_a_picture_taken_sideways_is_turned_first() -> None:
    picture = Image.new("L", (60, 40))
    picture.getexif()[0x0112] = 6
    assert nearest_size(picture, [(8, 12), (12, 8)]) == (12, 8)


def test_how_many_pictures_each_holds(tmp_path: Path) -> None:
    for name, size in {"a": (30, 20), "b": (20, 30), "c": (31, 20)}.items():
        Image.new("L", size).save(tmp_path / f"{name}.png")
    (tmp_path / "d.png").write_bytes(b"no picture")
    dataset = open_folder(tmp_path, Columns())
    sizes = [(12, 8), (8, 8), (8, 12)]
    text = describe_buckets(dataset, sizes, np.arange(4))
    assert text == "8x12 (1), 12x8 (2); 3 sizes"
    assert describe_buckets(dataset, None, np.arange(4)) == ""

"""The noise is the same for good: golden values, and a NumPy that draws others is refused."""

from collections.abc import Iterator

import numpy as np
import pytest

import gradindex
from gradindex import random_numbers
from gradindex.errors import StoreError


@pytest.fixture(autouse=True)
def _new_process() -> Iterator[None]:
    """The noise is checked once a process: have each test check it anew."""
    random_numbers._require_golden_noise.cache_clear()
    yield
    random_numbers._require_golden_noise.cache_clear()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ((0, None, 500, 0), [-0.786738157, -1.54804647, -2.3888123, 0.735495806]),
        ((7, "cat/é.png", 41.5, 3), [-0.230055451, -0.265850842, 0.347715765, -0.451724857]),
    ],
)
def test_noise_has_golden_values(
    key: tuple[int, str | None, float, int], expected: list[float]
) -> None:
    np.testing.assert_allclose(gradindex.noise(*key, (4,)), np.float32(expected), rtol=1e-6)


def test_a_numpy_of_other_normals_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release may change the stream (NEP 19): that is one clear line, not another noise."""

    class Other(np.random.Generator):
        def standard_normal(self, size: tuple[int, ...], dtype: type) -> np.ndarray:
            return super().standard_normal(size).astype(dtype)  # of other words than float32's

    monkeypatch.setattr(np.random, "Generator", Other)
    with pytest.raises(StoreError, match=r"^NumPy .* draws other normal numbers .* numpy==2"):
        gradindex.noise(0, None, 500, 0, (2,))


def test_the_last_bit_of_a_tail_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logarithm of another machine's C library may differ there."""
    standard = np.random.Generator

    class Rounded(standard):  # type: ignore[misc, valid-type]
        def standard_normal(self, size: tuple[int, ...], dtype: type) -> np.ndarray:
            numbers = super().standard_normal(size, dtype)
            is_tail = np.abs(numbers) > 3.65
            assert is_tail.any()
            return np.where(is_tail, np.nextafter(numbers, np.float32(9)), numbers)

    monkeypatch.setattr(np.random, "Generator", Rounded)
    random_numbers._require_golden_noise()


def test_signs_and_offsets_have_golden_values() -> None:
    """They are of raw words and SHA-256, which no version changes."""
    assert random_numbers.random_signs(7, "w", size=8).tolist() == [1, -1, 1, 1, -1, 1, -1, -1]
    assert random_numbers.random_offset(7, "w", below=1000) == 963
    assert random_numbers.random_timestep(7, "a.png", 3, below=1000) == 524

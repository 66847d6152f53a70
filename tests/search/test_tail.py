"""What stands out from the tail of all scores: the fit, and how often it is wrong and right."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradindex.search import tail as module
from gradindex.search.standing import Standing
from gradindex.search.tail import adjusted, exceedance, tail_size

DRAWS = 200  # of scores
Bulk = Callable[[np.random.Generator, int], np.ndarray]
BULKS: dict[str, Bulk] = {
    "normal": lambda random, n: random.normal(size=n),
    "Laplace": lambda random, n: random.laplace(size=n),
    "log-normal": lambda random, n: np.exp(random.normal(size=n)),
    "t of 3": lambda random, n: random.standard_t(3, n),
    "Cauchy": lambda random, n: random.standard_cauchy(n),
}


def survival_by_integration(excesses: np.ndarray, left_out: int, higher: float) -> float:
    """`_survival` of one score: λ integrated over numerically, point of the grid by point."""
    known, m = sorted(excesses)[: len(excesses) - left_out], len(excesses)
    k, largest = len(known), max(known)
    quartile = known[k - 1 - 3 * k // 4]
    points = 30 + int(math.sqrt(m))
    total = weight = 0.0
    for j in range(1, points + 1):
        b = -1 / largest - (1 - math.sqrt(points / (j - 0.5))) / (3 * quartile)
        logs = [math.log1p(b * x) for x in known]
        s = sum(logs) + left_out * math.log1p(b * largest)
        # λ = 1 / shape in even steps of its mean k / s, to where it has no weight left.
        for step in np.linspace(0.02, 4, 400):
            inverse = step * k / s
            log_density = (k - 1) * math.log(abs(inverse)) + k * math.log(abs(b))
            log_density -= sum(logs) + inverse * s
            density = math.exp(log_density + 3 * k) * abs(k / s)  # of a size that floats hold
            inside = 1 + b * higher
            weight += density
            total += density * (inside**-inverse if inside > 0 else 0.0)
    return total / weight


@pytest.mark.parametrize("left_out", [1, 14])
@pytest.mark.parametrize("heavy", [False, True])
def test_the_fit_is_the_average_over_shapes_and_scales(left_out: int, heavy: bool) -> None:
    random = np.random.default_rng(3)
    excesses = np.sort(random.pareto(3, 40) if heavy else random.exponential(size=40))[::-1]
    for higher in (excesses[0], 2 * excesses[0]):
        survival = module._survival(excesses, left_out, np.array([higher]))
        assert survival is not None
        slowly = survival_by_integration(excesses, left_out, higher)
        assert survival[0] == pytest.approx(slowly, rel=1e-3)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=10), st.integers(10, 1000))
def test_q_values_are_those_of_benjamini_and_hochberg(values: list[float], count: int) -> None:
    """The least level at which the step-up procedure rejects: the last i with p_i ≤ i q / N."""
    p = np.sort(values)
    q = adjusted(p, count)
    for i in range(len(p)):
        slowly = min(1.0, *(p[j] * count / (j + 1) for j in range(i, len(p))))
        assert q[i] == pytest.approx(slowly)


def test_few_scores_and_equal_ones_have_no_tail() -> None:
    random = np.random.default_rng(0)
    assert Standing.of(random.normal(size=199)).q_values([9.0]) is None
    assert Standing.of(random.normal(size=200)).q_values([9.0]) is not None
    assert Standing.of(np.repeat([0.0, 1.0], [100, 300])).q_values([1.0]) is None
    assert Standing.of(np.full(20, np.nan)).q_values([]) is None


@settings(deadline=None)
@given(st.integers(200, 3000), st.integers(0, 5), st.floats(1e-6, 1e6))
def test_scale_and_place_of_scores_do_not_matter(count: int, seed: int, scale: float) -> None:
    scores = np.random.default_rng(seed).standard_t(4, count)
    top = np.sort(scores)[::-1]
    size = tail_size(count) + 1
    plain = exceedance(top[:size], count, top[:10])
    moved = exceedance(scale * (top[:size] + 3), count, scale * (top[:10] + 3))
    assert plain is not None
    assert moved is not None
    np.testing.assert_allclose(moved, plain, rtol=1e-5)
    assert (np.diff(plain) >= -1e-12).all()
    assert (plain >= 0).all()


def stands_out(random: np.random.Generator, scores: np.ndarray, sample: int | None = None) -> bool:
    """Whether any of the ten highest scores does."""
    if sample is None:
        standing = Standing.of(scores)
    else:
        chosen = random.choice(scores, sample, replace=False)
        standing = Standing.of(chosen, pictures=len(scores))
    q = standing.q_values(np.sort(scores)[::-1][:10].tolist())
    assert q is not None
    return bool((q <= 0.05).any())


@pytest.mark.parametrize(("count", "sample"), [(200, None), (1800, None), (20_000, 800)])
@pytest.mark.parametrize("bulk", BULKS)
def test_chance_stands_out_in_one_of_twenty(bulk: str, count: int, sample: int | None) -> None:
    """Or as often as 200 draws allow to see: up to 5 % and three standard errors."""
    random = np.random.default_rng(1)
    wrong = [stands_out(random, BULKS[bulk](random, count), sample) for _ in range(DRAWS)]
    assert np.mean(wrong) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / DRAWS)


@pytest.mark.parametrize(("planted", "z", "power"), [(1, 8, 0.8), (1, 15, 0.95), (20, 15, 0.3)])
def test_what_lies_far_above_a_normal_bulk_stands_out(planted: int, z: float, power: float) -> None:
    random = np.random.default_rng(2)
    right = []
    for _ in range(50):
        scores = random.normal(size=1800)
        scores[:planted] = z * (1 + 0.1 * np.arange(planted) / planted)
        right.append(stands_out(random, scores))
    assert np.mean(right) >= power


def test_what_a_heavy_tail_reaches_does_not_stand_out() -> None:
    """z = 15 is nothing where the bulk reaches it by itself."""
    random = np.random.default_rng(2)
    right = []
    for _ in range(50):
        scores = random.standard_t(2, 1800)
        scores[0] = 15 * Standing.of(scores).sigma
        right.append(stands_out(random, scores))
    assert np.mean(right) <= 0.2

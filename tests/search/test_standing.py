"""A hit's z: how many robust standard deviations its score lies above those of all pictures."""

from pathlib import Path

import numpy as np
import pytest
from conftest import make_pictures
from hypothesis import given, settings
from hypothesis import strategies as st

import gradindex
from gradindex.builder.upkeep import remove
from gradindex.search import standing as module
from gradindex.search.standing import FEWEST_JUDGED, Standing, adjusted, sampled_rows

SCORES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path) -> gradindex.Index:
    place = tmp_path_factory.mktemp("standing")
    data = make_pictures(place / "data", 40)
    return gradindex.build(place / "idx", model=model, data=data, timesteps=[200, 700], dim=16)


def z_of(scores: np.ndarray, score: float) -> float:
    """Of all scores, by the definition."""
    median = np.nanmedian(scores)
    return float((score - median) / (1.4826 * np.nanmedian(np.abs(scores - median))))


@pytest.mark.parametrize("method", ["retrac", "tracin"])
@pytest.mark.parametrize("options", [{}, {"whiten": False}, {"timesteps": (None, 500)}])
def test_the_z_of_a_hit_is_that_among_all_pictures(
    index: gradindex.Index, queries: list[Path], method: str, options: dict[str, object]
) -> None:
    results = index.query(queries, 5, method, opponents=True, **options)  # type: ignore[arg-type]
    scores = index.scores(queries, method, **options)  # type: ignore[arg-type]
    for result, own in zip(results, scores, strict=True):
        for hit in [*result.hits, *(result.opponents or [])]:
            assert hit.z == pytest.approx(z_of(own, hit.score), rel=1e-4, abs=1e-4)


def test_an_audit_says_z(index: gradindex.Index, tmp_path: Path) -> None:
    held_out = make_pictures(tmp_path / "held-out", 3, seed=4)
    result = index.audit(held_out, k=3)
    own = index.scores(sorted(held_out.iterdir())).mean(0)
    assert result.hits[0].z == pytest.approx(z_of(own, own.max()), rel=1e-3)
    assert result.opponents is not None
    assert result.opponents[0].z == pytest.approx(z_of(own, own.min()), rel=1e-3)


@settings(deadline=None)
@given(SCORES)
def test_skipped_pictures_do_not_count(scores: list[float]) -> None:
    array = np.array(scores, np.float32)
    with_skipped = np.append(array, np.float32(np.nan))
    assert Standing.of(with_skipped) == Standing.of(array)
    assert Standing.of(array).z(float(np.median(array))) in (None, 0)


@pytest.mark.parametrize("scores", [[], [np.nan], [3.0, 3.0, 3.0, 7.0]])
def test_scores_that_are_alike_have_no_z(scores: list[float]) -> None:
    assert Standing.of(np.array(scores)).z(7.0) is None


def test_of_many_pictures_some_are_sampled(
    index: gradindex.Index, queries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Always the same, so that a query and its repetition agree."""
    monkeypatch.setattr(module, "FEWEST_SAMPLED", 15)
    monkeypatch.setattr(module, "SAMPLE_BYTES", 1)
    monkeypatch.setattr(module, "READ_ROWS", 4)
    rows, pictures = sampled_rows(index.store)
    assert (len(rows), pictures) == (15, 40)
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, sampled_rows(index.store)[0])
    (result,) = index.query(queries[0], 3)
    own = index.scores(queries[0])[0]
    assert result.hits[0].z == pytest.approx(z_of(own[rows], result.hits[0].score), rel=1e-4)
    assert index.query(queries[0], 3) == [result]


def test_a_sample_tells_the_bulk_of_all() -> None:
    """Of 800 scores of 100,000 sigma is known to a twentieth or so, whatever else stands out."""
    random = np.random.default_rng(0)
    scores = random.standard_t(5, 100_000)
    scores[:300] += 50
    z = Standing.of(scores).z(12.0)
    assert z is not None
    zs = [Standing.of(random.choice(scores, 800, replace=False)).z(12.0) for _ in range(50)]
    assert np.mean(np.abs(np.array(zs, float) - z) < 0.15 * z) == 1
    assert np.std(np.array(zs, float)) < 0.06 * z


def test_removed_pictures_are_not_sampled(model: Path, queries: list[Path], tmp_path: Path) -> None:
    data = make_pictures(tmp_path / "data", 12)
    gradindex.build(tmp_path / "idx", model=model, data=data, timesteps=[500], dim=8)
    remove(tmp_path / "idx", ["p003.png"])
    opened = gradindex.open(tmp_path / "idx")
    rows, pictures = sampled_rows(opened.store)
    assert (3 not in rows, pictures) == (True, 11)
    (result,) = opened.query(queries[0], 1)
    own = opened.scores(queries[0])[0]
    assert result.hits[0].z == pytest.approx(z_of(own, result.hits[0].score), rel=1e-4)


# --- what stands out ------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=10), st.integers(10, 1000))
def test_q_values_are_those_of_benjamini_and_hochberg(values: list[float], count: int) -> None:
    """The least level at which the step-up procedure rejects: the last i with p_i ≤ i q / N."""
    p = np.sort(values)
    q = adjusted(p, count)
    for i in range(len(p)):
        slowly = min(1.0, *(p[j] * count / (j + 1) for j in range(i, len(p))))
        assert q[i] == pytest.approx(slowly)


def test_of_few_scores_or_equal_ones_it_is_not_known() -> None:
    random = np.random.default_rng(0)
    assert Standing.of(random.normal(size=FEWEST_JUDGED - 1)).q_values([9.0]) is None
    assert Standing.of(random.normal(size=FEWEST_JUDGED)).q_values([9.0]) is not None
    assert Standing.of(np.repeat([0.0, 1.0], [100, 300])).q_values([1.0]) is None
    assert Standing.of(np.full(60, np.nan)).q_values([]) is None


@pytest.mark.parametrize(("count", "most"), [(50, 0.06), (200, 0.03), (2000, 0.02)])
def test_chance_seldom_stands_out_of_a_normal_bulk(count: int, most: float) -> None:
    """A rate of 1 %, and what a bulk adds that is told by few scores."""
    random = np.random.default_rng(1)
    wrong = []
    for _ in range(1000):
        scores = random.normal(3.0, 2.0, count)
        q = Standing.of(scores).q_values(np.sort(scores)[::-1][:10].tolist())
        assert q is not None
        wrong.append((q <= 0.01).any())
    assert np.mean(wrong) <= most


@settings(deadline=None)
@given(st.integers(50, 3000), st.integers(0, 5), st.floats(1e-6, 1e6), st.floats(-9, 9))
def test_scale_and_place_of_scores_do_not_matter(
    count: int, seed: int, scale: float, place: float
) -> None:
    scores = np.random.default_rng(seed).standard_t(4, count)
    best = np.sort(scores)[::-1][:10]
    plain = Standing.of(scores).q_values(best.tolist())
    moved = Standing.of(scale * (scores + place)).q_values((scale * (best + place)).tolist())
    assert plain is not None
    assert moved is not None
    np.testing.assert_allclose(moved, plain, rtol=1e-5, atol=1e-12)
    assert (np.diff(plain) >= 0).all()


@settings(deadline=None)
@given(SCORES)
def test_a_share_is_of_the_positive_scores_of_all(scores: list[float]) -> None:
    array = np.array(scores, np.float32)
    standing = Standing.of(np.append(array, np.float32(np.nan)))
    positive = sum(score for score in array.tolist() if score > 0)
    best = sorted(array.tolist(), reverse=True)[:10]
    for count in range(len(best) + 1):
        own = sum(score for score in best[:count] if score > 0)
        slowly = own / positive if positive else 0.0
        assert standing.share(best, count) == pytest.approx(slowly, rel=1e-5)


@pytest.mark.parametrize("planted", [1, 5, 30])
def test_a_sample_tells_the_influence_of_all(planted: int) -> None:
    """Whether what stands out is in the sample or not."""
    random = np.random.default_rng(0)
    scores = random.normal(size=10_000)
    scores[:planted] = 4000 / planted * (1 + 0.01 * np.arange(planted))
    best = np.sort(scores)[::-1][:10]
    true = best.sum() / np.maximum(scores, 0).sum()
    assert Standing.of(scores).share(best.tolist(), 10) == pytest.approx(true)
    shares = []
    for _ in range(200):
        sample = random.choice(scores, 1638, replace=False)
        shares.append(Standing.of(sample, pictures=10_000).share(best.tolist(), 10))
    assert np.mean(shares) == pytest.approx(true, rel=0.05)
    assert max(shares) <= 1
    if planted <= 10:
        np.testing.assert_allclose(shares, true, rtol=0.06)

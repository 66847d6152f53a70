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
from gradindex.search.standing import Standing, sampled_rows

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

"""Folded rows: a picture's search vector alone, and the scores that it gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import two_checkpoints

import gradindex
from gradindex import recipe as recipe_module
from gradindex.builder.upkeep import compact, remove
from gradindex.builder.verify import damages
from gradindex.errors import CallError, RecipeMismatch
from gradindex.gradients import fold
from gradindex.gradients.fold import search_vectors, unit
from gradindex.report.diagnose import report
from gradindex.store import store as store_module

METHODS = ("tracin", "retrac")


@pytest.fixture
def options(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Two checkpoints × three timesteps × 32 numbers, in shards of four."""
    monkeypatch.setattr(store_module, "SHARD_ROWS", 4)
    return two_checkpoints(model, pictures, tmp_path, dim=32)


def narrow(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    for module in (fold, recipe_module):
        monkeypatch.setattr(module, "SEARCH_WIDTH", width)


@pytest.mark.parametrize("pairing", ["matched", "mean"])
@pytest.mark.parametrize("method", METHODS)
def test_a_wide_fold_gives_the_scores_of_all_rows(
    options: dict[str, Any], tmp_path: Path, queries: list[Path], method: str, pairing: str
) -> None:
    """Where all rows fit side by side nothing is folded.

    TracIn's scores are the same, ReTrac's but for float16.
    """
    full = gradindex.build(tmp_path / "full", **options)
    folded = gradindex.build(tmp_path / "folded", rows="folded", **options)
    assert folded.store.unnormalized.shape == (1, 9, 1, 192)
    grid: dict[str, Any] = {"query_timesteps": 2, "query_draws": 1} if pairing == "mean" else {}
    grid |= {"whiten": False}
    expected = full.scores(queries, method, pairing=pairing, **grid)
    found = folded.scores(queries, method, pairing=pairing, **grid)
    np.testing.assert_allclose(
        found, expected, rtol=1e-4, atol=1e-3 if method == "retrac" else 1e-5
    )
    for mine, row in zip(
        folded.query(queries, 3, method, pairing=pairing, **grid), found, strict=True
    ):
        assert [hit.row for hit in mine.hits] == np.argsort(-row)[:3].tolist()
        assert mine.scores == row[[hit.row for hit in mine.hits]].tolist()
        assert {hit.stderr for hit in mine.hits} == {None}


def test_a_narrow_fold_is_the_search_vector(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the unnormalized rows, and of the unit ones."""
    narrow(monkeypatch, 40)
    full = gradindex.build(tmp_path / "full", **options).store
    folded = gradindex.build(tmp_path / "folded", rows="folded", **options).store
    assert folded.unnormalized.shape == (1, 9, 1, 40)
    rows = full.unnormalized[:].transpose(1, 0, 2, 3)
    vectors = search_vectors(rows, full.recipe), search_vectors(unit(rows), full.recipe)
    np.testing.assert_allclose(folded.unnormalized[0, :, 0], vectors[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(folded.normalized[0, :, 0], vectors[1], rtol=1e-2, atol=1e-2)
    assert list(damages(tmp_path / "folded")) == []


def test_a_folded_build_goes_on_and_grows(
    options: dict[str, Any], tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow(monkeypatch, 40)
    whole = gradindex.build(tmp_path / "whole", rows="folded", **options)
    data = tmp_path / "data"
    data.mkdir()
    files = sorted(pictures.iterdir())
    for file in files[:6]:
        (data / file.name).write_bytes(file.read_bytes())
    some = {**options, "data": data}
    gradindex.build(tmp_path / "idx", rows="folded", part=(0, 2), **some)
    gradindex.build(tmp_path / "idx", rows="folded", **some)
    for file in files[6:]:
        (data / file.name).write_bytes(file.read_bytes())
    grown = gradindex.build(tmp_path / "idx", rows="folded", **some)
    assert grown.store.sample_ids == whole.store.sample_ids
    np.testing.assert_allclose(
        grown.store.unnormalized[:], whole.store.unnormalized[:], rtol=1e-3, atol=1e-5
    )
    with pytest.raises(RecipeMismatch, match='rows: "folded", now null'):
        gradindex.build(tmp_path / "idx", **some)


@pytest.mark.parametrize("method", METHODS)
def test_a_compacted_folded_index_keeps_its_scores(
    options: dict[str, Any], tmp_path: Path, queries: list[Path], method: str
) -> None:
    """Unit rows that are folded are not the folded rows divided by their norms."""
    index = gradindex.build(tmp_path / "idx", rows="folded", **options)
    expected = np.delete(index.scores(queries, method, whiten=False), 3, axis=1)
    remove(tmp_path / "idx", [index.store.sample_ids[3]])
    compact(tmp_path / "idx")
    found = gradindex.open(tmp_path / "idx", device="cpu").scores(queries, method, whiten=False)
    np.testing.assert_array_equal(found, expected)


def test_what_folded_rows_cannot_answer(
    options: dict[str, Any], tmp_path: Path, queries: list[Path]
) -> None:
    index = gradindex.build(tmp_path / "idx", rows="folded", **options)
    with pytest.raises(CallError, match=r"timesteps = 0:500: the rows of this index are folded"):
        index.query(queries, timesteps=(0, 500))
    with pytest.raises(CallError, match="by_timestep: the rows of this index are folded"):
        index.query(queries, by_timestep=True)
    with pytest.raises(CallError, match="norms and self-influence need all of them"):
        report(index, queries)
    with pytest.raises(CallError, match="rows = 'some': allowed are 'full', 'folded'"):
        gradindex.build(tmp_path / "other", rows="some", **options)

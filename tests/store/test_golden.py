"""Stores that people keep stay readable, and the same rows still give the same bytes."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from gradindex.gradients.fold import search_vectors
from gradindex.recipe import Recipe
from gradindex.search.ann_builder import open_ann_index
from gradindex.search.scoring import METHODS
from gradindex.store.store import Store

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

import make  # noqa: E402


def test_the_golden_store_reads(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "v1", tmp_path / "v1")
    store = Store(tmp_path / "v1")
    assert store.recipe == make.RECIPE
    assert store.sample_ids == make.IDS
    assert store.missing() == []
    assert store.excluded == [2]
    for checkpoint in range(2):
        expected = make.rows(checkpoint)
        norm = np.linalg.norm(expected, axis=2)
        np.testing.assert_array_equal(store.read("unnormalized", checkpoint, slice(0, 3)), expected)
        np.testing.assert_allclose(store.read("norm", checkpoint, slice(0, 3)), norm, rtol=1e-6)
        unit = expected / np.where(norm == 0, 1, norm)[..., None]
        np.testing.assert_allclose(
            store.read("normalized", checkpoint, slice(0, 3)), unit, atol=1e-3
        )
    np.testing.assert_array_equal(store.timestep[:], np.tile(np.float32([250, 750]), (2, 3, 1)))


def test_the_golden_compact_store_reads(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "v1-compact", tmp_path / "v1")
    store = Store(tmp_path / "v1")
    assert store.recipe == make.COMPACT
    assert store.missing() == []
    for checkpoint in range(2):
        expected = make.rows(checkpoint)
        scale = np.abs(expected).max(2) / 127
        codes = np.rint(expected / np.where(scale == 0, 1, scale)[..., None])
        np.testing.assert_array_equal(store.codes[checkpoint], codes)
        np.testing.assert_allclose(store.scale[checkpoint], scale, rtol=1e-6)
        rows = store.read("unnormalized", checkpoint, slice(0, 3))
        np.testing.assert_allclose(rows, codes * scale[..., None], rtol=1e-6)


def test_the_golden_faiss_files_are_used_as_they_are(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "v1", tmp_path / "v1")
    store = Store.finished(tmp_path / "v1")
    for method in METHODS:
        files = [tmp_path / "v1/faiss" / f"{method}.{kind}" for kind in ("faiss", "json")]
        before = [file.stat().st_mtime_ns for file in files]
        query = search_vectors(
            np.stack([make.rows(c)[1:2] for c in range(2)], axis=1), store.recipe
        )
        (rows,) = open_ann_index(store, method).candidates(query, 10) or []
        assert rows.tolist() == [0, 1]
        assert [file.stat().st_mtime_ns for file in files] == before


@pytest.mark.parametrize(("name", "recipe"), [("v1", make.RECIPE), ("v1-compact", make.COMPACT)])
def test_the_same_rows_give_the_same_bytes(tmp_path: Path, name: str, recipe: Recipe) -> None:
    golden = GOLDEN / name
    store = Store.create(tmp_path / "new", recipe, make.IDS)
    for shard in store.shards():
        store.write(
            shard, make.rows(shard.checkpoint), np.tile(np.float32([250, 750]), (3, 1)), [2]
        )
    for array in (*store.arrays, "sample_ids"):
        files = [file.relative_to(golden) for file in (golden / array).rglob("*") if file.is_file()]
        assert files
        for file in files:
            assert (tmp_path / "new" / file).read_bytes() == (golden / file).read_bytes(), file

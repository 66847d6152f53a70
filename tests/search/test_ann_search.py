"""Removed pictures are no candidates, however many they are and whatever FAISS searches."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import RECIPE

from gradindex.builder.upkeep import remove
from gradindex.search import ann_making, ann_search
from gradindex.search.ann_builder import build_ann_index
from gradindex.search.ann_index import AnnIndex, open_whitening, require_faiss, saved_ann_index
from gradindex.search.ann_search import best_rows
from gradindex.search.scoring import METHODS
from gradindex.store import store as store_module
from gradindex.store.store import Store

ROWS, WIDTH = 2000, 64
SELECTING = ["Flat", "SQ8", "PCA32,SQfp16", "HR,RaBitQ4", "IVF8,SQfp16", "PCA32,IVF8,Flat"]
WITHOUT_SELECTOR = ["PQ8x4fs", "HR,RaBitQfs", "SQ8,RFlat"]


def drawn(count: int, width: int, seed: int) -> np.ndarray:
    """Vectors that share a direction and are of uneven length, [count, width] float32."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, width)) + 2 * np.eye(width)[0]
    return (vectors * random.lognormal(size=(count, 1))).astype(np.float32)


def made(factory: str, kept: np.ndarray | None = None) -> Any:
    """A FAISS index over `drawn` vectors, or some of them; three lists of it are searched."""
    faiss = require_faiss()
    index = faiss.index_factory(WIDTH, factory, faiss.METRIC_INNER_PRODUCT)
    vectors = drawn(ROWS, WIDTH, 0)
    index.train(vectors)
    index.add(vectors if kept is None else vectors[kept])
    if "IVF" in factory:
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", 3)
    return index


def ranked_rows(rows: np.ndarray, scores: np.ndarray, count: int) -> list[tuple[int, float]]:
    """The best rows of one query, each with its score."""
    order = np.argsort(-scores, kind="stable")
    pairs = zip(rows[order].tolist(), scores[order].tolist(), strict=True)
    return [(row, score) for row, score in pairs if row >= 0][:count]


@pytest.mark.parametrize("share", [0, 0.01, 0.9, 0.999])
@pytest.mark.parametrize("queries", [1, 30])
@pytest.mark.parametrize("factory", SELECTING + WITHOUT_SELECTOR)
def test_what_is_left_is_ranked_as_ever(factory: str, queries: int, share: float) -> None:
    """The slow twin is an index that the removed rows were never added to.

    Where no row can be left out it has them, ranks all, and throws the removed ones away.
    """
    faiss, vectors = require_faiss(), drawn(queries, WIDTH, 1)
    removed = np.sort(np.random.default_rng(2).permutation(ROWS)[: int(share * ROWS)])
    kept = np.setdiff1d(np.arange(ROWS), removed)
    count = min(20, len(kept))
    found = best_rows(faiss, made(factory), vectors, count, removed)
    if factory in SELECTING:
        scores, positions = made(factory, kept).search(vectors, count)
        rows = np.where(positions < 0, -1, kept[positions])
    else:
        scores, rows = made(factory).search(vectors, count + len(removed))
        rows = np.where(np.isin(rows, removed), -1, rows)
    for mine, other in zip(zip(*found, strict=True), zip(rows, scores, strict=True), strict=True):
        ranked, expected = ranked_rows(*mine, count), ranked_rows(*other, count)
        assert [row for row, _ in ranked] == [row for row, _ in expected]
        scores_of = [[score for _, score in pairs] for pairs in (ranked, expected)]
        np.testing.assert_allclose(*scores_of, rtol=1e-5)  # float32 products in another order


@pytest.mark.parametrize("factory", SELECTING[1:] + WITHOUT_SELECTOR)
def test_no_more_is_asked_for_where_rows_can_be_left_out(factory: str) -> None:
    index = made(factory)
    asked: list[int] = []
    search = index.search

    def noting(queries: np.ndarray, k: int, **options: Any) -> Any:
        answer = search(queries, k, **options)
        asked.append(k)
        return answer

    index.search = noting
    best_rows(require_faiss(), index, drawn(3, WIDTH, 1), 20, np.arange(1800))
    assert asked == [20 if factory in SELECTING else 1820]


def test_products_of_flat_vectors_are_taken_a_few_queries_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index, vectors, removed = made("Flat"), drawn(30, WIDTH, 1), np.arange(100)
    expected = best_rows(require_faiss(), index, vectors, 20, removed)
    monkeypatch.setattr(ann_search, "PRODUCT_BYTES", 7 * 4 * ROWS)
    found = best_rows(require_faiss(), index, vectors, 20, removed)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """600 pictures, of which the build skipped one; two checkpoints and three timesteps."""
    names = [f"{number}.png" for number in range(600)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "SHARD_ROWS", 32)
        store = Store.create(tmp_path_factory.mktemp("whole") / "idx", RECIPE, names)
    rows = drawn(600, 96, 3).reshape(600, 2, 3, 16)
    for shard in store.missing():
        some_rows = rows[shard.start : shard.stop, shard.checkpoint].copy()
        skipped = [5] if shard.start == 0 else []
        some_rows[skipped] = 0
        store.write(shard, some_rows, np.zeros(some_rows.shape[:2], np.float32), skipped)
    store.finish()
    return Store.finished(store.location)


@pytest.mark.parametrize("method", [*METHODS, "retrac-whitened"])
@pytest.mark.parametrize("factory", ["flat", "PCA96,SQfp16", "HR,RaBitQ8", "HR,RaBitQfs4"])
def test_nine_tenths_removed_leave_the_true_ten(
    whole: Store, tmp_path: Path, method: str, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of files one of which has no picture left, against brute force by the search vectors."""
    shutil.copytree(str(whole.location), tmp_path / "idx")
    store = Store.finished(tmp_path / "idx")
    monkeypatch.setattr(ann_making, "FILE_BYTES", 1)  # a file for 32 pictures
    build_ann_index(store, method, factory)
    random = np.random.default_rng(4)
    removed = {*range(64, 96), *random.permutation(600)[:540].tolist()}
    remove(store.location, [store.sample_ids[row] for row in removed - {5}])
    store = Store.finished(store.location)
    saved = saved_ann_index(store, method)
    assert saved is not None
    index = AnnIndex(store, method, saved.record, whitening=open_whitening(store, method))
    rows = np.stack([store.read("unnormalized", c, slice(0, 600)) for c in range(2)], axis=1)
    if method != "tracin":
        norms = np.linalg.norm(rows, axis=3, keepdims=True)
        rows = rows / np.where(norms == 0, 1, norms)
    queries = drawn(12, 96, 5)
    products = index.row_vectors(rows) @ queries.T
    kept = np.setdiff1d(np.arange(600), [*removed, 5])
    lists = index.ranked(queries, 40)
    assert lists[0].tolist() == index.ranked(queries[:1], 40)[0].tolist()
    shares = []
    for q, ranked in enumerate(lists):
        assert len(ranked) == min(40, len(kept))
        assert np.isin(ranked, kept).all()
        true_ten = kept[np.argsort(-products[kept, q])[:10]]
        shares.append(np.isin(true_ten, ranked).mean())
        if factory == "flat":
            assert ranked[:10].tolist() == true_ten.tolist()
    assert np.mean(shares) >= 0.99

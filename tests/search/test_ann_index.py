"""What FAISS proposes holds the true hits, as often as is said, whatever the index is made of."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pictures
from helpers import RECIPE, fill
from hypothesis import given, settings
from hypothesis import strategies as st

import gradindex
from gradindex import recipe as recipe_module
from gradindex.builder.upkeep import remove
from gradindex.errors import CallError, MissingPackage, StoreError
from gradindex.gradients import fold
from gradindex.gradients.fold import search_vectors
from gradindex.recipe import Recipe
from gradindex.search import ann_builder as index_module
from gradindex.search import ann_index as search_index
from gradindex.search import ann_making, gpu
from gradindex.search.ann_builder import build_ann_index, open_ann_index
from gradindex.search.ann_index import saved_ann_index
from gradindex.search.scoring import METHODS, scan_both_ends
from gradindex.store import store as store_module
from gradindex.store.store import Store


@settings(max_examples=20, deadline=None)
@given(c=st.integers(1, 3), t=st.integers(1, 3), d=st.integers(1, 9), n=st.integers(1, 4))
def test_narrow_rows_are_laid_side_by_side(c: int, t: int, d: int, n: int) -> None:
    rows = np.random.default_rng(0).standard_normal((n, c, t, d)).astype(np.float32)
    np.testing.assert_array_equal(search_vectors(rows, RECIPE), rows.reshape(n, -1))


def test_wide_rows_are_folded_without_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folded inner products are right on average over seeds: within 4 standard errors."""
    for module in (fold, recipe_module):
        monkeypatch.setattr(module, "SEARCH_WIDTH", 16)
    rows = np.random.default_rng(0).standard_normal((3, 2, 5, 12)).astype(np.float32)
    truth = np.einsum("nctd,mctd->nm", rows, rows)
    grams = []
    for seed in range(500):
        vectors = search_vectors(rows, Recipe.from_json({**RECIPE.to_json(), "seed": seed}))
        assert vectors.shape == (3, 16)
        grams.append(vectors @ vectors.T)
    assert (np.abs(np.mean(grams, 0) - truth) < 4 * np.std(grams, 0) / np.sqrt(500)).all()


def test_folded_candidates_are_ranked_again_exactly(
    tmp_path: Path, model: Path, queries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAISS sees 512 of 2 × 512 numbers, proposes 30 of 60 pictures; scores shown are exact."""
    for module in (fold, recipe_module):
        monkeypatch.setattr(module, "SEARCH_WIDTH", 512)
    monkeypatch.setattr(ann_making, "CANDIDATES", (30,))
    data = make_pictures(tmp_path / "data", 60)
    index = gradindex.build(
        tmp_path / "i", model=model, data=data, timesteps=2, dim=512, device="cpu"
    )
    for method in METHODS:
        facts = build_ann_index(index.store, method, "flat").record
        assert (facts.width, facts.candidates) == (512, 30)
        scores = index.scores(queries, method)
        for row, result in zip(scores, index.query(queries, 3, method), strict=True):
            assert [hit.row for hit in result.hits] == np.argsort(-row)[:3].tolist()
            np.testing.assert_array_equal(result.scores, np.sort(row)[::-1][:3])
        few = build_ann_index(
            index.store, method, "PCA256,SQfp16"
        ).record  # more directions than pictures
        assert few.recall_at_10 == pytest.approx(facts.recall_at_10, abs=0.01)


WIDE = replace(RECIPE, checkpoints=("a" * 64,), timesteps=(250, 750), dim=32)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """1,500 pictures whose rows share a direction, as gradients do, and have uneven norms."""
    random, ids = np.random.default_rng(0), [f"{number}.png" for number in range(1500)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "SHARD_ROWS", 128)
        store = Store.create(tmp_path_factory.mktemp("many") / "idx", WIDE, ids)
    for shard in store.shards():
        shape = shard.stop - shard.start, 2, 32
        rows = random.standard_normal(shape) * np.linspace(2, 0.2, 32) + np.eye(32)[0]
        rows *= random.lognormal(size=(len(rows), 1, 1))
        store.write(
            shard,
            rows.astype(np.float32),
            np.zeros(shape[:2], np.float32),
            [5] if shard.number == 0 else [],
        )
    store.finish()
    return Store(store.location)


def true_lists(store: Store, method: str, queries: np.ndarray, k: int) -> list[list[int]]:
    """The best k rows by the formula, the skipped one left out."""
    rows = store.unnormalized[0].astype(np.float64)
    if method == "retrac":
        rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    scores = np.einsum("ntd,qtd->qn", rows, queries[:, 0])
    scores[:, store.excluded] = -np.inf
    return [np.argsort(-row)[:k].tolist() for row in scores]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("factory", "bytes_each", "files"),
    [
        ("flat", 256, 1),
        ("flat", 256, 3),
        ("PCA48,SQfp16", 96, 1),
        ("HR,RaBitQfs", 16, 1),
        ("HR,RaBitQfs4", 52, 3),
        ("IVF8,SQ8", 65, 3),
    ],
)
def test_the_true_ten_are_among_the_candidates(
    many: Store,
    method: str,
    factory: str,
    bytes_each: int,
    files: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of other queries: as often as measured, save for chance; in one file or several."""
    monkeypatch.setattr(ann_making, "FILE_BYTES", bytes_each * 1536 // files)
    index = build_ann_index(many, method, factory)
    assert len(index.record.files) == files
    assert index.record.recall_at_10 >= 0.99
    random = np.random.default_rng(1)
    queries = (
        random.standard_normal((50, 1, 2, 32)) * np.linspace(2, 0.2, 32) + np.eye(32)[0]
    ).astype(np.float32)
    found = index.candidates(search_vectors(queries, WIDE), 10)
    assert found is not None
    lists = list(zip(true_lists(many, method, queries, 10), found, strict=True))
    assert np.mean([len({*true} & {*mine}) / 10 for true, mine in lists]) >= 0.98
    assert {len(mine) for mine in found} == {min(1499, index.record.candidates)}
    assert all(5 not in mine and (np.diff(mine) > 0).all() for mine in found)
    for query, mine in zip(
        search_vectors(queries, WIDE), found, strict=True
    ):  # alone as beside others
        (alone,) = index.candidates(query[None], 10)
        np.testing.assert_array_equal(alone, mine)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU and faiss-gpu")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_finds_what_the_cpu_finds(many: Store, method: str) -> None:
    build_ann_index(many, method, "flat")
    vectors = search_vectors(many.unnormalized[0][None, :3].transpose(1, 0, 2, 3), WIDE)
    here, there = open_ann_index(many, method), open_ann_index(many, method, device="cuda")
    assert there._gpu is not None
    for mine, other in zip(
        here.candidates(vectors, 10), there.candidates(vectors, 10), strict=True
    ):
        np.testing.assert_array_equal(mine, other)


class FaissWithGpu:
    """FAISS as it is, with GPUs that are none: what is copied to one notes which, and searches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int, fails: bool = False) -> None:
        self._faiss, self._fails = search_index.require_faiss(), fails
        self.copies: list[int] = []
        monkeypatch.setattr(search_index, "require_faiss", lambda: self)
        memory = {"mem_get_info": lambda number: (free, 1 << 40), "current_device": lambda: 3}
        for name, value in memory.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._faiss, name)

    StandardGpuResources = object

    def get_num_gpus(self) -> int:
        return 4

    def index_cpu_to_gpu(self, resources: object, number: int, index: Any) -> Any:
        self.copies.append(number)
        if self._fails:
            raise RuntimeError("Error in cudaMalloc: out of memory")
        return SimpleNamespace(search=index.search, getDevice=lambda: number)


def flat_size(store: Store) -> int:
    return sum(part.bytes for part in build_ann_index(store, "retrac", "flat").record.files)


@pytest.mark.parametrize(("device", "number"), [("cuda", 3), ("cuda:0", 0), ("cuda:1", 1)])
def test_vectors_lie_on_the_gpu_asked_for_where_they_fit_there(
    many: Store, monkeypatch: pytest.MonkeyPatch, device: str, number: int
) -> None:
    """Judged by the GPU's memory, not by this machine's, of which nothing is free here."""
    monkeypatch.setattr(ann_making, "FILE_BYTES", 256 * 512)
    size = flat_size(many)
    vectors = search_vectors(many.unnormalized[0][None, :3].transpose(1, 0, 2, 3), WIDE)
    expected = open_ann_index(many, "retrac").ranked(vectors, 20)
    monkeypatch.setattr(gpu, "free_memory", lambda: 0)
    faiss = FaissWithGpu(monkeypatch, free=2 * size)
    index = open_ann_index(many, "retrac", device=device)
    for _ in range(2):
        np.testing.assert_array_equal(index.ranked(vectors, 20), expected)
    assert faiss.copies == [number] * 3
    assert len(index._open) == 3


@pytest.mark.parametrize("fails", [False, True])
def test_vectors_that_do_not_fit_on_the_gpu_are_searched_on_the_cpu(
    many: Store, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Seen before they are copied, or by FAISS, where others have taken the memory meanwhile."""
    size = flat_size(many)
    vectors = search_vectors(many.unnormalized[0][None, :3].transpose(1, 0, 2, 3), WIDE)
    expected = open_ann_index(many, "retrac").ranked(vectors, 20)
    faiss = FaissWithGpu(monkeypatch, free=2 * size - (not fails), fails=fails)
    index = open_ann_index(many, "retrac", device="cuda:1")
    reason = "Error in cudaMalloc: out of memory" if fails else "they have 0 MiB, half of 0 MiB"
    with pytest.warns(UserWarning, match="searches them on the CPU") as caught:
        np.testing.assert_array_equal(index.ranked(vectors, 20), expected)
    assert str(caught[0].message).startswith(f"search vectors do not fit on cuda:1 ({reason}")
    # Of one query alone too, which takes another way; without a further warning.
    np.testing.assert_array_equal(index.ranked(vectors[:1], 20), expected[:1])
    assert len(caught) == 1
    assert faiss.copies == [1] * fails


def test_codes_are_searched_on_the_cpu_whatever_the_gpu_has(
    many: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_ann_index(many, "retrac", "PCA48,SQfp16")
    vectors = search_vectors(many.unnormalized[0][None, :3].transpose(1, 0, 2, 3), WIDE)
    faiss = FaissWithGpu(monkeypatch, free=0)
    assert len(open_ann_index(many, "retrac", device="cuda").ranked(vectors, 20)) == 3
    assert faiss.copies == []


def test_rows_whose_squares_vanish_in_float32_are_scanned(tmp_path: Path) -> None:
    """They agree with their norms all the same, and the scan finds the true ten."""
    store = Store.create(tmp_path / "idx", WIDE, [str(number) for number in range(40)])
    rows = np.random.default_rng(0).standard_normal((40, 2, 32))
    store.write(store.shards()[0], (1e-25 * rows).astype(np.float32), np.zeros((40, 2), np.float32))
    store.finish()
    query = rows[:1, None].astype(np.float32)
    for method in METHODS:
        found = scan_both_ends(store, query, method, None, 10)[1][0]
        assert {*true_lists(store, method, query, 10)[0]} <= {*found.tolist()}


def test_measured_recall_is_that_of_the_rows(many: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted again, one query after the other, with so few candidates that some are missed."""
    monkeypatch.setattr(ann_making, "CANDIDATES", (12,))
    index = build_ann_index(many, "tracin", "HR,RaBitQfs")
    rows, kept = many.unnormalized[0], np.setdiff1d(np.arange(1500), [5])
    one = kept[np.linspace(0, 1498, 64).astype(int)]
    shares = []
    for row, other in zip(one, np.roll(one, 32), strict=True):
        query = (rows[row] + rows[other])[None, None]
        true = [
            each for each in true_lists(many, "tracin", query, 12)[0] if each not in (row, other)
        ][:10]
        (ranked,) = index.ranked(search_vectors(query, WIDE), 14)
        shares.append(
            len({*true} & {*[each for each in ranked if each not in (row, other)][:12]}) / 10
        )
    assert index.record.recall_at_10 == pytest.approx(np.mean(shares), abs=1e-4)
    assert 0.5 < index.record.recall_at_10 < 1


def test_auto_goes_on_to_what_reaches_the_recall(
    many: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build_ann_index(many, "tracin").record.factory == "flat"
    monkeypatch.setattr(index_module, "FLAT_BYTES", 0)
    assert build_ann_index(many, "tracin").record.factory == "PCA64,SQfp16"
    monkeypatch.setattr(index_module, "LADDER", ("PCA4,SQfp16", "HR,RaBitQfs4", "store"))
    monkeypatch.setattr(ann_making, "CANDIDATES", (25,))
    assert build_ann_index(many, "tracin").record.factory == "HR,RaBitQfs4"
    monkeypatch.setattr(ann_making, "CANDIDATES", (5,))
    index = build_ann_index(many, "tracin")
    assert (index.record.factory, index.record.recall_at_10, index.record.asked) == (
        "store",
        1,
        "auto",
    )
    assert index.proposed(np.zeros((1, 1, 2, 32), np.float32), 10, (1,)) is None


def test_files_that_are_no_longer_needed_are_deleted(
    many: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann_making, "FILE_BYTES", 256 * 512)
    build_ann_index(many, "tracin", "flat")
    folder = many.location.path / "faiss"  # type: ignore[union-attr]
    assert sorted(file.name for file in folder.glob("tracin*.faiss")) == [
        f"tracin{n}.faiss" for n in ("-1", "-2", "")
    ]
    build_ann_index(many, "tracin", "PCA8,SQfp16")
    assert [file.name for file in folder.glob("tracin*.faiss")] == ["tracin.faiss"]
    build_ann_index(many, "tracin", "store")
    assert list(folder.glob("tracin*.faiss")) == []


def test_files_that_do_not_fit_into_memory_are_read_for_each_query(
    many: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = search_vectors(many.unnormalized[0][None, :3].transpose(1, 0, 2, 3), WIDE)
    build_ann_index(many, "retrac", "flat")
    expected = open_ann_index(many, "retrac").ranked(vectors, 20)
    monkeypatch.setattr(search_index, "free_memory_on", lambda device: 0)
    index = open_ann_index(many, "retrac")
    for _ in range(2):
        np.testing.assert_array_equal(index.ranked(vectors, 20), expected)
    assert index._open == {}


def test_removed_pictures_are_no_candidates(many: Store, tmp_path: Path) -> None:
    shutil.copytree(many.location.path, tmp_path / "idx")  # type: ignore[union-attr]
    many = Store(tmp_path / "idx")
    index = build_ann_index(many, "tracin", "flat")
    vectors = search_vectors(many.unnormalized[0][None, :3].transpose(1, 0, 2, 3), WIDE)
    before = index.ranked(vectors, 5)
    remove(many.location, [many.sample_ids[row] for row in before[0][:2]])
    again = open_ann_index(Store(many.location), "tracin")
    assert again.record == index.record
    for old, new in zip(before, again.ranked(vectors, 5), strict=True):
        assert len(new) == 5
        assert [row for row in old if row not in before[0][:2]] == [*new][
            : 5 - np.isin(old, before[0][:2]).sum()
        ]


@pytest.mark.parametrize("factory", ["RaBitQ,Flat", "nonsense", ""])
def test_an_unknown_factory_is_one_line(many: Store, factory: str) -> None:
    with pytest.raises(
        CallError, match=rf"factory {factory}: give auto, flat, store, or what FAISS knows \("
    ):
        build_ann_index(many, "tracin", factory)


@pytest.mark.parametrize("damage", ["gone", "flipped", "stale"])
def test_faiss_files_that_do_not_fit_are_made_anew(tmp_path: Path, damage: str) -> None:
    """When a query comes upon them; those made of other rows are not even looked at."""
    store = fill(Store.create(tmp_path / "idx", RECIPE, ["a", "b", "c"]))
    store.finish()
    build_ann_index(store, "tracin", "flat")
    file = tmp_path / "idx/faiss/tracin.faiss"
    content = bytearray(file.read_bytes())
    vector = search_vectors(np.stack([store.unnormalized[c][:1] for c in range(2)], axis=1), RECIPE)
    if damage == "gone":
        file.unlink()
    elif damage == "flipped":
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        fill(store, store.shards()[:1], scale=2.0)
        store.finish()
        assert not saved_ann_index(store, "tracin").fits()  # type: ignore[union-attr]
        assert open_ann_index(store, "tracin").record.asked == "flat"
        return
    with pytest.raises(StoreError, match=r"faiss/tracin\.faiss is damaged"):
        open_ann_index(Store(store.location), "tracin").candidates(vector, 3)


@pytest.mark.parametrize(
    ("wheels", "message"),
    [
        ([], r"FAISS is not installed: pip install 'gradindex\[cpu\]'"),
        (
            ["faiss-cpu", "faiss-gpu-cu12"],
            "faiss-cpu and faiss-gpu-cu12 overwrite each other's files",
        ),
    ],
)
def test_both_faiss_wheels_or_none(
    monkeypatch: pytest.MonkeyPatch, wheels: list[str], message: str
) -> None:
    class Wheel:
        def __init__(self, name: str) -> None:
            self.name = name

    search_index.require_faiss.cache_clear()
    monkeypatch.setattr(
        search_index, "distributions", lambda: [Wheel(name) for name in [*wheels, "numpy"]]
    )
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingPackage, match=message):
        search_index.require_faiss()

"""Search files of several names at once: their directions, their codes, and what is read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import RECIPE

from gradindex.search import ann_builder, ann_files, ann_making
from gradindex.search.ann_builder import build_ann_index, build_ann_indexes
from gradindex.search.ann_files import narrowed, new_faiss_index, strongest_directions, train
from gradindex.search.ann_index import INDEX_NAMES, read_faiss, require_faiss, saved_ann_index
from gradindex.store import store as store_module
from gradindex.store.store import Store

PICTURES = 600


def vectors(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Vectors that share a direction and have a few strong ones, as search vectors do."""
    random = np.random.default_rng(seed)
    strengths = np.arange(1, width + 1) ** -0.7
    rotation, _ = np.linalg.qr(np.random.default_rng(9).standard_normal((width, width)))
    drawn = (random.standard_normal((count, width)) + 2 * np.eye(width)[0]) * strengths
    return (drawn @ rotation).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Two checkpoints and three timesteps of 16 numbers, so search vectors of 96."""
    monkeypatch.setattr(store_module, "SHARD_ROWS", 32)
    store = Store.create(tmp_path / "idx", RECIPE, [str(number) for number in range(PICTURES)])
    rows = vectors(PICTURES, 96).reshape(PICTURES, 2, 3, 16)
    for shard in store.missing():
        some_rows = rows[shard.start : shard.stop, shard.checkpoint].copy()
        skipped = [5] if shard.start == 0 else []
        some_rows[skipped] = 0
        store.write(shard, some_rows, np.zeros(some_rows.shape[:2], np.float32), skipped)
    store.finish()
    return Store.finished(tmp_path / "idx")


@pytest.mark.parametrize(("count", "width"), [(64, 300), (8, 100)])
def test_directions_hold_the_energy_of_the_strongest(count: int, width: int) -> None:
    """That of an exact SVD, to a ten-thousandth; orthonormal, and the same each time."""
    sample = vectors(1000, width)
    found = strongest_directions(sample, count)
    _, _, exact = np.linalg.svd(sample, full_matrices=False)
    energies = [np.square(sample @ some.T).sum() for some in (found, exact[:count])]
    assert energies[0] >= (1 - 1e-4) * energies[1]
    np.testing.assert_allclose(found @ found.T, np.eye(count), atol=1e-5)
    np.testing.assert_array_equal(found, strongest_directions(sample, count))


def test_directions_that_there_are_not_are_zero() -> None:
    """Five vectors of 40 numbers keep their inner products in 16 directions."""
    sample = vectors(5, 40)
    directions = strongest_directions(sample, 16)
    assert not directions[5:].any()
    coordinates = sample @ directions.T
    np.testing.assert_allclose(coordinates @ coordinates.T, sample @ sample.T, rtol=1e-4, atol=1e-4)


def test_a_narrowed_index_is_one_that_was_made_narrow() -> None:
    """Its codes are the same; it searches and can be written."""
    sample = vectors(500, 96)
    made = {}
    for factory in ("PCA32,SQfp16", "PCA8,SQfp16"):
        made[factory] = new_faiss_index(factory, 96)
        train(made[factory], factory, sample)
        made[factory].add(sample)
    narrow = narrowed(made["PCA32,SQfp16"], "PCA8,SQfp16")
    faiss = require_faiss()
    again = read_faiss(faiss.serialize_index(narrow).tobytes(), 96)
    expected = made["PCA8,SQfp16"].search(sample[:20], 10)
    found = again.search(sample[:20], 10)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-2, atol=1e-3)
    assert np.mean([len({*a} & {*b}) for a, b in zip(found[1], expected[1], strict=True)]) > 9.5


def train_by_faiss(faiss_index: Any, factory: str, sample: np.ndarray) -> None:
    """The slow twin, which earlier versions were trained by."""
    faiss_index.train(np.concatenate([sample, -sample]))


@pytest.mark.parametrize("name", INDEX_NAMES)
def test_recall_is_that_of_directions_by_faiss(
    store: Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same number of candidates; files of either kind are opened alike."""
    monkeypatch.setattr(ann_making, "CANDIDATES", (40,))
    ours = build_ann_index(store, name, "PCA24,SQfp16").record
    monkeypatch.setattr(ann_making, "train", train_by_faiss)
    build_ann_index(store, name, "PCA24,SQfp16")
    theirs = saved_ann_index(store, name)
    assert theirs is not None
    assert theirs.fits()
    assert theirs.damages() == []
    assert theirs.record.recall_at_10 > 0.5
    assert ours.recall_at_10 >= theirs.record.recall_at_10 - 0.01


def counted_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of the unnormalized array each piece that is read from now on has."""
    counts: list[int] = []
    pieces = store.pieces

    def counting(name: str, *args: Any) -> Any:
        for piece in pieces(name, *args):
            if name == "unnormalized":
                counts.append(len(piece))
            yield piece

    monkeypatch.setattr(store, "pieces", counting)
    return counts


def test_all_names_and_directions_are_made_in_one_pass(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside it only a sample is read, once; one name or four, narrowed or not."""
    for name in INDEX_NAMES[2:]:
        build_ann_index(store, name, "store")  # makes the factors
    monkeypatch.setattr(ann_builder, "FLAT_BYTES", 0)
    monkeypatch.setattr(ann_builder, "LADDER", ("PCA48,SQfp16", "HR,RaBitQ4", "store"))
    monkeypatch.setattr(ann_making, "NARROWER", {"PCA48,SQfp16": "PCA24,SQfp16"})
    monkeypatch.setattr(ann_files, "TRAINED_ON", 100)
    counts = counted_rows(store, monkeypatch)
    indexes = build_ann_indexes(store, INDEX_NAMES)
    checkpoints = store.shape[0]
    assert sum(counts) <= checkpoints * (PICTURES + 100 + ann_making.QUERIES)
    factories = {name: index.record.factory for name, index in indexes.items()}
    assert factories["tracin"] == "PCA24,SQfp16"
    for name, index in indexes.items():
        assert index.record.recall_at_10 >= ann_making.GOAL
        assert index.record == saved_ann_index(store, name).record  # type: ignore[union-attr]
        assert index.damages() == []
        alone = build_ann_index(store, name).record
        assert (alone.factory, alone.candidates) == (factories[name], index.record.candidates)
        assert [part.sha256 for part in alone.files] == [part.sha256 for part in index.record.files]


def test_codes_after_flat_vectors_are_made_of_these(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where flat vectors do not find enough: nothing more is read from the store."""
    monkeypatch.setattr(ann_making, "CANDIDATES", (3,))
    counts = counted_rows(store, monkeypatch)
    index = build_ann_index(store, "tracin")
    assert (index.record.factory, index.record.recall_at_10) == ("store", 1.0)
    assert sum(counts) <= store.shape[0] * (PICTURES + ann_making.QUERIES)
    assert not list((Path(str(store.location)) / "faiss").glob("*.faiss"))


def test_files_are_of_a_bounded_size(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are narrowed: the vectors are those of one file, in as many as it takes."""
    monkeypatch.setattr(ann_builder, "FLAT_BYTES", 0)
    monkeypatch.setattr(ann_builder, "LADDER", ("PCA48,SQfp16", "store"))
    monkeypatch.setattr(ann_making, "NARROWER", {"PCA48,SQfp16": "PCA24,SQfp16"})
    whole = build_ann_index(store, "tracin")
    monkeypatch.setattr(ann_making, "FILE_BYTES", 96 * 64)
    index = build_ann_index(store, "tracin")
    assert index.record.factory == "PCA24,SQfp16"
    assert [part.rows for part in index.record.files] == [
        (start, min(start + 128, PICTURES)) for start in range(0, PICTURES, 128)
    ]
    queries = index.query_vectors(
        store.read("unnormalized", 0, slice(20, 24))[:, None].repeat(2, 1)
    )
    for mine, expected in zip(index.ranked(queries, 20), whole.ranked(queries, 20), strict=True):
        assert len({*mine} & {*expected}) >= 19

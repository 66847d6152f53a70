"""Whitening factors of both methods in one pass over the rows: the same, and what is read."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers import RECIPE, fill

from gradindex.builder.upkeep import grow
from gradindex.recipe import FOLDED
from gradindex.search import ann_builder, ann_files, ann_making, factor_making
from gradindex.search.ann_builder import build_ann_indexes
from gradindex.search.ann_index import INDEX_NAMES
from gradindex.search.factors import factors_file, saved_factors
from gradindex.search.scoring import METHODS
from gradindex.search.whitening import Whitening, make_whitenings
from gradindex.store import store as store_module
from gradindex.store.digests import sha256
from gradindex.store.manifest import seal
from gradindex.store.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """300 pictures, two checkpoints, three timesteps, 16 numbers."""
    monkeypatch.setattr(store_module, "SHARD_ROWS", 32)
    created = Store.create(tmp_path / "idx", RECIPE, [str(number) for number in range(300)])
    fill(created).finish()
    return Store.finished(tmp_path / "idx")


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many unnormalized rows each piece that is read from now on has."""
    counts: list[int] = []
    pieces = Store.pieces

    def counting(store: Store, name: str, *args: object) -> Iterator[np.ndarray]:
        for piece in pieces(store, name, *args):  # type: ignore[arg-type]
            if name == "unnormalized":
                counts.append(len(piece))
            yield piece

    monkeypatch.setattr(Store, "pieces", counting)
    return counts


def contents(store: Store) -> dict[str, bytes]:
    """The files of the factors."""
    folder = Path(str(store.location)) / "whiten"
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def made_one_by_one(store: Store, place: Path) -> dict[str, bytes]:
    """The slow twin: the files in a copy of a store whose factors are made for each method."""
    shutil.copytree(str(store.location), place)
    alone = Store.finished(place)
    for method in METHODS:
        Whitening(alone, method)
    return contents(alone)


def test_both_methods_take_one_pass_and_get_the_same_factors(
    store: Store, tmp_path: Path, rows_read: list[int]
) -> None:
    expected = made_one_by_one(store, tmp_path / "alone")
    assert sum(rows_read) == 2 * 2 * 300
    rows_read.clear()
    make_whitenings(store, METHODS)
    assert sum(rows_read) == 2 * 300
    assert contents(store) == expected
    rows_read.clear()
    make_whitenings(store, METHODS)
    assert rows_read == []


def test_a_little_memory_takes_a_pass_for_each_timestep(
    store: Store, tmp_path: Path, rows_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = made_one_by_one(store, tmp_path / "alone")
    rows_read.clear()
    monkeypatch.setattr(factor_making, "free_memory_on", lambda device: 1)
    make_whitenings(store, METHODS)
    assert sum(rows_read) == 3 * 2 * 300
    assert contents(store) == expected


def test_new_pictures_are_read_once_for_both(
    store: Store, tmp_path: Path, rows_read: list[int]
) -> None:
    make_whitenings(store, METHODS)
    fill(grow(store, [str(number) for number in range(300, 400)])).finish()
    grown = Store.finished(store.location)
    expected = made_one_by_one(grown, tmp_path / "alone")
    rows_read.clear()
    make_whitenings(grown, METHODS)
    assert 2 * 100 <= sum(rows_read) < 2 * 150  # whole chunks are read
    assert contents(grown) == expected


def test_only_methods_without_factors_get_them(store: Store, rows_read: list[int]) -> None:
    Whitening(store, "retrac")
    before = contents(store)
    rows_read.clear()
    make_whitenings(store, METHODS)
    assert sum(rows_read) == 2 * 300
    assert {name: contents(store)[name] for name in before} == before


def test_factors_that_are_none_are_not_extended(store: Store) -> None:
    """Sealed as if they were some: all are made anew from all rows."""
    make_whitenings(store, METHODS)
    saved = saved_factors(store, "tracin")
    assert saved is not None
    file = saved.blocks[4].file
    zeros = bytes(4 * 16 * 16)
    blocks = [
        replace_digest(block, sha256(zeros)) if block.file == file else block
        for block in saved.blocks
    ]
    store.location.publish(file, zeros)
    sealed = seal(msgspec.structs.replace(saved, blocks=blocks))
    store.location.publish(factors_file("tracin"), sealed)
    fill(grow(store, [str(number) for number in range(300, 400)])).finish()
    grown = Store.finished(store.location)
    make_whitenings(grown, METHODS)
    extended = contents(grown)
    shutil.rmtree(Path(str(store.location)) / "whiten")
    make_whitenings(grown, METHODS)
    assert extended == contents(grown)


def replace_digest(block: msgspec.Struct, digest: str) -> msgspec.Struct:
    return msgspec.structs.replace(block, sha256=digest)


def test_folded_rows_of_each_method_are_their_own(tmp_path: Path) -> None:
    recipe = replace(RECIPE, rows=FOLDED)
    names = [str(number) for number in range(60)]
    store = Store.create(tmp_path / "idx", recipe, names)
    random = np.random.default_rng(0)
    for shard in store.shards():
        shape = shard.stop - shard.start, *store.shape[2:]
        rows, units = random.standard_normal((2, *shape)).astype(np.float32)
        store.write(shard, rows, np.zeros(shape[:2], np.float32), units=units)
    store.finish()
    store = Store.finished(store.location)
    expected = made_one_by_one(store, tmp_path / "alone")
    make_whitenings(store, METHODS)
    assert contents(store) == expected


def test_all_that_an_index_has_is_made_in_two_passes(
    store: Store, rows_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for the factors, one for the search files, beside a sample to train and measure with."""
    monkeypatch.setattr(ann_builder, "FLAT_BYTES", 0)
    monkeypatch.setattr(ann_builder, "LADDER", ("PCA48,SQfp16", "store"))
    monkeypatch.setattr(ann_files, "TRAINED_ON", 50)
    build_ann_indexes(store, INDEX_NAMES)
    assert sum(rows_read) <= 2 * (2 * 300 + 50 + ann_making.QUERIES)

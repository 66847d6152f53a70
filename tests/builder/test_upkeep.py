"""A living index: pictures are added and taken out, and whatever happens meanwhile it answers."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_pictures

import gradindex
from gradindex.builder import shard_gradients, shard_maker
from gradindex.builder.upkeep import compact, remove
from gradindex.builder.verify import damages
from gradindex.errors import CallError, RecipeMismatch, StoreError
from gradindex.report.info import describe
from gradindex.search.ann_builder import build_ann_index
from gradindex.store import store as store_module
from gradindex.store.disk import Disk
from gradindex.store.store import Store

Build = Callable[..., gradindex.Index]
OLD = ("p001.png", "p003.png", "p004.png", "p005.png", "p007.png", "p008.png")
NEW = ("p000.png", "p002.png", "p006.png")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Nine pictures, three of which are in a folder of their own yet."""
    folder = make_pictures(tmp_path / "data", 9)
    (tmp_path / "later").mkdir()
    for name in NEW:
        (folder / name).rename(tmp_path / "later" / name)
    return folder


@pytest.fixture
def build(tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A build over the pictures that there are, in shards of four: six make one and a half."""
    monkeypatch.setattr(store_module, "SHARD_ROWS", 4)

    def call(index: Path = tmp_path / "idx", **options: Any) -> gradindex.Index:
        settings = {
            "model": model,
            "data": data,
            "timesteps": [100, 700],
            "dim": 16,
            "device": "cpu",
            **options,
        }
        return gradindex.build(index, **settings)  # type: ignore[arg-type]

    return call


def add_the_new(data: Path) -> None:
    for name in NEW:
        shutil.copy(data.parent / "later" / name, data / name)


def ends_on_a_disk_of(limit: int, work: Callable[[], Any]) -> bool:
    """Whether some work comes to its end on a disk that is full after so many files."""
    publish, done = Disk.publish, []

    def fill_up(self: Disk, name: str, content: bytes, *, only_new: bool = False) -> None:
        if len(done) == limit:
            raise OSError("disk full")
        done.append(name)
        publish(self, name, content, only_new=only_new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Disk, "publish", fill_up)
        try:
            work()
        except OSError:
            return False
    return True


def test_new_pictures_are_added_at_the_end(
    build: Build, data: Path, tmp_path: Path, queries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only their gradients are taken, and old rows keep their bytes.

    Each picture has the row of a fresh build.
    """
    before = build().store.unnormalized[:]
    add_the_new(data)
    taken, launch_gradients = [], shard_gradients.launch_gradients
    monkeypatch.setattr(
        shard_gradients,
        "launch_gradients",
        lambda *a: taken.append(len(a[3].names)) or launch_gradients(*a),
    )
    looked_up, reusable_entry = [], shard_maker._reusable_entry
    monkeypatch.setattr(
        shard_maker,
        "_reusable_entry",
        lambda store, shard: looked_up.append(shard) or reusable_entry(store, shard),
    )
    grown = build()
    assert taken == [2, 1]
    assert len(looked_up) == len(set(looked_up)) == 2  # nothing is looked through beforehand
    assert grown.store.sample_ids == [*OLD, *NEW]
    np.testing.assert_array_equal(grown.store.unnormalized[:, :6], before)
    fresh = build(tmp_path / "fresh")
    order = [fresh.store.sample_ids.index(name) for name in grown.store.sample_ids]
    np.testing.assert_allclose(
        grown.store.unnormalized[:], fresh.store.unnormalized[:][:, order], rtol=1e-3, atol=1e-5
    )
    for method in ("tracin", "retrac"):
        for mine, theirs in zip(
            grown.query(queries, 9, method), fresh.query(queries, 9, method), strict=True
        ):
            assert mine.ids == theirs.ids
    assert list(damages(tmp_path / "idx")) == []
    thumbnail = grown.thumbnail(6)
    assert thumbnail is not None
    assert thumbnail.tobytes() == fresh.thumbnail(0).tobytes()  # type: ignore[union-attr]
    taken.clear()
    build()
    assert taken == []


@pytest.mark.filterwarnings("ignore:.*the store is scanned")
def test_until_they_are_in_the_old_ones_answer(
    build: Build, data: Path, tmp_path: Path, queries: list[Path]
) -> None:
    """Whichever file a crash comes before, the index answers as it did, or as it will.

    Run again, the build ends.
    """

    def answers(index: gradindex.Index) -> tuple[list[gradindex.Result], list[gradindex.Result]]:
        return index.query(queries, 9, whiten=False), index.query(queries, 9)

    def same(one: Any, other: Any) -> bool:
        return one[0] == other[0] and alike(one[1], other[1])

    old = answers(build())
    shutil.copytree(tmp_path / "idx", tmp_path / "old")
    add_the_new(data)
    new, found = answers(build()), []
    for limit in range(200):
        place = tmp_path / f"idx{limit}"
        shutil.copytree(tmp_path / "old", place)
        if ends_on_a_disk_of(limit, lambda: build(place)):  # noqa: B023
            break
        found.append(answers(gradindex.open(place)))
        assert same(answers(build(place)), new)
        assert list(damages(place)) == []
    assert 20 < limit < 200
    assert [same(answer, old) or same(answer, new) for answer in found] == [True] * limit
    assert any(same(answer, old) for answer in found)
    assert any(same(answer, new) for answer in found)


def alike(one: list[gradindex.Result], other: list[gradindex.Result]) -> bool:
    """Factors that were extended are those that are made of all rows, but for rounding."""
    pairs = zip(one, other, strict=True)
    return all(
        a.ids == b.ids and np.allclose(a.scores, b.scores, 1e-3, 1e-3 * abs(b.scores[0]))
        for a, b in pairs
    )


def test_a_picture_that_is_gone_must_be_removed_first(
    build: Build, data: Path, queries: list[Path]
) -> None:
    index = build()
    (data / "p003.png").unlink()
    with pytest.raises(
        RecipeMismatch, match=r"1 of 6 pictures is gone, such as 'p003\.png'; `remove` them first"
    ):
        build()
    assert remove(index.store.location, ["p003.png"]) == 1
    again = build()
    assert again.store.excluded == [1]
    assert [len(result.hits) for result in again.query(queries, 9)] == [5, 5]
    assert again.thumbnail(1) is None


@pytest.mark.parametrize("method", ["tracin", "retrac"])
def test_removed_pictures_are_never_returned(
    build: Build, data: Path, tmp_path: Path, queries: list[Path], method: str
) -> None:
    """Not by an index that is opened after, nor after a build over the same or more pictures."""
    index = build()
    best = index.query(queries[:1], 1, method)[0].ids[0]
    expected = [name for name in index.query(queries[:1], 9, method)[0].ids if name != best]
    assert remove(tmp_path / "idx", [best, best]) == 1
    assert remove(tmp_path / "idx", [best]) == 0
    for again in (gradindex.open(tmp_path / "idx"), build()):
        assert again.query(queries[:1], 9, method)[0].ids == expected
        assert [*np.flatnonzero(np.isnan(again.scores(queries[:1], method)[0]))] == [
            OLD.index(best)
        ]
    assert list(damages(tmp_path / "idx")) == []
    add_the_new(data)
    assert best not in build().query(queries[:1], 9, method)[0].ids


def test_an_unknown_id_removes_nothing(build: Build, tmp_path: Path) -> None:
    index = build()
    with pytest.raises(CallError, match=r"1 of 2 ids is not in it, such as 'nobody'"):
        remove(tmp_path / "idx", ["p003.png", "nobody"])
    assert gradindex.open(tmp_path / "idx").store.excluded == index.store.excluded == []


@pytest.mark.parametrize("method", ["tracin", "retrac"])
def test_whitening_follows_the_pictures(
    build: Build, data: Path, tmp_path: Path, queries: list[Path], method: str
) -> None:
    """Through growth, removal and compaction.

    Answers are those of an index that is built over the same pictures.
    """
    index = build()
    index.query(queries, 3, method, whiten=True)
    add_the_new(data)
    grown, fresh = build(), build(tmp_path / "fresh")
    assert list(damages(tmp_path / "idx")) == []
    for one in (grown, gradindex.open(tmp_path / "idx")):
        assert alike(
            one.query(queries, 9, method, whiten=True), fresh.query(queries, 9, method, whiten=True)
        )
    gone = grown.query(queries[:1], 1, method, whiten=True)[0].ids
    remove(tmp_path / "idx", gone)
    compact(tmp_path / "idx")
    assert list(damages(tmp_path / "idx")) == []
    (data / gone[0]).unlink()
    fresh, again = build(tmp_path / "without"), gradindex.open(tmp_path / "idx")
    results = again.query(queries, 8, method, whiten=True)
    for mine, other in zip(results, fresh.query(queries, 8, method, whiten=True), strict=True):
        assert mine.ids == other.ids


def test_an_index_without_a_picture_says_so(
    build: Build, tmp_path: Path, queries: list[Path]
) -> None:
    index = build()
    remove(tmp_path / "idx", OLD)
    with pytest.raises(CallError, match="every picture was skipped or removed"):
        build_ann_index(gradindex.open(tmp_path / "idx").store, "tracin")
    with pytest.raises(CallError, match="there is none to answer with"):
        gradindex.open(tmp_path / "idx").query(queries[:1], 3)
    assert index.store.summary.pictures == 6


def test_compact_erases_rows_and_ids(
    build: Build, data: Path, tmp_path: Path, queries: list[Path]
) -> None:
    """No byte of them is left; the others keep their rows, fingerprints and answers.

    A build adds nothing again.
    """
    (data / "p004.png").write_text("no picture")
    index = build(skip_bad=True)
    gone, kept = index.store.unnormalized[0][[0, 4]], index.store.unnormalized[:][:, [1, 2, 3, 5]]
    remove(tmp_path / "idx", [OLD[0], OLD[4]])
    expected = gradindex.open(tmp_path / "idx").query(queries, 9, whiten=False)
    assert "6 (1 skipped, 2 removed)" in describe(Store(tmp_path / "idx"))
    opened = gradindex.open(tmp_path / "idx")
    store = compact(tmp_path / "idx")
    with pytest.raises(StoreError, match="was exchanged since it was opened, as `compact` does"):
        opened.query(queries, 3)  # its ids would be those of other rows
    assert "4 (1 skipped)" in describe(store)
    assert store.sample_ids == [OLD[row] for row in (1, 2, 3, 5)]
    assert store.excluded == [1]
    np.testing.assert_array_equal(store.unnormalized[:], kept)
    everything = b"".join(
        file.read_bytes() for file in (tmp_path / "idx").rglob("*") if file.is_file()
    )
    for row, name in zip(gone, (OLD[0], OLD[4]), strict=True):
        assert name.encode() not in everything
        assert row.tobytes() not in everything
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("idx")) == [
        "idx"
    ]
    for again in (gradindex.open(tmp_path / "idx"), build(skip_bad=True)):
        for old, new in zip(expected, again.query(queries, 9, whiten=False), strict=True):
            assert (new.ids, new.scores) == (old.ids, old.scores)
        assert again.store.sample_ids == store.sample_ids
    assert list(damages(tmp_path / "idx")) == []
    with pytest.raises(CallError, match="none of its pictures are removed; nothing to do"):
        compact(tmp_path / "idx")


def test_a_compaction_that_stops_loses_nothing(
    build: Build, tmp_path: Path, queries: list[Path]
) -> None:
    """Whichever file it stops before, the old index answers as before, and run again it ends."""
    build()
    remove(tmp_path / "idx", [OLD[0]])
    expected = [
        result.ids for result in gradindex.open(tmp_path / "idx").query(queries, 9, whiten=False)
    ]
    shutil.copytree(tmp_path / "idx", tmp_path / "old")
    for limit in range(0, 200, 3):
        place = tmp_path / f"idx{limit}"
        shutil.copytree(tmp_path / "old", place)
        if ends_on_a_disk_of(limit, lambda: compact(place)):  # noqa: B023
            break
        assert [
            result.ids for result in gradindex.open(place).query(queries, 9, whiten=False)
        ] == expected
        compact(place)
        assert list(damages(place)) == []
        assert [
            result.ids for result in gradindex.open(place).query(queries, 9, whiten=False)
        ] == expected
    assert 20 < limit < 199


def test_what_a_compaction_leaves_behind_is_no_harm(build: Build, tmp_path: Path) -> None:
    """Killed after the exchange, the old index lies beside; the next compaction deletes it."""
    build()
    shutil.copytree(tmp_path / "idx", tmp_path / "idx.compact")
    Disk(tmp_path / "idx.compact").mark()
    remove(tmp_path / "idx", [OLD[0]])
    assert compact(tmp_path / "idx").sample_ids == [*OLD[1:]]
    assert not (tmp_path / "idx.compact").exists()


def test_a_compaction_to_another_place(build: Build, tmp_path: Path) -> None:
    build()
    remove(tmp_path / "idx", [OLD[0]])
    compact(tmp_path / "idx", tmp_path / "other")
    assert gradindex.open(tmp_path / "other").store.sample_ids == [*OLD[1:]]
    assert gradindex.open(tmp_path / "idx").store.sample_ids == [*OLD]
    remove(tmp_path / "idx", OLD)
    with pytest.raises(CallError, match="all of its pictures are removed"):
        compact(tmp_path / "idx")


@pytest.mark.parametrize("kernel", [True, False])
def test_two_folders_change_names(
    tmp_path: Path, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.setattr("ctypes.CDLL", lambda *a, **k: object())
    for name in ("one", "two"):
        Disk(tmp_path / name).publish("file", name.encode())
    Disk(tmp_path / "one").exchange(Disk(tmp_path / "two"))
    assert [Disk(tmp_path / name).read("file") for name in ("one", "two")] == [b"two", b"one"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]

"""Builds that change one index at the same time: none undoes what another has written."""

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import IDS, RECIPE, fill

from gradindex.builder.upkeep import grow
from gradindex.data.file_lock import lock
from gradindex.store import header_lock
from gradindex.store.disk import Disk
from gradindex.store.location import Location, locate
from gradindex.store.manifest import COPIES, HEADER, header_damages
from gradindex.store.store import Store

NEW = ["new.png", "newer.png"]


@pytest.fixture(params=["disk", "bucket"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A finished store of each kind."""
    if request.param == "disk":
        place = locate(tmp_path / "idx")
    else:
        name = re.sub(r"\W", "-", request.node.name)
        place = locate(f"{request.getfixturevalue('bucket')}/lock-{name}")
    fill(Store.create(place, RECIPE, IDS)).finish()
    return place


def test_ids_are_those_of_the_header_while_files_are_still_the_old_ones(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their chunk is padded with empty texts, which are no ids of new pictures."""
    publish, seen = type(location).publish, []

    def look_before(self: Any, name: str, content: bytes, **options: Any) -> None:
        seen.append(list(Store(location).sample_ids))
        publish(self, name, content, **options)

    store = Store(location)
    monkeypatch.setattr(type(location), "publish", look_before)
    grow(store, NEW)
    monkeypatch.undo()
    assert {len(ids) for ids in seen} == {len(IDS), len(IDS) + len(NEW)}
    assert all(ids in (IDS, [*IDS, *NEW]) for ids in seen)


def test_builds_that_mend_and_grow_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = locate(tmp_path / "idx")
    fill(Store.create(place, RECIPE, IDS)).finish()
    publish, begun = Disk.publish, threading.Event()

    def slow(self: Disk, name: str, content: bytes, **options: Any) -> None:
        publish(self, name, content, **options)
        if name.startswith(COPIES) or name == HEADER:
            begun.set()
            time.sleep(0.1)  # the others come in between

    mended: list[list[str]] = []

    def mend() -> None:
        begun.wait(10)
        mended.append(list(Store.mended(tmp_path / "idx").sample_ids))
        Store(place).update_header(weights=[3.0, 1.0])

    store = Store(place)
    monkeypatch.setattr(Disk, "publish", slow)
    others = [threading.Thread(target=mend) for _ in range(3)]
    for other in others:
        other.start()
    grown = grow(store, NEW)
    for other in others:
        other.join()
    monkeypatch.undo()
    assert grown is not None
    assert mended == [[*IDS, *NEW]] * 3
    assert Store(place).header.weights == [3.0, 1.0]
    assert Store(place).sample_ids == [*IDS, *NEW]
    fill(Store(place)).finish()
    assert list(header_damages(place)) == []


def test_a_store_that_has_grown_meanwhile_is_not_grown_again(location: Location) -> None:
    early = Store(location)
    assert grow(Store(location), NEW) is not None
    assert grow(early, ["other.png"]) is None
    assert Store(location).sample_ids == [*IDS, *NEW]


@pytest.mark.parametrize("kind", ["held", "folder"])
def test_a_lock_that_cannot_be_had_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Another process hangs, or the file cannot be made."""
    place = locate(tmp_path / "idx")
    fill(Store.create(place, RECIPE, IDS)).finish()
    file = tmp_path / "idx" / header_lock.FILE
    monkeypatch.setattr(header_lock, "PATIENCE", 0.1)
    assert not file.exists()
    if kind == "folder":
        file.mkdir()
        assert Store.mended(place).sample_ids == IDS
        return
    with file.open("ab") as stream:
        assert lock(stream.fileno())
        began = time.monotonic()
        assert Store.mended(place).sample_ids == IDS
        assert time.monotonic() - began >= 0.1


def test_a_thread_may_take_a_lock_inside_itself_and_no_other_one(tmp_path: Path) -> None:
    place = locate(tmp_path / "idx")
    fill(Store.create(place, RECIPE, IDS)).finish()
    order: list[str] = []

    def other() -> None:
        with header_lock.header_lock(place):
            order.append("other")

    thread = threading.Thread(target=other)
    with header_lock.header_lock(place), header_lock.header_lock(place):
        thread.start()
        time.sleep(0.2)
        order.append("this")
    thread.join()
    assert order == ["this", "other"]
    assert not (tmp_path / "idx" / header_lock.FILE).exists()


def test_locks_are_held_one_at_a_time(tmp_path: Path) -> None:
    """Though each is deleted as it is given up, while others wait for it."""
    place = locate(tmp_path / "idx")
    fill(Store.create(place, RECIPE, IDS)).finish()
    inside, most = [], []

    def hold() -> None:
        for _ in range(20):
            with header_lock.header_lock(place):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80


def test_ids_are_read_while_a_store_grows_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes between two looks at it is looked at again."""
    location = locate(tmp_path / "idx")
    fill(Store.create(location, RECIPE, IDS)).finish()
    store, kind = Store(location), type(location)
    read_many, growths = kind.read_many, [[*NEW], ["later"]]

    def growing(self: Any, names: Any) -> Any:
        names = list(names)
        if any("sample_ids" in name for name in names) and growths:
            more = growths.pop(0)
            monkeypatch.setattr(kind, "read_many", read_many)
            assert grow(Store(location), more) is not None
            monkeypatch.setattr(kind, "read_many", growing)
        return read_many(self, names)

    assert grow(Store(location), ["first"]) is not None
    monkeypatch.setattr(kind, "read_many", growing)
    assert list(store.sample_ids)[: len(IDS)] == IDS
    monkeypatch.undo()
    assert not growths
    assert Store(location).sample_ids == [*IDS, "first", *NEW, "later"]

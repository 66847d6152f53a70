"""A store under the faults of the field: removals at the same time, kills, plain file systems."""

import errno
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import IDS, RECIPE, fill

from gradindex.builder.target import check_target
from gradindex.builder.upkeep import compact, grow, id_key, remove
from gradindex.builder.verify import damages
from gradindex.errors import CallError, StoreError
from gradindex.store import drafts, removals
from gradindex.store.disk import Disk
from gradindex.store.location import Location, locate
from gradindex.store.store import Store


@pytest.fixture(params=["disk", "bucket"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty place of each kind."""
    if request.param == "disk":
        return locate(tmp_path / "idx")
    name = re.sub(r"\W", "-", request.node.name)
    return locate(f"{request.getfixturevalue('bucket')}/faults-{name}")


def make_store(location: Path | Location) -> Store:
    """A finished store of ten pictures at a place."""
    store = fill(Store.create(location, RECIPE, IDS))
    store.finish()
    return store


# --- removals --------------------------------------------------------------------------------


def test_a_removal_survives_a_header_that_was_read_before_it(location: Location) -> None:
    """A growing build reads the header, a picture is removed, and the build writes the header."""
    store = make_store(location)
    update_header = Store.update_header

    def update_later(self: Store, **changes: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            read = "gradindex.store.store.read_header_fields"
            fields = removals_of_another(location)
            patch.setattr(read, lambda _: fields)
            update_header(self, **changes)

    def removals_of_another(location: Location) -> dict[str, Any]:
        from gradindex.store.manifest import read_header_fields

        fields = read_header_fields(location)
        assert remove(location, [IDS[3]]) == 1
        return fields

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "update_header", update_later)
        grown = grow(store, ["new.png"])
    assert grown.shape[1] == 11
    assert grown.header.removed == {id_key(IDS[3]): 3}
    assert fill(grown).excluded == [3]


def remove_all(path: str, ids: list[str], ready: Any) -> None:
    """Remove pictures one by one, in a process of its own."""
    ready.wait()
    for name in ids:
        remove(path, [name])


def test_processes_that_remove_while_a_build_grows(tmp_path: Path) -> None:
    """No removal and no new picture is lost, whoever writes last."""
    make_store(tmp_path / "idx")
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    workers = [
        context.Process(target=remove_all, args=(str(tmp_path / "idx"), IDS[start:8:2], ready))
        for start in (0, 1)
    ]
    for worker in workers:
        worker.start()
    ready.set()
    new = []
    while any(worker.is_alive() for worker in workers) or len(new) < 5:
        new.append(f"new{len(new)}.png")
        grow(Store(tmp_path / "idx"), new[-1:])
        Store(tmp_path / "idx").update_header(weights=[1.0, float(len(new))])
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    store = fill(Store(tmp_path / "idx"))
    store.finish()
    assert [*store.sample_ids] == [*IDS, *new]
    assert store.excluded == [*range(8)]


def test_removals_in_the_header_of_an_earlier_version_still_count(tmp_path: Path) -> None:
    store = make_store(tmp_path / "idx")
    store.update_header(removed={id_key(IDS[1]): 1})
    assert remove(tmp_path / "idx", [IDS[1], IDS[2]]) == 1
    assert Store(tmp_path / "idx").excluded == [1, 2]
    folded = compact(tmp_path / "idx", tmp_path / "out")
    assert folded.header.removed == {id_key(IDS[1]): None, id_key(IDS[2]): None}
    assert not (tmp_path / "out" / removals.REMOVED).exists()
    assert remove(tmp_path / "out", [IDS[1]]) == 0


def test_what_is_removed_during_a_compaction_stays_removed(
    location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last instant is after the new index is written, before it takes the old one's place."""
    make_store(location)
    remove(location, [IDS[1]])
    finish = Store.finish

    def finish_late(self: Store) -> None:
        finish(self)
        remove(location, [IDS[4]])

    monkeypatch.setattr(Store, "finish", finish_late)
    out = None if isinstance(location, Disk) else f"{location}-out"
    store = compact(location, out)
    kept = [name for row, name in enumerate(IDS) if row != 1]
    assert [*store.sample_ids] == kept
    assert [store.sample_ids[row] for row in store.excluded] == [IDS[4]]


def test_a_compaction_takes_no_folder_that_is_not_its_own(tmp_path: Path) -> None:
    """Neither another index that `out` names, nor what a person has put at INDEX.compact."""
    make_store(tmp_path / "idx")
    remove(tmp_path / "idx", [IDS[1]])
    for name in ("other", "idx.compact"):
        make_store(tmp_path / name)
    with pytest.raises(CallError, match=r"other: another index lies there, or one that was begun"):
        compact(tmp_path / "idx", tmp_path / "other")
    with pytest.raises(CallError, match=r"idx\.compact: exists and was not made by this index's"):
        compact(tmp_path / "idx")
    for name in ("other", "idx.compact"):
        assert [*Store(tmp_path / name).sample_ids] == IDS
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").write_text("mine")
    with pytest.raises(CallError, match="notes: exists and is not a gradindex index"):
        compact(tmp_path / "idx", tmp_path / "notes")


@pytest.mark.parametrize("suffix", removals.SUFFIXES)
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_damaged_removal_is_named_still_counts_and_is_mended(
    tmp_path: Path, suffix: str, content: bytes | None
) -> None:
    make_store(tmp_path / "idx")
    remove(tmp_path / "idx", [IDS[1], IDS[2]])
    (file,) = (tmp_path / "idx" / "removed").glob(f"????????????????????????????????{suffix}")
    whole = file.read_bytes()
    file.unlink() if content is None else file.write_bytes(content)
    (line,) = [line for line in damages(tmp_path / "idx") if line.startswith("removed/")]
    assert line.split()[0] == f"removed/{file.name}"
    assert Store(tmp_path / "idx").excluded == [1, 2]
    assert remove(tmp_path / "idx", [IDS[1]]) == 0
    assert file.read_bytes() == whole
    for copy in (tmp_path / "idx" / "removed").iterdir():
        copy.write_bytes(b"")
    with pytest.raises(StoreError, match=r"is damaged, and so is its copy; delete both and remove"):
        Store(tmp_path / "idx")


# --- what lies beside an index ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "index", "copy of what was set aside", "file", "link"])
def test_what_a_person_has_put_at_replaced_stays(tmp_path: Path, kind: str) -> None:
    """Neither the end of a build nor an overwrite deletes it; an overwrite is refused."""
    place = Disk(tmp_path / "idx")
    make_store(place)
    mine = tmp_path / "idx.replaced"
    if kind == "folder":
        mine.mkdir()
        (mine / "text").write_text("mine")
    elif kind == "file":
        mine.write_text("mine")
    elif kind == "link":
        mine.symlink_to(tmp_path / "nowhere")
    else:
        make_store(mine)
    if kind == "copy of what was set aside":
        Disk(mine).mark()
        mine.rename(tmp_path / "marked")
        subprocess.run(["cp", "-r", tmp_path / "marked", mine], check=True)
    place.drop_aside()
    assert os.path.lexists(mine)
    with pytest.raises(CallError, match=r"idx\.replaced: exists and was not made by this index's"):
        place.set_aside()
    assert os.path.lexists(mine)
    assert Store(place).missing() == []


def test_what_was_set_aside_is_deleted(tmp_path: Path) -> None:
    """The first that is set aside stays until the end, and what came between is deleted."""
    place = Disk(tmp_path / "idx")
    make_store(place).update_header(weights=[7.0, 1.0])
    place.set_aside()
    make_store(place)
    place.set_aside()
    assert not place.exists()
    assert Store(tmp_path / "idx.replaced").header.weights == [7.0, 1.0]
    place.drop_aside()
    assert not (tmp_path / "idx.replaced").exists()


def draft_of_a_killed_process(folder: Path) -> Path:
    """A draft whose process was killed before it had its name."""
    code = (
        "import os, signal, sys; from pathlib import Path; from gradindex.store import drafts;"
        "drafts.write_draft(Path(sys.argv[1], 'file'), b'half');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)])
    (draft,) = folder.glob(".file-*")
    return draft


def test_drafts_that_kills_have_left_are_deleted(tmp_path: Path) -> None:
    """Those of processes that are gone and old ones; no others, and nothing else."""
    (tmp_path / "c" / "0").mkdir(parents=True)
    gone = draft_of_a_killed_process(tmp_path / "c" / "0")
    mine = drafts.write_draft(tmp_path / "file", b"being written")
    names = {
        "old draft of an earlier version": (".norm.json-abcd_123", 2 * drafts.OLD_SECONDS),
        "new draft of an earlier version": (".norm.json-abcd_124", 0.0),
        "new draft of another machine": (".zarr.json-00000000-1-abcd_123", 0.0),
        "old draft of another machine": (".zarr.json-00000000-1-abcd_124", 2 * drafts.OLD_SECONDS),
        "hidden file": (".DS_Store", 2 * drafts.OLD_SECONDS),
        "file": ("norm-abcd_123", 2 * drafts.OLD_SECONDS),
    }
    for name, age in names.values():
        (tmp_path / name).write_bytes(b"")
        then = time.time() - age
        os.utime(tmp_path / name, (then, then))
    Disk(tmp_path).delete_drafts()
    left = {file.name for file in tmp_path.iterdir() if file.is_file()}
    kept = ("new draft of an earlier version", "new draft of another machine", "hidden file")
    assert left == {mine.name, "norm-abcd_123"} | {names[key][0] for key in kept}
    assert not gone.exists()


# --- file systems of few abilities -----------------------------------------------------------


def refuse(number: int) -> Callable[..., Any]:
    """A call that a file system refuses."""

    def refusing(*args: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    return refusing


@pytest.fixture(params=[errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def plain_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links, permissions and syncs, as exFAT, SMB or FUSE may be."""
    for name in ("link", "chmod", "fsync"):
        monkeypatch.setattr(os, name, refuse(request.param))


@pytest.mark.usefixtures("plain_disk")
@pytest.mark.parametrize("has_renameat2", [True, False])
def test_a_store_on_a_file_system_of_few_abilities(
    tmp_path: Path, has_renameat2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made, grows, shrinks and is set aside as on any other."""
    if not has_renameat2:
        monkeypatch.setattr("ctypes.CDLL", lambda *a, **k: object())
    store = make_store(tmp_path / "idx")
    place = Disk(tmp_path / "idx")
    with pytest.raises(FileExistsError):
        place.publish("zarr.json", b"another", only_new=True)
    assert list(tmp_path.rglob(".*")) == []
    fill(grow(store, ["new.png"])).finish()
    remove(place, [IDS[0]])
    assert [*compact(place).sample_ids] == [*IDS[1:], "new.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["idx"]
    place.set_aside()
    place.drop_aside()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("plain_disk")
def test_an_empty_header_that_a_kill_has_left_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where names are claimed by empty files; not while another process may be about to write."""
    monkeypatch.setattr("ctypes.CDLL", lambda *a, **k: object())
    header = tmp_path / "idx" / "zarr.json"
    header.parent.mkdir()
    header.write_bytes(b"")
    with pytest.raises(FileExistsError):
        Disk(tmp_path / "idx").publish("zarr.json", b"x", only_new=True)
    message = "a build is beginning there, or was stopped as it began; run it again in a minute"
    with pytest.raises(StoreError, match=message):
        make_store(tmp_path / "idx")
    then = time.time() - 2 * drafts.CLAIM_SECONDS
    os.utime(header, (then, then))
    check_target(Disk(tmp_path / "idx"))
    assert make_store(tmp_path / "idx").missing() == []


@pytest.mark.parametrize("name", ["link", "chmod", "fsync"])
def test_other_errors_of_a_file_system_are_raised(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full or broken disk is no disk of few abilities."""
    for number in (errno.ENOSPC, errno.EIO, errno.EROFS):
        monkeypatch.setattr(os, name, refuse(number))
        with pytest.raises(OSError, match=os.strerror(number)):
            Disk(tmp_path).publish("file", b"content", only_new=True)
    assert list(tmp_path.iterdir()) == []


# --- letters that elsewhere are patterns -----------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "file", "bucket"])
def test_brackets_and_stars_in_the_place_of_an_index_are_letters(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """A neighbour that a pattern would find is left alone, and none of its files is read."""
    parents = {"path": tmp_path, "file": f"file://{tmp_path}"}
    parent = parents[kind] if kind in parents else request.getfixturevalue("bucket")
    for name, neighbour in [("idx [v2]", "idx v"), ("a*b", "axb"), ("set [!a-c] {x}", "set d {x}")]:
        Store.create(f"{parent}/{neighbour}", RECIPE, ["another"])
        store = fill(grow(make_store(locate(f"{parent}/{name}")), ["new.png"]))
        store.finish()
        remove(f"{parent}/{name}", [IDS[2]])
        opened = Store.finished(f"{parent}/{name}")
        assert [*opened.sample_ids] == [*IDS, "new.png"]
        assert opened.excluded == [2]
        assert opened.norm[:].shape == (2, 11, 3)
        assert [line for line in damages(opened.location) if "faiss" not in line] == []
        assert [*Store(f"{parent}/{neighbour}").sample_ids] == ["another"]


def test_files_of_others_among_removals_are_left_alone(tmp_path: Path) -> None:
    make_store(tmp_path / "idx")
    remove(tmp_path / "idx", [IDS[2]])
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", ".x.json-abcd_123"):
        (tmp_path / "idx" / "removed" / name).write_bytes(b"")
    assert Store(tmp_path / "idx").excluded == [2]
    assert [line for line in damages(tmp_path / "idx") if line.startswith("removed")] == []

"""`info`, `ids` and `remove`: what an index holds, and which pictures are meant."""

import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest
from conftest import make_pictures
from helpers import IDS, RECIPE, fill, run

import gradindex
from gradindex.cli.main import SECTIONS, main
from gradindex.report.index_facts import index_files
from gradindex.store.selection import select_ids
from gradindex.store.store import Store


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A finished store without search files, of pictures folder/é0.png to folder/é9.png."""
    store = Store.create(
        tmp_path / "idx", RECIPE, [*IDS, "other/1.png", "a*b.png", "axb.png"], weights=[0.5, 0.5]
    )
    fill(store).finish()
    return tmp_path / "idx"


def listed(*arguments: object) -> list[str]:
    done = run("ids", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_ids_are_listed_and_filtered(index: Path) -> None:
    everything = [*IDS, "other/1.png", "a*b.png", "axb.png"]
    assert listed(index) == everything
    assert listed(index, "folder/é[0-2].png") == IDS[:3]
    assert listed(index, "*1.png", "--under", "other") == [IDS[1], "other/1.png"]
    assert listed(index, "a?b.png") == ["a*b.png", "axb.png"]
    assert listed(index, "a*b.png") == ["a*b.png"]  # an id, not a pattern
    assert listed(index, "--removed") == listed(index, "--skipped") == []


def test_what_is_listed_is_removed(index: Path) -> None:
    done = run("remove", index, "--under", "folder/", "other/*.png", "axb.png")
    assert (done.returncode, done.stdout) == (0, f"{index}: 12 of 12 pictures removed\n")
    assert listed(index) == ["a*b.png"]
    assert listed(index, "--removed") == [*IDS, "other/1.png", "axb.png"]
    assert run("remove", index, "axb.png").stdout == f"{index}: 0 of 1 picture removed\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ids", "*.jpg"], "'*.jpg': fits no id; `gradindex ids INDEX` lists them"),
        (["ids", "nosuch.png"], "'nosuch.png': no such id; `gradindex ids "),
        (["remove", "*.jpg", IDS[0]], "'*.jpg': fits no id; `gradindex ids INDEX` lists them"),
        (["remove", "--under", "fold"], "under 'fold': no id begins so; `gradindex ids INDEX`"),
        (["remove", "nobody"], "1 of 1 id is not in it, such as 'nobody'; none is removed"),
    ],
)
def test_what_fits_nothing_is_an_error(index: Path, arguments: list[str], message: str) -> None:
    command, *names = arguments
    done = run(command, index, *names)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert listed(index, "--removed") == []


def test_every_id_comes_once() -> None:
    assert select_ids(["x/1", "x/2"], ["x/2", "x/*"], ["x"]) == ["x/2", "x/1"]


# --- info -----------------------------------------------------------------------------------------


def bytes_on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_info_counts_every_byte(index: Path) -> None:
    (index / "whiten").mkdir()
    (index / "whiten/tracin-0-0.f32").write_bytes(bytes(1000))
    sizes = json.loads(run("info", index, "--format", "json").stdout)["bytes"]
    assert sum(sizes.values()) == bytes_on_disk(index)
    assert sizes["whitening"] == 1000
    assert sizes["ids"] == bytes_on_disk(index / "sample_ids")
    assert {"manifest", "normalized", "unnormalized", "norm", "timestep"} < sizes.keys()
    assert "whitening 0.977 KiB" in run("info", index).stdout


def test_info_says_where_things_were(tmp_path: Path, model: Path, pictures: Path) -> None:
    gradindex.build(tmp_path / "idx", model=model, data=pictures, timesteps=[500], dim=8)
    facts = json.loads(run("info", tmp_path / "idx", "--format", "json").stdout)
    assert (facts["finished"], facts["pictures"], facts["missing"]) == (True, 9, [])
    assert facts["data"]["source"] == str(pictures)
    assert facts["checkpoints"] == [{"path": str(model), "weight": 1.0}]
    assert datetime.fromisoformat(facts["first_shard"]) <= datetime.fromisoformat(
        facts["last_shard"]
    )
    assert facts["search"]["retrac"]["recall_at_10"] == 1
    text = run("info", tmp_path / "idx").stdout
    assert f"data            {pictures}" in text
    assert f"checkpoints     {model}" in text
    assert f"\nwritten         {datetime.now():%Y-}" in text


def test_info_of_an_unfinished_index(tmp_path: Path) -> None:
    Store.create(tmp_path / "idx", RECIPE, IDS)
    done = run("info", tmp_path / "idx", "--format", "json")
    facts = json.loads(done.stdout)
    assert (done.returncode, facts["finished"], facts["first_shard"]) == (3, False, None)
    assert facts["missing"] == ["c000-s000000", "c001-s000000"]
    assert "unfinished: 2 of 2 shards are missing" in done.stderr


def test_files_of_a_bucket_are_those_of_a_disk(tmp_path: Path, bucket: str) -> None:
    stores = [
        fill(Store.create(place, RECIPE, IDS)) for place in (tmp_path / "idx", f"{bucket}/facts")
    ]
    on_disk, in_bucket = map(index_files, stores)
    assert on_disk.bytes == in_bucket.bytes
    assert on_disk.first is not None
    assert in_bucket.last is not None
    assert abs((on_disk.first - in_bucket.last).total_seconds()) < 3600


# --- where pictures have moved --------------------------------------------------------------------


@pytest.fixture
def moved(tmp_path: Path, model: Path, queries: list[Path]) -> Path:
    """A folder with idx/ and pictures/, which were in old/ when the index was built."""
    make_pictures(tmp_path / "old", 4)
    gradindex.build(tmp_path / "idx", model=model, data=tmp_path / "old", timesteps=[500], dim=8)
    shutil.move(tmp_path / "old", tmp_path / "pictures")
    return tmp_path


def test_a_page_says_that_pictures_have_moved(moved: Path, queries: list[Path]) -> None:
    command = ["query", moved / "idx", queries[0], "--output", moved / "page.html"]
    done = run(*command)
    hint = f"no thumbnails: training pictures are not as they were ({moved / 'old'}); --data PATH"
    assert (done.returncode, hint in done.stderr) == (0, True)
    assert "picture not found" in (moved / "page.html").read_text()
    done = run(*command, "--data", moved / "pictures")
    assert (done.returncode, "no thumbnails" in done.stderr) == (0, False)
    assert "picture not found" not in (moved / "page.html").read_text()


def test_other_pictures_are_refused(moved: Path, queries: list[Path]) -> None:
    make_pictures(moved / "other", 3)
    command = ["query", moved / "idx", queries[0], "--format", "html", "--data", moved / "other"]
    done = run(*command)
    assert done.returncode == 2
    assert (
        f"data {moved / 'other'}: 1 of 4 pictures is not there, such as 'p003.png'" in done.stderr
    )


def test_a_diagnosis_says_how_to_find_moved_pictures(moved: Path) -> None:
    done = run("diagnose", moved / "idx", "--out", moved / "out")
    assert done.returncode == 2
    assert "no such file or folder; say where it is now (--data)" in done.stderr
    small = ("--compared", 2, "--queries", 2, "--out", moved / "out")
    done = run("diagnose", moved / "idx", "--data", moved / "pictures", *small)
    assert done.returncode == 0, done.stderr


# --- help -----------------------------------------------------------------------------------------


def test_every_command_is_in_one_section_of_the_help() -> None:
    named = [name for names in SECTIONS.values() for name in names]
    assert sorted(named) == sorted(main.commands)
    text = run("--help").stdout
    places = [text.index(f"\n  {name} ") for name in named]
    assert places == sorted(places)

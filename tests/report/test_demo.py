"""The demo does the whole job; here with few pictures, and a model that is hardly trained."""

import csv
import logging
import shlex
from functools import partial
from pathlib import Path

import pytest
from html_reading import Reading

from gradindex.report import demo
from gradindex.report.drawn_pictures import ARTISTS, drawn_pictures

PER_THING = 26  # 208 pictures, enough for verdicts


@pytest.mark.slow
def test_the_demo_runs_and_runs_again_from_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gradindex")
    monkeypatch.setattr(demo, "STEPS", 20)
    monkeypatch.setattr(demo, "drawn_pictures", partial(drawn_pictures, PER_THING))
    out = tmp_path / "demo out"
    texts: list[str] = []
    demo.run_demo(out, texts.append)
    page = Reading((out / "report.html").read_text(encoding="utf-8"))
    assert page.faults == []
    assert len(page.with_class("card")) == demo.QUERIES
    assert len(page.with_class("hit")) == demo.QUERIES * 3 * demo.K
    assert len(page.with_class("shares")) == demo.QUERIES
    assert page.with_class("gone") == []
    table, retrac, tracin, next_steps = texts
    assert len(table.splitlines()) == 1 + demo.QUERIES
    assert [retrac.split(":")[0], tracin.split(":")[0]] == ["retrac", "tracin"]
    assert str(out / "report.html") in next_steps
    queries = [shlex.split(line) for line in next_steps.splitlines() if " query " in line]
    for _, _, index, picture, _, things in (words[-6:] for words in queries):
        assert Path(index).is_dir()
        assert Path(picture).is_file()
        assert Path(things).is_file()
    steps = [text for text in caplog.messages if " of 5: " in text]
    assert [text[0] for text in steps] == list("12345")
    again: list[str] = []
    monkeypatch.setattr(demo, "_train", lambda *args: pytest.fail("trained again"))
    demo.run_demo(out, again.append)
    assert again == texts


def test_pictures_are_drawn_the_same_each_time_and_no_two_alike() -> None:
    first, second = list(drawn_pictures(2)), list(drawn_pictures(2))
    pixels = [drawn.picture.tobytes() for drawn in first]
    assert pixels == [drawn.picture.tobytes() for drawn in second]
    assert len(set(pixels)) == len({drawn.name for drawn in first}) == len(first)
    assert pixels != [drawn.picture.tobytes() for drawn in drawn_pictures(2, seed=1)]


def test_a_picture_is_in_the_folder_of_its_artist_and_its_thing_is_in_a_table(
    tmp_path: Path,
) -> None:
    demo._write_pictures(tmp_path)
    files = sorted(tmp_path.rglob("*.png"))
    assert {file.parent.name for file in files} == {*ARTISTS}
    with (tmp_path / "things.csv").open(encoding="utf-8", newline="") as table:
        things = {line["id"]: line["group"] for line in csv.DictReader(table)}
    assert sorted(things) == [file.relative_to(tmp_path).as_posix() for file in files]
    for name, thing in things.items():
        artist, words = name.removesuffix(".png").split("/")
        assert f"-{thing}-on-" in words
        assert thing in {drawn.__name__ for drawn in ARTISTS[artist].things}

"""What people read in a terminal: that work goes on, what is marked, and help that is not cut."""

import csv
import io
import json
import re
from contextlib import redirect_stderr
from pathlib import Path

import click
import pandas
import pytest
from conftest import make_pictures
from helpers import run
from models.families.tiny_pipelines import captioned_pictures, stable_diffusion

import gradindex
from gradindex.cli.main import main
from gradindex.report.rendering import to_table
from gradindex.search.results import Group, Hit, Result, Verdict


class Terminal(io.StringIO):
    """A stderr that somebody looks at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path) -> Path:
    place = tmp_path_factory.mktemp("seen") / "idx"
    gradindex.build(place, model=model, data=pictures, timesteps=4, dim=16, device="cpu")
    return place


# --- time -----------------------------------------------------------------------------------------


def test_a_terminal_is_told_that_the_model_is_loaded(
    built: Path, queries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "0")  # -q sets it
    terminal = Terminal()
    with redirect_stderr(terminal):
        main(["query", str(built), str(queries[0])])
    lines = terminal.getvalue().splitlines()
    assert lines[0] == "loading UNet2DModel"
    quiet = Terminal()
    with redirect_stderr(quiet):
        main(["query", str(built), str(queries[0]), "-q"])
    assert quiet.getvalue() == ""


@pytest.mark.parametrize("more", [(), ("--format", "html")], ids=["table", "report"])
def test_the_time_of_a_query_is_that_of_the_command(
    built: Path, queries: list[Path], more: tuple[str, ...]
) -> None:
    done = run("query", built, queries[0], *more)
    form = r"([\d.]+) s, loading included; gradients ([\d.]+) s, search ([\d.]+) s"
    (found,) = re.findall(form, done.stderr)
    whole, gradients, search = map(float, found)
    assert whole >= gradients + search - 0.1  # it is rounded
    assert "loading UNet" not in done.stderr  # no terminal


# --- tables ---------------------------------------------------------------------------------------


def test_hits_that_the_verdict_names_are_marked() -> None:
    hits = [Hit(1, "a.png", 0, 0.9, None), Hit(2, "b.png", 1, 0.5, None)]
    opponents = [Hit(1, "a.png", 0, 0.9, None)]  # as in a set of one
    for kind, meaning in (("attributable", "stands out"), ("copied", "copied")):
        verdict = Verdict(kind, f"{kind}: …", ["a.png"], 0.01)
        lines = to_table([Result("q.png", hits, opponents, verdict=verdict)], "retrac").splitlines()
        assert lines[1].endswith(f", z, *: {meaning})")
        assert (lines[2][:6], lines[3][:6]) == ("    1*", "    2 ")
        assert "*" not in "".join(lines[4:])
    nothing = Verdict("nothing stands out", "nothing stands out: …", [], 1.0)
    assert "*" not in to_table([Result("q.png", hits, verdict=nothing)], "retrac")


def test_a_table_says_that_no_group_stands_above_chance() -> None:
    values = {"score": 2.0, "mean": 0.7, "share": 0.5, "low": 1.0, "high": 4.0}
    groups = [Group(name, pictures=3, **values, below_noise=True) for name in ("ann", "bo")]
    text = "None of these groups stands above chance."
    assert to_table([Result("q.png", [], groups=groups)], "retrac").splitlines()[-1] == text
    groups[0] = Group("ann", pictures=3, **values, below_noise=False)
    assert text not in to_table([Result("q.png", [], groups=groups)], "retrac")


def test_captions_of_hits_are_in_every_format(tmp_path: Path) -> None:
    captions = ["a cat", 'a "dog", running', "a cow"]
    data = captioned_pictures(tmp_path / "pictures", captions)[0].parent
    pipeline = stable_diffusion(tmp_path / "pipeline")
    index = gradindex.build(
        tmp_path / "idx", model=pipeline, data=data, timesteps=2, dim=32, device="cpu"
    )
    asked = make_pictures(tmp_path / "asked", 1, 16, 3, mode="RGB") / "p000.png"
    results = index.query(asked, 3, prompt="a cat")
    expected = {f"p{row:03d}.png": caption for row, caption in enumerate(captions)}
    assert {hit.id: hit.caption for hit in results[0].hits} == expected
    command = ("query", tmp_path / "idx", asked, "--prompt", "a cat", "--format")
    (query,) = json.loads(run(*command, "json").stdout)["queries"]
    assert {hit["id"]: hit["caption"] for hit in query["hits"]} == expected
    rows = list(csv.DictReader(io.StringIO(run(*command, "csv").stdout)))
    assert {row["id"]: row["caption"] for row in rows} == expected
    results.to_parquet(tmp_path / "hits.parquet")
    frame = pandas.read_parquet(tmp_path / "hits.parquet")
    assert dict(zip(frame["id"], frame["caption"], strict=True)) == expected
    with pytest.warns(UserWarning, match="3 of 3 pictures are among the training pictures"):
        audited = index.audit(data, 3)
    assert {hit.caption for hit in [*audited.hits, *(audited.opponents or [])]} <= {*captions}
    data.rename(tmp_path / "moved")
    (gone,) = gradindex.open(tmp_path / "idx").query(asked, 3, prompt="a cat")
    assert [hit.caption for hit in gone.hits] == [None] * 3


def test_without_captions_there_is_no_field(built: Path, queries: list[Path]) -> None:
    command = ("query", built, queries[0], "--format")
    assert "caption" not in run(*command, "json").stdout
    assert "caption" not in run(*command, "csv").stdout


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [main, main.commands["evaluate"]], ids=lambda group: group.name)
def test_no_summary_of_a_command_is_cut(
    group: click.Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = [] if group is main else [group.name]
    lines = run(*path, "--help").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for name, command in group.commands.items():
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        assert line.split(None, 1)[1] == command.get_short_help_str(1000)
        assert "..." not in line

"""Faults of the field, at the command line: names that no terminal shows, answers that got lost."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_pictures
from helpers import run

from gradindex.cli.main import _format_warning, main
from gradindex.cli.messages import flags_of, with_flags
from gradindex.errors import CallError

NAMES = ["日本.png", "line\nfeed\tand \x1b[31m.png", "e\u0301 ☃.png", "plain  name.png"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """Four pictures of odd names."""
    folder = tmp_path_factory.mktemp("faults") / "data"
    folder.mkdir()
    for name, file in zip(NAMES, sorted(pictures.iterdir()), strict=False):
        shutil.copy(file, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(data: Path, model: Path) -> Path:
    place = data.parent / "idx"
    done = run("build", place, "--model", model, "--data", data, "--timesteps", "500,", "--dim", 8)
    assert done.returncode == 0, done.stderr
    return place


# --- what a terminal cannot show ------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("style", ["table", "json", "html"])
def test_any_output_encoding_shows_any_name(
    built: Path, data: Path, encoding: str, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows' terminals and pipes have cp1252: the answer comes, with escapes."""
    out, errors = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", errors)
    command = ["query", str(built), str(data / NAMES[0]), "-k", "4", "--format", style]
    main(command, standalone_mode=True)
    monkeypatch.undo()
    out.flush()
    text = out.buffer.getvalue().decode("utf-8" if encoding == "ascii" else encoding)
    assert len(text) > 100
    if style == "table" and encoding == "cp1252":
        assert r"\u65e5\u672c.png" in text


def test_an_error_shows_any_name(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = io.TextIOWrapper(io.BytesIO(), "cp1252", errors="strict")
    monkeypatch.setattr(sys, "stderr", errors)
    with pytest.raises(SystemExit) as stop:
        main(["query", str(built), "日\x1b[31m\n本  2.png"])
    monkeypatch.undo()
    errors.flush()
    message = errors.buffer.getvalue().decode("cp1252")
    assert stop.value.code == 2
    assert message.count("\n") == 1
    assert "\x1b" not in message
    assert "本  2.png".encode("cp1252", "backslashreplace").decode() in message


def test_a_line_feed_in_a_name_does_not_break_the_table(built: Path, data: Path) -> None:
    done = run("query", built, data / NAMES[1], "-k", 4)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + 4  # what it comes to, and the title of the list
    assert all(r"line\nfeed\tand \x1b[31m.png" in line for line in lines[:2])
    assert sum(line.endswith(r"  line\nfeed\tand \x1b[31m.png") for line in lines[2:]) == 1
    assert sum(line.endswith("  plain  name.png") for line in lines[2:]) == 1


def test_json_and_the_page_hold_the_name(built: Path, data: Path, tmp_path: Path) -> None:
    command = ("query", built, data / NAMES[1], "-k", 4, "--output")
    assert run(*command, tmp_path / "a.json").returncode == 0
    hits = json.loads((tmp_path / "a.json").read_text())["queries"][0]["hits"]
    assert {hit["id"] for hit in hits} == {*NAMES}
    assert run(*command, tmp_path / "a.html").returncode == 0
    assert r"line\nfeed\tand \x1b[31m.png" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_a_name_that_is_not_utf8_does_not_lose_the_answer(
    built: Path, data: Path, tmp_path: Path
) -> None:
    """Python holds such bytes as surrogates, which no text file takes."""
    odd = tmp_path / b"\xff.png".decode("utf-8", "surrogateescape")
    shutil.copy(data / NAMES[0], odd)
    for name in ("a.txt", "a.html", "a.json"):
        done = run("query", built, odd, "-k", 1, "--output", tmp_path / name)
        assert (done.returncode, (tmp_path / name).exists()) == (0, True), done.stderr
    assert r"\udcff.png" in (tmp_path / "a.txt").read_text()


def test_ids_to_remove_come_from_any_text_file(built: Path, data: Path, tmp_path: Path) -> None:
    """Notepad's has a mark at its beginning; bytes that are not UTF-8 are named."""
    shutil.copytree(built, tmp_path / "idx")
    (tmp_path / "ids.txt").write_bytes("\ufeff日本.png\r\nplain  name.png\r\n".encode())
    done = run("remove", tmp_path / "idx", "--file", tmp_path / "ids.txt")
    assert "2 of 2 pictures removed" in done.stdout, done.stderr
    (tmp_path / "ids.txt").write_bytes(b"\xff.png\n")
    done = run("remove", tmp_path / "idx", "--file", tmp_path / "ids.txt")
    assert done.returncode == 2
    assert (
        done.stderr
        == "Error: id '\\udcff.png': these bytes are not UTF-8; the ids of an index are\n"
    )


# --- what is written where ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("a.html", "<!doctype html>"),
        ("a.HTM", "<!doctype html>"),
        ("a.json", "{"),
        ("a.txt", "/"),
        ("a", "/"),
    ],
)
def test_the_format_follows_the_name_of_the_output(
    built: Path, data: Path, tmp_path: Path, name: str, beginning: str
) -> None:
    done = run("query", built, data / NAMES[0], "-k", 1, "--output", tmp_path / name)
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / name).read_text().startswith(beginning)
    command = ("query", built, data / NAMES[0], "-k", 1, "--format", "json", "--output")
    assert run(*command, tmp_path / name).returncode == 0
    assert (tmp_path / name).read_text().startswith("{")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query", "absent", "x.png", "--output", "gone/a.html"], "there is no folder 'gone'"),
        (["query", "absent", "x.png", "--output", "."], "is a directory"),
        (["diagnose", "absent", "--out", "file"], "is a file"),
        (["demo", "--out", "file"], "is a file"),
    ],
)
def test_a_place_that_takes_no_answer_is_refused_before_the_work(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_a_damaged_training_picture_leaves_its_place_empty(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    """Its size and time are as before, so that nobody can see it without reading it."""
    shutil.copytree(pictures, tmp_path / "data")
    command = ["build", tmp_path / "idx", "--model", model, "--data", tmp_path / "data"]
    assert run(*command, "--timesteps", "500,", "--dim", 8).returncode == 0
    file = tmp_path / "data/p004.png"
    file.write_bytes(bytes(file.stat().st_size))
    command = ["query", tmp_path / "idx", pictures / "p000.png", "-k", 9]
    done = run(*command, "--output", tmp_path / "a.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    # Both methods rank nine pictures, the pixels the eight that are whole.
    assert (page.count("<img"), page.count("picture not found, or damaged")) == (1 + 3 * 8, 2)


def test_diagnose_without_matplotlib_shows_and_writes_the_rest(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["build", tmp_path / "idx", "--model", model, "--data", pictures]
    assert run(*command, "--timesteps", "100,700", "--dim", 8).returncode == 0
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    small = ("--compared", 0, "--no-outliers", "--queries", 2, "--out", tmp_path / "out")
    with pytest.warns(UserWarning, match=r"no norms\.png without matplotlib"):
        done = run("diagnose", tmp_path / "idx", *small)
    assert (done.returncode, "distinct pictures" in done.stdout) == (0, True)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["diagnose.json"]
    assert "wrote" in done.stderr


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("python", "shown"),
    [
        ("dim = 0: give a whole number, 1 or more", "--dim 0: give a whole number, 1 or more"),
        ("k = 0: give 1", "-k 0: give 1"),
        ("idx: built with another recipe (overwrite replaces it): seed: 0, now 7",
         "idx: built with another recipe (--overwrite replaces it): seed: 0, now 7"),
        ("idx: damaged; build it again with overwrite",
         "idx: damaged; build it again with --overwrite"),
        ("idx: damaged; build it again with overwrite=True",
         "idx: damaged; build it again with --overwrite"),
        ("'a.png' is not readable; skip_bad leaves such pictures out",
         "'a.png' is not readable; --skip-bad leaves such pictures out"),
        ("leave them out with params", "leave them out with --params"),
        ("give class_label, 0 to 9", "give --class-label, 0 to 9"),
        ("class_label = 12: give one from 0 to 9", "--class-label 12: give one from 0 to 9"),
        ("device = 'tpu': allowed are 'auto', 'cpu'", "--device tpu: allowed are 'auto', 'cpu'"),
        ("model = '/a b': this index has 2", "--model '/a b': this index has 2"),
        ("missing = 'skip' leaves them out", "--missing skip leaves them out"),
        ("an object store exchanges nothing; give out, another URL",
         "an object store exchanges nothing; give --out, another URL"),
        ("timesteps = 'recorded' and log go together: give both, or neither",
         "--timesteps recorded and --log go together: give both, or neither"),
        ("no longer there; give pictures, compared=0 and outliers=False",
         "no longer there; give pictures, --compared 0 and --no-outliers"),
        ("timesteps = [1, 5000]: give distinct ones", "--timesteps [1, 5000]: give distinct ones"),
        ("whiten = False: no damping", "--no-whiten: no damping"),
        ("part = (5, 4): give (I, N)", "--part (5, 4): give (I, N)"),
        ("noise='own' is weak", "--noise own is weak"),
        # What stays: English words, paths, quoted texts and flags.
        ("faiss-cpu and faiss-gpu overwrite each other's files", None),
        ("data skip_bad/class_label.png: 'skip_bad' is gone", None),
        ("./x.skip_bad: recorded with noise of version 1", None),
        ("no scheduler found; name its folder with --scheduler", None),
        ("class_embed_type 'timestep': only learned class embeddings are known", None),
        ("s3://bucket/idx?k=3&dim=4: no such index", None),
    ],
)  # fmt: skip
def test_messages_name_options_as_on_the_command_line(python: str, shown: str | None) -> None:
    assert with_flags(python, flags_of(main)) == (python if shown is None else shown)


def test_no_name_stands_for_two_flags() -> None:
    names: dict[str, str] = {}
    for command in main.commands.values():
        for name, flag in flags_of(command).items():
            assert names.setdefault(name, flag) == flag


def test_build_names_its_own_flags(model: Path, pictures: Path, tmp_path: Path) -> None:
    data = make_pictures(tmp_path / "data", 3)
    (data / "p001.png").write_text("no picture")
    command = ["build", tmp_path / "idx", "--model", model, "--timesteps", "500,", "--dim", 8]
    done = run(*command, "--data", data)
    assert (done.returncode, "--skip-bad" in done.stderr) == (1, True), done.stderr
    assert "skip_bad" not in done.stderr
    assert run(*command, "--data", pictures).returncode == 0
    done = run(*command, "--data", data, "--seed", 3)
    assert (done.returncode, "--overwrite" in done.stderr) == (2, True), done.stderr


def test_a_warning_is_one_line_of_the_command_line() -> None:
    text = _format_warning(UserWarning("a\x1b.png:\n  skip_bad = 3"), UserWarning, "", 0)
    assert text == "Warning: a\\x1b.png: --skip-bad 3\n"


def test_debug_works_before_and_after_the_command() -> None:
    for command in (
        ["--debug", "query", "absent", "x.png"],
        ["query", "absent", "x.png", "--debug"],
    ):
        with pytest.raises(CallError, match="no such index"):
            main(command)
    done = run("info", "--", "--debug")  # an index of that name
    assert (done.returncode, "--debug: no such index" in done.stderr) == (2, True)


# --- evaluate -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--command", "train"], "Error: command 'train' has no {data} and no {out}: write {data}"),
        (["--command", "train {data}"], "Error: command 'train {data}' has no {out}: write"),
        (["--command", "t {data} {out}", "-k", 4], "-k 4: the index has 4 pictures, and some have"),
        (["--command", "t {data} {out}"], "-k 50: the index has 4 pictures, and some have to stay"),
        (["--command", "t {data} {out}", "-k", 1, "--random", -1], "--random -1: give 0 or more"),
    ],
)
def test_a_counterfactual_that_cannot_work_is_refused_before_the_work(
    built: Path, tmp_path: Path, options: list[object], message: str
) -> None:
    """The query picture is not there: it is never opened."""
    command = ["evaluate", "counterfactual", built, "absent.png", "--work", tmp_path / "work"]
    done = run(*command, *options)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "work").exists()


ARRAYS = {"subsets": np.ones((3, 4), bool), "losses": np.ones((3, 1))}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "give a .npz file with the arrays subsets and losses"),
        (b"no arrays", "give a .npz file with the arrays subsets and losses"),
        (b"PK\x03\x04 damaged", "give a .npz file with the arrays subsets and losses"),
        (np.ones(3), "give a .npz file with the arrays subsets and losses"),
        ({"subsets": ARRAYS["subsets"]}, "(it has subsets)"),
        ({**ARRAYS, "losses": np.array(["a"])}, "holds no numbers"),
        ({**ARRAYS, "losses": np.array([None])}, "give a .npz file"),
        ({**ARRAYS, "losses": np.ones((3, 2))}, "losses (3, 2): give [M, 4] and [M, 1]"),
        ({**ARRAYS, "losses": np.float64(1)}, "losses (): give [M, 4] and [M, 1]"),
        ({**ARRAYS, "subsets": np.ones((3, 5))}, "subsets (3, 5)"),
        ({**ARRAYS, "losses": np.ones((0, 3, 1))}, "losses (0, 3, 1): of no training"),
        (
            {**ARRAYS, "losses": np.array([[1], [np.nan], [np.inf]])},
            "losses of 2 models, the first of subset 1, are not finite",
        ),
        ({"subsets": np.ones((2, 4)), "losses": np.ones((2, 1))}, "with three subsets or more"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(
    built: Path, data: Path, tmp_path: Path, arrays: object, message: str
) -> None:
    file = tmp_path / "a.npz"
    if isinstance(arrays, bytes):
        file.write_bytes(arrays)
    elif isinstance(arrays, np.ndarray):
        with file.open("wb") as stream:
            np.save(stream, arrays)
    elif isinstance(arrays, dict):
        np.savez(file, **arrays)
    done = run("evaluate", "lds", built, data / NAMES[0], "--arrays", file)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert done.stderr.count("\n") == 1


def test_embeddings_that_do_not_fit_are_one_line(built: Path, data: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **ARRAYS)
    np.savez(tmp_path / "e.npz", training=np.ones((4, 5)), queries=np.ones((1, 6)))
    files = ("--arrays", tmp_path / "a.npz", "--embeddings", tmp_path / "e.npz")
    done = run("evaluate", "lds", built, data / NAMES[0], *files)
    assert done.returncode == 2
    assert "embeddings: training (4, 5), queries (1, 6); give [4, E] and [1, E]" in done.stderr
    np.savez(tmp_path / "e.npz", training=np.full((4, 5), np.nan), queries=np.ones((1, 5)))
    done = run("evaluate", "lds", built, data / NAMES[0], *files)
    assert done.returncode == 2
    assert "embeddings: some numbers are not finite" in done.stderr


def test_too_little_memory_is_one_line(
    built: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError("Unable to allocate 11.9 GiB for an array")

    monkeypatch.setattr("gradindex.search.index.Index.query", fail)
    done = run("query", built, data / NAMES[3])
    assert (done.returncode, done.stderr) == (
        1,
        "Error: out of memory (Unable to allocate 11.9 GiB for an array); give a smaller resolution"
        " or batch; what was committed stays\n",
    )

"""The command line: data to stdout, the rest to stderr, one line per error, status 0, 1 or 2."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import click
import numpy as np
import pandas
import pytest
from conftest import make_pictures
from helpers import run

import gradindex
from gradindex.cli.main import main
from gradindex.cli.options import to_part
from gradindex.report.rendering import to_json, to_table
from gradindex.search.results import Hit, Result


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path) -> Path:
    place = tmp_path_factory.mktemp("cli") / "idx"
    done = run(
        "build", place, "--model", model, "--data", pictures, "--timesteps", "100,700", "--dim", 8
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "shards          1 of 1 done" in done.stderr
    ready = f"ready: 9 training pictures to be found; next: gradindex query {place} PICTURE"
    assert done.stderr.splitlines()[-1] == ready
    return place


def test_query_json(built: Path, queries: list[Path]) -> None:
    done = run("query", built, *queries, "-k", 2, "--format", "json", "--opponents")
    answer = json.loads(done.stdout)
    assert (answer["index"], answer["method"], answer["k"]) == (str(built), "retrac", 2)
    assert [query["picture"] for query in answer["queries"]] == [str(file) for file in queries]
    for query in answer["queries"]:
        assert query["hits"][0].keys() == {"rank", "id", "row", "score", "stderr", "z", "pixel"}
        assert query["hits"][0]["score"] >= query["hits"][1]["score"]
        assert query["opponents"][0]["score"] <= query["opponents"][1]["score"]


def test_query_table_and_page(built: Path, queries: list[Path], tmp_path: Path) -> None:
    table = run("query", built, queries[0], "-k", 3, "--method", "tracin").stdout
    assert "tracin, whitened ± standard error over timesteps, z" in table
    assert len(table.strip().splitlines()) == 5
    verdict = "no verdict: 9 training pictures; it takes 50 to tell what stands out"
    assert table.splitlines()[0] == f"{queries[0]}: {verdict}"
    done = run(
        "query", built, *queries, "-k", 3, "--format", "html", "--output", tmp_path / "page.html"
    )
    assert (done.returncode, done.stdout) == (0, "")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 2 * (1 + 3 * 3)
    assert "http" not in page.replace("http-equiv", "")


def test_info_and_index(built: Path) -> None:
    assert "1 checkpoint × 9 pictures × 2 timesteps × 8 numbers" in run("info", built).stdout
    (built / "faiss/retrac.faiss").unlink()
    assert run("index", built, "--method", "retrac").returncode == 0
    assert (built / "faiss/retrac.faiss").exists()


def test_recorded_timesteps(
    model: Path, pictures: Path, queries: list[Path], tmp_path: Path
) -> None:
    names = [file.name for file in pictures.iterdir()]
    (tmp_path / "log.csv").write_text(
        "\n".join(["sample_id,step,timestep", *(f"{name},0,40" for name in names)])
    )
    command = ["build", tmp_path / "idx", "--model", model, "--data", pictures]
    command += ["--dim", 8, "--timesteps", "recorded"]
    refused = run(*command)
    assert (refused.returncode, "give both, or neither" in refused.stderr) == (2, True)
    done = run(*command, "--log", tmp_path / "log.csv")
    assert (done.returncode, bool(re.search("timesteps +1 recorded", done.stderr))) == (0, True)
    answer = run(
        "query", tmp_path / "idx", queries[0], "--query-timesteps", 2, "--query-draws", 1, "-k", 3
    )
    assert (answer.returncode, len(answer.stdout.splitlines())) == (0, 5)


def test_ranges_of_timesteps(built: Path, queries: list[Path]) -> None:
    command = ["query", built, queries[0], "-k", 2, "--by-timestep", "--timesteps"]
    hits = json.loads(run(*command, "0:500", "--format", "json").stdout)["queries"][0]["hits"]
    assert [[t for t, _ in hit["by_timestep"]] for hit in hits] == [[100], [100]]
    assert hits[0]["by_timestep"][0][1] == pytest.approx(hits[0]["score"])
    assert "t = 700: " in run(*command, ":").stdout
    wrong = run(*command, "5")
    assert (wrong.returncode, "give A:B, such as 0:500" in wrong.stderr) == (2, True)


def test_diagnose(built: Path, tmp_path: Path) -> None:
    done = run(
        "diagnose", built, "-k", 3, "--queries", 2, "--compared", 4, "--out", tmp_path / "out"
    )
    assert (done.returncode, "distinct pictures" in done.stdout) == (0, True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "diagnose.json",
        "norms.png",
    ]
    small = ("--compared", 0, "--no-outliers", "--format", "json")
    done = run("diagnose", built, *small, "--out", tmp_path / "out")
    assert json.loads(done.stdout)["k"] == 10


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["query", "absent", "x.png"],
            2,
            "Error: absent: no such index; make it with `gradindex build`",
        ),
        (["query", ".", "x.png"], 2, "Error: .: not a gradindex index (no zarr.json of one)"),
        (["query", "{idx}", "x.png"], 2, "Error: x.png: not a picture that opens (no such file)"),
        (["query", "{idx}", "{q}", "-k", "0"], 2, "Error: -k 0: give"),
        (["query", "{idx}", "{q}", "--query-timesteps", "5"], 2, "Error: with pairing matched"),
        (["query", "{idx}"], 2, "Missing argument 'PICTURE...'"),
        (
            ["build", "i", "--model", "{m}", "--data", "absent"],
            2,
            "Error: data absent: no such file or folder",
        ),
        (
            ["build", "i", "--model", "{m}", "--data", "{d}", "--timesteps", "0"],
            2,
            "Error: --timesteps 0: give",
        ),
        (
            ["build", "i", "--model", "{m}", "--data", "{d}", "--timesteps", "many"],
            2,
            "'many': give a number",
        ),
        (
            ["build", "i", "--model", "{m}", "--data", "{d}", "--dim", "0"],
            2,
            "Error: --dim 0: give",
        ),
        (["build", "i", "--model", "{d}", "--data", "{d}"], 1, "no model here"),
        (["build", "{idx}", "--model", "{m}", "--data", "{d}", "--seed", "7"], 2, "seed: 0, now 7"),
    ],
)
def test_errors_are_one_line(
    built: Path,
    model: Path,
    pictures: Path,
    queries: list[Path],
    tmp_path: Path,
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    names = {"idx": built, "m": model, "d": pictures, "q": queries[0]}
    done = run(*[argument.format(**names) for argument in arguments], cwd=tmp_path)
    assert done.returncode == status
    assert message in done.stderr
    assert done.stdout == ""
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error")]) == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_failures_have_status_1(
    built: Path, model: Path, pictures: Path, queries: list[Path], tmp_path: Path
) -> None:
    """A bad picture among good ones is named and skipped on request; a newer format asks for an
    update.
    """
    shutil.copytree(pictures, tmp_path / "data")
    (tmp_path / "data/p001.png").write_text("no picture")
    command = ["build", tmp_path / "i", "--model", model, "--data", tmp_path / "data"]
    command += ["--timesteps", "500,", "--dim", 8]
    done = run(*command)
    assert (done.returncode, "'p001.png' is not a readable picture" in done.stderr) == (1, True)
    done = run(*command, "--skip-bad")
    assert (done.returncode, "9 (1 skipped)" in done.stderr) == (0, True)
    shutil.copytree(built, tmp_path / "newer")
    for header in (tmp_path / "newer/zarr.json", tmp_path / "newer/manifest/header.json"):
        header.write_text(header.read_text().replace('"format": 1', '"format": 9'))
    done = run("query", tmp_path / "newer", queries[0])
    assert (done.returncode, "format version 9, this gradindex reads 1" in done.stderr) == (1, True)


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, model: Path) -> None:
    """Interrupted while it works: one line, status 1; the same command finishes the job."""
    data = make_pictures(tmp_path / "data", 100)
    command = [sys.executable, "-m", "gradindex", "build", str(tmp_path / "idx")]
    command += ["--model", str(model), "--data", str(data), "--timesteps", "30", "--dim", "16"]
    # A job in a shell's background does not heed an interrupt.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeding)
    while not (tmp_path / "idx/zarr.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    # What was said of the pictures may stand before it.
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1] == (
        "Error: interrupted; what was committed stays, run the same command again to go on"
    )
    assert "shards      0 of 1 done" in run("info", tmp_path / "idx").stdout
    refused = run("query", tmp_path / "idx", data / "p000.png")
    assert (refused.returncode, "run the same build again" in refused.stderr) == (1, True)
    subprocess.run(command, check=True, capture_output=True)
    assert run("query", tmp_path / "idx", data / "p000.png").returncode == 0


def test_every_flag_of_build_is_an_argument() -> None:
    """`build` in Python and on the command line have the same options, and the same defaults, but
    for the dry run, and for what is an object of Python.
    """
    arguments = dict(inspect.signature(gradindex.build).parameters)
    columns = {"image_column", "id_column", "label_column", "caption_column", "dry_run"}
    context = main.commands["build"].make_context("build", ["idx", "--model", "m", "--data", "d"])
    assert context.params.keys() - columns == arguments.keys() - {"columns", "denoiser"}
    for name in (
        context.params.keys() - columns - {*("index", "model", "data", "checkpoints", "adapters")}
    ):
        assert context.params[name] == arguments[name].default, name


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from gradindex.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'faiss', 'zarr', 'diffusers', 'datasets', 'numpy', 'PIL', 'sklearn'}\n"
        "heavy = (heavy | {'tqdm'}) & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage:" in done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, gradindex; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_output_that_is_cut_off_is_no_traceback(built: Path, queries: list[Path]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "gradindex", "info", str(built)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


# --- what people see ------------------------------------------------------------------------------

HITS = [Hit(1, "a<b>.png", 17, 0.42, 0.03, z=7.25), Hit(2, "c.png", 3, 0.4, None)]
RESULTS = [Result("gen.png", HITS)]


def test_json_has_the_documented_shape() -> None:
    assert json.loads(to_json(RESULTS, "idx", "retrac", 10)) == {
        "index": "idx",
        "method": "retrac",
        "k": 10,
        "queries": [
            {
                "picture": "gen.png",
                "hits": [
                    {
                        "rank": 1,
                        "id": "a<b>.png",
                        "row": 17,
                        "score": 0.42,
                        "stderr": 0.03,
                        "z": 7.25,
                    },
                    {"rank": 2, "id": "c.png", "row": 3, "score": 0.4, "stderr": None, "z": None},
                ],
            }
        ],
    }


def test_a_table_has_rank_score_error_z_and_id() -> None:
    _, first, second = [line.split() for line in to_table(RESULTS, "retrac").splitlines()]
    assert first == ["1", "0.42", "±", "0.03", "7.2", "a<b>.png"]
    assert second == ["2", "0.4", "c.png"]


@pytest.mark.parametrize(
    ("option", "environment", "part"),
    [
        ("1/4", {}, (1, 4)),
        ("4/4", {}, (0, 4)),
        ("0/4", {"SLURM_ARRAY_TASK_ID": "3"}, (0, 4)),
        (None, {}, (0, 1)),
        (
            "slurm",
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_MIN": "5",
                "SLURM_ARRAY_TASK_MAX": "7",
                "SLURM_ARRAY_TASK_COUNT": "3",
            },
            (2, 3),
        ),
        (
            "slurm",
            {
                "SLURM_ARRAY_TASK_ID": "3",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_MAX": "3",
                "SLURM_ARRAY_TASK_COUNT": "4",
            },
            (3, 4),
        ),
        ("/8", {"JOB_COMPLETION_INDEX": "7"}, (7, 8)),
        ("5/4", {}, None),
        ("/8", {}, None),
        ("1", {}, None),
        ("0/0", {}, None),
    ],
)
def test_parts_come_from_the_option_or_the_cluster(
    monkeypatch: pytest.MonkeyPatch,
    option: str | None,
    environment: dict[str, str],
    part: tuple[int, int] | None,
) -> None:
    for name in (
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_MIN",
        "SLURM_ARRAY_TASK_MAX",
        "SLURM_ARRAY_TASK_COUNT",
        "JOB_COMPLETION_INDEX",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    context, parameter = click.Context(click.Command("build")), click.Option(["--part"])
    if part is None:
        with pytest.raises(click.BadParameter, match="give I/N"):
            to_part(context, parameter, option)
    else:
        assert to_part(context, parameter, option) == part


def test_a_dry_run_says_what_a_build_makes_and_writes_nothing(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    """The bytes are those of the arrays that the build makes, but for checksums and what a last
    shard leaves empty.
    """
    command = ["build", tmp_path / "idx", "--model", model, "--data", pictures]
    command += ["--timesteps", 3, "--draws", 2]
    done = run(*command, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "idx").exists()
    assert "1 checkpoint × 9 pictures × 3 timesteps × 4096 numbers" in done.stdout
    arrays = r"normalized 216 KiB, unnormalized 432 KiB, norm 108 bytes, timestep 108 bytes"
    # Of so few pictures there are neither factors nor search files.
    rest = r"ids 216 bytes, manifest 3.32 KiB"
    assert re.search(rf"disk +652 KiB \({arrays}, {rest}\)", done.stdout)
    assert re.search(r"gradients +54, \d+ at once\ntime +(about|less than) \S+ second", done.stdout)
    assert re.search(r"memory +[\d.]+ [MG]iB", done.stdout)


@pytest.mark.parametrize(
    ("typed", "completions"),
    [
        ("gradindex que", "plain,query\n"),
        ("gradindex query --meth", "plain,--method\n"),
        ("gradindex query --method re", "plain,retrac\n"),
        ("gradindex query id", "file,id\n"),
        ("gradindex build idx --data pic", "file,pic\n"),
    ],
)
def test_the_shell_completes(
    typed: str,
    completions: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = typed.split()
    monkeypatch.setenv("_GRADINDEX_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    with pytest.raises(SystemExit, match="0"):
        main(prog_name="gradindex")
    assert capsys.readouterr().out == completions


def test_query_csv(built: Path, queries: list[Path], tmp_path: Path) -> None:
    done = run("query", built, queries[0], "-k", 2, "--output", tmp_path / "hits.csv")
    assert (done.returncode, done.stdout) == (0, "")
    lines = (tmp_path / "hits.csv").read_text().splitlines()
    assert lines[0] == "picture,list,rank,id,row,score,stderr,z,pixel,embedding,duplicates"
    assert [line.split(",")[:3] for line in lines[1:]] == [
        [str(queries[0]), "proponents", rank] for rank in ("1", "2")
    ]
    assert run("query", built, queries[0], "-k", 2, "--format", "csv").stdout.splitlines() == lines


def test_query_parquet(built: Path, queries: list[Path], tmp_path: Path) -> None:
    """All pictures, by the file's name: those of the query, with each timestep's part."""
    place = tmp_path / "all.parquet"
    done = run("query", built, *queries, "-k", "all", "--by-timestep", "--output", place)
    assert (done.returncode, done.stdout) == (0, "")
    table = pandas.read_parquet(place)
    index = gradindex.open(built)
    expected = index.query(queries, len(index), by_timestep=True, verdict=True).to_frame()
    pandas.testing.assert_frame_equal(table, expected, check_dtype=False)
    assert len(table) == len(queries) * len(index)
    scores = index.scores(queries)
    for number, file in enumerate(queries):
        own = table[table["picture"] == str(file)].set_index("row")["score"].sort_index()
        np.testing.assert_allclose(own, scores[number], rtol=1e-5)


def test_quiet_and_verbose(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-q leaves results, warnings and errors; -v adds messages, each with the time."""
    monkeypatch.setenv("TQDM_DISABLE", "0")  # which -q changes
    command = ["--model", model, "--data", pictures, "--timesteps", "500,", "--dim", 8]
    quiet = run("build", tmp_path / "quiet", *command, "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert os.environ["TQDM_DISABLE"] == "1"
    failed = run("-q", "info", tmp_path / "absent")
    assert failed.stderr.startswith(f"Error: {tmp_path / 'absent'}: no such index")
    verbose = run("-v", "build", tmp_path / "verbose", *command)
    assert re.search(r"\d\d:\d\d:\d\d c000-s000000: pictures 0 to 8 committed", verbose.stderr)
    usual = run("build", tmp_path / "usual", *command).stderr
    assert f"{pictures}: 9 pictures\n" in usual
    assert "committed" not in usual


@pytest.mark.parametrize("module", ["gradindex", "gradindex.cli.main"])
def test_the_command_line_as_a_module(module: str) -> None:
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert gradindex.__version__ in done.stdout

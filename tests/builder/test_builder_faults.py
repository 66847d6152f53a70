"""A build under the faults of the field: tasks of clusters, misread calls, changed pictures."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import datasets
import numpy as np
import pytest
from conftest import make_model, make_pictures
from helpers import run
from PIL import Image
from safetensors.torch import load_file, save_file

import gradindex
from gradindex.builder.upkeep import compact, remove
from gradindex.builder.verify import data_damages
from gradindex.cli.options import to_part, to_timesteps
from gradindex.data.dataset import Dataset
from gradindex.errors import CallError, RecipeMismatch
from gradindex.store import store as store_module
from gradindex.store.manifest import seal
from gradindex.store.records import ShardEntry
from gradindex.store.store import Store

EARLIER_FIELDS = (
    "checkpoint",
    "rows",
    "recipe",
    "zero_gradients",
    "skipped",
    "pictures",
    "files",
)
Build = Callable[..., gradindex.Index]
CONTEXT, PARAMETER = click.Context(click.Command("build")), click.Option(["--part"])


@pytest.fixture
def build(tmp_path: Path, model: Path, pictures: Path) -> Build:
    """`gradindex.build` with small defaults, into tmp_path/idx."""

    def call(**options: Any) -> gradindex.Index:
        defaults = {"model": model, "data": pictures, "timesteps": 2, "dim": 16, "device": "cpu"}
        return gradindex.build(options.pop("index", tmp_path / "idx"), **{**defaults, **options})

    return call


# --- parts of a cluster's tasks --------------------------------------------------------------


def slurm_task(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    """Have the environment be that of a Slurm array's task, `ID=3, MIN=1, …`."""
    for name in ("ID", "MIN", "MAX", "STEP", "COUNT"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{name}", raising=False)
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


@pytest.mark.parametrize(
    ("first", "last", "step"), [(0, 3, 1), (1, 4, 1), (5, 7, 1), (0, 12, 4), (2, 9, 3), (7, 7, 1)]
)
def test_the_tasks_of_a_slurm_array_make_all_parts(
    monkeypatch: pytest.MonkeyPatch, first: int, last: int, step: int
) -> None:
    """Whatever their lowest number and their step, each part is made by one task."""
    tasks = range(first, last + 1, step)
    parts = []
    for task in tasks:
        # Slurm's MAX is the last number that the array has.
        slurm_task(monkeypatch, ID=task, MIN=first, MAX=tasks[-1], STEP=step, COUNT=len(tasks))
        parts.append(to_part(CONTEXT, PARAMETER, "slurm"))
    assert parts == [(number, len(tasks)) for number in range(len(tasks))]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"SLURM_ARRAY_TASK_ID is ''; it works in tasks of `sbatch --array`, elsewhere give"),
        ({"ID": "x", "MIN": 0, "MAX": 1, "COUNT": 2}, "SLURM_ARRAY_TASK_ID is 'x'"),
        ({"ID": 1, "MIN": 0, "MAX": 1}, "SLURM_ARRAY_TASK_COUNT is ''"),
        (
            {"ID": 7, "MIN": 1, "MAX": 7, "STEP": 1, "COUNT": 3},
            r"3 tasks numbered 1 to 7 in steps of 1 leave gaps; number them as in --array=1-3",
        ),
    ],
)
def test_slurm_parts_that_would_stay_unmade_are_refused(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, object], message: str
) -> None:
    """A list of task numbers such as 1,3,7; or no array at all."""
    slurm_task(monkeypatch, **values)
    with pytest.raises(click.BadParameter, match=message):
        to_part(CONTEXT, PARAMETER, "slurm")


def test_a_slurm_task_makes_a_part_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sweep over other options is an array too: each task makes an index of its own."""
    slurm_task(monkeypatch, ID=3, MIN=1, MAX=4, STEP=1, COUNT=4)
    assert to_part(CONTEXT, PARAMETER, None) == (0, 1)
    assert capsys.readouterr().err == (
        "Slurm array task 3 makes the whole index; --part slurm shares it among the array's tasks\n"
    )
    assert to_part(CONTEXT, PARAMETER, "2/4") == (2, 4)
    assert capsys.readouterr().err == ""


def test_more_kubernetes_completions_than_parts_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Part 8 counted from 0 is none of 8, and not part 0 again."""
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "7")
    assert to_part(CONTEXT, PARAMETER, "/8") == (7, 8)
    for number in ("8", "9", "x", ""):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", number)
        with pytest.raises(click.BadParameter, match="/8': "):
            to_part(CONTEXT, PARAMETER, "/8")


def test_a_part_says_that_the_index_is_unfinished(
    tmp_path: Path, model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With status 0, as the part is done; the last part says no such thing."""
    monkeypatch.setattr(store_module, "SHARD_ROWS", 4)
    command = ["build", tmp_path / "idx", "--model", model, "--data", pictures]
    command += ["--timesteps", 2, "--dim", 16, "--device", "cpu"]
    first = run(*command, "--part", "1/2")
    assert first.returncode == 0
    assert first.stderr.splitlines()[-1] == (
        "unfinished: part 1 of 2, counted from 0, is done; 1 of 3 shards is missing in"
        f" {tmp_path / 'idx'} and no query is answered; run the other parts"
    )
    info = run("info", tmp_path / "idx")  # a job that comes after all parts can ask
    assert (info.returncode, "shards      2 of 3 done" in info.stdout) == (3, True)
    assert info.stderr == (
        f"unfinished: 1 of 3 shards is missing in {tmp_path / 'idx'}; run the same build again, or"
        " its other parts\n"
    )
    second = run(*command, "--part", "2/2")
    assert (second.returncode, "unfinished" in second.stderr) == (0, False)
    assert run("info", tmp_path / "idx")[::2] == (0, "")


# --- rows that say nothing -------------------------------------------------------------------


def test_gradients_of_zero_are_said(build: Build, tmp_path: Path, queries: list[Path]) -> None:
    """Behind an output layer of zeros no parameter has a gradient: every score would be 0."""
    make_model(tmp_path / "m")
    file = tmp_path / "m/unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_out.weight"].zero_()
    save_file(weights, file)
    options = {"model": tmp_path / "m", "params": "conv_in", "projection": "none"}
    with pytest.warns(UserWarning, match="18 of 18 gradients are zero, and score 0 whatever is"):
        index = build(**options)
    with pytest.warns(UserWarning, match="picture 1 of those asked about has a gradient of zero"):
        index.scores(queries[0])


# --- numbers of timesteps --------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", [101, 500, np.int64(500), "even:x", "500", "even:"])
def test_a_large_number_of_timesteps_is_asked_back(
    build: Build, tmp_path: Path, timesteps: Any
) -> None:
    """It may be a timestep; nothing is written, and the message has both ways out."""
    with pytest.raises(CallError) as caught:
        build(timesteps=timesteps)
    assert not (tmp_path / "idx").exists()
    if not isinstance(timesteps, str):
        assert str(caught.value) == (
            f"timesteps = {timesteps}: that is {timesteps} gradients of each picture; for the"
            f" timestep {timesteps} alone give [{timesteps}], on the command line"
            f" `--timesteps {timesteps},`; for {timesteps} evenly spaced ones give"
            f" 'even:{timesteps}'"
        )


def test_even_timesteps_are_meant(build: Build, tmp_path: Path) -> None:
    assert to_timesteps(CONTEXT, PARAMETER, "even:120") == "even:120"
    assert to_timesteps(CONTEXT, PARAMETER, "500,") == [500]
    data = make_pictures(tmp_path / "two", 2)
    many = build(index=tmp_path / "many", data=data, timesteps="even:120").store.recipe
    assert len(many.timesteps) == 120
    assert build(timesteps="even:2").store.recipe == build().store.recipe
    assert len(build(index=tmp_path / "np", timesteps=np.int64(2)).store.recipe.timesteps) == 2


# --- pictures that change --------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Nine pictures whose files are equally large, in a folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number}.bmp")
    assert len({file.stat().st_size for file in folder.iterdir()}) == 1
    return folder


def exchange(one: Path, two: Path) -> None:
    """Have two files change names."""
    one.rename(one.with_suffix(".away"))
    two.rename(one)
    one.with_suffix(".away").rename(two)


def write_with_time_kept(one: Path, two: Path) -> None:
    """Write one file's bytes into another of the same size; its time and inode stay."""
    status = two.stat()
    two.write_bytes(one.read_bytes())
    os.utime(two, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_pictures_of_one_size_that_are_exchanged_are_other_pictures(
    build: Build, data: Path, tmp_path: Path
) -> None:
    build(data=data)
    exchange(data / "p1.bmp", data / "p2.bmp")
    with pytest.raises(RecipeMismatch, match=r"data: 'p1\.bmp' is another picture now"):
        build(data=data)
    assert list(data_damages(tmp_path / "idx")) == [
        "'p1.bmp' is another picture now",
        "'p2.bmp' is another picture now",
    ]
    exchange(data / "p1.bmp", data / "p2.bmp")
    build(data=data)
    assert list(data_damages(tmp_path / "idx")) == []


def test_bytes_that_change_behind_equal_facts_are_found_by_reading_all(
    build: Build, data: Path, tmp_path: Path
) -> None:
    """Size, time and inode are as they were: a build believes them, `data_damages` does not."""
    build(data=data)
    write_with_time_kept(data / "p1.bmp", data / "p2.bmp")
    build(data=data)
    assert list(data_damages(tmp_path / "idx")) == ["'p2.bmp' is another picture now"]
    remove(tmp_path / "idx", ["p2.bmp"])
    assert list(data_damages(tmp_path / "idx")) == []


def test_a_table_that_is_written_anew_is_read_again(
    build: Build, data: Path, tmp_path: Path
) -> None:
    """The same rows in a new file are the same; two rows of one size exchanged are not."""
    pictures = [file.read_bytes() for file in sorted(data.iterdir())]
    file = tmp_path / "table" / "data.parquet"
    file.parent.mkdir()

    def write(pictures: list[bytes]) -> None:
        cells = [{"bytes": content, "path": None} for content in pictures]
        features = datasets.Features(image=datasets.Image())
        datasets.Dataset.from_dict({"image": cells}, features).to_parquet(file)

    write(pictures)
    build(data=file.parent)
    time.sleep(0.01)
    write(pictures)
    build(data=file.parent)
    time.sleep(0.01)
    write([pictures[1], pictures[0], *pictures[2:]])
    with pytest.raises(RecipeMismatch, match="data: '0' is another picture now"):
        build(data=file.parent)


def test_files_that_are_touched_are_read_once(
    build: Build, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the data set has other times and inodes, and the same pictures."""
    build(data=data)
    read: list[int] = []
    content = Dataset.content
    monkeypatch.setattr(
        Dataset, "content", lambda self, row: read.append(row) or content(self, row)
    )
    build(data=data)
    assert read == []
    os.utime(data / "p3.bmp")
    build(data=data)
    build(data=data)
    assert read == [3]


def test_the_rows_of_a_shard_that_grows_are_of_the_same_pictures(
    build: Build, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a build was stopped after it had added pictures, before the shard was made."""
    later = tmp_path / "p8.bmp"
    (data / "p8.bmp").rename(later)
    build(data=data)
    shutil.copy(later, data / "p8.bmp")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(data=data)
    exchange(data / "p1.bmp", data / "p2.bmp")
    with pytest.raises(RecipeMismatch, match=r"data: 'p1\.bmp' is another picture now"):
        build(data=data)
    exchange(data / "p1.bmp", data / "p2.bmp")
    build(data=data)
    assert list(data_damages(tmp_path / "idx")) == []
    exchange(data / "p1.bmp", data / "p8.bmp")
    assert len(list(data_damages(tmp_path / "idx"))) == 2


def test_compact_keeps_what_tells_of_changes(build: Build, data: Path, tmp_path: Path) -> None:
    build(data=data)
    remove(tmp_path / "idx", ["p0.bmp"])
    compact(tmp_path / "idx")
    build(data=data)
    exchange(data / "p1.bmp", data / "p2.bmp")
    with pytest.raises(RecipeMismatch, match=r"data: 'p1\.bmp' is another picture now"):
        build(data=data)


@pytest.mark.filterwarnings("ignore:.*the size alone was compared")
def test_an_index_of_an_earlier_version_goes_on(build: Build, data: Path, tmp_path: Path) -> None:
    """Its entries say nothing of bytes, times and inodes; sizes are compared as before."""
    store = build(data=data).store
    (shard,) = store.shards()
    for _, entry in store.committed():
        fields = {name: getattr(entry, name) for name in EARLIER_FIELDS}
        store.location.publish(shard.entry, seal(ShardEntry(**fields)))
    before = (tmp_path / "idx" / shard.entry).read_bytes()
    assert b"contents" not in before
    exchange(data / "p1.bmp", data / "p2.bmp")
    build(data=data)
    assert (tmp_path / "idx" / shard.entry).read_bytes() == before
    assert list(data_damages(tmp_path / "idx")) == []
    Image.new("L", (9, 9)).save(data / "p1.bmp")
    with pytest.raises(RecipeMismatch, match=r"data: 'p1\.bmp' is another picture now"):
        build(data=data)


def test_pictures_that_are_gone_are_named(build: Build, data: Path, tmp_path: Path) -> None:
    build(data=data)
    (data / "p4.bmp").unlink()
    assert list(data_damages(tmp_path / "idx")) == ["'p4.bmp' is gone"]
    with pytest.raises(CallError, match="nowhere"):
        list(data_damages(tmp_path / "idx", tmp_path / "nowhere"))

"""Inputs that were once read wrongly or refused badly, each through the whole command line."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import field_faults
import numpy as np
import pytest
from helpers import Done, run

import gradindex
from gradindex.data.images import to_array

SMALL = ("--timesteps", "100,700", "--dim", 16, "--device", "cpu")
Build = Callable[..., Done]


@pytest.fixture(scope="session")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return field_faults.colour_model(tmp_path_factory.mktemp("model") / "ddpm")


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return field_faults.colour_model(tmp_path_factory.mktemp("model") / "ddpm", num_class_embeds=3)


@pytest.fixture
def fault(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of the files that a function of `field_faults` makes; the test names it."""
    folder = tmp_path / "fault"
    folder.mkdir()
    name = request.node.originalname.removeprefix("test_")
    getattr(field_faults, name)(folder)
    return folder


@pytest.fixture
def build(tmp_path: Path, colour: Path) -> Build:
    """`gradindex build` of the index tmp_path/idx; warnings stand on stderr, as on a terminal."""

    def call(data: Path, *options: object, model: Path = colour) -> Done:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            done = run(
                "build", tmp_path / "idx", "--model", model, "--data", data, *SMALL, *options
            )
        said = "".join(f"Warning: {warning.message}\n" for warning in caught)
        return done._replace(stderr=said + done.stderr)

    return call


def ids(tmp_path: Path) -> list[str]:
    return list(gradindex.open(tmp_path / "idx").store.sample_ids)


def plain_scores(index: Path, picture: Path, **options: Any) -> np.ndarray:
    return gradindex.open(index, device="cpu", **options).scores([picture], whiten=False)[0]


def test_every_fault_has_its_test() -> None:
    makers = {
        name
        for name, maker in vars(field_faults).items()
        if callable(maker) and list(getattr(maker, "__annotations__", {})) == ["out", "return"]
    }
    assert len(makers) == 17
    assert makers == {name.removeprefix("test_") for name in globals()} & makers


def test_exif(build: Build, fault: Path, tmp_path: Path) -> None:
    assert "1 turned upright by EXIF" in build(fault).stderr
    for picture in fault.iterdir():
        assert plain_scores(tmp_path / "idx", picture).min() > 0.95
    index = gradindex.open(tmp_path / "idx")
    for row in range(2):
        thumbnail = index.thumbnail(row)
        assert thumbnail is not None
        assert thumbnail.size == (32, 24)


def test_hidden_folder(build: Build, fault: Path, tmp_path: Path, classes: Path) -> None:
    done = build(fault, model=classes)
    assert "labels: cat = 0 (2), dog = 1 (2)" in done.stderr
    assert ids(tmp_path) == ["cat/0.png", "cat/1.png", "dog/2.png", "dog/3.png"]


def test_split_folders(build: Build, fault: Path, tmp_path: Path, classes: Path) -> None:
    done = build(fault, model=classes)
    assert "takes the 2 pictures of folders for training and leaves out 2: test (2)" in done.stderr
    assert "labels: cat = 0 (1), dog = 1 (1)" in done.stderr
    assert ids(tmp_path) == ["train/cat/0.png", "train/dog/1.png"]


def test_linked_folder(build: Build, fault: Path, tmp_path: Path, classes: Path) -> None:
    done = build(fault / "set", model=classes)
    assert "'dog/gone.png' leads nowhere and is left out" in done.stderr
    assert "labels: bird = 0 (2), cat = 1 (1), dog = 2 (1)" in done.stderr
    assert ids(tmp_path) == ["bird/5.png", "bird/6.png", "cat/0.png", "dog/1.png"]


def test_other_formats(build: Build, fault: Path, tmp_path: Path) -> None:
    assert build(fault).returncode == 0
    assert ids(tmp_path) == sorted(file.name for file in fault.iterdir())
    assert len(ids(tmp_path)) == len(field_faults.FORMATS)


def test_split_words(build: Build, fault: Path, tmp_path: Path) -> None:
    assert build(fault).returncode == 0
    assert sorted(ids(tmp_path)) == sorted(file.name for file in fault.glob("*.png"))


def test_two_columns(build: Build, fault: Path, tmp_path: Path) -> None:
    assert build(fault).returncode == 0
    dataset = gradindex.open(tmp_path / "idx").training_pictures.require()
    expected = to_array(field_faults.picture(9), (3, 16, 16))
    np.testing.assert_array_equal(dataset.picture(0, (3, 16, 16)), expected)


def test_stray_table(build: Build, fault: Path, tmp_path: Path) -> None:
    assert build(fault).returncode == 0
    assert ids(tmp_path) == ["00000/a.png", "00000/b.png"]


def test_empty_cell(build: Build, fault: Path, tmp_path: Path) -> None:
    refused = build(fault)
    assert refused.returncode == 1
    assert "'1' is not a readable picture (row 1 has none); --skip-bad leaves" in refused.stderr
    assert build(fault, "--skip-bad").returncode == 0
    assert gradindex.open(tmp_path / "idx").store.excluded == [1]


def test_float_picture(build: Build, fault: Path, tmp_path: Path) -> None:
    refused = build(fault)
    assert refused.returncode == 1
    assert "'deep.png' is not a readable picture (a picture of mode 'F'" in refused.stderr
    assert build(fault, "--skip-bad").returncode == 0
    assert gradindex.open(tmp_path / "idx").store.excluded == [2]


def test_brackets(fault: Path, tmp_path: Path, colour: Path) -> None:
    data = fault / "set [v2]"
    for place in (tmp_path / "idx [1]", f"file://{tmp_path}/idx [2]"):
        done = run("build", place, "--model", colour, "--data", data, *SMALL)
        assert done.returncode == 0, done.stderr
        answer = run("query", place, data / "0.png", "-k", 2)
        assert (answer.returncode, len(answer.stdout.splitlines())) == (0, 4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fault", "idx [1]", "idx [2]"]


def test_foreign_json(build: Build, fault: Path, tmp_path: Path) -> None:
    assert build(fault / "kaggle").returncode == 0
    assert build(fault / "tool", "--overwrite").returncode == 0
    assert ids(tmp_path) == ["0.png", "1.png"]


@pytest.mark.parametrize(
    "part", ["ldm", "ldm/unet", "ldm/checkpoint-500", "ldm/checkpoint-500/unet"]
)
def test_latent_folder(
    build: Build, fault: Path, tmp_path: Path, pictures: Path, part: str
) -> None:
    done = build(pictures, model=fault / part)
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "idx").exists()


def test_unexpected_weights(build: Build, fault: Path, pictures: Path) -> None:
    done = build(pictures, model=fault / "thin")
    assert (done.returncode, "config.json has no place for" in done.stderr) == (1, True)


def test_ema(build: Build, fault: Path, pictures: Path, tmp_path: Path) -> None:
    checkpoints = [fault / f"checkpoint-{step}/unet_ema" for step in (2, 4)]
    options = [word for checkpoint in checkpoints for word in ("--checkpoint", checkpoint)]
    assert build(pictures, *options, model=fault / "pipeline").returncode == 0
    one = ("--checkpoint", checkpoints[0], "--overwrite")
    assert build(pictures, *one, model=fault / "pipeline").returncode == 0
    picture = pictures / "p000.png"
    answer = plain_scores(tmp_path / "idx", picture, model=fault / "pipeline")
    np.testing.assert_array_equal(answer, plain_scores(tmp_path / "idx", picture))


def test_shards_and_single(build: Build, fault: Path, pictures: Path, tmp_path: Path) -> None:
    assert build(pictures, model=fault / "both").returncode == 0
    picture = pictures / "p000.png"
    answer = plain_scores(tmp_path / "idx", picture)
    np.testing.assert_array_equal(
        answer, plain_scores(tmp_path / "idx", picture, model=fault / "shards")
    )
    refused = run("query", tmp_path / "idx", picture, "--model", fault / "other")
    assert (refused.returncode, "is not the one that indexed" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_photographs(build: Build, fault: Path, tmp_path: Path) -> None:
    assert build(fault).returncode == 0
    page = tmp_path / "answer.html"
    done = run("query", tmp_path / "idx", fault / "0.jpg", "--output", page)
    assert done.returncode == 0, done.stderr
    assert page.read_text(encoding="utf-8").count("<img") == 1 + 3 * 4
    assert page.stat().st_size < 2e6

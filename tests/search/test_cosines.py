"""The cosine of pixels beside a score: of the hits' pictures and the one that was asked about."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import make_model
from helpers import drawing, run, write_drawings
from PIL import Image

import gradindex
from gradindex.errors import CallError
from gradindex.report.rendering import to_table
from gradindex.search import pixels, verdicts
from gradindex.search.pixels import TrainingPixels
from gradindex.search.results import Hit, Result

COUNT = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawings(tmp_path_factory.mktemp("cosines") / "data", COUNT)


@pytest.fixture(scope="module")
def place(data: Path) -> Path:
    model = make_model(data.parent / "model", sample_size=32, in_channels=3, out_channels=3)
    gradindex.build(data.parent / "idx", model=model, data=data, timesteps=[300], dim=32)
    return data.parent / "idx"


@pytest.fixture
def index(place: Path) -> gradindex.Index:
    return gradindex.open(place)


def numbers(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), np.float64).reshape(-1) / 127.5 - 1


def cosine(one: Image.Image, other: Image.Image) -> float:
    first, second = numbers(one), numbers(other)
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_pixels_are_compared_one_by_one(index: gradindex.Index) -> None:
    """Of hits and of opponents, of several pictures that share some of them."""
    asked = [drawing(1000), drawing(1001), drawing(7)]
    results = index.query(asked, k=20, opponents=True, pixels=True)
    for picture, result in zip(asked, results, strict=True):
        for hit in [*result.hits, *(result.opponents or [])]:
            assert hit.pixel == pytest.approx(cosine(picture, drawing(hit.row)), abs=1e-5)
            assert hit.embedding is None
    assert results[2].hits[0].pixel == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"verdict": True}, True),
        ({"verdict": True, "pixels": False}, False),
        ({"pixels": True}, True),
    ],
)
def test_they_are_told_with_the_verdict(
    index: gradindex.Index, options: dict[str, bool], expected: bool
) -> None:
    (result,) = index.query(drawing(1000), **options)  # type: ignore[arg-type]
    assert [hit.pixel is not None for hit in result.hits] == [expected] * 10


def test_a_verdict_and_they_read_a_picture_once(
    index: gradindex.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = index.training_pictures.thumbnail

    def counting(row: int, *side: int) -> Image.Image | None:
        read.append(row)
        return real(row, *side)

    monkeypatch.setattr(index.training_pictures, "thumbnail", counting)
    asked = [drawing(1000), drawing(7)]  # the second one looks copied: all pictures are read
    results = index.query(asked, opponents=True, verdict=True)
    assert sorted(read) == list(range(COUNT))
    monkeypatch.setattr(pixels, "MOST_KEPT", 5)  # of more they are read again, to the same end
    assert index.query(asked, opponents=True, verdict=True) == results
    assert len(read) > 2 * COUNT


def test_few_stay_in_memory(index: gradindex.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "MOST_KEPT", 3)
    training = TrainingPixels(index.training_pictures, (3, 8, 8))
    first = list(training.read(np.arange(10)))
    again = list(training.read(np.arange(10)))
    np.testing.assert_array_equal(first, again)
    assert len(training._kept) == 3


@pytest.mark.parametrize("reason", ["many", "elsewhere"])
def test_what_cannot_be_read_is_empty(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """As the verdict says it, and nothing fails; but those that are asked for must be there."""
    data = tmp_path / "nowhere" if reason == "elsewhere" else None
    monkeypatch.setattr(verdicts, "MOST_READ", COUNT if reason == "elsewhere" else COUNT - 1)
    index = gradindex.open(place, data=data)
    (result,) = index.query(drawing(1000), verdict=True)
    assert result.verdict is not None
    assert "copies were not looked for" in result.verdict.text
    assert [hit.pixel for hit in result.hits] == [None] * 10
    if reason == "elsewhere":
        with pytest.raises(CallError, match="nowhere"):
            index.query(drawing(1000), pixels=True)
    else:
        (result,) = index.query(drawing(1000), pixels=True)
        assert None not in [hit.pixel for hit in result.hits]


def test_a_picture_that_is_gone_has_none(data: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    for seed in range(6):
        drawing(seed).save(there / f"{seed}.png")
    index = gradindex.build(
        tmp_path / "idx", model=data.parent / "model", data=there, timesteps=[300], dim=8
    )
    drawing(99).save(there / "4.png")  # another one now
    (result,) = index.query(drawing(1000), pixels=True)
    assert {hit.id for hit in result.hits if hit.pixel is None} == {"4.png"}
    assert "pixel" in to_table([result], "retrac")


def test_merged_pictures_have_that_of_the_one_that_is_named(data: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice"
    twice.mkdir()
    for seed in range(4):
        drawing(seed).save(twice / f"{seed}.png")
    drawing(2).save(twice / "2-again.png")
    index = gradindex.build(
        tmp_path / "idx", model=data.parent / "model", data=twice, timesteps=[300], dim=8
    )
    (result,) = index.query(drawing(2), merge_duplicates=True, pixels=True)
    (merged,) = [hit for hit in result.hits if hit.duplicates]
    assert merged.pixel == pytest.approx(1)


def test_the_command_line_tells_them(place: Path, tmp_path: Path) -> None:
    drawing(1000).save(tmp_path / "gen.png")
    command = ("query", place, tmp_path / "gen.png", "-k", 3)
    (result,) = gradindex.open(place).query(tmp_path / "gen.png", 3, pixels=True)
    table = run(*command).stdout
    assert "standard error over timesteps, z, pixel)" in table
    for hit in result.hits:
        assert f"  {hit.pixel:5.2f}  {hit.id}" in table
    hits = json.loads(run(*command, "--format", "json").stdout)["queries"][0]["hits"]
    assert [hit["pixel"] for hit in hits] == [hit.pixel for hit in result.hits]
    without = run(*command, "--no-pixels", "--format", "json").stdout
    assert "pixel" not in json.loads(without)["queries"][0]["hits"][0]
    assert "pixel" not in run(*command, "--no-verdict").stdout
    assert "z, pixel)" in run(*command, "--no-verdict", "--pixels").stdout


def test_a_table_has_columns_of_what_is_known_and_a_hundred_letters() -> None:
    hits = [
        Hit(1, "a" * 43, 7, -1234.5678, 0.000012345, z=-1234.5, pixel=-0.123, embedding=-0.999),
        Hit(2, "b.png", 8, 0.5, None, pixel=None, embedding=0.5),
    ]
    title, first, second = to_table([Result("gen.png", hits)], "tracin").splitlines()
    assert title.endswith("z, pixel, embedding)")
    assert max(map(len, (title, first, second))) <= 100
    assert first.split()[-4:] == ["-1234.5", "-0.12", "-1.00", "a" * 43]
    assert second.split() == ["2", "0.5", "0.50", "b.png"]
    plain = to_table([Result("gen.png", [Hit(1, "b.png", 8, 0.5, None)])], "tracin")
    assert "pixel" not in plain
    assert "embedding" not in plain

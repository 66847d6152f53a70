"""The training pictures behind an index: shown only where they are those that were indexed."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

import gradindex

SMALL: dict[str, Any] = {"timesteps": 1, "dim": 8, "device": "cpu"}


def flat(file: Path, grey: int) -> None:
    """A picture without compression: all of them have one size in bytes."""
    Image.new("L", (8, 8), grey).save(file, compress_level=0)


def test_pictures_of_one_size_that_changed_places_are_not_shown(
    model: Path, tmp_path: Path
) -> None:
    """Id, label and size are as before; the bytes are not those whose gradient the row is."""
    data = tmp_path / "data"
    data.mkdir()
    for grey in (10, 20, 30):
        flat(data / f"{grey}.png", grey)
    gradindex.build(tmp_path / "idx", model=model, data=data, **SMALL)
    flat(data / "10.png", 20)
    flat(data / "20.png", 10)
    index = gradindex.open(tmp_path / "idx")
    assert [index.thumbnail(row) is None for row in range(3)] == [True, True, False]
    flat(data / "10.png", 10)  # put back: its time and inode are others, its bytes are not
    assert index.thumbnail(0) is not None


def test_a_table_whose_pictures_changed_places_shows_none_of_them(
    model: Path, tmp_path: Path
) -> None:
    features = datasets.Features(image=datasets.Image())
    file = tmp_path / "t.parquet"
    pictures = [Image.new("L", (8, 8), grey) for grey in (10, 20, 30)]
    datasets.Dataset.from_dict({"image": pictures}, features).to_parquet(file)
    gradindex.build(tmp_path / "idx", model=model, data=file, **SMALL)
    assert gradindex.open(tmp_path / "idx").thumbnail(2) is not None
    pictures[:2] = pictures[1::-1]
    datasets.Dataset.from_dict({"image": pictures}, features).to_parquet(file)
    index = gradindex.open(tmp_path / "idx")
    assert [index.thumbnail(row) is None for row in range(3)] == [True, True, False]


@pytest.mark.parametrize("kind", ["folder", "metadata", "table"])
def test_a_query_does_not_say_again_what_the_build_left_out(
    model: Path, pictures: Path, tmp_path: Path, kind: str
) -> None:
    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    if kind == "folder":
        (data / "film.mp4").write_text("film")
    elif kind == "metadata":
        (data / "metadata.csv").write_text("file_name\np000.png\np001.png\n")
    else:
        column = {"image": [str(data / "p000.png")]}
        rows = datasets.Dataset.from_dict(column, datasets.Features(image=datasets.Image()))
        rows.to_parquet(data / "t.parquet")
    with pytest.warns(UserWarning, match="left out"):
        gradindex.build(tmp_path / "idx", model=model, data=data, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gradindex.open(tmp_path / "idx").thumbnail(0) is not None

"""What is asked and answered in Python: arrays of pixels in, tables and notebooks out."""

import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from conftest import make_model
from PIL import Image

import gradindex
from gradindex.errors import CallError
from gradindex.search.pictures import read_pictures
from gradindex.search.results import COLUMNS, Hit, Result, Results


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path) -> gradindex.Index:
    place = tmp_path_factory.mktemp("results") / "idx"
    return gradindex.build(place, model=model, data=pictures, timesteps=[500], dim=8, device="cpu")


def results_of(*names: str) -> Results:
    numbered = enumerate(names, 1)
    hits = [Hit(rank, name, rank + 4, 0.5 / rank, 0.01, z=4.5) for rank, name in numbered]
    return Results([Result("gen.png", hits, opponents=[Hit(1, "far", 9, -0.25, None)])])


ROWS = [
    ("gen.png", "proponents", 1, "a<b>,c.png", 5, 0.5, 0.01, 4.5, None, None, None),
    ("gen.png", "proponents", 2, "é.png", 6, 0.25, 0.01, 4.5, None, None, None),
    ("gen.png", "opponents", 1, "far", 9, -0.25, None, None, None, None, None),
]


# --- tables ---------------------------------------------------------------------------------------


def test_the_table_of_results(tmp_path: Path) -> None:
    """As rows, in pandas, as CSV and as Parquet: the same."""
    results = results_of("a<b>,c.png", "é.png")
    assert list(results.rows()) == ROWS
    frame = results.to_frame()
    assert list(frame.columns) == list(COLUMNS)
    expected = [tuple(None if value != value else value for value in row) for row in frame.values]
    assert expected == ROWS
    text = results.to_csv(tmp_path / "hits.csv")
    assert (tmp_path / "hits.csv").read_text("utf-8") == text
    first, *lines = csv.reader(text.splitlines())
    assert first == list(COLUMNS)
    assert lines == [["" if value is None else str(value) for value in row] for row in ROWS]
    results.to_parquet(tmp_path / "hits.parquet")
    read = pandas.read_parquet(tmp_path / "hits.parquet")
    pandas.testing.assert_frame_equal(read, frame, check_dtype=False)


def test_the_table_has_lists_and_a_column_for_each_timestep(tmp_path: Path) -> None:
    """Also where pictures have timesteps of their own."""
    first = Hit(1, "a.png", 0, 0.5, None, {500: 0.25, 99.5: 0.75}, duplicates=["b.png", "c d.png"])
    second = Hit(2, "e.png", 4, 0.1, None, {700: 0.1}, pixel=0.5, embedding=-1.0, duplicates=[])
    results = Results([Result("gen.png", [first, second])])
    assert results.columns == [*COLUMNS, "t=99.5", "t=500", "t=700"]
    lines = [dict(zip(results.columns, row, strict=True)) for row in results.rows()]
    assert lines[0]["duplicates"] == ["b.png", "c d.png"]
    assert [lines[0][f"t={t}"] for t in ("99.5", "500", "700")] == [0.75, 0.25, None]
    assert (lines[1]["pixel"], lines[1]["embedding"], lines[1]["t=700"]) == (0.5, -1.0, 0.1)
    results.to_parquet(tmp_path / "hits.parquet")
    read = pandas.read_parquet(tmp_path / "hits.parquet")
    assert [list(cell) for cell in read["duplicates"]] == [["b.png", "c d.png"], []]
    assert list(read.columns) == list(results.to_frame().columns) == results.columns
    _, *cells = csv.reader(results.to_csv().splitlines())
    ends = [["", "", "b.png; c d.png", "0.75", "0.25", ""], ["0.5", "-1.0", "", "", "", "0.1"]]
    assert [line[8:] for line in cells] == ends


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    assert Results().to_csv() == ",".join(COLUMNS) + "\n"
    Results().to_parquet(tmp_path / "none.parquet")
    assert list(pandas.read_parquet(tmp_path / "none.parquet").columns) == list(COLUMNS)


def test_names_of_other_bytes_are_written(tmp_path: Path) -> None:
    results = results_of("a\udcff.png")
    results.to_csv(tmp_path / "hits.csv")
    assert "a\\udcff.png" in (tmp_path / "hits.csv").read_text("utf-8")
    results.to_parquet(tmp_path / "hits.parquet")
    assert pandas.read_parquet(tmp_path / "hits.parquet")["id"][0] == "a\\udcff.png"


def test_results_are_a_list(index: gradindex.Index, queries: list[Path]) -> None:
    results = index.query(queries, k=2)
    assert isinstance(results, list)
    assert results == list(results)
    assert [len(result.hits) for result in results] == [2, 2]
    copied = pickle.loads(pickle.dumps(results))
    assert (type(copied), copied) == (Results, results)


def test_some_results_are_results(index: gradindex.Index, queries: list[Path]) -> None:
    results = index.query(queries, k=2)
    last = results[1:]
    assert (type(last), last) == (Results, [results[1]])
    assert list(last.rows()) == list(results.rows())[2:]
    assert last._repr_html_().count("data:image/png;base64,") == 1 + 2
    assert results[-1] is results[1]


# --- notebooks ------------------------------------------------------------------------------------


def test_a_notebook_shows_results_with_pictures(
    index: gradindex.Index, queries: list[Path]
) -> None:
    shown = index.query(queries, k=2)._repr_html_()
    assert shown.count("data:image/png;base64,") == 2 * (1 + 2)
    assert shown.count("<tr>") == 2
    for result in index.query(queries, k=2):
        assert all(name in shown for name in result.ids)


def test_a_notebook_shows_results_whose_pictures_are_not_where_they_should_be(
    index: gradindex.Index, queries: list[Path], tmp_path: Path
) -> None:
    moved = gradindex.open(index.store.location, data=tmp_path / "nowhere")
    shown = moved.query(queries, k=2)._repr_html_()
    assert shown.count("data:image/png;base64,") == 2


def test_hostile_names_stay_text() -> None:
    shown = results_of("<script>x</script>.png")._repr_html_()
    assert "&lt;script&gt;x&lt;/script&gt;.png" in shown
    assert "<script" not in shown


def test_an_index_says_what_it_is(index: gradindex.Index, pictures: Path) -> None:
    assert len(index) == 9
    assert list(index.ids) == sorted(file.name for file in pictures.iterdir())
    assert index.scores(pictures / "p003.png").shape == (1, len(index))
    place = index.store.location
    rows = "9 pictures × 1 timestep × 8 numbers"
    assert repr(index) == f"<gradindex.Index {place}, {rows}, UNet2DModel (epsilon), cpu>"
    assert f"<th>rows</th><td>{rows}</td>" in index._repr_html_()


# --- pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("channels_first", [False, True])
def test_pixels_are_read_as_the_picture_is(mode: str, kind: Any, channels_first: bool) -> None:
    generator = np.random.default_rng(0)
    shape = {"L": (9, 7), "RGB": (9, 7, 3), "RGBA": (9, 7, 4)}[mode]
    pixels = generator.integers(256, size=shape, dtype=np.uint8)
    expected = read_pictures([Image.fromarray(pixels)], (3, 8, 8))
    if channels_first:
        pixels = pixels[None] if mode == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(read_pictures(kind(pixels), (3, 8, 8)), expected)
    np.testing.assert_array_equal(read_pictures([kind(pixels)], (3, 8, 8)), expected)


@pytest.mark.parametrize("shape", [(8, 8, 2), (0, 8, 3), (8,)])
def test_other_shapes_of_pixels_are_one_line(shape: tuple[int, ...]) -> None:
    with pytest.raises(CallError, match=r"a uint8 picture of shape .* with 1, 3 or 4 channels"):
        read_pictures([np.zeros(shape, np.uint8)], (3, 8, 8))


def test_colour_models_take_pixels(tmp_path: Path, pictures: Path) -> None:
    """A query by pixels scores as one by the file that holds them."""
    model = make_model(tmp_path / "model", in_channels=3, out_channels=3)
    index = gradindex.build(
        tmp_path / "idx", model=model, data=pictures, timesteps=[500], dim=8, device="cpu"
    )
    file = pictures / "p004.png"
    pixels = np.asarray(Image.open(file).convert("RGB"))
    np.testing.assert_array_equal(index.scores(pixels), index.scores(file))

"""Hostile pictures and their metadata: the true answer or one clear error."""

import struct
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
import picture_inputs
import pytest
from hypothesis import strategies
from judging import Case, bounded
from picture_inputs import png
from PIL import EpsImagePlugin, Image
from refusals import budget, refusal

from gradindex.data.opening import open_dataset
from gradindex.errors import CallError, DataError
from gradindex.search.pictures import read_pictures

KINDS = picture_inputs.KINDS


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return KINDS[request.param](tmp_path_factory.mktemp("hostile"))


@pytest.mark.slow
@budget(150)
@hypothesis.given(seed=strategies.integers(0, 2**32 - 1))
def test_hostile_pictures_are_read_truly_or_refused(case: Case, seed: int) -> None:
    assert case(Random(seed)) in (True, False)  # it raises where anything else comes of it


# --- pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        png(60_000, 60_000, 8, 2),
        png(2**31 - 1, 1, 8, 6),
        png(65_535, 65_535, 1, 0, b""),
        b"P6 100000 100000 255\n" + bytes(100),
        b"P1 999999999999 1\n0",
        b"BM" + struct.pack("<IIIIiiHH", 90, 0, 54, 40, 60_000, 60_000, 1, 24) + bytes(60),
    ],
    ids=["PNG", "PNG row", "PNG bits", "PPM", "PBM", "BMP"],
)
def test_a_picture_that_declares_a_huge_size_takes_no_memory(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.png").write_bytes(content)
    dataset = open_dataset(tmp_path)
    line = refusal(lambda: dataset.read(0, (3, 8, 8)), DataError)
    assert line.startswith(f"{tmp_path}: 'a.png' is not a readable picture (")
    line = refusal(lambda: read_pictures([content], (3, 8, 8)), CallError)
    assert line.startswith("picture 0: not a picture that opens (")
    with bounded(seconds=20, megabytes=64):
        assert dataset.thumbnail(0) is None


def test_a_chunk_that_declares_a_huge_length_takes_no_memory(tmp_path: Path) -> None:
    """Pillow asks the file for all of it at once, four gigabytes."""
    content = png(8, 8, 8, 2)
    length = struct.pack(">I", 17) + b"IDAT"
    assert length in content
    (tmp_path / "a.png").write_bytes(content.replace(length, b"\xff\xff\xff\xffIDAT"))
    with bounded(seconds=20, megabytes=64):
        array = open_dataset(tmp_path).read(0, (3, 8, 8))[0]
    assert (array == -1).all()


def test_files_of_pictures_are_closed(tmp_path: Path) -> None:
    """Pillow closes no file that it was given, and a folder has more pictures than may be open."""
    picture_inputs.write_pictures(tmp_path)
    for name in ("animated.gif", "pages.tif"):
        frames = [Image.new("L", (8, 6), color=grey) for grey in (1, 200)]
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    dataset = open_dataset(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for row in range(len(dataset)):
        dataset.read(row, (1, 6, 8))
        dataset.thumbnail(row)
        dataset.content(row)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_picture_is_never_given_to_another_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow tells formats by the bytes, and runs Ghostscript over EPS, which is a program."""

    def run(*_: Any, **__: Any) -> None:
        pytest.fail("Ghostscript was run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(content)
    assert refusal(lambda: open_dataset(tmp_path).read(0, (3, 8, 8)), DataError) == (
        f"{tmp_path}: 'a.png' is not a readable picture (no format that Pillow reads)"
    )
    assert refusal(lambda: read_pictures([content], (3, 8, 8)), CallError) == (
        "picture 0: not a picture that opens (no format that Pillow reads)"
    )


# --- metadata of pictures -------------------------------------------------------------------------


def test_rows_longer_than_the_headings_do_not_shift_the_columns(tmp_path: Path) -> None:
    """pandas takes the first cells for names of the rows, and then each column for the next."""
    picture_inputs.write_pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,b.png,1\nb.png,a.png,0\n")
    line = refusal(lambda: open_dataset(tmp_path), CallError)
    assert line.startswith(f"data {tmp_path}: cannot be read (metadata.csv: Length of header")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,1,\nb.png,0,\n")
    assert open_dataset(tmp_path).sample_ids == ["a.png", "b.png"]


def test_a_name_that_is_too_long_for_a_file_is_a_picture_that_is_not_there(tmp_path: Path) -> None:
    picture_inputs.write_pictures(tmp_path, ["a.png"])
    (tmp_path / "metadata.csv").write_text(f"file_name\na.png\n{'b' * 5000}\n")
    dataset = open_dataset(tmp_path)
    assert dataset.read(0, (1, 6, 8))[0].shape == (1, 6, 8)
    line = refusal(lambda: dataset.read(1, (1, 6, 8)), DataError)
    assert line == (f"{tmp_path}: '{'b' * 399}…' is not a readable picture (File name too long)")

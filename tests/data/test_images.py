"""A picture of any format becomes what training saw: turned, reduced, resized to the pixel."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradindex.data.dataset import Columns, Dataset
from gradindex.data.images import _resize_and_crop, read_thumbnail, to_array, to_thumbnail
from gradindex.data.opening import open_dataset
from gradindex.errors import CallError, DataError
from gradindex.search.pictures import picture_list, read_labels, read_pictures

IMAGE = (3, 8, 8)


def blocks(width: int = 32, height: int = 24) -> Image.Image:
    """A picture of 4 × 3 blocks of different greys."""
    return Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20).resize(
        (width, height), Image.Resampling.NEAREST
    )


def save_sideways(file: Path, picture: Image.Image) -> Path:
    """Save a picture turned, with the EXIF orientation 6 that turns it back."""
    tags = Image.Exif()
    tags[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(file, exif=tags)
    return file


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.jpg"])
def test_exif_orientation_is_followed_everywhere(tmp_path: Path, name: str) -> None:
    picture = blocks().convert("RGB")
    tolerance = 0.05 if name in ("a.jpg", "a.webp") else 0
    expected = to_array(picture, IMAGE)
    file = save_sideways(tmp_path / name, picture)
    np.testing.assert_allclose(open_dataset(tmp_path).picture(0, IMAGE), expected, atol=tolerance)
    np.testing.assert_allclose(read_pictures(file, IMAGE)[0], expected, atol=tolerance)
    np.testing.assert_allclose(read_pictures(Image.open(file), IMAGE)[0], expected, atol=tolerance)
    assert read_thumbnail(file).size == (32, 24)


def test_a_table_gives_what_datasets_decodes(tmp_path: Path) -> None:
    import datasets

    file = save_sideways(tmp_path / "a.png", blocks().convert("RGB"))
    table = datasets.Dataset.from_dict({"image": [file.read_bytes()]})
    table = table.cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "t.parquet")
    opened = open_dataset(tmp_path / "t.parquet")
    np.testing.assert_array_equal(opened.picture(0, IMAGE), to_array(table[0]["image"], IMAGE))
    thumbnail = opened.thumbnail(0)
    assert thumbnail is not None
    assert thumbnail.size == (32, 24)
    line = "pictures: 1 resized to 8x8; 1 turned upright by EXIF"
    assert opened.describe_changes(IMAGE, np.arange(1)) == [line]


def test_a_picture_that_was_turned_already_is_not_turned_again(tmp_path: Path) -> None:
    from PIL import ImageOps

    file = save_sideways(tmp_path / "a.png", blocks())
    turned = ImageOps.exif_transpose(Image.open(file))
    np.testing.assert_array_equal(to_array(turned, (1, 8, 8)), to_array(blocks(), (1, 8, 8)))


class Steps:
    """In place of a picture: notes what is done to it.

    Attributes:
        size: width and height. notes: the sizes it was resized to, and the boxes that were cropped.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.notes: list[tuple[int, ...]] = []

    width = property(lambda self: self.size[0])
    height = property(lambda self: self.size[1])

    def resize(self, size: tuple[int, int], filter_: Image.Resampling) -> "Steps":
        assert filter_ == Image.Resampling.BILINEAR
        self.size = size
        self.notes.append(size)
        return self

    def crop(self, box: tuple[int, int, int, int]) -> "Steps":
        self.notes.append(box)
        return self


# (width, height) and the model's side; what torchvision 0.28.0 resizes to, and the box that it
# crops. Its `_compute_resized_output_size` and `center_crop` were compared with ours on 200,000
# random sizes besides, and the pixels of 1,000 random pictures: all were equal.
TORCHVISION_STEPS = [
    ((33, 24), 8, [(11, 8), (2, 0, 10, 8)]),
    ((24, 37), 8, [(8, 12), (0, 2, 8, 10)]),
    ((100, 63), 8, [(12, 8), (2, 0, 10, 8)]),
    ((641, 480), 64, [(85, 64), (10, 0, 74, 64)]),
    ((500, 375), 256, [(341, 256), (42, 0, 298, 256)]),
    ((375, 500), 256, [(256, 341), (0, 42, 256, 298)]),
    ((1023, 767), 512, [(682, 512), (85, 0, 597, 512)]),
    ((7, 5), 32, [(44, 32), (6, 0, 38, 32)]),
    ((3, 1000), 16, [(16, 5333), (0, 2658, 16, 2674)]),
    ((31, 30), 15, [(15, 15), (0, 0, 15, 15)]),
    # The shorter side fits: nothing is resized. Halves are rounded to even: 0.5, 1.5, 2.5.
    ((9, 8), 8, [(0, 0, 8, 8)]),
    ((8, 11), 8, [(0, 2, 8, 10)]),
    ((13, 8), 8, [(2, 0, 10, 8)]),
    ((8, 14), 8, [(0, 3, 8, 11)]),
]


@pytest.mark.parametrize(("size", "side", "expected"), TORCHVISION_STEPS)
def test_pictures_are_resized_and_cropped_to_the_pixel_of_torchvision(
    size: tuple[int, int], side: int, expected: list[tuple[int, ...]]
) -> None:
    steps = Steps(size)
    _resize_and_crop(steps, side, side)  # type: ignore[arg-type]
    assert steps.notes == expected


@pytest.mark.parametrize(
    "expected",
    [
        [[25, 36, 48], [102, 113, 125], [179, 190, 202]],
        [[14, 23, 33, 43], [71, 80, 90, 100], [129, 138, 148, 158], [186, 195, 205, 215]],
    ],
    ids=len,
)
def test_pixels_are_those_of_torchvision(expected: list[list[int]]) -> None:
    """Of a picture of 7 × 5 pixels of 0, 7, 14, … by torchvision 0.28.0 with Pillow's resize."""
    picture = Image.fromarray((np.arange(35).reshape(5, 7) * 7).astype(np.uint8))
    pixels = to_array(picture, (1, len(expected), len(expected)))[0]
    np.testing.assert_array_equal(np.rint((pixels + 1) * 127.5), expected)


@pytest.mark.parametrize("size", [(33, 24), (24, 37), (100, 63), (9, 8), (8, 11), (641, 480)])
def test_resize_truncates_and_crop_rounds_as_torchvision(size: tuple[int, int]) -> None:
    """torchvision's own words, transforms/functional.py, on Pillow's resize."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, size[::-1], np.uint8))
    width, height = size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = 8, int(8 * long / short)
    new = (new_short, new_long) if width <= height else (new_long, new_short)
    resized = picture.resize(new, Image.Resampling.BILINEAR)
    top = int(round((new[1] - 8) / 2.0))  # noqa: RUF046
    left = int(round((new[0] - 8) / 2.0))  # noqa: RUF046
    expected = np.asarray(resized.crop((left, top, left + 8, top + 8)), np.float32) / 127.5 - 1
    np.testing.assert_array_equal(to_array(picture, (1, 8, 8))[0], expected)


@pytest.mark.parametrize("size", [(33, 24), (24, 37), (5, 70), (70, 5)])
@pytest.mark.parametrize("image", [(1, 8, 12), (1, 12, 8)])
def test_models_that_are_not_square_are_covered(
    size: tuple[int, int], image: tuple[int, int, int]
) -> None:
    assert to_array(Image.new("L", size, 255), image).min() == 1


def test_sixteen_bits_in_every_form_that_pillow_opens(tmp_path: Path) -> None:
    """Scaled to 8 bits, not clipped, in arrays and in thumbnails, upright or not."""
    deep = Image.fromarray(np.full((8, 8), 100 * 257, np.uint16))
    deep.save(tmp_path / "a.png")
    deep.save(tmp_path / "b.tif")
    deep.save(tmp_path / "c.pgm")
    save_sideways(tmp_path / "d.png", deep)
    dataset = open_dataset(tmp_path)
    for row in range(4):
        np.testing.assert_allclose(dataset.picture(row, IMAGE), 100 / 127.5 - 1, atol=1e-6)
        thumbnail = dataset.thumbnail(row)
        assert thumbnail is not None
        assert set(thumbnail.tobytes()) == {100}


@pytest.mark.parametrize("mode", ["F", "I"])
def test_thirty_two_bits_are_one_pictures_fault(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / "deep.tif")
    dataset = open_dataset(tmp_path)
    with pytest.raises(DataError, match=f"'deep.tif' is not a readable.*mode '{mode}': give 8"):
        dataset.picture(0, IMAGE)
    assert dataset.thumbnail(0) is None
    with pytest.raises(CallError, match=rf"deep.tif: not a picture that opens \(.*mode '{mode}'"):
        read_pictures(tmp_path / "deep.tif", IMAGE)


def test_a_picture_too_narrow_to_be_resized_is_named(tmp_path: Path) -> None:
    Image.new("1", (1, 60_000)).save(tmp_path / "line.png")
    with pytest.raises(DataError, match=r"'line\.png'.*1 × 60000 pixels is too narrow"):
        open_dataset(tmp_path).picture(0, (3, 512, 512))


def test_damaged_bytes_of_any_kind_are_one_pictures_fault(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for suffix in ("png", "jpg", "webp", "tif", "gif", "bmp", "tga", "ico", "psd", "qoi", "dds"):
        stream = io.BytesIO()
        kind = {"psd": "PNG", "qoi": "PNG", "jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix)
        blocks().save(stream, kind)
        for number in range(12):
            content = bytearray(stream.getvalue()[: 400 if number % 2 else 60 + 10 * number])
            for position in generator.integers(0, len(content), 6):
                content[position] = generator.integers(256)
            (tmp_path / f"{number}.{suffix}").write_bytes(content)
    dataset = open_dataset(tmp_path)
    for row in range(len(dataset)):
        try:
            assert dataset.picture(row, IMAGE).shape == IMAGE
        except DataError as error:
            assert dataset.sample_ids[row] in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        dataset.thumbnail(row)


def test_thumbnails_are_small(tmp_path: Path) -> None:
    Image.new("RGB", (1200, 300), (9, 9, 9)).save(tmp_path / "wide.jpg")
    assert read_thumbnail(tmp_path / "wide.jpg").size == (256, 64)
    assert to_thumbnail(blocks()).size == (32, 24)


def test_what_is_done_to_pictures_is_counted(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "grey.png")
    Image.new("RGBA", (8, 8)).save(tmp_path / "alpha.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("text")
    dataset = open_dataset(tmp_path)
    rows = np.arange(4)
    assert dataset.describe_changes((3, 8, 8), rows) == [
        "pictures: 1 transparent, taken without transparency; 1 grey, made colour;"
        " 1 cannot be opened; 1 resized to 8x8",
    ]
    assert "2 in colour, made grey" in dataset.describe_changes((1, 8, 8), rows)[0]
    assert dataset.sample_ids[3] == "wide.png"
    assert dataset.describe_changes((3, 8, 8), rows[3:]) == ["pictures: 1 resized to 8x8"]
    assert dataset.describe_changes((3, 8, 8), rows[:0]) == []


def test_two_thousand_pictures_are_looked_at_at_the_most() -> None:
    opened = []

    def open_picture(row: int) -> Image.Image:
        opened.append(row)
        return Image.new("RGB", (9, 8))

    ids = [str(row) for row in range(5000)]
    there = np.ones(5000, bool)
    dataset = Dataset("set", Columns(), ids, None, there, lambda row: 1, open_picture)
    lines = dataset.describe_changes(IMAGE, np.arange(1000, 5000))
    assert lines == ["pictures (2,000 of 4,000 looked at): 2000 resized to 8x8"]
    assert (len(opened), opened[0], opened[-1]) == (2000, 1000, 4999)
    assert dataset.describe() == ["set: 5,000 pictures"]
    assert len(opened) == 2000


def test_the_first_of_several_frames_is_taken_and_said(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), grey) for grey in (10, 20, 30)]
    for name in ("film.gif", "pages.tif", "film.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    blocks(8, 8).save(tmp_path / "still.png")
    dataset = open_dataset(tmp_path)
    (line,) = dataset.describe_changes((1, 8, 8), np.arange(4))
    assert "3 of several frames, the first taken" in line
    for row in range(2):
        np.testing.assert_allclose(dataset.picture(row, (1, 8, 8)), 10 / 127.5 - 1, atol=0.01)


# --- pictures of a query -----------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    blocks(8, 8).convert("RGB").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_one_picture_of_any_kind_is_one_picture(file: Path) -> None:
    expected = read_pictures([file], IMAGE)
    with file.open("rb") as stream:
        assert len(picture_list(stream)) == 1
        np.testing.assert_array_equal(read_pictures(stream, IMAGE), expected)
    content = file.read_bytes()
    one = [str(file), content, bytearray(content), Image.open(file), expected[0], expected]
    for picture in one:
        np.testing.assert_array_equal(read_pictures(picture, IMAGE), expected)
    assert len(read_pictures((file for _ in range(3)), IMAGE)) == 3
    assert len(read_pictures(np.array([str(file), str(file)]), IMAGE)) == 2


class Output(dict):
    images = ()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("", r"not a picture that opens \(a folder; give its pictures one by one"),
        ("*.png", "a pattern is not expanded"),
        ("none.png", r"none.png: not a picture that opens \(no such file\)"),
        ("https://host/a.png", "an address; download it"),
        (b"text", "picture 0: not a picture that opens"),
        (3, "pictures: a int is none; give paths"),
        ([3], "picture 0: a int is no picture; give paths"),
        ([None], "picture 0: a NoneType is no picture"),
        ([[["a"]]], "picture 0: no picture"),
        ({"a": 1}, "a dict holds none"),
        (Output(), r"of what a pipeline returns, give its \.images"),
        ([], "give at least one"),
        (np.zeros((8, 8), np.float32), r"tensor of shape \(8, 8\)"),
        (np.full((8, 8, 3), 200), r"tensor of shape \(8, 8, 3\): give \(3, 8, 8\)"),
    ],
)
def test_what_is_no_picture_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch, picture: object, message: str
) -> None:
    monkeypatch.chdir(file.parent)
    with pytest.raises(CallError, match=message) as caught:
        read_pictures(picture, IMAGE)
    assert "\n" not in str(caught.value)


def test_a_model_is_no_picture() -> None:
    import torch

    with pytest.raises(CallError, match="a Sequential holds none"):
        read_pictures(torch.nn.Sequential(torch.nn.Identity()), IMAGE)


def test_brackets_in_a_pictures_name_are_letters(file: Path) -> None:
    odd = file.rename(file.with_name("a [1]?*.png"))
    assert read_pictures(odd, IMAGE).shape == (1, *IMAGE)


def test_labels_of_queries_are_whole_numbers() -> None:
    assert read_labels(np.int64(3), 2, 10) == [3, 3]
    assert read_labels(np.array([1, 2]), 2, 10) == [1, 2]
    with pytest.raises(CallError, match=r"class_label = 1\.5: give whole numbers"):
        read_labels(1.5, 1, 10)  # type: ignore[arg-type]

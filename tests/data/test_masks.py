"""Masks of pictures: which file is whose, and that they are turned, resized and cut alike."""

from pathlib import Path

import numpy as np
import pytest
from conftest import make_pictures
from PIL import Image

import gradindex
from gradindex.data.images import opacity, to_mask
from gradindex.data.masks import add_masks, with_masks
from gradindex.data.opening import open_dataset
from gradindex.errors import CallError, DataError, GradindexError

SIZE = (3, 8, 8)


def save(file: Path, value: int = 255, size: tuple[int, int] = (8, 8)) -> Path:
    """A grey picture of one value, width × height."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(file)
    return file


def values(data: Path, masks: Path) -> dict[str, int]:
    """What the mask of each picture is all over, 0 … 255."""
    dataset = with_masks(open_dataset(data), masks)
    found = {}
    for row, name in enumerate(dataset.sample_ids):
        mask = dataset.read(row, SIZE).mask
        assert mask is not None
        assert mask.shape == (1, 8, 8)
        assert mask.dtype == np.float32
        found[name] = round(float(mask.mean()) * 255)
    return found


def test_which_mask_is_whose(tmp_path: Path) -> None:
    """The whole path counts before the name alone, and the same suffix before others."""
    data, masks = tmp_path / "data", tmp_path / "masks"
    for name in ("10_dog/a.png", "10_dog/b.png", "10_dog/c.png", "5_cat/a.png", "5_cat/d.1.png"):
        save(data / name)
    save(masks / "a.png", 1)
    save(masks / "5_cat" / "a.png", 2)
    save(masks / "b.bmp", 3)
    save(masks / "10_dog" / "c.BMP", 4)
    save(masks / "d.1.png", 5)
    save(masks / "d.png", 6)
    save(masks / "b.gif", 7)
    (masks / "b.txt").write_text("no mask")
    assert values(data, masks) == {
        "10_dog/a.png": 1,
        "10_dog/b.png": 3,
        "10_dog/c.png": 4,
        "5_cat/a.png": 2,
        "5_cat/d.1.png": 5,
    }


def test_masks_of_a_table_are_found_by_its_ids(tmp_path: Path) -> None:
    import datasets

    pictures = [Image.new("L", (8, 8)) for _ in range(2)]
    table = datasets.Dataset.from_dict({"image": pictures}, features=None)
    table = table.cast_column("image", datasets.Image())
    table.save_to_disk(tmp_path / "table")
    save(tmp_path / "masks" / "0.png", 10)
    save(tmp_path / "masks" / "1.png", 20)
    assert values(tmp_path / "table", tmp_path / "masks") == {"0": 10, "1": 20}


def test_an_id_leads_nowhere_outside_the_folder(tmp_path: Path) -> None:
    """Ids of a table may be any text."""
    save(tmp_path / "outside.png")
    (tmp_path / "masks").mkdir()
    dataset = open_dataset(make_pictures(tmp_path / "data", 1))
    dataset = dataset.in_order(["../outside.png"], np.array([0]))
    assert add_masks(dataset, tmp_path / "masks").masks.files == [None]


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("size", [(8, 8), (23, 9), (6, 15)])
def test_a_mask_goes_the_way_of_its_picture(
    tmp_path: Path, size: tuple[int, int], orientation: int
) -> None:
    """A picture as its own mask: both have the same numbers after they were turned and cut."""
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    for name in ("data/a.png", "masks/a.tiff"):
        (tmp_path / name).parent.mkdir()
        picture.save(tmp_path / name, exif=exif)
    read = with_masks(open_dataset(tmp_path / "data"), tmp_path / "masks").read(0, (3, 8, 6))
    np.testing.assert_allclose(read.mask[0], (read.array[0] + 1) / 2, atol=1e-7)
    assert read.mask.std() > 0.05

    transparent = picture.copy()
    transparent.putalpha(picture.getchannel(0))
    transparent.save(tmp_path / "data" / "a.png", exif=exif)
    alpha = with_masks(open_dataset(tmp_path / "data"), "alpha").read(0, (3, 8, 6))
    np.testing.assert_array_equal(alpha.mask, read.mask)
    plain = open_dataset(tmp_path / "data")
    said = [
        d.describe_changes((3, 8, 6), np.array([0]))[0] for d in (plain, with_masks(plain, "alpha"))
    ]
    assert ["without transparency" in line for line in said] == [True, False]
    np.testing.assert_array_equal(alpha.array, read.array)


def test_alpha_of_all_modes() -> None:
    """Alpha channels, palettes with transparency, a transparent colour; white without any."""
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = bytes([0, 128])
    grey = Image.new("LA", (2, 1), (9, 0))
    grey.putpixel((1, 0), (9, 128))
    for picture, expected in (
        (palette, [0, 128]),
        (grey, [0, 128]),
        (Image.new("RGB", (2, 1)), [255, 255]),
        (Image.new("1", (2, 1)), [255, 255]),
    ):
        assert np.asarray(opacity(picture))[0].tolist() == expected
    deep = Image.fromarray(np.array([[0, 65535]], np.uint16))
    assert to_mask(deep, (3, 1, 2)).tolist() == [[[0, 1]]]


def test_pictures_without_a_mask_are_listed(tmp_path: Path) -> None:
    dataset = open_dataset(make_pictures(tmp_path / "data", 6))
    save(tmp_path / "masks" / "p002.png")
    with pytest.raises(CallError) as refusal:
        with_masks(dataset, tmp_path / "masks")
    assert str(refusal.value) == (
        f"masks {tmp_path / 'masks'}: 5 of 6 pictures have no mask ('p000.png', 'p001.png',"
        " 'p003.png' and 2 more); put one of the same name there for each, white where the whole"
        " picture counts"
    )
    with pytest.raises(DataError, match=r"the mask of 'p000\.png' is not there$"):
        add_masks(dataset, tmp_path / "masks").read(0, SIZE)
    with pytest.raises(CallError, match=r"^masks = 'Alpha': no such folder; give one with a mask"):
        with_masks(dataset, "Alpha")
    with pytest.raises(
        CallError, match=r"^masks gone: no such folder; put them back, or run the sa"
    ):
        add_masks(dataset, "gone")


def bad_mask(file: Path, fault: str) -> None:
    if fault == "size":
        save(file, size=(4, 8))
    elif fault == "text":
        file.write_text("no picture")
    elif fault == "cut off":
        file.write_bytes(file.read_bytes()[:60])
    elif fault == "deep":
        Image.fromarray(np.zeros((8, 8), np.float32)).save(file.with_suffix(".tiff"))
        file.unlink()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("size", "has 4 × 8 pixels, and the picture 8 × 8 ({masks}/p001.png); give a mask of the"),
        ("text", "is not a readable picture ({masks}/p001.png: no format that Pillow reads)"),
        ("cut off", "is not a readable picture ({masks}/p001.png: "),
        ("deep", "is not a readable picture ({masks}/p001.tiff: a picture of mode 'F': give 8 or"),
    ],
)
def test_a_mask_that_does_not_fit(tmp_path: Path, model: Path, fault: str, message: str) -> None:
    """One line that names picture and mask; --skip-bad leaves the picture out."""
    data, masks = make_pictures(tmp_path / "data", 3), make_pictures(tmp_path / "masks", 3, seed=1)
    bad_mask(masks / "p001.png", fault)
    options = {"model": model, "data": data, "masks": masks, "timesteps": 1, "device": "cpu"}
    with pytest.raises(GradindexError) as refusal:
        gradindex.build(tmp_path / "idx", **options, dim=16)
    line = str(refusal.value)
    assert f"{data}: the mask of 'p001.png' " in line
    assert message.format(masks=masks) in line
    assert "\n" not in line
    index = gradindex.build(tmp_path / "idx", **options, dim=16, skip_bad=True)
    assert list(index.store.excluded) == [1]


def test_a_denoiser_of_ones_own_has_its_own_loss(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"^masks: a denoiser of your own has one loss, its own;"):
        gradindex.build(tmp_path / "idx", denoiser=object(), data=tmp_path, masks="alpha")


def test_pictures_without_an_alpha_channel_are_counted(tmp_path: Path) -> None:
    """`masks = 'alpha'` masks nothing of them."""
    for number, mode in enumerate(("RGB", "RGBA", "L", "LA")):
        Image.new(mode, (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_text("no picture")
    dataset = with_masks(open_dataset(tmp_path), "alpha")
    assert dataset.describe_changes(SIZE, np.arange(5)) == [
        "pictures: 2 grey, made colour; 1 cannot be opened; 2 of no alpha channel, count wholly"
    ]
    assert dataset.describe_changes(SIZE, np.array([1])) == []

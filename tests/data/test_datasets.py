"""Which pictures a data set holds, their ids and labels, and what is said of what it leaves out."""

import gc
import io
import json
import os
import socket
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from gradindex.data.dataset import Columns, Dataset
from gradindex.data.opening import open_dataset
from gradindex.errors import CallError, DataError

IMAGE = (3, 8, 8)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8))


def fill(path: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(path / name)
    return path


def table(**columns: list[Any]) -> datasets.Dataset:
    """A table whose columns of pictures are typed so."""
    features = {
        name: datasets.Image() if isinstance(values[0], Image.Image) else datasets.Value("string")
        for name, values in columns.items()
    }
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def open_with_warnings(path: Path, columns: Columns | None = None) -> tuple[Dataset, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = open_dataset(path, columns)
    texts = [str(warning.message) for warning in caught]
    assert not any("\n" in text for text in texts)
    return dataset, texts


# --- folders -----------------------------------------------------------------------------------


def test_hidden_and_system_files_are_neither_indexed_nor_classes(tmp_path: Path) -> None:
    fill(tmp_path, "cat/0.png", "dog/1.png", "dog/__x.png")
    fill(tmp_path, ".ipynb_checkpoints/0.png", "cat/.hidden.png", "cat/._0.png", "__MACOSX/0.png")
    dataset = open_dataset(tmp_path)
    assert dataset.sample_ids == ["cat/0.png", "dog/1.png", "dog/__x.png"]  # as `datasets`
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1, 1]
    assert dataset.describe()[:2] == [
        f"{tmp_path}: 3 pictures",
        "labels: cat = 0 (1), dog = 1 (2)",
    ]
    assert "'.ipynb_checkpoints'" in dataset.describe()[2]
    inside = fill(tmp_path / ".cache/set", "0.png")  # only what is below the data set counts
    assert open_dataset(inside).sample_ids == ["0.png"]


@pytest.mark.parametrize("words", [("train", "test"), ("Training_set", "val-2017")])
def test_held_out_folders_are_left_out_aloud(tmp_path: Path, words: tuple[str, str]) -> None:
    train, test = words
    fill(tmp_path, f"{train}/cat/0.png", f"{train}/dog/1.png", f"{test}/cat/2.png", "extra/3.png")
    dataset, said = open_with_warnings(tmp_path)
    assert dataset.sample_ids == [f"{train}/cat/0.png", f"{train}/dog/1.png"]
    assert dataset.classes == {"cat": 0, "dog": 1}
    assert len(said) == 1
    assert "takes the 2 pictures of folders for training and leaves out 2: " in said[0]
    assert f"{test} (1)" in said[0] and "extra (1)" in said[0]  # noqa: PT018


@pytest.mark.parametrize(
    ("names", "ids", "classes"),
    [
        (["images/train/cat/0.png", "images/val/cat/1.png"], [0], {"cat": 0}),
        (["cat/train/0.png", "cat/test/1.png", "dog/train/2.png"], [0, 2], {"cat": 0, "dog": 1}),
        (["a/train/good/0.png", "a/test/bad/1.png", "a/masks/2.png"], [0], {"good": 0}),
        (["trainA/0.png", "trainB/1.png", "testA/2.png"], [0, 1], {}),
        (["train/cat/0.png", "train/dog/1.png"], [0, 1], {"cat": 0, "dog": 1}),
        (["train/0.png", "bus/1.png"], [0, 1], {"bus": 0, "train": 1}),
        (["test drive/0.png", "train/1.png"], [1], {}),
        (["cat/0.png", "1.png"], [0, 1], {}),
    ],
)
def test_layouts_of_folders(
    tmp_path: Path, names: list[str], ids: list[int], classes: dict[str, int]
) -> None:
    dataset, _ = open_with_warnings(fill(tmp_path, *names))
    assert dataset.sample_ids == sorted(names[number] for number in ids)
    assert dataset.classes == classes
    assert (dataset.labels is None) == (not classes)


def test_links_are_followed_or_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "cat/0.png", "dog/1.png")
    fill(tmp_path / "elsewhere", "5.png", "6.png")
    (root / "bird").symlink_to("../elsewhere")
    (root / "dog/gone.png").symlink_to("../../nowhere.png")
    (root / "fish").symlink_to("../no-folder")
    (root / "cat/up").symlink_to("..")
    dataset, said = open_with_warnings(root)
    assert dataset.sample_ids == ["bird/5.png", "bird/6.png", "cat/0.png", "dog/1.png"]
    assert dataset.classes == {"bird": 0, "cat": 1, "dog": 2}
    assert "'dog/gone.png', 'fish' leads nowhere" in said[0]
    assert "'cat/up' leads to a folder that it is in" in said[1]
    (tmp_path / "linked").symlink_to("set")
    assert open_with_warnings(tmp_path / "linked")[0].sample_ids == dataset.sample_ids


def test_every_format_that_pillow_decodes(tmp_path: Path) -> None:
    names = ["0.png", "1.JPG", "2.bmp", "3.tif", "4.gif", "5.ppm", "6.jfif", "7.jp2", "8.tga"]
    for seed, name in enumerate(names):
        kind = {"1.JPG": "JPEG", "6.jfif": "JPEG"}.get(name)
        picture(seed).save(tmp_path / name, kind)
    dataset = open_dataset(tmp_path)
    assert dataset.sample_ids == names
    for row in range(len(names)):
        assert dataset.picture(row, IMAGE).shape == IMAGE


def test_files_of_other_kinds_are_counted_aloud(tmp_path: Path) -> None:
    fill(tmp_path, "0.png")
    for name in ("a.heic", "b.heic", "c.pdf", "d.npy", "clip.mp4", "nosuffix", "set.zip"):
        (tmp_path / name).write_text("?")
    for name in ("0.txt", "0.json", "README", "LICENSE", "Thumbs.db", "notes.md"):
        (tmp_path / name).write_text("{}")  # they describe pictures: nothing to say
    with socket.socket(socket.AF_UNIX) as pipe:
        here = Path.cwd()
        os.chdir(tmp_path)  # the name of a socket must be short
        pipe.bind("s.png")
        os.chdir(here)
    dataset, said = open_with_warnings(tmp_path)
    assert dataset.sample_ids == ["0.png"]
    assert len(said) == 1
    assert "8 files of other kinds left out: .heic (2), " in said[0]


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "cat/0.png", "dog/1.png")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cat: cannot be listed \\(Permission denied\\)"):
        open_dataset(tmp_path)


def test_a_name_that_is_not_utf8_is_one_pictures_fault(tmp_path: Path) -> None:
    fill(tmp_path, "a.png")
    try:
        os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    fill(tmp_path, "b.png")
    dataset = open_dataset(tmp_path)
    assert dataset.sample_ids == ["b.png", r"caf\xe9.png"]
    assert dataset.picture(0, IMAGE).shape == IMAGE
    with pytest.raises(DataError, match=r"caf.*xe9\.png' is not a readable.*name is not UTF-8"):
        dataset.picture(1, IMAGE)


# --- image folders with metadata ---------------------------------------------------------------


def write_metadata(path: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    file = path / f"metadata.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        file.write_text("\n".join(lines))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), file)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_words_of_splits_in_file_names_are_letters(tmp_path: Path, kind: str) -> None:
    names = ["train-station.png", "steam train 2.png", "test-card.png", "val/a.png", "b.png"]
    root = fill(tmp_path / "set [v2]?*", *names)
    write_metadata(root, kind, [{"file_name": name, "label": 7} for name in names])
    dataset = open_dataset(root)
    assert dataset.sample_ids == names
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [7] * 5
    assert dataset.picture(2, IMAGE).shape == IMAGE
    assert [dataset.size_of(row) for row in range(len(dataset))] == [
        (root / name).stat().st_size for name in names
    ]


@pytest.mark.parametrize("is_table", [False, True])
def test_a_file_is_looked_at_when_it_is_asked_for(tmp_path: Path, is_table: bool) -> None:
    root = fill(tmp_path, "a.png", "b.png", "c.png")
    if is_table:
        write_metadata(root, "jsonl", [{"file_name": f"{name}.png"} for name in "abc"])
    dataset = open_dataset(root)
    (root / "b.png").write_bytes(b"12345")  # after the folder was listed
    (root / "c.png").unlink()
    assert dataset.size_of(0) == (root / "a.png").stat().st_size
    assert [dataset.size_of(1), dataset.size_of(2)] == [5, 0]
    assert dataset.there.tolist() == 3 * [True]


def test_other_columns_of_pictures_are_not_opened(tmp_path: Path) -> None:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, "PNG")
    rows = [{"image": None, "conditioning": b"damaged"}]
    rows.append({"image": encoded.getvalue(), "conditioning": b"damaged"})
    images = {"image": datasets.Image(), "conditioning": datasets.Image()}
    table = datasets.Dataset.from_list(rows, features=datasets.Features(images))
    table.to_parquet(tmp_path / "train.parquet")
    dataset = open_dataset(tmp_path, Columns(image="image"))
    assert [dataset.size_of(row) for row in (0, 1)] == [0, len(encoded.getvalue())]
    assert len(dataset.fingerprint(0)) == 8
    assert dataset.picture(1, IMAGE).shape == IMAGE
    with pytest.raises(DataError, match="row 0 has none"):
        dataset.picture(0, IMAGE)


def test_pictures_without_metadata_and_metadata_without_pictures(tmp_path: Path) -> None:
    root = fill(tmp_path, "a.png", "b.png", "c.png")
    rows = [{"file_name": n} for n in ("a.png", None, "gone.png", "../x.png", "s3://b/y.png")]
    write_metadata(root, "jsonl", rows)
    dataset, said = open_with_warnings(root)
    assert said == [
        f"data {root}: 2 pictures there have no row in metadata.jsonl and are left out, such as"
        " 'b.png'"
    ]
    assert dataset.sample_ids == ["a.png", "row 1", "gone.png", "../x.png", "s3://b/y.png"]
    assert dataset.picture(0, IMAGE).shape == IMAGE
    for row, reason in [(1, "name no file"), (2, "No such file"), (3, "outside"), (4, "address")]:
        with pytest.raises(DataError, match=reason) as caught:
            dataset.picture(row, IMAGE)
        assert repr(dataset.sample_ids[row]) in str(caught.value)
        assert dataset.thumbnail(row) is None


def test_metadata_of_held_out_pictures(tmp_path: Path) -> None:
    names = ["train/0.png", "test/1.png"]
    write_metadata(fill(tmp_path, *names), "csv", [{"file_name": name} for name in names])
    dataset, said = open_with_warnings(tmp_path)
    assert dataset.sample_ids == ["train/0.png"]
    assert "leaves out 1: test (1)" in said[0]


def test_metadata_that_names_two_pictures_a_row(tmp_path: Path) -> None:
    root = fill(tmp_path, "m0.png", "0.png")
    write_metadata(root, "jsonl", [{"mask_file_name": "m0.png", "file_name": "0.png"}])
    assert open_with_warnings(root)[0].sample_ids == ["0.png"]
    masks, _ = open_with_warnings(root, Columns(image="mask"))
    assert masks.sample_ids == ["m0.png"]


def test_linked_roots_and_windows_paths_keep_relative_ids(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "cat/0.png")
    write_metadata(root, "jsonl", [{"file_name": r"cat\0.png"}])
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/linked").symlink_to(root)
    for path in (root, tmp_path / "deep/er/linked"):
        assert open_dataset(path).sample_ids == ["cat/0.png"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "id,score\n0,1.0\n"),
        ("metadata.csv", ""),
        ("metadata.jsonl", "[1, 2]\n"),
        ("metadata.jsonl", '{"caption": "x"}\n'),
        ("metadata.parquet", "not parquet"),
        ("state.json", "{}"),
        ("state.json", "[[[[" * 5000),
        ("dataset_info.json", '{"description": ""}'),
        ("dataset_dict.json", "{}"),
    ],
)
def test_files_of_other_tools_leave_a_plain_folder(tmp_path: Path, name: str, content: str) -> None:
    root = fill(tmp_path, "cat/0.png", "dog/1.png")
    (root / name).write_text(content)
    dataset = open_dataset(root)
    assert dataset.sample_ids == ["cat/0.png", "dog/1.png"]
    assert dataset.classes == {"cat": 0, "dog": 1}


# --- Parquet and saved sets --------------------------------------------------------------------


def test_a_table_of_something_else_leaves_a_plain_folder(tmp_path: Path) -> None:
    root = fill(tmp_path, "00000/a.png", "00000/b.png")
    stray = pa.table({"url": ["x", "y"], "image": ["a.png", "b.png"], "audio": [b"1", b"2"]})
    parquet.write_table(stray, root / "00000.parquet")
    (root / "00001.parquet").write_bytes(b"")
    assert open_dataset(root).sample_ids == ["00000/a.png", "00000/b.png"]


def test_pictures_beside_a_table_are_counted(tmp_path: Path) -> None:
    table(image=[picture(0)]).to_parquet(tmp_path / "t.parquet")
    fill(tmp_path, "assets/logo.png")
    dataset, said = open_with_warnings(tmp_path)
    assert dataset.sample_ids == ["0"]
    assert "1 picture files beside them are left out, such as 'assets/logo.png'" in said[0]


def test_a_table_without_pictures_asks_for_the_column(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"photo": [b"1"]}), tmp_path / "t.parquet")
    with pytest.raises(CallError, match="which column holds the pictures\\? there are photo"):
        open_dataset(tmp_path)


def test_of_two_picture_columns_image_is_taken(tmp_path: Path) -> None:
    columns = {"conditioning_image": [picture(1)], "image": [picture(2)]}
    table(**columns).to_parquet(tmp_path / "t.parquet")
    expected = np.asarray(picture(2), np.float32).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(
        open_dataset(tmp_path / "t.parquet").picture(0, IMAGE), expected, atol=1e-6
    )
    table(left=[picture(1)], right=[picture(2)]).to_parquet(tmp_path / "u.parquet")
    with pytest.raises(CallError, match="left, right hold pictures; say which with --image-column"):
        open_dataset(tmp_path / "u.parquet")
    assert len(open_dataset(tmp_path / "u.parquet", Columns(image="left"))) == 1


def test_an_empty_cell_is_one_pictures_fault(tmp_path: Path) -> None:
    table(image=[picture(0), None, picture(2)]).to_parquet(tmp_path / "t.parquet")
    dataset = open_dataset(tmp_path)
    with pytest.raises(DataError, match=r"'1' is not a readable picture \(row 1 has none\)"):
        dataset.picture(1, IMAGE)
    assert dataset.picture(2, IMAGE).shape == IMAGE


def test_brackets_in_paths_of_tables_are_letters(tmp_path: Path) -> None:
    root = tmp_path / "a [v2]?*"
    root.mkdir()
    table(image=[picture(0)]).to_parquet(root / "t[1].parquet")
    for seed, name in enumerate(["t1.parquet", "u.parquet"]):
        table(image=[picture(seed)] * 2).to_parquet(tmp_path / name)
    assert len(open_dataset(root)) == 1
    assert len(open_dataset(root / "t[1].parquet")) == 1
    table(image=[picture(0)]).save_to_disk(root / "saved [1]")
    assert len(open_dataset(root / "saved [1]")) == 1


def test_a_table_rewritten_with_size_and_time_kept_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pixels = []
    for colour in (10, 20):
        table(image=[Image.new("RGB", (8, 8), (colour,) * 3)]).to_parquet(file)
        os.utime(file, (1e9, 1e9))
        pixels.append(open_dataset(file).picture(0, IMAGE)[0, 0, 0])
    np.testing.assert_allclose(pixels, np.array([10, 20]) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["train-stations", "ships"], 2),  # words of topics
        (["data/train-00000-of-00001", "data/unlabeled-00000-of-00001"], 1),
        (["data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001"], 2),
        (["plain/train-00000-of-00001", "plain/test-00000-of-00001"], 1),
        (["train/0000", "test/0000"], 1),
    ],
)
def test_the_tables_for_training_are_taken(tmp_path: Path, names: list[str], kept: int) -> None:
    for seed, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        table(image=[picture(seed)]).to_parquet(tmp_path / f"{name}.parquet")
    dataset, said = open_with_warnings(tmp_path)
    assert len(dataset) == kept
    assert said == []
    left_out = [line for line in dataset.describe() if "leaves out" in line]
    assert len(left_out) == (kept < len(names))


def test_tables_of_held_out_pictures_alone_are_refused(tmp_path: Path) -> None:
    for name in ("test", "validation"):
        table(image=[picture(0)]).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(CallError, match=r"tables of test.parquet, validation.parquet, none of"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path / "test.parquet")) == 1


def test_saved_sets_of_splits(tmp_path: Path) -> None:
    splits = datasets.DatasetDict(test=table(image=[picture(0)]), extra=table(image=[picture(1)]))
    splits.save_to_disk(tmp_path / "held-out")
    with pytest.raises(CallError, match=r"a saved set of the splits test, extra, none of which is"):
        open_dataset(tmp_path / "held-out")
    assert len(open_dataset(tmp_path / "held-out/test")) == 1
    splits["train"] = table(image=[picture(2)] * 3)
    splits.save_to_disk(tmp_path / "all")
    dataset = open_dataset(tmp_path / "all")
    assert len(dataset) == 3
    assert dataset.describe()[-1] == "takes the split 'train', leaves out test (1), extra (1)"
    for file in (tmp_path / "all/train").glob("*.arrow"):
        file.write_bytes(b"damaged")
    with pytest.raises(CallError, match="cannot be read"):
        open_dataset(tmp_path / "all/train")


# --- labels and ids of tables ------------------------------------------------------------------


def with_column(path: Path, name: str, values: list[Any]) -> Path:
    """A table of pictures with a column of any type."""
    rows = table(image=[picture(seed) for seed in range(len(values))])
    rows.add_column(name, values).to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 1], [0, 1]),
        ([1.0, 2.0], [1, 2]),
        (["3", "4"], [3, 4]),
        ([1.5, 2.0], None),
        ([1, None], None),
        ([1.0, float("nan")], None),
        ([float("inf"), 1.0], None),
        (["cat", "dog"], None),
    ],
)
def test_labels_are_whole_numbers_or_none(
    tmp_path: Path, values: list[Any], labels: list[int] | None
) -> None:
    file = with_column(tmp_path / "t.parquet", "label", values)
    unnamed = open_dataset(file).labels
    assert (None if unnamed is None else unnamed.tolist()) == labels
    if labels is None:
        with pytest.raises(CallError, match=r"'label' does not hold whole numbers, but .* in row"):
            open_dataset(file, Columns(label="label"))


def test_names_of_class_labels_are_shown(tmp_path: Path) -> None:
    rows = table(image=[picture(0), picture(1)]).add_column("label", [1, 1])
    rows = rows.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    rows.to_parquet(tmp_path / "t.parquet")
    assert "labels: dog = 1 (2)" in open_dataset(tmp_path).describe()


@pytest.mark.parametrize("values", [["a", None], ["a", ""], [1.0, float("nan")]])
def test_an_id_that_is_missing_is_named_by_its_row(tmp_path: Path, values: list[Any]) -> None:
    file = with_column(tmp_path / "t.parquet", "name", values)
    with pytest.raises(CallError, match="id column 'name' is empty in row 1; give every row an id"):
        open_dataset(file, Columns(id="name"))


def test_a_row_without_a_picture_of_an_index_is_not_another_one(tmp_path: Path) -> None:
    dataset = open_dataset(fill(tmp_path, "a.png", "b.png"))
    ordered = dataset.in_order(["gone.png", "b.png"], np.array([-1, 1]))
    with pytest.raises(DataError, match=r"'gone\.png' is not a readable picture"):
        ordered.picture(0, IMAGE)
    assert ordered.thumbnail(0) is None
    assert ordered.thumbnail(1) is not None


# --- many pictures


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 files in 50 folders, of names of 14 letters."""
    folder = tmp_path_factory.mktemp("many")
    content = io.BytesIO()
    Image.new("L", (1, 1)).save(content, "PNG")
    for number in range(20_000):
        file = folder / f"c{number % 50:02d}" / f"{number:07d}.png"
        if number < 50:
            file.parent.mkdir()
        file.write_bytes(content.getvalue())
    return folder


def test_a_folder_is_listed_once(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To know that it is no table takes the way to the first picture."""
    listed = []
    scandir = os.scandir

    def watched(path: str) -> Any:
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", watched)
    assert len(open_dataset(many)) == 20_000
    own = [path for path in listed if str(path).startswith(str(many))]
    assert len(own) <= 51 + 2 + 2  # all, the way to one picture, and patterns of tables


def test_an_open_data_set_takes_a_hundred_bytes_a_picture(many: Path) -> None:
    Image.init()  # Pillow's own tables are none of it
    open_dataset(many / "c00")
    tracemalloc.start()
    try:
        dataset = open_dataset(many)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept <= 100 * len(dataset)

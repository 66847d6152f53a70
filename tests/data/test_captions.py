"""Which caption each training picture has, and what is said where one is missing or damaged."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from gradindex.data import caption_list
from gradindex.data import captions as captions_of_builds
from gradindex.data.captions import same_captions, with_captions
from gradindex.data.dataset import Columns, Dataset
from gradindex.data.opening import open_dataset
from gradindex.errors import CallError, DataError
from gradindex.store.records import DataSource, from_json, to_json


def fill(path: Path, *names: str, **texts: str | bytes) -> Path:
    """Write pictures by their names, and text files by theirs: `a_txt="…"` is a.txt."""
    for seed, name in enumerate(names):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    for name, text in texts.items():
        file = path / ".".join(name.rsplit("_", 1))
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def captions(dataset: Dataset) -> list[str | None] | None:
    return None if dataset.captions is None else list(dataset.captions)


def caption_lines(dataset: Dataset) -> list[str]:
    return [line for line in dataset.describe() if line.startswith("captions")]


def metadata(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = [row["file_name"] for row in rows]
    fill(path, *names)
    lines = [json.dumps(row) for row in rows]
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


def table(**columns: list[Any]) -> datasets.Dataset:
    pictures = [
        Image.new("RGB", (4, 4), (n, 0, 0)) for n in range(len(next(iter(columns.values()))))
    ]
    rows = datasets.Dataset.from_dict({"image": pictures, **columns})
    return rows.cast_column("image", datasets.Image())


# --- text files beside the pictures ------------------------------------------------------------


def test_text_files_beside_pictures_are_their_captions(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.jpg", "c.png", "d.png", "e.png")
    fill(tmp_path, a_txt="  a red dog \n", b_caption="a blue cat", c_txt="", d_TXT="upper")
    (tmp_path / "notes.txt").write_text("no picture has this name")
    dataset = open_dataset(tmp_path)
    assert captions(dataset) == ["a red dog", "a blue cat", "", "upper", None]
    assert caption_lines(dataset) == [
        "captions: 4 distinct, 1 missing, 1 empty, at most 3 words;"
        " from .caption and .txt files beside the pictures"
    ]
    assert dataset.captions_of([1, 0]) == ["a blue cat", "a red dog"]
    with pytest.raises(DataError, match=r"'e.png' has no caption"):
        dataset.captions_of([4])


@pytest.mark.parametrize(
    ("content", "caption", "has_more"),
    [
        (b"one\ntwo\n", "one", True),
        (b"one\r\ntwo", "one", True),
        (b"one\rtwo", "one", True),
        (b"one\n\n \n", "one", False),
        (b"\none", "", True),
        (b"\xef\xbb\xbfone", "one", False),
        ("caf\u00e9 \u2028 \U0001f436".encode(), "caf\u00e9 \u2028 \U0001f436", False),
    ],
)
def test_the_first_line_is_the_caption_as_sd_scripts_reads_it(
    tmp_path: Path, content: bytes, caption: str, *, has_more: bool
) -> None:
    dataset = open_dataset(fill(tmp_path, "a.png", a_txt=content))
    assert captions(dataset) == [caption]
    more = "1 file has more lines, of which only the first is taken"
    assert (more in caption_lines(dataset)[0]) == has_more


def test_of_two_text_files_the_caption_is_taken_aloud(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png", a_txt="from txt", a_caption="from caption", b_txt="of b")
    dataset = open_dataset(tmp_path)
    assert captions(dataset) == ["from caption", "of b"]
    said = "1 picture has a .caption and a .txt, of which the first is taken"
    assert said in caption_lines(dataset)[0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"caf\xe9", "not UTF-8 text; save it as UTF-8"),
        ("a dog".encode("utf-16"), "not UTF-8 text; save it as UTF-8"),
        ("a dog".encode("utf-16-le"), "not UTF-8 text; save it as UTF-8"),
        (b"a" * (2**20 + 1), "longer than 1,048,576 bytes; is it a caption?"),
    ],
)
def test_a_text_file_that_is_no_caption_is_named(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    dataset = open_dataset(fill(tmp_path, "a.png", "b.png", a_txt="a dog", b_txt=content))
    with pytest.raises(DataError) as caught:
        with_captions(dataset)
    assert str(caught.value) == f"caption {tmp_path / 'b.txt'}: {problem}"
    # A model without text encoders never reads it.
    assert replace(dataset, captions=None).describe() == [f"{tmp_path}: 2 pictures"]


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    dataset = open_dataset(fill(tmp_path, "a.png", "b.png", a_txt="a dog", b_txt=b"\xff"))
    assert dataset.captions is not None
    assert dataset.captions[0] == "a dog"
    moved = dataset.in_order(["b.png", "a.png"], np.array([1, 0]))
    assert moved.captions is not None
    assert (moved.captions[1], len(moved.captions)) == ("a dog", 2)
    (tmp_path / "a.txt").unlink()
    assert dataset.captions[0] == moved.captions[-1] == "a dog"  # it was read


def test_folders_without_captions_have_none(tmp_path: Path) -> None:
    dataset = open_dataset(fill(tmp_path, "cat/a.png", "dog/b.png"))
    assert dataset.captions is None
    assert dataset.captions_of([0]) is None
    assert caption_lines(dataset) == []
    with pytest.raises(CallError, match=r"has no columns.*the caption of x.png is in x.txt"):
        open_dataset(tmp_path, Columns(caption="text"))


# --- kohya's folders -----------------------------------------------------------------------------


def test_names_of_kohyas_folders_are_captions(tmp_path: Path) -> None:
    fill(tmp_path, "10_sks dog/0.png", "10_sks dog/1.png", "1_a_b/2.png", "other/3.png")
    (tmp_path / "10_sks dog/1.txt").write_text("sks dog on grass")
    dataset = open_dataset(tmp_path)
    assert captions(dataset) == ["sks dog", "sks dog on grass", "a_b", None]
    assert len(dataset) == 4  # whatever the repeats
    assert caption_lines(dataset) == [
        "captions: 3 distinct, 1 missing, at most 4 words; from .txt files beside the pictures and"
        " the names of folders like '10_sks dog'; repeats of kohya's folders do not count, a"
        " picture is one row"
    ]


def test_names_of_folders_are_classes_as_before(tmp_path: Path) -> None:
    """CIFAR's folders have numbers too: a class-conditional model keeps its labels."""
    dataset = open_dataset(fill(tmp_path, "0_airplane/a.png", "1_car/b.png"))
    assert dataset.classes == {"0_airplane": 0, "1_car": 1}
    assert captions(dataset) == [None, "car"]  # 0 repeats: sd-scripts would leave it out


# --- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "saved", "shards"])
def test_a_caption_column_of_every_kind_of_table(tmp_path: Path, kind: str) -> None:
    texts = ["a dog", None, "a cat"]
    names = ["0.png", "1.png", "2.png"]
    if kind == "jsonl":
        pairs = zip(names, texts, strict=True)
        metadata(tmp_path, [{"file_name": name, "text": text} for name, text in pairs])
    elif kind == "csv":
        fill(tmp_path, *names)
        (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a dog\n1.png,\n2.png,a cat\n")
    elif kind == "parquet":
        fill(tmp_path, *names)
        columns = {"file_name": names, "text": pa.array(texts, pa.large_string())}
        parquet.write_table(pa.table(columns), tmp_path / "metadata.parquet")
    elif kind == "saved":
        table(text=texts).save_to_disk(tmp_path)
    else:
        table(text=texts[:2]).to_parquet(tmp_path / "0.parquet")
        table(text=texts[2:]).to_parquet(tmp_path / "1.parquet")
    dataset = open_dataset(tmp_path)
    assert captions(dataset) == texts
    assert caption_lines(dataset) == [
        "captions: 2 distinct, 1 missing, at most 2 words; from column 'text'"
    ]


@pytest.mark.parametrize(
    ("columns", "taken"),
    [
        ({"prompt": ["p"], "caption": ["c"], "text": ["t"]}, "t"),
        ({"prompt": ["p"], "caption": ["c"], "text": [3]}, "c"),
        ({"prompt": ["p"], "caption": [{"en": "c"}]}, "p"),
        ({"title": ["x"]}, None),
    ],
)
def test_which_column_is_taken_when_none_is_named(
    tmp_path: Path, columns: dict[str, list[Any]], taken: str | None
) -> None:
    table(**columns).save_to_disk(tmp_path)
    dataset = open_dataset(tmp_path)
    assert captions(dataset) == (None if taken is None else [taken])


def test_a_named_column_is_taken_or_refused(tmp_path: Path) -> None:
    table(text=["t"], title=["x"], number=[3], empty=[None]).save_to_disk(tmp_path)
    assert captions(open_dataset(tmp_path, Columns(caption="title"))) == ["x"]
    assert captions(open_dataset(tmp_path, Columns(caption="empty"))) is None
    with pytest.raises(CallError, match=r"no column 'txet'; there are image, text, title"):
        open_dataset(tmp_path, Columns(caption="txet"))
    with pytest.raises(CallError) as caught:
        open_dataset(tmp_path, Columns(caption="number"))
    assert str(caught.value) == (
        f"data {tmp_path}: caption column 'number' does not hold texts, but int64; name another"
        " with --caption-column"
    )


def test_of_a_list_of_captions_the_first_is_taken_aloud(tmp_path: Path) -> None:
    table(caption=[["a dog", "one dog"], ["a cat"], [], None]).save_to_disk(tmp_path)
    dataset = open_dataset(tmp_path)
    assert captions(dataset) == ["a dog", "a cat", None, None]
    said = "1 cell holds several captions, of which only the first is taken"
    assert said in caption_lines(dataset)[0]


def test_an_image_folder_without_a_caption_column_has_text_files(tmp_path: Path) -> None:
    metadata(tmp_path, [{"file_name": "b.png", "label": 0}, {"file_name": "a.png", "label": 1}])
    fill(tmp_path, b_txt="of b")
    dataset = open_dataset(tmp_path)
    assert captions(dataset) == ["of b", None]
    with_column = metadata(tmp_path / "two", [{"file_name": "a.png", "text": "column"}])
    fill(with_column, a_txt="file")
    assert captions(open_dataset(with_column)) == ["column"]


# --- settling them -------------------------------------------------------------------------------


def test_one_caption_for_all_pictures(tmp_path: Path) -> None:
    dataset = open_dataset(fill(tmp_path, "a.png", "b.png", a_txt=b"\xff"))
    settled = with_captions(dataset, "a photo of sks dog")  # the text file is not even read
    assert captions(settled) == 2 * ["a photo of sks dog"]
    assert caption_lines(settled) == [
        "captions: 1 distinct, at most 5 words; from --caption; captions of the data are not taken"
    ]
    assert captions(with_captions(dataset, "")) == ["", ""]


def test_pictures_without_a_caption_are_listed_with_the_ways_out(tmp_path: Path) -> None:
    fill(tmp_path, *[f"{n}.png" for n in range(6)])
    (tmp_path / "1.txt").write_text("a dog")
    dataset = open_dataset(tmp_path)
    with pytest.raises(CallError) as caught:
        with_captions(dataset)
    assert str(caught.value) == (
        f"data {tmp_path}: 5 of 6 pictures have no caption ('0.png', '2.png', '3.png' and 2 more);"
        " write it to a text file x.txt beside x.png, name a table's column with --caption-column,"
        " or give --caption TEXT for all pictures or --missing-caption empty"
    )
    filled = with_captions(dataset, missing="empty")
    assert captions(filled) == ["", "a dog", "", "", "", ""]
    assert "5 empty" in caption_lines(filled)[0]
    (tmp_path / "1.txt").unlink()
    with pytest.raises(CallError, match="6 of 6 pictures have no caption"):
        with_captions(open_dataset(tmp_path))
    none = with_captions(open_dataset(tmp_path), missing="empty")
    assert captions(none) == 6 * [""]
    assert captions(none.in_order(["x"], np.array([-1]))) == [None]


def test_a_picture_that_is_not_there_needs_no_caption(tmp_path: Path) -> None:
    dataset = open_dataset(fill(tmp_path, "a.png", a_txt="a dog"))
    moved = dataset.in_order(["gone.png", "a.png"], np.array([-1, 0]))
    assert with_captions(moved).captions_of([1]) == ["a dog"]


def test_wrong_calls(tmp_path: Path) -> None:
    dataset = open_dataset(fill(tmp_path, "a.png"))
    with pytest.raises(CallError, match=r"missing_caption = 'skip': give one of error, empty"):
        with_captions(dataset, missing="skip")
    with pytest.raises(CallError, match="not UTF-8"):
        with_captions(dataset, "caf\udce9")
    with pytest.raises(CallError, match="give one text for all pictures"):
        with_captions(dataset, ["a dog"])  # type: ignore[arg-type]


def test_ai_toolkits_placeholder_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png", a_txt="a photo of [trigger]", b_txt="a dog")
    with pytest.raises(DataError) as caught:
        with_captions(open_dataset(tmp_path))
    assert str(caught.value) == (
        f"data {tmp_path}: 1 caption holds [trigger] ('a.png'); write the trigger word of"
        " the training there, or give --caption TEXT for all pictures"
    )
    assert captions(with_captions(open_dataset(tmp_path), "sks")) == ["sks", "sks"]


def test_the_same_captions_again_without_checks(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png", a_txt="a dog")
    built = with_captions(open_dataset(tmp_path), missing="empty")
    again = same_captions(open_dataset(tmp_path))
    assert captions(again) == captions(built) == ["a dog", ""]
    assert [again.fingerprint(row) for row in (0, 1)] == [built.fingerprint(row) for row in (0, 1)]
    (tmp_path / "a.txt").write_bytes(b"\xff")  # spoilt since
    spoilt = same_captions(open_dataset(tmp_path))
    assert captions(spoilt) == [None, ""]
    assert spoilt.fingerprint(0) != built.fingerprint(0)
    lists = replace(open_dataset(tmp_path), captions=["x", None])
    assert captions(same_captions(lists)) == ["x", ""]
    assert captions(same_captions(lists, "all")) == ["all", "all"]


def test_of_many_captions_some_are_read_before_a_build_and_the_others_when_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (caption_list, captions_of_builds):
        monkeypatch.setattr(module, "LOOKED_AT", 3)
    fill(tmp_path, *[f"{n}.png" for n in range(6)])
    for n in (0, 2, 3, 5):
        (tmp_path / f"{n}.txt").write_text(f"dog {n}")
    settled = with_captions(open_dataset(tmp_path))  # looks at 0, 2 and 5
    assert caption_lines(settled) == [
        "captions (3 of 6 looked at): 3 distinct, at most 2 words; from .txt files beside the"
        " pictures"
    ]
    assert settled.captions_of([3]) == ["dog 3"]
    with pytest.raises(CallError, match=r"1 of 1 picture has no caption \('4\.png'\); write it"):
        settled.captions_of([4])
    (tmp_path / "4.txt").write_text("a [trigger]")
    (tmp_path / "1.txt").write_bytes(b"\xff")
    again = with_captions(open_dataset(tmp_path))
    with pytest.raises(DataError, match=r"1 caption holds \[trigger\] \('4\.png'\)"):
        again.captions_of([4])
    with pytest.raises(DataError, match=r"1\.txt: not UTF-8 text"):
        again.fingerprint(1)
    (tmp_path / "4.txt").unlink()
    assert with_captions(open_dataset(tmp_path), missing="empty").captions_of([4]) == [""]
    (tmp_path / "2.txt").unlink()
    with pytest.raises(CallError, match=r"\(3 of 6 looked at\): 1 of 3 pictures has no caption"):
        with_captions(open_dataset(tmp_path))


def test_captions_in_memory_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_list, "KEPT", 3)
    read = []

    def read_caption(row: int) -> caption_list.Caption:
        read.append(row)
        return caption_list.Caption(str(row))

    texts = caption_list.Captions(5, read_caption, "a list")
    assert list(texts) == list("01234")
    assert read == [0, 1, 2, 3, 4]
    assert len(texts.known) <= 3
    assert texts[4] == "4"
    assert texts[0] == "0"
    assert read == [0, 1, 2, 3, 4, 0]


# --- what an index keeps -------------------------------------------------------------------------


def test_a_changed_caption_is_another_fingerprint(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png", a_txt="a dog")
    first = open_dataset(tmp_path)
    before = [first.fingerprint(row) for row in (0, 1)]
    (tmp_path / "a.txt").write_text("a cat")
    second = open_dataset(tmp_path)
    after = [second.fingerprint(row) for row in (0, 1)]
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_without_captions_fingerprints_are_what_they_were(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", a_txt="a dog")
    dataset = open_dataset(tmp_path)
    size = (tmp_path / "a.png").stat().st_size
    expected = hashlib.sha256(repr(("a.png", None, size)).encode()).hexdigest()[:8]
    assert replace(dataset, captions=None).fingerprint(0) == expected
    assert replace(dataset, captions=[None]).fingerprint(0) == expected
    assert dataset.fingerprint(0) != expected


def test_captions_go_with_their_pictures(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png", "c.png", a_txt="of a", b_txt="of b")
    dataset = open_dataset(tmp_path)
    ids = ["c.png", "gone.png", "a.png", "b.png"]
    for source in (dataset, replace(dataset, captions=["of a", "of b", None])):
        moved = source.in_order(ids, source.positions(ids))
        assert captions(moved) == [None, None, "of a", "of b"]
        assert moved.fingerprint(2) == dataset.fingerprint(0)
        twice = moved.in_order(["b.png"], np.array([3]))
        assert captions(twice) == ["of b"]


def test_headers_without_a_caption_column_are_what_they_were(tmp_path: Path) -> None:
    folder = str(fill(tmp_path, "a.png").resolve())
    record = DataSource(**open_dataset(tmp_path).to_json())
    assert json.dumps(to_json(record)) == json.dumps(
        {"source": folder, "columns": {"image": None, "id": None, "label": None}}
    )
    assert Columns(**record.columns) == Columns()


def test_a_caption_column_is_opened_again_from_a_header(tmp_path: Path) -> None:
    table(text=["t"], title=["x"]).save_to_disk(tmp_path)
    dataset = open_dataset(tmp_path, Columns(caption="title"))
    record = from_json(json.loads(json.dumps(to_json(DataSource(**dataset.to_json())))), DataSource)
    again = open_dataset(record.source, Columns(**record.columns))
    assert captions(again) == ["x"]
    old = {"image": None, "id": None, "label": None}
    assert captions(open_dataset(record.source, Columns(**old))) == ["t"]

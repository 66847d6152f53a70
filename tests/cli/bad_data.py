"""Kinds of bad input: the training pictures of a build."""

import struct
import zlib
from pathlib import Path

import datasets
import pytest
from bad_inputs import Bad, Shared, file, folder, picture, pictures, saved, several, table
from PIL import Image

BUILD = "build i --model {model} --timesteps 2 --dim 8 --data "
LABELLED = "build i --model {labelled} --timesteps 2 --dim 8 --data "
GREY = picture()


def huge(width: int) -> bytes:
    """Return the beginning of a PNG file of width × width pixels."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, width, 8, 0, 0, 0, 0), b"IDAT": b""}
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks.items():
        checksum = struct.pack(">I", zlib.crc32(name + data))
        content += struct.pack(">I", len(data)) + name + data + checksum
    return content


def offline(patch: pytest.MonkeyPatch) -> None:
    """Have `datasets` say what it says where there is no network."""

    def refuse(name: str, split: str) -> None:
        raise ConnectionError(f"Couldn't reach {name!r} on the Hub (OfflineModeIsEnabled)")

    patch.setattr(datasets, "load_dataset", refuse)
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def held_out_set(place: Path, shared: Shared) -> None:
    datasets.DatasetDict(test=datasets.Dataset.from_dict({"a": [1]})).save_to_disk(place / "d")


DATA = [
    Bad("no such folder", BUILD + "d", "data d: no such file or folder"),
    Bad(
        "an empty folder",
        BUILD + "d",
        "data d: no pictures there, of any format that Pillow reads; give the folder or table"
        " that holds them",
        folder("d"),
    ),
    Bad(
        "a folder of other files",
        BUILD + "d",
        "data d: no pictures there, of any format that Pillow reads; give the folder or table"
        " that holds them",
        file("d/a.txt", "caption"),
    ),
    Bad(
        "a damaged picture",
        BUILD + "d",
        "d: 'b.png' is not a readable picture (no format that Pillow reads); --skip-bad"
        " leaves such pictures out",
        several(pictures("a.png"), file("d/b.png", "no")),
        1,
    ),
    Bad(
        "not one readable picture",
        BUILD + "d --skip-bad",
        "data d: not one of 1 picture tried can be read: 'a.png' is not a readable picture"
        " (no format that Pillow reads)",
        file("d/a.png", "no picture"),
        1,
    ),
    Bad(
        "a picture of 32 bits",
        BUILD + "d",
        "d: 'a.tif' is not a readable picture (a picture of mode 'F': give 8 or 16 bits a"
        " channel); --skip-bad leaves such pictures out",
        saved("d/a.tif", Image.new("F", (8, 8))),
        1,
    ),
    Bad(
        "a picture of 10¹⁰ pixels",
        BUILD + "d",
        "d: 'a.png' is not a readable picture (Image size (10000000000 pixels) exceeds limit"
        " of 178956970 pixels, could be decompression bomb DOS attack.); --skip-bad leaves"
        " such pictures out",
        file("d/a.png", huge(100_000)),
        1,
    ),
    Bad(
        "columns of a plain folder",
        BUILD + "d --id-column name",
        "data d: a plain folder of pictures has no columns, only a table has; leave the names"
        " of columns out",
        pictures("a.png"),
    ),
    Bad(
        "an archive",
        BUILD + "d.zip",
        "data d.zip: a file, but not a Parquet one; give a folder of pictures (unpack an"
        " archive first) or a .parquet file",
        file("d.zip", b"PK\3\4"),
    ),
    Bad(
        "a damaged table",
        BUILD + "d.parquet",
        "data d.parquet: cannot be read (Parquet file size is 4 bytes, smaller than the"
        " minimum file footer (8 bytes))",
        file("d.parquet", b"PAR1"),
    ),
    Bad(
        "a table without pictures",
        BUILD + "d.parquet",
        "data d.parquet: which column holds the pictures? there are url; say it with"
        " --image-column",
        table(url=["a"]),
    ),
    Bad(
        "two columns of pictures",
        BUILD + "d.parquet",
        "data d.parquet: left, right hold pictures; say which with --image-column",
        table(left=[GREY], right=[GREY]),
    ),
    Bad(
        "no such column",
        BUILD + "d.parquet --image-column photo",
        "data d.parquet: no column 'photo'; there are image",
        table(image=[GREY]),
    ),
    Bad(
        "a column of numbers",
        BUILD + "d.parquet --image-column n",
        "data d.parquet: column 'n' holds no pictures but int64; name another with --image-column",
        table(image=[GREY], n=[1]),
    ),
    Bad(
        "labels in words",
        BUILD + "d.parquet --label-column kind",
        "data d.parquet: label column 'kind' does not hold whole numbers, but 'cat' in row 0",
        table(image=[GREY], kind=["cat"]),
    ),
    Bad(
        "an id that is missing",
        BUILD + "d.parquet --id-column name",
        "data d.parquet: id column 'name' is empty in row 1; give every row an id, or name"
        " another column",
        table(image=[GREY, GREY], name=["a", None]),
    ),
    Bad(
        "an id of two pictures",
        BUILD + "d.parquet --id-column name",
        "data d.parquet: 1 id stands for several pictures, such as 'a'; give each picture its own",
        table(image=[GREY, GREY], name=["a", "a"]),
        1,
    ),
    Bad(
        "an empty cell",
        BUILD + "d.parquet",
        "d.parquet: '1' is not a readable picture (row 1 has none); --skip-bad leaves such"
        " pictures out",
        table(image=[GREY, None]),
        1,
    ),
    Bad(
        "held-out tables alone",
        BUILD + "d",
        "data d: tables of test.parquet, none of which is for training; give one of these files",
        table("d/test.parquet", image=[GREY]),
    ),
    Bad(
        "a saved set without train",
        BUILD + "d",
        "data d: a saved set of the splits test, none of which is 'train'; give the folder of"
        " one, such as d/test",
        held_out_set,
    ),
    Bad(
        "a damaged saved set",
        BUILD + "d",
        "data d: cannot be read (Directory d is neither a `Dataset` directory nor a"
        " `DatasetDict` directory.)",
        file("d/state.json", '{"_data_files": []}'),
    ),
    Bad(
        "damaged metadata",
        BUILD + "d",
        "data d: cannot be read (metadata.jsonl: JSON parse error: Missing a closing"
        " quotation mark in string. in row 1)",
        several(pictures("a.png"), file("d/metadata.jsonl", '{"file_name": "a.png"}\n{"file')),
    ),
    Bad(
        "metadata of a picture that is gone",
        BUILD + "d",
        "d: 'b.png' is not a readable picture (No such file or directory); --skip-bad leaves"
        " such pictures out",
        several(pictures("a.png"), file("d/metadata.csv", "file_name\na.png\nb.png\n")),
        1,
    ),
    Bad(
        "metadata of a picture elsewhere",
        BUILD + "d",
        "d: '../b.png' is not a readable picture (the metadata name a file outside the"
        " folder); --skip-bad leaves such pictures out",
        several(pictures("a.png"), file("d/metadata.csv", "file_name\na.png\n../b.png\n")),
        1,
    ),
    Bad(
        "a name on the hub, offline",
        BUILD + "someone/something",
        "data someone/something: neither a file or folder here nor a data set on the hub"
        " (Couldn't reach 'someone/something' on the Hub (OfflineModeIsEnabled))",
        patch=offline,
    ),
    Bad(
        "an address",
        BUILD + "https://example.com/set.zip",
        "data https://example.com/set.zip: no such file or folder; an address: download it,"
        " and give the file or folder",
    ),
    Bad(
        "a model of classes, no labels",
        LABELLED + "{pictures}",
        "data {pictures}: the model is class-conditional and the pictures have no label; put"
        " them in one folder per class, or name a label column",
    ),
    Bad(
        "more classes than the model's",
        LABELLED + "d",
        "data d: labels 0 to 3, the model knows 0 to 2; give the pictures that it was trained on",
        pictures(*(f"{n}/a.png" for n in range(4))),
    ),
]

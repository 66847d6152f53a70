"""Hostile pictures, and metadata that name pictures."""

import csv
import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from hostile import INTEGERS, mutate_bytes, mutate_csv, mutate_json, spell_json
from judging import Case, Wrong, bounded, is_answered
from PIL import Image, ImageOps

from gradindex.data.opening import open_dataset
from gradindex.search.pictures import read_pictures

SIZE = (6, 8)  # height and width of the model
MEGABYTES = 2600  # a picture may have 179 million pixels, all that Pillow opens, of 4 bytes, thrice


# --- pictures ----------------------------------------------------------------------------------


def pictures(folder: Path) -> Case:
    """Return the case of a picture file that is another."""
    folder.mkdir(exist_ok=True)
    file = folder / "a.png"
    originals = list(_pictures().values())

    def case(random: Random) -> bool:
        content = mutate_bytes(random.choice(originals), random)
        if random.random() < 0.2:
            content = _huge_header(random)
        file.write_bytes(content)
        image = (random.choice((1, 3)), *SIZE)
        # Pillow itself may need as much again, for the true answer.
        with bounded(megabytes=2 * MEGABYTES):
            truth = _plain(content, image)
        with bounded(megabytes=MEGABYTES):
            answers = [
                is_answered(
                    lambda: open_dataset(folder).read(0, image)[0],
                    lambda array: _is_same(array, truth),
                ),
                is_answered(
                    lambda: read_pictures([content], image)[0],
                    lambda array: _is_same(array, truth),
                ),
            ]
            open_dataset(folder).thumbnail(0)
            open_dataset(folder).describe()
        return all(answers)

    return case


def _pictures() -> dict[str, bytes]:
    """Small pictures of all kinds, {kind: content}."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (*SIZE, 4), dtype=np.uint8)
    colour = Image.fromarray(pixels[:, :, :3])
    tags = Image.Exif()
    tags[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (colour, "PNG", {}),
        "png, transparent": (Image.fromarray(pixels), "PNG", {}),
        "png, palette": (colour.quantize(7), "PNG", {"transparency": 2}),
        "png, 16 bits": (Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257), "PNG", {}),
        "jpeg": (colour, "JPEG", {"exif": tags}),
        "jpeg, progressive": (colour.convert("CMYK"), "JPEG", {"progressive": True}),
        "gif": (colour, "GIF", {}),
        "bmp": (colour, "BMP", {}),
        "tiff": (colour, "TIFF", {"compression": "tiff_lzw"}),
        "tiff, raw": (colour.resize((16, 9)), "TIFF", {}),
        "webp": (colour, "WEBP", {}),
        "ppm": (colour, "PPM", {}),
        "tga": (colour, "TGA", {}),
        "ico": (colour, "ICO", {}),
        "jpeg 2000": (colour, "JPEG2000", {}),
        "dds": (colour, "DDS", {}),
        "pcx": (colour, "PCX", {}),
        "sgi": (colour, "SGI", {}),
    }
    contents = {}
    for kind, (picture, name, options) in kinds.items():
        stream = io.BytesIO()
        picture.save(stream, name, **options)
        contents[kind] = stream.getvalue()
    return contents


def _huge_header(random: Random) -> bytes:
    """A picture of few bytes that declares sizes of its own choice."""
    width, height = (random.choice((*INTEGERS, 13_000, 20_000)) for _ in range(2))
    if random.random() < 0.7:
        depth, colour = random.choice((1, 8, 16)), random.choice((0, 2, 3, 4, 6))
        return png(width % 2**32, height % 2**32, depth, colour)
    return f"P{random.choice((2, 3, 5, 6))} {width} {height} 255\n".encode() + bytes(100)


def png(width: int, height: int, depth: int, colour: int, data: bytes = bytes(1000)) -> bytes:
    """Return a PNG file that declares a size, whose data are some zeros."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        checksum = zlib.crc32(kind + body)
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)
    return content


def _plain(content: bytes, image: tuple[int, int, int]) -> np.ndarray | None:
    """What Pillow alone makes of a picture, [channels, height, width]; None: it does not open it.

    As diffusers' examples: upright, converted, resized to cover the model's size, centre cropped.
    """
    channels, height, width = image
    try:
        picture = Image.open(io.BytesIO(content))
        picture.load()
        picture = ImageOps.exif_transpose(picture)
        if picture.mode in ("I", "F") and picture.format != "PPM":
            return None
        if picture.mode.startswith(("I", "F")):
            deep = np.asarray(picture)
            picture = Image.fromarray((deep // 257).astype(np.uint8))
        picture = picture.convert("L" if channels == 1 else "RGB")
        scale_up = width * picture.height >= height * picture.width
        if picture.size != (width, height):
            size = (width, int(width * picture.height / picture.width))
            if not scale_up:
                size = (int(height * picture.width / picture.height), height)
            if size != picture.size:
                picture = picture.resize(size, Image.Resampling.BILINEAR)
            left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
            picture = picture.crop((left, top, left + width, top + height))
    except MemoryError:
        raise
    except Exception:  # whatever damaged bytes lead Pillow to
        return None
    pixels = np.asarray(picture, np.float32).reshape(height, width, channels)
    return (pixels / 127.5 - 1).transpose(2, 0, 1)


def _is_same(array: np.ndarray, truth: np.ndarray | None) -> bool:
    return truth is not None and np.array_equal(array, truth)


# --- metadata ----------------------------------------------------------------------------------

HEADINGS = ["file_name", "label", "text"]
NAMES = ("a.png", "b.png", "c d.png", "é.png")


def metadata_csv(folder: Path) -> Case:
    """Return the case of a metadata.csv that is another."""
    rows = [HEADINGS, *([name, str(number), f"a {name}"] for number, name in enumerate(NAMES))]
    write_pictures(folder)
    file = folder / "metadata.csv"

    def case(random: Random) -> bool:
        content = mutate_csv(rows, random)
        if random.random() < 0.3:
            content = mutate_bytes(content, random)
        file.write_bytes(content)
        return _judge_table(folder, _csv_names(content))

    return case


def metadata_jsonl(folder: Path) -> Case:
    """Return the case of a metadata.jsonl that is another."""
    write_pictures(folder)
    file = folder / "metadata.jsonl"
    records = [{"file_name": name, "label": number} for number, name in enumerate(NAMES)]

    def case(random: Random) -> bool:
        if random.random() < 0.3:
            content = "\n".join(map(json.dumps, records)).encode()
            content = mutate_bytes(content, random)
        else:
            changed = mutate_json(records, random)
            changed = changed if isinstance(changed, list) else [changed]
            lines = [json.dumps(record).encode() for record in changed]
            number = random.randrange(len(lines)) if lines else 0
            lines[number : number + 1] = [spell_json(changed[number : number + 1], random)[1:-1]]
            content = b"\n".join(lines)
        file.write_bytes(content)
        return _judge_table(folder, _jsonl_names(content))

    return case


def write_pictures(folder: Path, names: Sequence[str] = NAMES) -> None:
    """Write small pictures, number i all of grey i."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("L", (8, 6), color=number).save(folder / name)


def _judge_table(folder: Path, names: list[str] | None) -> bool:
    """Return whether a folder with metadata opens as the rows that a plain reader finds.

    Args:
        names: the file that each row names; None where a plain reader finds no table.
    """

    def is_true(answer: Mapping[str, float]) -> bool:
        if names is None:  # metadata that name no picture are none: a plain folder
            return True
        plain_folder = set(answer) == set(NAMES)
        values = {name: float(NAMES.index(name)) for name in names if name in NAMES}
        expected = {name: value / 127.5 - 1 for name, value in values.items()}
        read = {name: value for name, value in answer.items() if value == value}
        return plain_folder or read == {name: np.float32(value) for name, value in expected.items()}

    with bounded():
        return is_answered(lambda: _read_all(folder), is_true)


def _read_all(folder: Path) -> dict[str, float]:
    """The first pixel of each picture, {id: value}; NaN for one that cannot be read."""
    dataset = open_dataset(folder)
    dataset.describe()
    pixels = {}
    for row, name in enumerate(dataset.sample_ids):
        thumbnail = dataset.thumbnail(row)
        pixels[name] = float("nan")
        is_read = is_answered(partial(dataset.read, row, (1, *SIZE)), lambda _: True)
        if is_read != (thumbnail is not None):
            raise Wrong(f"{name}: read, but without a thumbnail, or the other way around")
        if thumbnail is not None:
            pixels[name] = np.float32(thumbnail.getpixel((0, 0))[0] / 127.5 - 1)
    return pixels


def _csv_names(content: bytes) -> list[str] | None:
    """The names that Python's csv module finds in metadata."""
    try:
        lines = io.StringIO(content.decode("utf-8-sig"), newline="")
        rows = [row for row in csv.reader(lines, strict=True) if row]
        place = rows[0].index("file_name")
        return [row[place] for row in rows[1:]]
    except (ValueError, IndexError, csv.Error):
        return None


def _jsonl_names(content: bytes) -> list[str] | None:
    """The names that Python's json module finds in metadata."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
        return [json.loads(line)["file_name"] for line in lines if line.strip()]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


KINDS: dict[str, Callable[[Path], Case]] = {
    "pictures": pictures,
    "metadata.csv": metadata_csv,
    "metadata.jsonl": metadata_jsonl,
}

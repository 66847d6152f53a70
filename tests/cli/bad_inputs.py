"""What a kind of bad input is, and functions that make the files which its command needs.

Such a function takes the folder in which the command runs, and what all kinds share.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import gradindex

WEIGHTS = "m/unet/diffusion_pytorch_model.safetensors"
CONFIG = "m/unet/config.json"
SCHEDULER = "m/scheduler/scheduler_config.json"
HEADERS = ("i/zarr.json", "i/manifest/header.json")  # of an index: the header and its copy
SMALL: dict[str, Any] = {"timesteps": [100, 700], "dim": 16, "device": "cpu"}  # of an index


@dataclass(frozen=True)
class Shared:
    """What all kinds share and none changes.

    Attributes:
        model: a pipeline of one channel, 8 × 8 pixels, unconditional. labelled: of three classes.
        pictures: nine pictures, p000.png … p008.png. picture: another one.
        index, labelled_index, folded: finished indexes of nine pictures.
    """

    model: Path
    labelled: Path
    pictures: Path
    picture: Path
    index: Path
    labelled_index: Path
    folded: Path

    def fill_in(self, text: str, here: Path) -> str:
        """Return a text with paths in place of {model}, {pictures}, …, and of {here}."""
        for name, path in {**vars(self), "here": here}.items():
            text = text.replace(f"{{{name}}}", str(path))
        return text


Make = Callable[[Path, Shared], object]
Change = Callable[[Path], object]  # of files below the folder in which the command runs


@dataclass(frozen=True)
class Bad:
    """One kind of bad input.

    Attributes:
        kind: what is wrong, in words.
        command: the words after `gradindex`, with placeholders of `Shared.fill_in`.
        error: the one line on stderr, with the same placeholders, without the "Error: " before it.
        make: makes the files.
        status: with which the command ends.
        stdout: all of it.
        patch: changes this process.
    """

    kind: str
    command: str
    error: str
    make: Make = lambda place, shared: None
    status: int = 2
    stdout: str = ""
    patch: Callable[[pytest.MonkeyPatch], object] = lambda patch: None


def picture(seed: int = 0) -> Image.Image:
    """Return a grey picture of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8))


def several(*makes: Make) -> Make:
    """What several functions make, one after the other."""
    return lambda place, shared: [make(place, shared) for make in makes]


def pictures(*names: str) -> Make:
    """Pictures in the folder d."""
    return several(*(saved(f"d/{name}", picture(seed)) for seed, name in enumerate(names)))


def saved(name: str, image: Image.Image) -> Make:
    """A picture of any mode."""

    def make(place: Path, shared: Shared) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(place / name)

    return make


def file(name: str, content: str | bytes = "") -> Make:
    """A file of some content."""

    def make(place: Path, shared: Shared) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def folder(name: str) -> Make:
    """An empty folder."""
    return lambda place, shared: (place / name).mkdir()


def table(name: str = "d.parquet", /, **columns: list[Any]) -> Make:
    """A Parquet file, where a column is one of pictures if its first value is a picture."""

    def make(place: Path, shared: Shared) -> None:
        import datasets

        rows = datasets.Dataset.from_dict(columns, datasets.Features(_features(columns)))
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(place / name)

    return make


def _features(columns: dict[str, list[Any]]) -> dict[str, Any]:
    import datasets

    types = {int: datasets.Value("int64"), str: datasets.Value("string")}
    return {name: types.get(type(values[0]), datasets.Image()) for name, values in columns.items()}


# --- models ---------------------------------------------------------------------------------------


def model(change: Change) -> Make:
    """A copy of the model, m, with a change."""

    def make(place: Path, shared: Shared) -> None:
        shutil.copytree(shared.model, place / "m")
        change(place)

    return make


def fields(name: str, **values: Any) -> Change:
    """Set fields of a JSON file; `...` takes one out."""

    def change(place: Path) -> None:
        changed = {**json.loads((place / name).read_text()), **values}
        kept = {field: value for field, value in changed.items() if value is not ...}
        (place / name).write_text(json.dumps(kept))

    return change


def weights(**tensors: torch.Tensor | None) -> Change:
    """Set weights of the model, whose names have __ for a dot; None takes one out."""

    def change(place: Path) -> None:
        named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        changed = {**load_file(place / WEIGHTS), **named}
        kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
        save_file(kept, place / WEIGHTS)

    return change


def replaced(old: str, new: str, *names: str) -> Change:
    """Replace a text in files."""

    def change(place: Path) -> None:
        for name in names:
            content = (place / name).read_text()
            assert old in content
            (place / name).write_text(content.replace(old, new))

    return change


def shorter(name: str) -> Change:
    """Cut the second half of a file off."""
    return lambda place: (place / name).write_bytes(_first_half((place / name).read_bytes()))


def _first_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


# --- indexes --------------------------------------------------------------------------------------


def index(change: Change = lambda place: None) -> Make:
    """A copy of the finished index, i, with a change."""

    def make(place: Path, shared: Shared) -> None:
        shutil.copytree(shared.index, place / "i")
        change(place)

    return make


def built(change: Change) -> Make:
    """An index i of pictures in the folder d, which change after the build."""

    def make(place: Path, shared: Shared) -> None:
        shutil.copytree(shared.pictures, place / "d")
        gradindex.build(place / "i", model=shared.model, data=place / "d", **SMALL)
        change(place)

    return make

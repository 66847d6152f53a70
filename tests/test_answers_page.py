"""What docs/answers.md does with a query's table in `datasets` runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
from helpers import run
from PIL import Image

PAGE = Path(__file__).parents[1] / "docs/answers.md"


@pytest.fixture
def folder(tmp_path: Path, model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pictures, the same as a table with artists, and a query's table of them."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "pictures").symlink_to(pictures)
    names = sorted(file.name for file in pictures.iterdir())[::-1]
    columns = {
        "id": names,
        "artist": [f"artist of {name}" for name in names],
        "photo": [str(pictures / name) for name in names],
    }
    table = datasets.Dataset.from_dict(columns).cast_column("photo", datasets.Image())
    table.to_parquet(tmp_path / "training.parquet")
    build = ("--model", model, "--data", pictures, "--timesteps", "500,", "--dim", 8)
    assert run("build", tmp_path / "idx", *build).returncode == 0
    asked = pictures / "p003.png"
    command = ("query", tmp_path / "idx", asked, "-k", 4, "--output", tmp_path / "hits.parquet")
    assert run(*command).returncode == 0
    return tmp_path


def test_a_querys_table_is_joined_with_its_data_set(folder: Path) -> None:
    """There and back: each hit has its row of the table, and its picture from the folder."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "from datasets import" in block]
    # A hit's picture from the folder, to be looked at here.
    code += "shown[0]['image'].save('first.png')\n"
    environment = {**os.environ, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    hits = pandas.read_parquet(folder / "hits.parquet")
    joined = pandas.read_parquet(folder / "joined.parquet")
    pandas.testing.assert_frame_equal(joined[hits.columns], hits)
    assert list(joined["artist"]) == [f"artist of {name}" for name in hits["id"]]
    first = np.asarray(Image.open(folder / "first.png"))
    expected = np.asarray(Image.open(folder / "pictures" / hits["id"][0]))
    np.testing.assert_array_equal(first, expected)


def test_all_scores_as_a_table_are_the_scores(folder: Path) -> None:
    """The block of that name, with its variables."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "index.scores(" in block]
    before = "import gradindex, pandas\nindex = gradindex.open('idx')\n"
    before += "pictures = ['pictures/p001.png', 'pictures/p002.png']\n"
    done = subprocess.run(
        [sys.executable, "-c", before + code], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    read = pandas.read_parquet(folder / "scores.parquet")
    asked = ("pictures/p001.png", "pictures/p002.png")
    command = ("query", "idx", *asked, "-k", "all", "--output", "all.parquet")
    assert run(*command, cwd=folder).returncode == 0
    hits = pandas.read_parquet(folder / "all.parquet")
    for picture in asked:
        own = hits[hits["picture"] == picture].set_index("id")["score"]
        # Rounding is a part of the largest score, whichever batches the gradients were taken in.
        np.testing.assert_allclose(read[picture][own.index], own, atol=1e-4 * own.max())

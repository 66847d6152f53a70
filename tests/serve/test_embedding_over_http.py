"""A served index that compares pictures in an embedding, too."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import run
from vision_models import save_clip

import gradindex
from gradindex.errors import CallError

pytest_plugins = ["served_fixtures"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision") / "clip"
    save_clip(folder)
    return folder


def rows_of(client: Any) -> list[str]:
    """The titles of the rows of an answer on the page."""
    answer = client.get("/answer", params={"training": "even/p001.png", "k": 3})
    return re.findall(r"<h2>(.*?)</h2>", json.loads(answer.text.splitlines()[-1])["html"])


def test_the_page_has_a_row_of_it_and_the_json_a_field(
    serve: Any, built: Path, queries: list[Path], clip: Path
) -> None:
    usual = ["ReTrac", "TracIn", "Nearest in pixels"]
    client = serve(embedding=str(clip))
    assert rows_of(client) == [*usual, "Nearest by embedding"]
    files = {"picture": ("gen.png", queries[0].read_bytes())}
    hits = client.post("/api/query", files=files).json()["queries"][0]["hits"]
    asked = ("query", built, queries[0], "--embedding", clip, "--device", "cpu")
    (expected,) = json.loads(run(*asked, "--format", "json").stdout)["queries"]
    told = {hit["id"]: hit["embedding"] for hit in expected["hits"]}
    assert {hit["id"]: hit["embedding"] for hit in hits} == pytest.approx(told)
    assert rows_of(serve()) == usual


def test_a_file_of_vectors_is_refused_before_anything_is_served(
    built: Path, opened: list[gradindex.Index]
) -> None:
    with pytest.raises(CallError, match="whoever asks has no vectors; give a model"):
        opened[0].embeddings.load("training.npy")
    done = run("serve", built, "--device", "cpu", "--embedding", "training.npy")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: --embedding training.npy: whoever asks has no vectors; give a model that makes"
        " them\n"
    )

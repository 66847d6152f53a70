"""A model that is given captions, asked over HTTP: with a prompt, none, or the one inside."""

import io
from pathlib import Path
from typing import Any

import pytest
from models.families.tiny_pipelines import captioned_pictures, stable_diffusion
from PIL import Image, PngImagePlugin

import gradindex

pytest_plugins = ["served_fixtures"]

CAPTIONS = ["a cat", "a dog", "<b>a cow</b>"]


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> gradindex.Index:
    place = tmp_path_factory.mktemp("captioned")
    return gradindex.build(
        place / "index",
        model=stable_diffusion(place / "pipeline"),
        data=captioned_pictures(place / "pictures", CAPTIONS)[0].parent,
        timesteps=2,
        dim=64,
        device="cpu",
    )


@pytest.fixture
def client(captioned: gradindex.Index) -> Any:
    from served_fixtures import make_client

    with make_client([captioned], ["captioned"]) as client:
        yield client


def png(prompt: str | None = None) -> bytes:
    """A colour picture, with a prompt inside it as AUTOMATIC1111 writes it."""
    info = PngImagePlugin.PngInfo()
    if prompt is not None:
        info.add_text("parameters", f"{prompt}\nSteps: 20, Sampler: Euler")
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 90, 10)).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def scores(client: Any, content: bytes, **fields: str) -> list[float]:
    answer = client.post("/api/query", files={"picture": ("gen.png", content)}, data=fields)
    assert answer.status_code == 200, answer.text
    return [hit["score"] for hit in answer.json()["queries"][0]["hits"]]


def test_a_prompt_is_taken(client: Any, captioned: gradindex.Index, tmp_path: Path) -> None:
    """The one that is given, even if it is empty, or else the one inside the picture."""
    file = tmp_path / "gen.png"
    file.write_bytes(png())
    expected = {text: captioned.query(file, prompt=text)[0].scores for text in ("", "a dog")}
    assert expected[""] != expected["a dog"]
    assert scores(client, png(), prompt="a dog") == expected["a dog"]
    assert scores(client, png(), prompt="") == expected[""]
    assert scores(client, png("a dog")) == expected["a dog"]
    assert scores(client, png("a dog"), prompt="") == expected[""]


def test_without_any_prompt_it_is_asked_for(client: Any) -> None:
    answer = client.post("/api/query", files={"picture": ("gen.png", png())})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("gen.png: the model is given captions; give the")


def test_a_training_picture_has_its_caption(client: Any, captioned: gradindex.Index) -> None:
    name = captioned.ids[2]
    assert client.get("/api/training", params={"id": name}).json()["caption"] == CAPTIONS[2]
    answer = client.post("/api/query", data={"training": name}).json()
    own = captioned.training_pictures.picture(2)
    expected = captioned.query(own, prompt=CAPTIONS[2])[0].scores
    assert [hit["score"] for hit in answer["queries"][0]["hits"]] == expected


def test_the_page_asks_for_a_prompt(client: Any) -> None:
    page = client.get("/").text
    assert '<textarea name="prompt"' in page
    upload = client.post("/uploads", files={"picture": ("gen.png", png("a dog"))}).json()
    assert (upload["name"], upload["prompt"]) == ("gen.png", "a dog")
    answer = client.get("/answer", params={"upload": upload["upload"], "prompt": ""})
    assert '"html"' in answer.text
    assert "&lt;b&gt;a cow&lt;/b&gt;" in answer.text
    assert "<b>a cow</b></p>" not in answer.text

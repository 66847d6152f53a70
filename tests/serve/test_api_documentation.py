"""docs/serve.md: its addresses and fields are those of the API, and its question is answered."""

import re
import shlex
from pathlib import Path
from typing import Any

from conftest import make_pictures

pytest_plugins = ["served_fixtures"]
PAGE = (Path(__file__).parents[2] / "docs/serve.md").read_text("utf-8")


def test_the_addresses_are_those_of_the_api(client: Any) -> None:
    paths = client.get("/api/openapi.json").json()["paths"]
    described = {f"{method.upper()} {path}" for path in paths for method in paths[path]}
    told = {*re.findall(r"^\| `((?:GET|POST) /api/[\w./]+)", PAGE, re.MULTILINE)}
    assert told - {"GET /api/openapi.json"} == described


def test_the_fields_are_those_of_a_query(client: Any) -> None:
    schemas = client.get("/api/openapi.json").json()["components"]["schemas"]
    forms = (each["properties"] for each in schemas.values())
    (form,) = (form for form in forms if {"picture", "k"} <= {*form})
    (told,) = re.findall(r"^Fields of a query: (.*?)A field that there is not", PAGE, re.M | re.S)
    fields = {*re.findall(r"`(\w+)`", told)} - {"folder"}  # which is a value
    assert fields | {"picture", "training", "index"} == {*form}


def test_the_question_is_answered(client: Any, tmp_path: Path) -> None:
    """The first curl, but for its prompt, which this model is not given."""
    (words,) = re.findall(r"^curl (-F .*)$", PAGE, re.MULTILINE)
    *fields, address = (word for word in shlex.split(words) if word != "-F")
    given = dict(field.split("=", 1) for field in fields)
    assert given.pop("prompt")
    name = given.pop("picture").removeprefix("@")
    (picture,) = make_pictures(tmp_path, 1, seed=8).iterdir()
    answer = client.post(address, files={"picture": (name, picture.read_bytes())}, data=given)
    assert answer.status_code == 200, answer.text
    (query,) = answer.json()["queries"]
    assert (query["picture"], len(query["hits"])) == (name, int(given["k"]))

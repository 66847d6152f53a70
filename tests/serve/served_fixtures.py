"""Indexes that are served: of digits, and of a model that is given captions."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_pictures, required

import gradindex

ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two folders of six digits each."""
    folder = tmp_path_factory.mktemp("served")
    for number, name in enumerate(("even", "odd & <b>")):
        make_pictures(folder / name, 6, seed=number)
    return folder


@pytest.fixture(scope="session")
def built(model: Path, training: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("indexes") / "digits"
    gradindex.build(path, model=model, data=training, timesteps=3, dim=64)
    return path


@pytest.fixture(scope="session")
def plain(model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of pictures in no folder."""
    path = tmp_path_factory.mktemp("indexes") / "plain"
    gradindex.build(path, model=model, data=pictures, timesteps=2, dim=64)
    return path


@pytest.fixture(scope="session")
def opened(built: Path, plain: Path) -> list[gradindex.Index]:
    return [gradindex.open(built, device="cpu"), gradindex.open(plain, device="cpu")]


@pytest.fixture
def client(opened: list[gradindex.Index]) -> Iterator[Any]:
    """A client of a server with one index, called as people typed it."""
    with make_client(opened[:1], ["./digits"]) as client:
        yield client


def make_client(opened: list[gradindex.Index], paths: list[str], **options: Any) -> Any:
    """A client of a server; it must be closed."""
    testing = required("fastapi.testclient")
    app = required("gradindex.serve.app").make_app(opened, paths, **options)
    return testing.TestClient(app, base_url=ADDRESS, follow_redirects=False)


Serve = Callable[..., Any]


@pytest.fixture
def serve(opened: list[gradindex.Index]) -> Iterator[Serve]:
    """Makes a client of a server with both indexes and the options that are given."""
    clients = []

    def started(**options: Any) -> Any:
        client = make_client(opened, ["digits", "plain"], **options)
        clients.append(client)
        return client.__enter__()

    yield started
    for client in clients:
        client.__exit__(None, None, None)

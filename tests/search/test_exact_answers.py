"""Which queries ask search files, and which scan the store since the files may not answer them.

Whitened search files know the best rows of queries that are taken as the rows were: on 1,797 digits
they had a third to two thirds of the ten worst, and as few of the ten best of a mean pairing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_model, make_pictures

import gradindex
from gradindex.errors import CallError
from gradindex.search.ranker import Ranker

MEAN = {"pairing": "mean", "query_timesteps": 2, "query_draws": 1}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> gradindex.Index:
    place = tmp_path_factory.mktemp("exact")
    data = make_pictures(place / "pictures", 40)
    model = make_model(place / "model")
    return gradindex.build(place / "idx", model=model, data=data, timesteps=2, dim=16, device="cpu")


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(make_pictures(tmp_path_factory.mktemp("queries") / "q", 3, seed=5).iterdir())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the search files that queries ask."""
    names = []
    inner: Callable[..., Any] = Ranker._candidates

    def noted(self: Ranker, name: str, *rest: Any) -> Any:
        names.append(name)
        return inner(self, name, *rest)

    monkeypatch.setattr(Ranker, "_candidates", noted)
    return names


@pytest.mark.parametrize("method", ["tracin", "retrac"])
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize(
    ("options", "plain_files", "whitened_files"),
    [
        ({}, True, True),
        ({"weights": [1]}, True, True),
        ({"opponents": True}, True, False),
        ({"weights": [0.5]}, False, False),
        (MEAN, False, False),
        ({"region": (0, 0, 3, 5)}, False, False),
        ({"against": 0}, False, False),
        ({"timesteps": (0, 500)}, False, False),
    ],
)
def test_search_files_are_asked_what_they_were_measured_with(
    index: gradindex.Index,
    queries: list[Path],
    asked: list[str],
    method: str,
    whiten: bool,
    options: dict[str, Any],
    plain_files: bool,
    whitened_files: bool,
) -> None:
    options = {**options, "whiten": whiten}
    if "against" in options:
        options["against"] = queries[0]
        queries = queries[1:]
    results = index.query(queries, 4, method, **options)
    assert bool(asked) == (whitened_files if whiten else plain_files)
    with_opponents = options.pop("opponents", False)
    for result, row in zip(results, index.scores(queries, method, **options), strict=True):
        assert [hit.row for hit in result.hits] == np.argsort(-row)[:4].tolist()
        if with_opponents:
            assert [hit.row for hit in result.opponents or []] == np.argsort(row)[:4].tolist()


def test_an_audit_asks_no_search_files(
    index: gradindex.Index, queries: list[Path], asked: list[str]
) -> None:
    index.audit(queries[0].parent, 4, whiten=False)
    assert asked == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weights", [float("nan")], "give finite numbers"),
        ("weights", [float("inf")], "give finite numbers"),
        ("weights", ["a"], "give finite numbers"),
        ("weights", [0], "not all of them zero"),
        ("weights", 5, "give finite numbers"),
        ("weights", [1, 1], "this index has 1 checkpoint"),
        ("timesteps", ("a", "b"), "give the first and the one after the last"),
        ("query_timesteps", 2.5, "give a number or a sequence of numbers"),
        ("query_timesteps", [None], "give a number or a sequence of numbers"),
        ("ids", 5, "give a list of texts"),
        ("ids", [5, 6, 7], "give a list of texts"),
        ("ids", "abc", "give a list of texts"),
        ("mask", 5, r"give a path, a PIL picture, or an array \[height, width\]"),
        ("group_by", 5, r"give a text, a path, or \{id: group\}"),
        ("group_by", ["a"], r"give a text, a path, or \{id: group\}"),
    ],
)
def test_options_of_other_types_are_one_line(
    index: gradindex.Index, queries: list[Path], name: str, value: Any, message: str
) -> None:
    pairing = {"pairing": "mean"} if name == "query_timesteps" else {}
    options: dict[str, Any] = {name: value, **pairing}
    with pytest.raises(CallError, match=message) as caught:
        index.query(queries, 2, **options)
    assert "\n" not in str(caught.value)

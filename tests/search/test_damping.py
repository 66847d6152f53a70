"""The damping of a query that names none: that of the index's factors, or today's for new ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_pictures
from helpers import run

import gradindex
from gradindex.search import factors, ranker
from gradindex.search.factors import DAMPING, saved_factors, usual_damping
from gradindex.search.scoring import METHODS

FORMER = 0.0003  # of the gradindex that made the index of these tests


@pytest.fixture
def options(tmp_path: Path, model: Path) -> dict[str, Any]:
    data = make_pictures(tmp_path / "pictures", 30)
    return {"model": model, "data": data, "timesteps": [100, 700], "dim": 16, "device": "cpu"}


@pytest.fixture
def place(tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index whose factors and search files have the former damping."""
    with monkeypatch.context() as earlier:
        earlier.setattr(factors, "DAMPING", FORMER)
        gradindex.build(tmp_path / "idx", **options)
    return tmp_path / "idx"


def dampings(index: gradindex.Index) -> list[float | None]:
    records = [saved_factors(index.store, method) for method in METHODS]
    return [None if record is None else record.damping for record in records]


def test_an_index_keeps_its_damping(
    place: Path, queries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its search files are asked: no row is scanned."""
    index = gradindex.open(place, device="cpu")
    former, others = (index.scores(queries, whiten=number) for number in (FORMER, DAMPING))
    np.testing.assert_array_equal(index.scores(queries), former)
    assert not np.allclose(former, others, rtol=0.01)
    monkeypatch.delattr(ranker, "scan_both_ends")
    answers = index.query(queries, 3)
    assert answers == index.query(queries, 3, whiten=FORMER)
    for scores, answer in zip(former, answers, strict=True):
        assert [hit.row for hit in answer.hits] == np.argsort(-scores)[:3].tolist()
    with pytest.raises(NameError):  # another damping than that of its files scans
        index.query(queries, 3, whiten=DAMPING)


def test_it_keeps_it_when_it_grows_and_is_mended(place: Path, options: dict[str, Any]) -> None:
    make_pictures(options["data"] / "more", 8, seed=5)
    grown = gradindex.build(place, **options)
    assert grown.store.shape[1] == 38
    assert dampings(grown) == [FORMER, FORMER]
    (place / "whiten" / "retrac.json").unlink()
    assert run("index", place, "--whiten").returncode == 0
    assert dampings(gradindex.open(place, device="cpu")) == [FORMER, FORMER]


def test_a_new_index_has_todays(tmp_path: Path, options: dict[str, Any]) -> None:
    index = gradindex.build(tmp_path / "new", **options)
    assert dampings(index) == [DAMPING, DAMPING]
    assert usual_damping(index.store) == index.ranker.usual_damping == DAMPING


@pytest.mark.parametrize("content", ["", "{", '"damping"'])
def test_records_that_say_nothing_count_for_nothing(place: Path, content: str) -> None:
    for method in METHODS:
        (place / "whiten" / f"{method}.json").write_text(content)
    assert usual_damping(gradindex.open(place, device="cpu").store) == DAMPING

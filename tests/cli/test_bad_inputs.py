"""Kinds of bad input over the whole command line, each with its exact message of one line."""

import shutil
from pathlib import Path

import pytest
from bad_data import DATA
from bad_inputs import SMALL, Bad, Shared
from bad_models import MODELS
from bad_options import OPTIONS
from bad_queries import INDEXES, QUERIES, REPORTS
from conftest import make_model
from helpers import run

import gradindex

TABLES = {
    "data": DATA,
    "model": MODELS,
    "option": OPTIONS,
    "index": INDEXES,
    "query": QUERIES,
    "report": REPORTS,
}
KINDS = [
    pytest.param(bad, id=f"{table}: {bad.kind}") for table, kinds in TABLES.items() for bad in kinds
]


@pytest.fixture(scope="session")
def shared(
    tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path, queries: list[Path]
) -> Shared:
    place = tmp_path_factory.mktemp("shared")
    labelled = make_model(place / "labelled", num_class_embeds=3)
    for number, file in enumerate(sorted(pictures.iterdir())):
        (place / f"classes/{number % 3}").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / f"classes/{number % 3}")
    gradindex.build(place / "index", model=model, data=pictures, **SMALL)
    gradindex.build(place / "folded", model=model, data=pictures, rows="folded", **SMALL)
    gradindex.build(place / "of-classes", model=labelled, data=place / "classes", **SMALL)
    return Shared(
        model=model,
        labelled=labelled,
        pictures=pictures,
        picture=queries[0],
        index=place / "index",
        labelled_index=place / "of-classes",
        folded=place / "folded",
    )


@pytest.mark.parametrize("bad", KINDS)
def test_bad_input_is_one_exact_line(
    bad: Bad, shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad.make(tmp_path, shared)
    bad.patch(monkeypatch)
    words = [shared.fill_in(word, tmp_path) for word in bad.command.split()]
    done = run(*words, cwd=tmp_path)
    monkeypatch.undo()
    assert done.stderr == f"Error: {shared.fill_in(bad.error, tmp_path)}\n"
    assert (done.returncode, done.stdout) == (bad.status, bad.stdout)


def test_the_kinds_are_many_and_differ() -> None:
    kinds = [bad for table in TABLES.values() for bad in table]
    assert len({bad.error for bad in kinds}) >= 100
    assert len({(bad.command, bad.kind) for bad in kinds}) == len(kinds)
    assert all("\n" not in bad.error and "Traceback" not in bad.error for bad in kinds)

"""An audit: the mean of the scores of held-out pictures, from one search."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_pictures
from helpers import run
from models.families.tiny_pipelines import captioned_pictures, stable_diffusion

import gradindex
from gradindex.errors import CallError, DataError
from gradindex.search import audit as module

METHODS = ("tracin", "retrac")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path) -> gradindex.Index:
    place = tmp_path_factory.mktemp("audit") / "idx"
    return gradindex.build(place, model=model, data=pictures, timesteps=4, dim=32, device="cpu")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("held-out") / "held out", 5, seed=7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{}, {"whiten": False}, {"timesteps": (None, 500)}])
def test_an_audit_is_the_mean_of_its_pictures(
    index: gradindex.Index,
    held_out: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    options: Any,
) -> None:
    monkeypatch.setattr(module, "GROUP", 2)
    mean = index.scores(sorted(held_out.iterdir()), method, **options).mean(0)
    result = index.audit(held_out, 3, method, **options)
    assert result.picture == f"{held_out} (5 pictures)"
    assert result.opponents is not None
    assert [hit.row for hit in result.hits] == np.argsort(-mean)[:3].tolist()
    assert [hit.row for hit in result.opponents] == np.argsort(mean)[:3].tolist()
    assert result.scores == pytest.approx(np.sort(mean)[::-1][:3], rel=1e-4, abs=1e-6)


def test_captions_are_those_beside_the_pictures(tmp_path: Path) -> None:
    index = gradindex.build(
        tmp_path / "idx",
        model=stable_diffusion(tmp_path / "pipeline"),
        data=captioned_pictures(tmp_path / "pictures", ["a cat", "a dog", "a cow"])[0].parent,
        timesteps=2,
        dim=32,
        device="cpu",
    )
    captions = ["a cat", "a fish"]
    files = captioned_pictures(tmp_path / "held-out", captions, seed=1)
    mean = index.scores(files, "tracin", prompt=captions).mean(0)
    result = index.audit(tmp_path / "held-out", 3, "tracin")
    found = [hit.score for hit in sorted(result.hits, key=lambda hit: hit.row)]
    assert np.allclose(found, mean, rtol=1e-4, atol=1e-5 * np.abs(mean).max())


def test_groups_of_an_audit(index: gradindex.Index, held_out: Path) -> None:
    groups = {name: "ab"[number % 2] for number, name in enumerate(index.store.sample_ids)}
    result = index.audit(held_out, 2, group_by=groups)
    mean = index.scores(sorted(held_out.iterdir())).mean(0)
    assert result.groups is not None
    sums = {group.group: group.score for group in result.groups}
    assert sums == pytest.approx({"a": mean[::2].sum(), "b": mean[1::2].sum()}, rel=1e-4, abs=1e-6)


def test_audits_that_do_not_fit(index: gradindex.Index, tmp_path: Path, held_out: Path) -> None:
    with pytest.raises(CallError, match=r"nowhere: no such file or folder"):
        index.audit(tmp_path / "nowhere")
    with pytest.raises(CallError, match=r"region: of single pictures; an audit takes all"):
        index.audit(held_out, region=(0, 0, 4, 4))
    broken = make_pictures(tmp_path / "broken", 2)
    (broken / "p001.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"'p001\.png' is not a readable picture"):
        index.audit(broken)


def test_the_command_audits(index: gradindex.Index, held_out: Path, tmp_path: Path) -> None:
    place = index.store.location
    table = run("audit", place, held_out, "-k", "2", "--device", "cpu")
    assert table.returncode == 0, table.stderr
    assert "(5 pictures): most helpful (retrac, whitened" in table.stdout
    assert "(5 pictures): most harmful (retrac, whitened" in table.stdout
    written = run("audit", place, held_out, "--output", tmp_path / "audit.json")
    assert written.returncode == 0, written.stderr
    (answer,) = json.loads((tmp_path / "audit.json").read_text())["queries"]
    result = index.audit(held_out)
    assert [hit["id"] for hit in answer["hits"]] == result.ids
    assert len(answer["opponents"]) == len(result.opponents or [])

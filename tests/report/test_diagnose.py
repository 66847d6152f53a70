"""What `diagnose` says of an index, against plain loops over its rows."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_model, make_pictures
from PIL import Image

import gradindex
from gradindex.errors import CallError
from gradindex.models.denoiser import Denoiser
from gradindex.models.examples import Pictures
from gradindex.recipe import Recipe
from gradindex.report import agreement, diagnose, ranking, self_influence
from gradindex.report.diagnosis_text import save, to_text
from gradindex.report.verdict import verdict


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path) -> gradindex.Index:
    place = tmp_path_factory.mktemp("diagnose") / "idx"
    return gradindex.build(
        place, model=model, data=pictures, timesteps=[100, 700], dim=64, device="cpu"
    )


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path
) -> gradindex.Index:
    place = tmp_path_factory.mktemp("diagnose")
    lines = [
        "sample_id,step,timestep",
        *(f"p{i:03d}.png,{step},{100 * i + step}" for step in (0, 1) for i in range(9)),
    ]
    (place / "log.csv").write_text("\n".join(lines))
    return gradindex.build(
        place / "idx",
        model=model,
        data=pictures,
        timesteps="recorded",
        log=place / "log.csv",
        dim=64,
        device="cpu",
    )


def test_lists_and_agreement_of_two_rankings() -> None:
    scores = np.array([[3.0, 1.0, 2.0, 0.0], [3.0, np.nan, 1.0, 2.0], [3.0, 0.0, 2.0, 1.0]])
    assert ranking.top(scores, 2).tolist() == [[0, 2], [0, 3], [0, 2]]
    found = ranking.influence(scores, np.array([9.0, 1.0, 3.0, 2.0]), 2)
    assert (found["distinct"], found["most"]) == (3, 4)
    assert found["general"] == {"0.05": 2, "0.1": 2, "0.2": 2, "0.3": 2, "0.5": 2}
    assert found["norm_correlation"] == pytest.approx(1)
    other = np.array([[3.0, 2.0, 1.0, 0.0]])
    assert ranking.spearman(scores[:1], other) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert ranking.overlap(scores[:1], other, 2) == 0.5
    assert ranking.overlap(scores, scores, 3) == 1


def test_norms_of_a_grid_are_those_of_its_timesteps(index: gradindex.Index) -> None:
    norm = index.store.norm[0]
    found = diagnose.norms(index.store)
    assert [each["timestep"] for each in found] == [100, 700]
    for column, each in enumerate(found):
        assert each["count"] == 9
        assert each["mean"] == pytest.approx(norm[:, column].mean(), rel=1e-5)
        assert each["p90"] == pytest.approx(np.percentile(norm[:, column], 90), rel=1e-5)


def test_norms_of_recorded_timesteps_are_binned(recorded: gradindex.Index) -> None:
    found = diagnose.norms(recorded.store)
    assert sum(each["count"] for each in found) == 9
    assert [each["timestep"] for each in found] == sorted(recorded.store.timestep[0, :, 0].tolist())


def test_self_influence_of_a_grid(index: gradindex.Index, pictures: Path) -> None:
    """TracIn's is a picture's own matched score; ReTrac's the mean cosine of its rows with each
    other.
    """
    found = self_influence.self_influence(index)
    files = sorted(pictures.iterdir())
    np.testing.assert_allclose(
        found["tracin"], np.diag(index.scores(files, "tracin", whiten=False)), rtol=1e-4
    )
    rows = index.store.unnormalized[0]
    unit = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    np.testing.assert_allclose(found["retrac"], np.einsum("ntd,nsd->n", unit, unit) / 4, rtol=1e-2)


@pytest.mark.parametrize("method", ["tracin", "retrac"])
def test_self_influence_of_recorded_rows_is_the_plain_score_as_a_query(
    recorded: gradindex.Index, pictures: Path, method: str
) -> None:
    files = sorted(pictures.iterdir())
    ids = [file.name for file in files]
    own = {
        "query_timesteps": self_influence.SELF_TIMESTEPS,
        "query_draws": self_influence.SELF_DRAWS,
    }
    scores = recorded.scores(files, method, ids=ids, whiten=False, **own)  # type: ignore[arg-type]
    np.testing.assert_allclose(
        self_influence.self_influence(recorded)[method], np.diag(scores), rtol=2e-3
    )
    some = self_influence.self_influence(recorded, np.array([0, 2]))[method]
    np.testing.assert_allclose(some[[0, 2]], np.diag(scores)[[0, 2]], rtol=2e-3)
    assert np.isnan(np.delete(some, [0, 2])).all()


def test_the_whole_report(index: gradindex.Index, tmp_path: Path) -> None:
    """Training pictures are the queries and never their own hits; every number is finite; the
    figure is a picture.
    """
    found = diagnose.report(index, k=3, queries=4, compared=6)
    assert found["queries"] == ["p000.png", "p002.png", "p005.png", "p008.png"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    settings = [(each["timesteps"], each["draws"]) for each in found["noise"]]
    assert settings == [(1, 1), (2, 1), (4, 1), (2, 2)]
    for each in found["noise"]:
        for method in ("tracin", "retrac"):
            assert -1 <= each[method]["spearman"] <= 1
            assert 0 <= each[method]["overlap"] <= 1
    json_file, figure = save(found, tmp_path / "out")
    assert json.loads(json_file.read_text()) == found
    with Image.open(figure) as picture:
        assert picture.size == (900, 600)
    text = to_text(found)
    assert "distinct pictures (of 9 possible)" in text
    assert "two noise seeds agree, 2 timesteps × 1 draw: ρ" in text


def test_the_same_seed_would_agree_entirely(
    index: gradindex.Index, recorded: gradindex.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What differs between the two sides of the comparison is the noise alone."""
    original = agreement._scores_of_seed

    def with_seed_0(
        index: gradindex.Index, denoiser: Denoiser, setting: Recipe, *rest: Any
    ) -> dict[str, np.ndarray]:
        return original(index, denoiser, replace(setting, seed=0), *rest)

    monkeypatch.setattr(agreement, "_scores_of_seed", with_seed_0)
    for each in (index, recorded):
        arrays = each.read_pictures([each.training_pictures.require().picture(0, (1, 8, 8))])
        for setting in agreement.noise_agreement(each, Pictures(arrays, ["query 0"]), 9, 3)[:2]:
            for method in ("tracin", "retrac"):
                assert setting[method] == {"spearman": pytest.approx(1), "overlap": 1}


def test_agreement_at_the_index_s_own_setting_starts_from_its_scores(
    index: gradindex.Index, recorded: gradindex.Index, queries: list[Path]
) -> None:
    """The first seed's scores are the scores that a query shows."""
    for each in (index, recorded):
        denoiser = each.gradients.checkpoints[0]
        events = {"events": None, "timesteps": (500,)} if each is recorded else {}
        setting = replace(each.store.recipe, **events)
        ids = [f"query {number}" for number in range(len(queries))]
        asked = Pictures(each.read_pictures(queries), ids)
        rows, taken = np.arange(9), list[int]()
        found = agreement._scores_of_seed(each, denoiser, setting, asked, rows, True, taken.append)
        per_picture = len(setting.timesteps) * setting.draws
        assert sum(taken) == per_picture * (2 if each is recorded else 2 + 9)
        own = {"query_timesteps": [500], "query_draws": 1, "ids": ids} if each is recorded else {}
        for method in ("tracin", "retrac"):
            shown = each.scores(queries, method, **own)  # type: ignore[arg-type]
            # A sum over a grid's two timesteps, where the score is a mean.
            factor = 2 if each is index else 1
            np.testing.assert_allclose(
                found[method] / factor, shown, rtol=1e-3, atol=2e-4 * np.abs(shown).max()
            )


def test_recorded_report_and_given_pictures(recorded: gradindex.Index, queries: list[Path]) -> None:
    found = diagnose.report(recorded, queries, k=3, compared=0, outliers=False)
    assert found["queries"] == [str(file) for file in queries]
    assert {"noise", "self_influence"}.isdisjoint(found)
    assert "whitened scores" in to_text(found)
    plain = diagnose.report(recorded, queries, k=3, compared=9, outliers=False, whiten=False)
    assert "plain scores" in to_text(plain)
    assert plain["influence"] != found["influence"]


def test_queries_are_whitened_unless_told_otherwise(
    index: gradindex.Index, recorded: gradindex.Index, queries: list[Path]
) -> None:
    """Of so few pictures the rows themselves whiten: a build makes no search files for that."""
    for each in (index, recorded):
        usual = each.scores(queries)
        assert (usual == each.scores(queries, whiten=True)).all()
        assert not np.allclose(usual, each.scores(queries, whiten=False))
        assert each.query(queries, 3)[0].scores == np.sort(usual[0])[::-1][:3].tolist()
        made = {file.stem for file in (Path(str(each.store.location)) / "faiss").glob("*.json")}
        assert made == {"tracin", "retrac"}


@pytest.mark.parametrize("given", [False, True])
def test_a_class_conditional_model(tmp_path: Path, queries: list[Path], given: bool) -> None:
    model = make_model(tmp_path / "cond", num_class_embeds=2)
    for label in ("cat", "dog"):
        make_pictures(tmp_path / "data" / label, 4)
    index = gradindex.build(
        tmp_path / "i", model=model, data=tmp_path / "data", timesteps=1, dim=8, device="cpu"
    )
    options = {"pictures": queries, "class_label": 0} if given else {}
    found = diagnose.report(index, k=2, compared=4, **options)  # type: ignore[arg-type]
    assert len(found["noise"]) == 3
    json.dumps(found, allow_nan=False)


def test_too_few_to_compare(index: gradindex.Index) -> None:
    for compared in (-1, 1):
        with pytest.raises(CallError, match="give 0, or at least 2 pictures"):
            diagnose.report(index, compared=compared)


def test_no_pictures_and_no_matplotlib(
    tmp_path: Path, model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pictures, tmp_path / "data")
    index = gradindex.build(
        tmp_path / "idx", model=model, data=tmp_path / "data", timesteps=1, dim=8, device="cpu"
    )
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(
        CallError,
        match=r"data: no such file or folder; say where it is now \(data=\); or give",
    ):
        diagnose.report(index)
    found = diagnose.report(index, [tmp_path / "moved/p000.png"], compared=0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.warns(UserWarning, match=r"no norms\.png .* pip install 'gradindex\[plot\]'"):
        assert save(found, tmp_path / "out") == [tmp_path / "out/diagnose.json"]
    assert json.loads((tmp_path / "out/diagnose.json").read_text()) == found


def test_a_diagnosis_says_before_how_much_it_takes_and_after_what_it_means(
    index: gradindex.Index, recorded: gradindex.Index, caplog: pytest.LogCaptureFixture
) -> None:
    """What is counted before is what is taken: two seeds at all settings, and self-influence."""
    caplog.set_level("INFO", "gradindex")
    report = diagnose.report(index, k=3, queries=2, compared=4)
    settings = 1 + 2 + 4 + 2 * 2  # timesteps × draws
    assert f"diagnosis: {2 * (2 + 4) * settings} more gradients, " in caplog.text
    assert report["verdict"] == verdict(report, index.store.recipe)
    assert to_text(report).splitlines()[-len(report["verdict"]) :] == report["verdict"]
    caplog.clear()
    report = diagnose.report(recorded, k=3, queries=2, compared=4)
    settings = 12 * 2 + 25 * 2 + 50 * 2 + 25 * 4
    assert f"diagnosis: {2 * 2 * settings + 9 * 10:,} more gradients, " in caplog.text
    assert report["verdict"][0].split(":")[0] in ("steady", "partly noise", "mostly noise")
    caplog.clear()
    diagnose.report(index, queries=2, compared=0)
    assert "diagnosis" not in caplog.text


@pytest.mark.parametrize(
    ("overlap", "words"),
    [
        (0.8, "steady: 80% of a list would be in it with other noise too (retrac)"),
        (0.5, "partly noise: 50% of a list"),
        (0.49, "mostly noise: 49% of a list"),
    ],
)
def test_the_verdict_in_words(overlap: float, words: str, index: gradindex.Index) -> None:
    """By the index's own setting, not by the others that are tried."""

    def agreement_at(timesteps: int, draws: int, overlap: float) -> dict[str, Any]:
        return {"timesteps": timesteps, "draws": draws, "retrac": {"overlap": overlap}}

    noise = [agreement_at(1, 1, 0.0), agreement_at(2, 1, overlap), agreement_at(2, 2, 1.0)]
    influence = {
        "retrac": {"general": {"0.5": 1}, "norm_correlation": 0.9},
        "tracin": {"general": {"0.5": 5}, "norm_correlation": -0.7},
    }
    lines = verdict({"noise": noise, "influence": influence}, index.store.recipe)
    assert lines[0].startswith(words)
    assert lines[1].startswith("1 picture is in half of the lists or more")
    assert "prefer --method retrac" in lines[2]

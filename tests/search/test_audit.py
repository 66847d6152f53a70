"""An audit: the mean of the scores of held-out pictures, from one search."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_model, make_pictures
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
    helpful = [row for row in np.argsort(-mean)[:3].tolist() if mean[row] > 0]
    harmful = [row for row in np.argsort(mean)[:3].tolist() if mean[row] < 0]
    assert len(helpful) + len(harmful) >= 3
    assert [hit.row for hit in result.hits] == helpful
    assert [hit.row for hit in result.opponents] == harmful
    assert result.scores == pytest.approx(mean[helpful], rel=1e-4, abs=1e-6)


def test_an_audit_says_where_its_lists_end(index: gradindex.Index, held_out: Path) -> None:
    """Where all of them help, none harms."""
    result = index.audit(held_out, 20)
    done = run("audit", index.store.location, held_out, "-k", 20)
    best, worst = done.stdout.split("\n\n")
    assert result.hits
    assert best.splitlines()[-1] == "    no more scores above 0"
    more = "no more" if result.opponents else "no"
    assert worst.splitlines()[-1] == f"    {more} scores below 0"
    one = run("audit", index.store.location, held_out, "-k", 1).stdout.split("\n\n")[0]
    assert one.splitlines()[-1].split()[0] == "1"
    assert "training pictures, such as" not in done.stderr


def test_an_audit_of_training_pictures_warns(
    index: gradindex.Index, held_out: Path, pictures: Path, tmp_path: Path
) -> None:
    """Whatever they are called: their bytes tell."""
    mixed = tmp_path / "mixed"
    shutil.copytree(held_out, mixed)
    shutil.copy(pictures / "p003.png", mixed / "x.png")
    text = r"1 of 6 pictures is among the training pictures, such as 'x\.png'; an audit is of"
    with pytest.warns(UserWarning, match=text):
        index.audit(mixed)
    with pytest.warns(UserWarning, match="9 of 9 pictures are among the training pictures"):
        index.audit(pictures)


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


def test_pictures_without_captions_are_refused(tmp_path: Path) -> None:
    pipeline = stable_diffusion(tmp_path / "pipeline")
    pictures = captioned_pictures(tmp_path / "pictures", ["a cat", "a dog"])[0].parent
    plain = make_pictures(tmp_path / "plain", 2, 16, mode="RGB")
    asked: Any = {"model": pipeline, "timesteps": 1, "dim": 16, "device": "cpu"}
    own = gradindex.build(tmp_path / "own", data=pictures, **asked)
    one = gradindex.build(tmp_path / "one", data=plain, caption="a cat", **asked)
    bare = make_pictures(tmp_path / "bare", 2, 16, 1, mode="RGB")
    with pytest.raises(CallError, match="and these have none; write each to a text file"):
        own.audit(bare)
    mean = one.scores(sorted(bare.iterdir()), "tracin", prompt="a cat").mean(0)
    assert one.audit(bare, 1, "tracin").scores == pytest.approx([mean.max()], rel=1e-3)
    (bare / "p000.txt").write_text("a fish")
    for index in (own, one):
        with pytest.raises(CallError, match=r"1 of 2 pictures has no caption \('p001\.png'\)"):
            index.audit(bare)
    (bare / "p001.txt").write_text("a cow")
    prompts = ["a fish", "a cow"]
    mean = one.scores(sorted(bare.glob("*.png")), "tracin", prompt=prompts).mean(0)
    assert one.audit(bare, 1, "tracin").scores == pytest.approx([mean.max()], rel=1e-3)


def test_classes_are_those_of_the_training_pictures(tmp_path: Path) -> None:
    """A held-out folder may lack some of them, and names count, not their order."""
    for seed, name in enumerate(("ant", "bee", "cow")):
        make_pictures(tmp_path / "pictures" / name, 2, seed=seed)
    model = make_model(tmp_path / "ddpm", num_class_embeds=3)
    index = gradindex.build(
        tmp_path / "idx", model=model, data=tmp_path / "pictures", timesteps=2, dim=32, device="cpu"
    )
    files = sorted(make_pictures(tmp_path / "held-out" / "bee", 2, seed=7).iterdir())
    make_pictures(tmp_path / "held-out" / "cow", 1, seed=8)
    files += sorted((tmp_path / "held-out" / "cow").iterdir())
    mean = index.scores(files, "tracin", class_label=[1, 1, 2]).mean(0)
    result = index.audit(tmp_path / "held-out", 6, "tracin")
    assert result.scores == pytest.approx(np.sort(mean)[::-1], rel=1e-3, abs=1e-6)
    make_pictures(tmp_path / "held-out" / "eel", 1)
    with pytest.raises(CallError, match="1 class that the training pictures do not have, such as"):
        index.audit(tmp_path / "held-out")


def test_a_table_can_be_audited_with_a_folder(tmp_path: Path, model: Path, held_out: Path) -> None:
    folder = make_pictures(tmp_path / "pictures", 3)
    rows = [{"file_name": file.name, "name": file.stem} for file in sorted(folder.iterdir())]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    index = gradindex.build(
        tmp_path / "idx",
        model=model,
        data=folder,
        columns=gradindex.Columns(id="name"),
        timesteps=2,
        dim=16,
        device="cpu",
    )
    mean = index.scores(sorted(held_out.iterdir())).mean(0)
    assert index.audit(held_out, 1).scores == pytest.approx([mean.max()], rel=1e-4)
    for style in ("csv", "parquet", "html"):
        refused = run("audit", tmp_path / "idx", held_out, "--output", tmp_path / f"x.{style}")
        assert refused.returncode == 2
        assert f"this command writes no {style}; give --format table|json" in refused.stderr
    run("audit", tmp_path / "idx", held_out, "-k", "all", "--output", tmp_path / "all.json")
    (query,) = json.loads((tmp_path / "all.json").read_text())["queries"]
    assert len(query["hits"]) + len(query["opponents"]) == 3


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
    broken = make_pictures(tmp_path / "broken", 2, seed=7)
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

"""Indexes over a part of a model: exact rows where they are narrow, at any width; older indexes."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
from conftest import make_pictures
from diffusers import DDPMPipeline
from helpers import run

import gradindex
from gradindex.builder import plan
from gradindex.builder.upkeep import compact, remove
from gradindex.builder.verify import damages
from gradindex.errors import CallError, RecipeMismatch
from gradindex.gradients import parts
from gradindex.gradients.parameters import split_params
from gradindex.recipe import Recipe
from gradindex.report.info import describe
from gradindex.search.ann_builder import build_ann_index
from gradindex.search.whitening import whitening_of_index

TIMESTEPS = [100, 700]
Build = Callable[..., gradindex.Index]


@pytest.fixture
def build(tmp_path: Path, model: Path, pictures: Path) -> Build:
    """`gradindex.build` into tmp_path/idx."""

    def call(**options: Any) -> gradindex.Index:
        defaults = {"model": model, "data": pictures, "timesteps": TIMESTEPS, "device": "cpu"}
        return gradindex.build(options.pop("index", tmp_path / "idx"), **{**defaults, **options})

    return call


def columns_of(model: Path, *starts: str) -> tuple[DDPMPipeline, np.ndarray]:
    """The pipeline, and which numbers of a gradient belong to parameters whose names begin so."""
    pipeline = DDPMPipeline.from_pretrained(model)
    chosen = [
        np.full(parameter.numel(), name.startswith(starts))
        for name, parameter in pipeline.unet.named_parameters()
    ]
    return pipeline, np.concatenate(chosen)


def oracle_rows(
    model: Path, files: list[Path], starts: list[str], timesteps: list[int]
) -> np.ndarray:
    """The columns of autograd's gradients, [files, T, D]."""
    pipeline, columns = columns_of(model, *starts)
    rows = oracles.rows(pipeline, files, [None] * len(files), timesteps, 1, 0, "mse")
    return rows[:, :, columns]


@pytest.mark.parametrize(
    ("params", "starts", "timesteps"),
    [
        ("last", ["conv_norm_out.", "conv_out."], TIMESTEPS),
        ("last-unit", ["up_blocks.1.resnets.1.", "conv_norm_out.", "conv_out."], [300]),
        ("conv_out.bias", ["conv_out.bias"], TIMESTEPS),  # one number
    ],
)
@pytest.mark.parametrize("rows", ["full", "folded"])
def test_rows_of_few_parameters_are_exact(
    build: Build,
    tmp_path: Path,
    model: Path,
    pictures: Path,
    queries: list[Path],
    params: str,
    starts: list[str],
    timesteps: list[int],
    rows: str,
) -> None:
    """Scores are those of autograd's columns, and the best hits are those of the scores."""
    index = build(params=params, rows=rows, timesteps=timesteps)
    files = sorted(pictures.iterdir())
    training = oracle_rows(model, files, starts, timesteps)
    asked = oracle_rows(model, queries, starts, timesteps)
    recipe = index.store.recipe
    width = training.shape[2]
    assert (recipe.projection, recipe.rank, recipe.high_rank) == ("none", None, ())
    assert (recipe.dim, recipe.parameter_count) == (width, width)
    assert recipe.search_width == len(timesteps) * width  # side by side: equal either way
    if rows == "full":
        assert index.store.shape == (1, 9, len(timesteps), width)
        assert_close(index.store.unnormalized[0], training)
    for method in ("tracin", "retrac"):
        scores = index.scores(queries, method, whiten=False)
        truth = oracles.score([training], [asked], [1], method, "matched")
        np.testing.assert_allclose(scores, truth, rtol=1e-3, atol=1e-4 * abs(truth).max())
        for whiten in (False, True):
            scores = index.scores(queries, method, whiten=whiten)
            for result, all_scores in zip(
                index.query(queries, 3, method=method, whiten=whiten), scores, strict=True
            ):
                best = np.sort(all_scores)[::-1][:3]
                np.testing.assert_allclose([hit.score for hit in result.hits], best, rtol=1e-4)
    assert list(damages(tmp_path / "idx")) == []


def assert_close(rows: np.ndarray, truth: np.ndarray) -> None:
    error = np.linalg.norm(rows - truth, axis=-1)
    assert (error <= 1e-4 * np.linalg.norm(truth, axis=-1)).all()


def test_whitened_scores_of_exact_rows_are_those_of_the_formula(
    build: Build, model: Path, pictures: Path, queries: list[Path]
) -> None:
    """Each block becomes (GᵀG/N + λI)⁻¹ q; λ is the damping times a row's mean square norm."""
    index = build(params="last", timesteps=[300])
    rows = index.store.unnormalized[0, :, 0].astype(np.float64)
    asked = oracle_rows(model, queries, ["conv_norm_out.", "conv_out."], [300])[:, 0]
    scores = index.scores(queries, "tracin", whiten=0.1)
    gram = rows.T @ rows / len(rows)
    mean_square = np.square(rows).sum(1).mean()
    damped = gram + 0.1 * mean_square * np.eye(len(gram))
    np.testing.assert_allclose(scores, asked @ np.linalg.solve(damped, rows.T), rtol=1e-3)


def test_exact_rows_are_folded_where_they_are_wide_together(
    build: Build, tmp_path: Path, queries: list[Path]
) -> None:
    """Norms at 24 timesteps are more numbers than a search vector; every kind of file serves."""
    timesteps = list(range(20, 980, 40))
    index = build(params="norms", timesteps=timesteps)
    recipe = index.store.recipe
    assert len(timesteps) * recipe.dim > recipe.search_width == 4096
    for factory in ("store", "Flat", "auto"):
        for name in ("tracin", "retrac", "retrac-whitened"):
            whitening = whitening_of_index(index.store, name, "cpu")
            build_ann_index(index.store, name, factory, whitening=whitening)
        index = gradindex.open(tmp_path / "idx")
        for whiten in (False, True):
            scores = index.scores(queries, whiten=whiten)
            for result, all_scores in zip(
                index.query(queries, 3, whiten=whiten), scores, strict=True
            ):
                best = np.sort(all_scores)[::-1][:3]
                np.testing.assert_allclose([hit.score for hit in result.hits], best, rtol=1e-4)
    assert list(damages(tmp_path / "idx")) == []


def test_rows_of_many_parameters_are_projected(build: Build) -> None:
    recipe = build(params="middle", dim=64).store.recipe
    assert (recipe.projection, recipe.rank, recipe.dim) == ("two-sided", 16, 64)
    assert recipe.parameter_count > 64
    assert recipe.part == "middle"


@pytest.mark.parametrize("projection", ["sketch", "rademacher"])
def test_a_projection_that_is_asked_for_is_made(build: Build, projection: str) -> None:
    recipe = build(params="last", projection=projection, dim=128).store.recipe
    assert (recipe.projection, recipe.dim) == (projection, 128)


def test_as_many_parameters_as_the_width_are_exact(build: Build, tmp_path: Path) -> None:
    recipe = build(params="last").store.recipe
    same = build(params="last", dim=recipe.parameter_count, index=tmp_path / "same").store.recipe
    assert same == recipe
    less = build(params="last", dim=recipe.parameter_count - 1, index=tmp_path / "less")
    assert less.store.recipe.projection == "two-sided"


# --- what is asked for, and what is said of it


def test_all_is_the_default(build: Build, tmp_path: Path) -> None:
    """The recipe is the same, to the last digit of its digest, and the header has no new field."""
    one, other = build(dim=64), build(index=tmp_path / "all", dim=64, params="all")
    assert one.store.recipe.digest == other.store.recipe.digest
    assert "part" not in one.store.header.recipe
    assert "parameters" not in (tmp_path / "idx/manifest/header.json").read_text().replace(
        '"parameter_count"', ""
    )


def test_a_name_means_the_part_and_not_the_expression(build: Build, tmp_path: Path) -> None:
    part = build(params="attention").store.recipe
    assert (part.params, part.part) == (None, "attention")
    expression = build(params="(attention)", index=tmp_path / "expression").store.recipe
    assert (expression.params, expression.part) == ("(attention)", None)
    assert part.parameter_count < expression.parameter_count  # there are norms in `attentions`


def test_a_part_that_a_model_lacks_is_refused(build: Build, tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"params = 'level-9': of the 144 .* level-0 … level-2$"):
        build(params="level-9")
    assert not (tmp_path / "idx").exists()


def test_another_part_is_named_without_what_follows_from_it(build: Build, tmp_path: Path) -> None:
    build(params="norms")
    with pytest.raises(RecipeMismatch) as caught:
        build()
    assert caught.value.differences == ['params: "norms", now "all"']
    wide = build(params="middle", dim=64, index=tmp_path / "wide").store.recipe
    other = build(dim=32, index=tmp_path / "other").store.recipe
    assert wide.differences(other) == ['params: "middle", now "all"', "dim: 64, now 32"]
    with pytest.raises(CallError, match="params = '': give a part of the model, or a regular"):
        build(params="")


def test_info_and_dry_run_say_what_was_chosen(
    build: Build, tmp_path: Path, model: Path, pictures: Path
) -> None:
    index = build(params="last-block")
    total = sum(p.numel() for p in DDPMPipeline.from_pretrained(model).unet.parameters())
    count = index.store.recipe.parameter_count
    share = f"{100 * count / total:.3g} %"
    places = "up_blocks.1, conv_norm_out, conv_out"
    chosen = f"last-block: {count:,} of {total:,} ({share}), in {places}"
    picture = f"2 gradients; {2 * (6 * 4096 + 8) / 1024:.3g} KiB of rows"
    assert f"parameters  {chosen}\na picture   {picture}\n" in describe(index.store)
    asked = ["build", tmp_path / "new", "--model", model, "--data", pictures, "--dry-run"]
    asked += ["--device", "cpu", "--timesteps", "2"]
    done = run(*asked, "--params", "last-block")
    assert f"parameters  {chosen}\n" in done.stdout
    assert "projection  two-sided\n" in done.stdout
    done = run(*asked, "--params", "last")
    assert "projection  none, rows are exact\n" in done.stdout
    assert "9 pictures × 2 timesteps × 89 numbers" in done.stdout
    cost = r"a picture   2 gradients, each as long as \d+\.\d forward passes; 1\.06 KiB of rows\n"
    assert re.search(cost, done.stdout)
    done = run(*asked, "--params", "conv_out")
    share = f"{100 * 73 / total:.3g} %"
    assert f"parameters  'conv_out': 73 of {total:,} ({share}), in conv_out\n" in done.stdout
    assert f"parameters  all {total:,}\n" in run(*asked).stdout
    assert not (tmp_path / "new").exists()


def test_the_help_and_the_documentation_name_every_part() -> None:
    text = " ".join(run("build", "--help").stdout.split()).replace("- ", "-")
    page = (Path(__file__).parents[2] / "docs/models.md").read_text()
    for part in [*parts.PARTS, "level-K"]:
        assert part in text, part
        assert f"| `{part}` |" in page, part


# --- indexes that were built before


def grown(pictures: Path, folder: Path) -> Path:
    """The pictures and one more."""
    shutil.copytree(pictures, folder)
    make_pictures(folder / "more", 1, seed=7)
    return folder


def test_an_index_that_projects_few_parameters_goes_on_so(
    build: Build,
    tmp_path: Path,
    pictures: Path,
    queries: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it was built before narrow rows were exact; a new picture's rows are projected too."""
    with monkeypatch.context() as before:
        before.setattr(Recipe, "exact_where_narrow", lambda recipe: recipe)
        old = build(params=r"^conv_norm_out\.", dim=128)
        whole = build(
            index=tmp_path / "whole",
            params=r"^conv_norm_out\.",
            dim=128,
            data=grown(pictures, tmp_path / "grown"),
        )
    assert old.store.recipe.projection == "two-sided"
    digest = old.store.recipe.digest
    scores = old.scores(queries, whiten=False)
    again = build(params=r"^conv_norm_out\.", dim=128, data=tmp_path / "grown")
    assert again.store.recipe.digest == digest == whole.store.recipe.digest
    assert again.store.shape == (1, 10, 2, 128)
    np.testing.assert_allclose(again.scores(queries, whiten=False)[:, :9], scores, rtol=1e-5)
    ids, all_ids = list(again.store.sample_ids), list(whole.store.sample_ids)
    rows = whole.store.unnormalized[0][[all_ids.index(name) for name in ids]]
    assert_close(again.store.unnormalized[0], rows)


def test_an_index_of_a_regular_expression_that_is_a_name_now_goes_on(
    build: Build,
    tmp_path: Path,
    pictures: Path,
    queries: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`--params attention` was the expression once; queries and builds take it so."""
    with monkeypatch.context() as before:
        before.setattr(plan, "split_params", lambda text: (text, None))
        old = build(params="attention", dim=64)
    recipe = old.store.recipe
    assert (recipe.params, recipe.part) == ("attention", None)
    scores = gradindex.open(tmp_path / "idx").scores(queries, whiten=False)
    again = build(params="attention", dim=64, data=grown(pictures, tmp_path / "grown"))
    assert again.store.recipe == recipe
    assert again.store.shape[1] == 10
    np.testing.assert_allclose(again.scores(queries, whiten=False)[:, :9], scores, rtol=1e-5)
    assert split_params("attention") == (None, "attention")  # for a new index


def test_a_name_that_means_other_parameters_by_now_is_refused(
    build: Build, tmp_path: Path, queries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not answered with gradients of other parameters, nor with a name that is gone."""
    build(params="last")
    monkeypatch.setitem(parts.PARTS, "last", parts.PARTS["first"])
    with pytest.raises(RecipeMismatch, match="'last': another version of gradindex chose other"):
        gradindex.open(tmp_path / "idx").query(queries)
    monkeypatch.delitem(parts.PARTS, "last")
    with pytest.raises(CallError, match="params = 'last': no part of a model"):
        gradindex.open(tmp_path / "idx").query(queries)


def test_compacting_keeps_what_was_chosen(build: Build, tmp_path: Path) -> None:
    index = build(params="last")
    remove(tmp_path / "idx", ["p003.png"])
    compact(tmp_path / "idx")
    kept = gradindex.open(tmp_path / "idx").store
    assert kept.shape[1] == 8
    assert kept.header.parameters == index.store.header.parameters
    assert " last: 89 of" in describe(kept)

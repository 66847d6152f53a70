"""The scores that gradindex shows are the ones that the formulas of docs/method.md give."""

from itertools import product
from pathlib import Path

import numpy as np
import oracles
import pytest
from conftest import make_model, make_pictures
from diffusers import DDPMPipeline

import gradindex

PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]
CASES = list(product(PREDICTION_TYPES, ["mse", "l1"], ["shared", "own"], ["matched", "mean"]))


@pytest.mark.parametrize(("prediction_type", "loss", "noise", "pairing"), CASES)
def test_scores_equal_a_loop_of_autograd(
    tmp_path: Path,
    pictures: Path,
    queries: list[Path],
    prediction_type: str,
    loss: str,
    noise: str,
    pairing: str,
) -> None:
    """Two weighted checkpoints, two draws: every score within 1e-4 of the brute-force loop."""
    weights = {}
    for seed, weight in [(1, 0.25), (2, 1.5)]:
        weights[str(make_model(tmp_path / f"ckpt-{seed}", seed, prediction_type))] = weight
    index = gradindex.build(
        tmp_path / "idx",
        model=tmp_path / "ckpt-1",
        checkpoints=weights,
        data=pictures,
        timesteps=[100, 700],
        draws=2,
        loss=loss,
        noise=noise,
        projection="none",
        seed=3,
        device="cpu",
    )
    grid = {"query_timesteps": 3, "query_draws": 2} if pairing == "mean" else {}
    grid |= {"whiten": False}
    query_grid = [166, 500, 833] if pairing == "mean" else [100, 700]
    files = sorted(pictures.iterdir())
    ids = [file.name if noise == "own" else None for file in files]
    query_ids = [oracles.query_id(file) if noise == "own" else None for file in queries]
    pipelines = [DDPMPipeline.from_pretrained(path) for path in weights]
    training = [
        oracles.rows(pipeline, files, ids, [100, 700], 2, 3, loss) for pipeline in pipelines
    ]
    query_rows = [
        oracles.rows(pipeline, queries, query_ids, query_grid, 2, 3, loss) for pipeline in pipelines
    ]
    for method in ("tracin", "retrac"):
        truth = oracles.score(training, query_rows, list(weights.values()), method, pairing)
        scores = index.scores(queries, method, pairing=pairing, **grid)
        np.testing.assert_allclose(scores, truth, rtol=1e-4)
        results = index.query(queries, 20, method, pairing=pairing, **grid)
        for result, row in zip(results, truth, strict=True):
            assert [hit.row for hit in result.hits] == np.argsort(-row).tolist()
            np.testing.assert_allclose(result.scores, np.sort(row)[::-1], rtol=1e-4)


def test_class_conditional_scores_equal_a_loop_of_autograd(
    tmp_path: Path, queries: list[Path]
) -> None:
    model = make_model(tmp_path / "cond", num_class_embeds=2)
    data = tmp_path / "classes"
    for label in ("cat", "dog"):
        make_pictures(data / label, 3)
    index = gradindex.build(
        tmp_path / "i", model=model, data=data, timesteps=[300], projection="none", device="cpu"
    )
    files = sorted(data.rglob("*.png"))
    pipeline = DDPMPipeline.from_pretrained(model)
    training = oracles.rows(pipeline, files, [None] * 6, [300], 1, 0, "mse", [0, 0, 0, 1, 1, 1])
    query_rows = oracles.rows(pipeline, queries, [None] * 2, [300], 1, 0, "mse", [1, 0])
    for method in ("tracin", "retrac"):
        truth = oracles.score([training], [query_rows], [1], method, "matched")
        np.testing.assert_allclose(
            index.scores(queries, method, class_label=[1, 0], whiten=False), truth, rtol=1e-4
        )


def test_scores_of_the_mean_square_equal_a_loop_of_autograd(
    tmp_path: Path, pictures: Path, queries: list[Path]
) -> None:
    """D-TRAK's output in place of the loss; queries take what the store's recipe says."""
    model = make_model(tmp_path / "model", 1)
    index = gradindex.build(
        tmp_path / "i",
        model=model,
        data=pictures,
        timesteps=[300],
        output="mean-square",
        projection="none",
        device="cpu",
    )
    files = sorted(pictures.iterdir())
    pipeline = DDPMPipeline.from_pretrained(model)
    training = oracles.rows(pipeline, files, [None] * len(files), [300], 1, 0, "mean-square")
    query_rows = oracles.rows(pipeline, queries, [None] * 2, [300], 1, 0, "mean-square")
    for method in ("tracin", "retrac"):
        truth = oracles.score([training], [query_rows], [1], method, "matched")
        np.testing.assert_allclose(index.scores(queries, method, whiten=False), truth, rtol=1e-4)

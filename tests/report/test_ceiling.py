"""The ceiling of a linear datamodeling score: what perfect predictions get."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import make_model
from helpers import run

import gradindex
from gradindex.errors import CallError
from gradindex.report.ceiling import by_subset, ceiling
from gradindex.report.evaluate import half_losses, lds, model_losses


def drawn_losses(
    parts: int, noise: float, subsets: int = 1000, pictures: int = 20
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, subsets, and losses that the scores predict but for noise."""
    random = np.random.default_rng(0)
    scores = random.normal(size=(pictures, 30))
    members = random.random((subsets, 30)) < 0.5
    predicted = members @ scores.T
    predicted /= predicted.std(0)
    losses = -predicted + noise * random.normal(size=(parts, subsets, pictures))
    return scores, members, losses


@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("parts", [2, 4])
def test_perfect_scores_reach_the_ceiling(noise: float, parts: int) -> None:
    scores, members, losses = drawn_losses(parts, noise)
    highest = ceiling(losses)
    assert highest.parts == parts
    assert highest.low < highest.value < highest.high
    # The reliability of a mean is the share of its variance that is not noise.
    assert highest.reliability == pytest.approx(1 / (1 + noise**2 / parts), abs=0.03)
    share, low, high = highest.share(lds(scores, members, losses.mean(0)))
    assert share == pytest.approx(1, abs=0.03)
    assert low < share < high


def test_noise_alone_has_a_ceiling_near_nothing() -> None:
    random = np.random.default_rng(1)
    assert ceiling(random.normal(size=(2, 500, 50))).value < 0.2
    against = random.normal(size=(1, 9, 2))
    assert ceiling(np.concatenate([against, -against])).value == 0


@pytest.mark.parametrize("shape", [(1, 9, 2), (2, 2, 2), (9, 2)])
def test_losses_without_a_second_time_have_none(shape: tuple[int, ...]) -> None:
    with pytest.raises(CallError, match="give \\[S, M, Q\\]"):
        ceiling(np.zeros(shape))


def test_models_of_one_subset_are_found() -> None:
    members = np.array([[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]], bool)
    losses = np.arange(10.0).reshape(5, 2)
    found = by_subset(members, losses)
    assert found is not None
    distinct, seeded = found
    assert distinct.tolist() == [[False, True], [True, False]]
    assert seeded.tolist() == [[[2, 3], [0, 1]], [[6, 7], [4, 5]]]
    assert by_subset(members[:4][[0, 1, 2]], losses[:3]) is None


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path) -> gradindex.Index:
    place = tmp_path_factory.mktemp("ceiling") / "idx"
    return gradindex.build(place, model=model, data=pictures, timesteps=2, dim=32, device="cpu")


def make_models(folder: Path, subsets: list[int]) -> Path:
    """A model of a seed of its own on each subset, which lacks the picture of that number."""
    for seed, lacking in enumerate(subsets):
        make_model(folder / str(seed), seed=seed)
        names = [f"p{row:03d}.png" for row in range(9) if row != lacking]
        (folder / str(seed) / "subset.txt").write_text("\n".join(names))
    return folder


@pytest.mark.parametrize("of", ["trainings", "timesteps"])
def test_the_command_says_the_ceiling(
    index: gradindex.Index, queries: list[Path], tmp_path: Path, of: str
) -> None:
    subsets = [0, 1, 2, 3] if of == "timesteps" else [0, 1, 2, 0, 1, 2]
    models = make_models(tmp_path / "models", subsets)
    folders = [models / str(seed) for seed in range(len(subsets))]
    halves = half_losses(index, folders, queries)
    assert np.allclose(halves.mean(0), model_losses(index, folders, queries), rtol=1e-12)
    trainings = np.stack([halves.mean(0)[:3], halves.mean(0)[3:]]) if of == "trainings" else halves
    expected = ceiling(trainings)
    asked = ["evaluate", "lds", index.store.location, *queries, "--models", models]
    answer = json.loads(run(*asked, "--format", "json").stdout)
    assert answer["ceiling"]["of"] == of
    assert answer["ceiling"]["lds"] == pytest.approx(100 * expected.value)
    assert answer["subsets"] == len({*subsets})
    text = run(*asked).stdout
    if of == "trainings":  # of models that were not trained: they agree in nothing
        assert expected.value == 0
        assert "ceiling: not measurable, two trainings on each subset agree no better" in text
    else:
        assert f"ceiling: about {100 * expected.value:.1f}" in text
        assert "two trainings on each subset" in text
    shutil.rmtree(models)


def test_trainings_in_a_file(index: gradindex.Index, queries: list[Path], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    members = random.random((6, 9)) < 0.5
    losses = random.normal(size=(3, 6, 2))
    np.savez(tmp_path / "arrays.npz", subsets=members, losses=losses)
    asked = ["evaluate", "lds", index.store.location, *queries]
    done = run(*asked, "--arrays", tmp_path / "arrays.npz", "--format", "json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["ceiling"]["lds"] == pytest.approx(100 * ceiling(losses).value)
    np.savez(tmp_path / "table.npz", subsets=np.tile(members, (3, 1)), losses=np.vstack(losses))
    table = run(*asked, "--arrays", tmp_path / "table.npz", "--format", "json")
    assert json.loads(table.stdout)["ceiling"]["lds"] == pytest.approx(answer["ceiling"]["lds"])
    some = np.vstack(losses)[:-1]  # a training is lacking: all of the others count
    np.savez(tmp_path / "some.npz", subsets=np.tile(members, (3, 1))[:-1], losses=some)
    table = run(*asked, "--arrays", tmp_path / "some.npz", "--format", "json")
    assert json.loads(table.stdout)["subsets"] == len(some)
    apart = np.stack([losses[0], -losses[0]])
    np.savez(tmp_path / "apart.npz", subsets=members, losses=apart + 1e-3 * losses[:2])
    said = run(*asked, "--arrays", tmp_path / "apart.npz").stdout
    assert "ceiling: not measurable, two trainings on each subset agree no better than" in said
    (tmp_path / "x.csv").write_text("a,b")
    refused = run(*asked, "--arrays", tmp_path / "x.csv").stderr
    assert "arrays subsets and losses (it is no such file)" in refused
    plain = lds(index.scores(queries, "tracin", whiten=False), members, losses.mean(0))
    assert answer["scores"]["tracin"]["lds"] == pytest.approx(100 * plain.mean)

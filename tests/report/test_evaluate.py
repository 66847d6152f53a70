"""What scores are worth, where the answer is known; and the commands, on small real models."""

import json
import shutil
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from conftest import make_model
from diffusers import DDPMPipeline
from helpers import run

import gradindex
from gradindex.cli.main import main
from gradindex.errors import CallError, GradindexError
from gradindex.report.counterfactual import counterfactual
from gradindex.report.evaluate import compare, lds, model_losses, pixel_scores, read_models


def linear_problem(
    correlation: float, noise: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses that fall by what each picture of a subset adds, and scores that correlate so far with
    what they add.
    """
    random = np.random.default_rng(seed)
    queries, pictures, models = 40, 200, 4000
    truth, other = random.standard_normal((2, queries, pictures))
    for values in (truth, other):
        # Halves know nothing of the mean: they all have as many pictures.
        values -= values.mean(1, keepdims=True)
        values /= values.std(1, keepdims=True)
    other -= truth * (other * truth).mean(1, keepdims=True)
    other /= other.std(1, keepdims=True)
    scores = correlation * truth + np.sqrt(1 - correlation**2) * other
    subsets = np.stack([random.permutation(pictures) < pictures // 2 for _ in range(models)])
    helped = truth @ subsets.T
    losses = -helped + noise * helped.std(1, keepdims=True) * random.standard_normal(helped.shape)
    return scores, subsets, losses.T


@pytest.mark.parametrize(
    ("correlation", "noise"), [(1, 0), (0.7, 0), (0.5, 1), (0, 0), (-0.6, 0.5)]
)
def test_lds_of_a_linear_problem_has_a_closed_form(correlation: float, noise: float) -> None:
    """Sums over random halves are Gaussian: ρ = 6/π · asin(r/2), r the correlation that noise has
    weakened.
    """
    found = lds(*linear_problem(correlation, noise))
    expected = 6 / np.pi * np.arcsin(correlation / np.sqrt(1 + noise**2) / 2)
    assert found.mean == pytest.approx(expected, abs=0.01)
    assert found.low <= found.mean <= found.high
    assert found.high - found.low < 0.02
    assert found.per_picture.shape == (40,)


@pytest.mark.parametrize(("pictures", "models"), [(30, 300), (80, 20)])
def test_intervals_cover_the_mean_of_all(pictures: int, models: int) -> None:
    """As often as they say, where the pictures asked are a sample of many that differ widely, and
    so are the models.
    """
    scores, subsets, losses = linear_problem(0.5, 0)
    random = np.random.default_rng(3)
    # Of the second half nothing is true.
    scores = np.concatenate([scores, random.permuted(scores, axis=1)])
    losses = np.concatenate([losses, losses], axis=1)
    whole, hits = lds(scores, subsets, losses).mean, 0
    for _ in range(200):
        some, half = random.integers(80, size=pictures), random.choice(4000, models, replace=False)
        found = lds(scores[some], subsets[half], losses[np.ix_(half, some)])
        hits += found.low <= whole <= found.high
    assert 180 <= hits <= 199


def test_the_difference_of_two_scores_has_an_interval() -> None:
    """The same pictures and models are drawn for both: of a score with itself there is none."""
    scores, subsets, losses = linear_problem(0.5, 0.5)
    one, same = (lds(each, subsets[:50], losses[:50]) for each in (scores, scores / 2))
    assert (one.resampled == same.resampled).all()
    assert one.resampled.shape == (2000,)
    assert (one.low, one.high) == tuple(np.quantile(one.resampled, [0.025, 0.975]))


def test_ties_share_their_ranks() -> None:
    """Two models with the same predicted sum: neither order is right."""
    subsets = np.array([[1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 1]], bool)
    found = lds(np.array([[1.0, 1.0, 5.0]]), subsets, -np.array([[3.0], [4.0], [1.0], [2.0]]))
    ranks, true = [3.5, 3.5, 1, 2], [3, 4, 1, 2]
    assert found.mean == pytest.approx(np.corrcoef(ranks, true)[0, 1])


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(CallError, match=r"scores \(2, 3\), subsets \(4, 5\), losses \(4, 2\)"):
        lds(np.zeros((2, 3)), np.zeros((4, 5)), np.zeros((4, 2)))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path) -> gradindex.Index:
    place = tmp_path_factory.mktemp("evaluate") / "idx"
    return gradindex.build(
        place, model=model, data=pictures, timesteps=[100, 700], dim=64, device="cpu"
    )


@pytest.mark.parametrize(
    ("members", "losses", "message"),
    [
        (np.eye(4, 9), np.ones((4, 2)), "losses: those of all models are the same"),
        (np.ones((4, 9)), np.arange(8.0).reshape(4, 2), "subsets: one is empty, or all are the"),
        (np.eye(4, 9, 6), np.arange(8.0).reshape(4, 2), "subsets: one is empty, or all are the"),
    ],
)
def test_what_says_nothing_is_refused(
    index: gradindex.Index,
    queries: list[Path],
    members: np.ndarray,
    losses: np.ndarray,
    message: str,
) -> None:
    with pytest.raises(CallError, match=message):
        compare(index, queries, members.astype(bool), losses)


def test_what_is_missing_is_said_before_losses_are_taken(
    index: gradindex.Index,
    queries: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """There are no models: a loss of one could not be taken."""
    asked = ["evaluate", "lds", str(index.store.location), str(queries[0]), "--models", "nowhere"]
    np.savez(tmp_path / "vectors.npz", training=np.ones((3, 2)), queries=np.ones((1, 2)))
    for options, message in (
        (["--data", str(tmp_path)], "no pictures there"),
        (["--embeddings", str(tmp_path / "vectors.npz")], "embeddings: training (3, 2)"),
        ([], "nowhere: no such folder"),
    ):
        with pytest.raises(SystemExit):
            main([*asked, *options])
        assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four models, and which pictures each was trained on."""
    folder = tmp_path_factory.mktemp("models")
    for number in range(4):
        make_model(folder / str(number), seed=number)
        names = [f"p{row:03d}.png" for row in range(9) if (row + number) % 3]
        (folder / str(number) / "subset.txt").write_text("\n".join(names))
    return folder


def test_losses_of_models_are_means_over_a_grid(
    index: gradindex.Index, models: Path, queries: list[Path]
) -> None:
    folders, subsets = read_models(models, index)
    assert subsets.tolist() == [
        [bool((row + number) % 3) for row in range(9)] for number in range(4)
    ]
    losses = model_losses(index, folders, queries)
    pipeline = DDPMPipeline.from_pretrained(folders[2])
    for query, file in enumerate(queries):
        x, each = oracles.load(file), []
        for t in range(10, 1000, 20):
            for draw in (0, 1):
                epsilon = torch.from_numpy(gradindex.noise(1 << 20, None, t, draw, x.shape))
                noisy = pipeline.scheduler.add_noise(x[None], epsilon[None], torch.tensor([t]))
                with torch.no_grad():
                    each.append(float((pipeline.unet(noisy, t).sample - epsilon).square().mean()))
        assert losses[2, query] == pytest.approx(np.mean(each), rel=1e-5)


def test_pixels_are_compared_by_cosine(
    index: gradindex.Index, pictures: Path, queries: list[Path]
) -> None:
    training = torch.stack([oracles.load(file) for file in sorted(pictures.iterdir())]).flatten(1)
    asked = torch.stack([oracles.load(file) for file in queries]).flatten(1)
    expected = torch.nn.functional.cosine_similarity(asked[:, None], training[None], dim=2)
    np.testing.assert_allclose(pixel_scores(index, queries), expected, rtol=1e-5)


@pytest.mark.parametrize("from_arrays", [False, True])
def test_the_command_gives_the_score_of_each_way(
    index: gradindex.Index, models: Path, queries: list[Path], tmp_path: Path, from_arrays: bool
) -> None:
    folders, subsets = read_models(models, index)
    losses = model_losses(index, folders, queries)
    np.savez(tmp_path / "arrays.npz", subsets=subsets, losses=losses)
    random = np.random.default_rng(0)
    training, asked = random.standard_normal((9, 5)), random.standard_normal((2, 5))
    np.savez(tmp_path / "embeddings.npz", training=training, queries=asked)
    given = ("--arrays", tmp_path / "arrays.npz") if from_arrays else ("--models", models)
    more = ("--embeddings", tmp_path / "embeddings.npz", "--format", "json")
    done = run("evaluate", "lds", index.store.location, *queries, *given, *more)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    ways = {
        "tracin",
        "retrac",
        "tracin, whitened",
        "retrac, whitened",
        "pixel cosine",
        "embedding cosine",
        "random",
    }
    assert (answer["subsets"], answer["scores"].keys()) == (4, ways)
    expected = {
        "retrac": index.scores(queries, "retrac", whiten=False),
        "tracin, whitened": index.scores(queries, "tracin", whiten=True),
        "embedding cosine": asked @ (training / np.linalg.norm(training, axis=1, keepdims=True)).T,
    }
    for name, scores in expected.items():
        assert answer["scores"][name]["lds"] == pytest.approx(
            100 * lds(scores, subsets, losses).mean
        )
    assert ("ceiling" in answer) != from_arrays
    table = run("evaluate", "lds", index.store.location, *queries, *given).stdout
    assert "4 subsets" in table
    assert table.count("\n") == (7 if from_arrays else 8)


def test_counterfactual_trains_without_the_highest_and_without_random_ones(
    index: gradindex.Index, models: Path, queries: list[Path], tmp_path: Path
) -> None:
    """The command is given the pictures that stay; a second run trains nothing again."""
    command = f"ls {{data}} >> {tmp_path}/seen && cp -r {models}/1 {{out}} && rm {{out}}/subset.txt"
    work = tmp_path / "work"
    removals = list(counterfactual(index, queries, command, work, k=3, random=2))
    assert [(one.picture, one.which) for one in removals] == [
        *((str(file), "highest") for file in queries),
        *((str(file), "random") for _ in range(2) for file in queries),
    ]
    every = {file.name for file in Path(index.store.header.data.source).iterdir()}
    for file, one in zip(queries, removals, strict=False):
        assert one.removed == index.query([file], 3)[0].ids
    seen = (tmp_path / "seen").read_text().split()
    assert len(seen) == 4 * 6
    assert {*seen[:6]} == every - {*removals[0].removed}
    losses = model_losses(index, [models / "1"], queries)[0]
    assert [one.loss for one in removals] == pytest.approx([*losses, *losses, *losses])
    again = ("--command", "false {data} {out}", "--work", work, "-k", 3)
    done = run("evaluate", "counterfactual", index.store.location, *queries, *again)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("random") == 4
    shutil.rmtree(work / "2")
    with pytest.raises(GradindexError, match="ended with status 1"):
        list(counterfactual(index, queries, "false {data} {out}", work, k=3, random=2))


def test_models_of_other_pictures_are_refused(
    index: gradindex.Index, models: Path, tmp_path: Path
) -> None:
    with pytest.raises(CallError, match=r"0 folders with a subset\.txt"):
        read_models(tmp_path, index)
    shutil.copytree(models, tmp_path / "models")
    (tmp_path / "models/1/subset.txt").write_text("nobody.png\n")
    with pytest.raises(CallError, match=r"1 id is not in the index, such as 'nobody\.png'"):
        read_models(tmp_path / "models", index)

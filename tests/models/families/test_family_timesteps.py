"""Timesteps of flow matching, which are no whole numbers, from a build to its queries."""

from pathlib import Path

import numpy as np
import pytest
import tiny_pipelines
from helpers import run
from scipy.stats import norm
from tiny_pipelines import SIDE, captioned_pictures

import gradindex
from gradindex.errors import CallError
from gradindex.gradients.events import grid_events
from gradindex.models.processes import CENTRE, WIDTH, Ddpm, Flow, Weighted

LATENT = (4, SIDE // 2, SIDE // 2)
FLOW = Flow({"num_train_timesteps": 1000, "shift": 3.0})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index over three pictures, their model, and a picture to query."""
    folder = tmp_path_factory.mktemp("flow")
    tiny_pipelines.sd3(folder / "model")
    captioned_pictures(folder / "data", ["a cat", "a dog", "two"])
    captioned_pictures(folder / "queries", ["a cat"], seed=5)
    done = run(
        *("build", "idx", "--model", "model", "--data", "data", "--dim", "16"),
        *("--timesteps", "3", "--resolution", SIDE, "--device", "cpu"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_noise_is_keyed_by_the_timestep_that_the_store_holds(place: Path) -> None:
    """A row is the gradient at exactly `noise(seed, None, float(store.timestep[c, i, j]), …)`."""
    store = gradindex.open(place / "idx").store
    timesteps = store.read("timestep", 0, slice(0, 3))
    assert timesteps.dtype == np.float32
    # σ = 3u / (1 + 2u) at u = 1/6, 3/6 and 5/6.
    np.testing.assert_array_equal(timesteps, np.float32([[375, 750, 937.5]] * 3))
    index = gradindex.build(
        place / "odd",
        model=place / "model",
        data=place / "data",
        timesteps=[333.3, 999.67],
        dim=16,
        resolution=SIDE,
        device="cpu",
    )
    held = index.store.read("timestep", 0, slice(0, 1))[0]
    assert held.tolist() == [float(np.float32(333.3)), float(np.float32(999.67))]
    assert index.store.recipe.timesteps == tuple(held.tolist())
    events = grid_events(index.store.recipe, ["a"])
    for j, t in enumerate(held):
        very_noise = gradindex.noise(0, None, float(t), 0, LATENT)
        np.testing.assert_array_equal(events.noise(0, j, 0, LATENT), very_noise)
    # Not by the number that was asked for, which no float32 is.
    asked_for = gradindex.noise(0, None, 333.3, 0, LATENT)
    assert not np.array_equal(events.noise(0, 0, 0, LATENT), asked_for)


def test_the_command_line_takes_timesteps_with_decimals(place: Path) -> None:
    build = ("build", "decimals", "--model", "model", "--data", "data", "--dim", "16")
    options = ("--timesteps", "500.5,750.25,", "--resolution", SIDE, "--device", "cpu")
    done = run(*build, *options, cwd=place)
    assert done.returncode == 0, done.stderr
    shown = run("info", "decimals", cwd=place).stdout
    assert " 500.5, 750.25\n" in shown
    query = ("query", "decimals", "queries/p000.png", "--device", "cpu", "--no-whiten")
    inside = run(*query, "--timesteps", "500.5:750.25", "--by-timestep", cwd=place)
    assert inside.returncode == 0, inside.stderr
    assert "t = 500.5:" in inside.stdout
    assert "t = 750.25" not in inside.stdout
    outside = run(*query, "--timesteps", "600:700.5", cwd=place)
    assert outside.returncode == 2
    assert outside.stderr.endswith(
        "--timesteps 600:700.5: the index has none of them, but 500.5, 750.25\n"
    )


def test_a_range_may_end_at_a_timestep_as_people_read_it(place: Path) -> None:
    """999.67 is a float32 a little below the number of that name."""
    index = gradindex.build(
        place / "read",
        model=place / "model",
        data=place / "data",
        timesteps=[333.3, 999.67],
        dim=16,
        resolution=SIDE,
        device="cpu",
    )
    assert "333.3, 999.67" in run("info", "read", cwd=place).stdout
    picture = place / "queries" / "p000.png"
    (result,) = index.query([picture], by_timestep=True, timesteps=(999.67, None))
    assert [float(f"{t:g}") for t in result.hits[0].by_timestep] == [999.67]


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([0.0], r"\[0.0\]: give distinct timesteps above 0, up to 1000"),
        ([1000.5], r"\[1000.5\]: give distinct"),
        ([500.0, 500.00000001], "give distinct"),
        ([float("nan")], r"\[nan\]: give distinct"),
        ([], r"\[\]: give distinct"),
        (0, "timesteps = 0: give 1 to 1000"),
        (1001, "timesteps = 1001: give 1 to 1000"),
        ("500", "a sequence of numbers"),
    ],
)
def test_timesteps_that_flow_matching_has_not(timesteps: object, message: str) -> None:
    with pytest.raises(CallError, match=message):
        FLOW.grid(timesteps)


@pytest.mark.parametrize("timesteps", [[500.5], [float("nan")], [float("inf"), 3]])
def test_other_models_have_whole_timesteps(timesteps: list[float]) -> None:
    schedule = {
        "num_train_timesteps": 1000,
        "beta_schedule": "linear",
        "prediction_type": "epsilon",
    }
    with pytest.raises(CallError, match="give whole numbers"):
        Ddpm(schedule, "cpu").grid(timesteps)


@pytest.mark.parametrize("text", ["500.5", "a:b", "-1:2", "1.5.2:", "1e3:", ":nan", "1:2:3"])
def test_ranges_that_are_none(place: Path, text: str) -> None:
    done = run("query", "idx", "queries/p000.png", "--timesteps", text, cwd=place)
    assert done.returncode == 2
    assert f"{text!r}: give A:B, such as 0:500" in done.stderr


@pytest.mark.parametrize("text", ["1.5.2,", "nan,", "1e3,2", "500.5"])
def test_timesteps_that_are_none(place: Path, text: str) -> None:
    done = run("build", "x", "--model", "model", "--data", "data", "--timesteps", text, cwd=place)
    assert done.returncode == 2
    assert f"{text!r}: give a number, timesteps with commas between them" in done.stderr


# --- weighted ---------------------------------------------------------------------------------


def ddpm(**settings: object) -> Ddpm:
    schedule = {"beta_schedule": "linear", "prediction_type": "epsilon", **settings}
    return Ddpm({"num_train_timesteps": 1000, **schedule}, "cpu")


@pytest.mark.parametrize("process", [ddpm(), ddpm(beta_schedule="scaled_linear"), FLOW])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
def test_weighted_timesteps_have_the_quantiles_of_a_normal_distribution(
    process: Ddpm | Flow, count: int
) -> None:
    """Of log-SNR, on schedules with betas as near as whole timesteps are."""
    timesteps = np.array(process.grid(Weighted(count)))
    assert list(timesteps) == sorted(set(timesteps))
    if isinstance(process, Flow):
        sigmas = timesteps / 1000
        ratios = 2 * np.log((1 - sigmas) / sigmas)
    else:
        ratios = np.log(process.snr(timesteps))
    shares = norm(CENTRE, WIDTH).sf(ratios)
    np.testing.assert_allclose(shares, (np.arange(count) + 0.5) / count, atol=4e-3)


def test_weighted_timesteps_are_distinct_where_there_are_few() -> None:
    """Of a schedule whose last timestep has no signal, too."""
    few = ddpm(num_train_timesteps=4, beta_start=0.1, beta_end=0.9, rescale_betas_zero_snr=True)
    assert few.grid(Weighted(4)) == (0, 1, 2, 3)
    with pytest.raises(CallError, match="timesteps = 5: give 1 to 4"):
        few.grid(Weighted(5))
    with pytest.raises(CallError, match="timesteps = 1001: give 1 to 1000"):
        FLOW.grid(Weighted(1001))


def test_a_build_takes_weighted_timesteps(place: Path) -> None:
    done = run(
        *("build", "weighted", "--model", "model", "--data", "data", "--dim", "16"),
        *("--timesteps", "weighted:2", "--resolution", SIDE, "--device", "cpu"),
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    store = gradindex.open(place / "weighted").store
    # σ = 1 / (1 + exp(l / 2)) at l = 0.5 ± 2 · 0.6745, the quartiles.
    np.testing.assert_allclose(store.recipe.timesteps, [284.0, 604.5], atol=0.5)

"""Rows at the timesteps and with the noise of training: what the log says is what is indexed."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from conftest import make_model, make_pictures
from diffusers import DDPMPipeline
from hypothesis import given
from hypothesis import strategies as st

import gradindex
from gradindex import TrainingRecorder
from gradindex.data.log_file import UNKNOWN
from gradindex.data.training_log import TrainingLog, open_log
from gradindex.errors import CallError
from gradindex.models.loading import load_denoiser

NAMES = [f"p{number:03d}.png" for number in range(9)]
SHAPE = (1, 8, 8)


def table(folder: Path, rows: list[dict[str, object]], name: str = "log.csv") -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps over nine pictures, each twice; checkpoints after two and four steps."""
    folder = tmp_path_factory.mktemp("run")
    with TrainingRecorder(folder / "log", seed=5) as recorder:
        for step in range(4):
            recorder.draw(NAMES[:5] if step % 2 == 0 else NAMES[5:], SHAPE, step)
            if step % 2:
                checkpoint = make_model(folder / f"checkpoint-{step + 1}", seed=step)
                recorder.checkpoint(step + 1, checkpoint, lr=0.1 * step)
    return folder


@given(st.data())
def test_last_events_equal_a_plain_loop(data: st.DataObject) -> None:
    names = [f"n{number}" for number in range(data.draw(st.integers(1, 5)))]
    drawn = data.draw(
        st.lists(st.tuples(st.sampled_from(names), st.integers(0, 9)), min_size=1, max_size=30)
    )
    drawn.sort(key=lambda event: event[1])
    known = sorted({name for name, _ in drawn}, reverse=True)
    rows = [
        (known.index(name), step, 10 * number, number, step)
        for number, (name, step) in enumerate(drawn)
    ]
    types = [
        ("sample", "i8"),
        ("step", "i8"),
        ("timestep", "f4"),
        ("noise_seed", "i8"),
        ("draw", "i8"),
    ]
    log = TrainingLog(Path("log"), known, np.array(rows, types), [], None)
    before, count = data.draw(st.integers(0, 11)), data.draw(st.integers(1, 4))
    found = log.last_events(names, before, count)
    for row, name in enumerate(names):
        mine = [
            number for number, event in enumerate(drawn) if event[0] == name and event[1] < before
        ][-count:]
        lacking = count - len(mine)
        assert np.isnan(found["timestep"][row, :lacking]).all()
        assert found["noise_seed"][row, lacking:].tolist() == mine
        assert found["timestep"][row, lacking:].tolist() == [10 * number for number in mine]
        assert found["draw"][row, lacking:].tolist() == [drawn[number][1] for number in mine]


@pytest.mark.parametrize("noise", [None, "own", "shared"])
def test_scores_equal_a_loop_of_autograd(
    tmp_path: Path, run: Path, pictures: Path, queries: list[Path], noise: str | None
) -> None:
    """Both checkpoints, the log's weights, each picture at its last event before each."""
    index = gradindex.build(
        tmp_path / "idx",
        model=run / "checkpoint-4",
        data=pictures,
        timesteps="recorded",
        log=run / "log",
        noise=noise,
        projection="none",
        seed=3,
        device="cpu",
    )
    assert index.store.header.weights == pytest.approx([0.1 * 0.5, 0.3 * 0.5])
    log = open_log(run / "log")
    training_rows, query_rows = [], []
    for number, step in enumerate((2, 4)):
        pipeline = DDPMPipeline.from_pretrained(run / f"checkpoint-{step}")
        rows = []
        for row, name in enumerate(NAMES):
            is_picture = log.events["sample"] == log.sample_ids.index(name)
            event = log.events[is_picture & (log.events["step"] < step)][-1]
            t = int(event["timestep"])
            assert index.store.timestep[number, row, 0] == t
            seed, key, draw = {
                None: (5, name, int(event["step"])),
                "own": (3, name, 0),
                "shared": (3, None, 0),
            }[noise]
            epsilon = torch.tensor(gradindex.noise(seed, key, t, draw, SHAPE))
            rows.append(
                oracles.gradient(pipeline, oracles.load(pictures / name), t, epsilon, "mse")[None]
            )
        training_rows.append(np.stack(rows))
        ids = [None if noise == "shared" else oracles.query_id(file) for file in queries]
        query_rows.append(oracles.rows(pipeline, queries, ids, [166, 500, 833], 2, 3, "mse"))
    for method in ("tracin", "retrac"):
        truth = oracles.score(training_rows, query_rows, [0.05, 0.15], method, "mean")
        options = {"query_timesteps": 3, "query_draws": 2, "whiten": False}
        np.testing.assert_allclose(index.scores(queries, method, **options), truth, rtol=1e-4)
        for result, row in zip(index.query(queries, 20, method, **options), truth, strict=True):
            assert [hit.row for hit in result.hits] == np.argsort(-row).tolist()


def test_the_loss_of_a_recorded_event_is_the_loss_of_training_bit_for_bit(
    tmp_path: Path, pictures: Path
) -> None:
    """Train, keep the loss of the step after the checkpoint's weights, and compute it again."""
    pipeline = DDPMPipeline.from_pretrained(make_model(tmp_path / "start"))
    model, scheduler = pipeline.unet.eval(), pipeline.scheduler
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.stack([oracles.load(pictures / name) for name in NAMES])
    with TrainingRecorder(tmp_path / "log", seed=2) as recorder:
        for step in range(3):
            t, epsilon = recorder.draw(NAMES, x.shape, step)
            losses = (
                (model(scheduler.add_noise(x, epsilon, t), t).sample - epsilon)
                .square()
                .flatten(1)
                .mean(1)
            )
            if step == 2:
                break
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
        pipeline.save_pretrained(tmp_path / "checkpoint-3")
        recorder.checkpoint(3, tmp_path / "checkpoint-3", 1e-3)
    events = open_log(tmp_path / "log").last_events(NAMES, 3, 1)[:, 0]
    noise = [
        gradindex.noise(int(each["noise_seed"]), name, each["timestep"], int(each["draw"]), SHAPE)
        for name, each in zip(NAMES, events, strict=True)
    ]
    denoiser = load_denoiser(tmp_path / "checkpoint-3")
    t = torch.from_numpy(events["timestep"].astype(np.int64))
    again = denoiser.losses(x, t, torch.from_numpy(np.stack(noise)), {}, "mse")
    assert torch.equal(again, losses.detach())


def test_events_become_the_timestep_axis(tmp_path: Path, run: Path, pictures: Path) -> None:
    index = gradindex.build(
        tmp_path / "idx",
        model=run / "checkpoint-4",
        checkpoints=[run / "checkpoint-4"],
        data=pictures,
        timesteps="recorded",
        log=run / "log",
        events=2,
        dim=8,
        device="cpu",
    )
    assert index.store.shape == (1, 9, 2, 8)
    expected = open_log(run / "log").last_events(NAMES, 4, 2)["timestep"]
    np.testing.assert_array_equal(index.store.timestep[0], expected)
    assert index.store.header.weights == pytest.approx([0.3])


def test_a_range_takes_the_pictures_that_were_trained_in_it(
    tmp_path: Path, run: Path, pictures: Path, queries: list[Path]
) -> None:
    """Of each checkpoint, the mean over events in the range; a picture with none has no score."""
    index = gradindex.build(
        tmp_path / "idx",
        model=run / "checkpoint-4",
        data=pictures,
        timesteps="recorded",
        log=run / "log",
        events=2,
        missing="grid",
        dim=8,
        device="cpu",
    )
    options = {"query_timesteps": 3, "query_draws": 1}
    (block,) = index.query_blocks(index.to_query(queries, **options), "tracin")
    times, rows = index.store.timestep[:], index.store.unnormalized[:].astype(np.float64)
    for span in ((0, 300), (300, None), (0, 1000)):
        stop = 1000 if span[1] is None else span[1]
        found = index.scores(queries, "tracin", timesteps=span, **options)
        for row in range(9):
            parts = [
                [
                    block[0, c, e] @ rows[c, row, e]
                    for e in range(2)
                    if span[0] <= times[c, row, e] < stop
                ]
                for c in range(2)
            ]
            expected = sum(np.mean(part) for part in parts if part) if any(parts) else np.nan
            np.testing.assert_allclose(found[0, row], expected, rtol=1e-5)
        results = index.query(queries, 20, "tracin", timesteps=span, by_timestep=True, **options)
        hits = results[0].hits
        assert len(hits) == (~np.isnan(found[0])).sum() > 0
        for hit in hits:
            assert sum((hit.by_timestep or {}).values()) == pytest.approx(hit.score, rel=1e-5)
            assert all(span[0] <= t < stop for t in hit.by_timestep or {})


Build = Callable[..., gradindex.Index]


@pytest.fixture
def build(tmp_path: Path, model: Path, pictures: Path) -> Build:
    def build(log: Path, **options: object) -> gradindex.Index:
        settings = {"model": model, "data": pictures, "dim": 8, "device": "cpu", **options}
        return gradindex.build(tmp_path / "idx", timesteps="recorded", log=log, **settings)  # type: ignore[arg-type]

    return build


def test_tables_with_steps_or_checkpoints_are_logs_too(
    tmp_path: Path, build: Build, model: Path
) -> None:
    """The last event counts; its noise is made again where a seed is given."""
    steps = [
        {"sample_id": name, "timestep": 10 * row + step, "step": step, "noise_seed": 7}
        for step in range(2)
        for row, name in enumerate(NAMES)
    ]
    index = build(table(tmp_path, steps))
    assert index.store.timestep[0, :, 0].tolist() == [10 * row + 1 for row in range(9)]
    assert index.store.header.weights == [1.0]
    first = index.store.read("unnormalized", 0, slice(0, 9))
    events = open_log(tmp_path / "log.csv").last_events(NAMES, 9, 1)
    assert (set(events["noise_seed"].flat), set(events["draw"].flat)) == ({7}, {1})

    import pyarrow as pa
    from pyarrow import parquet

    # The weights of `model`, under a name that holds its step.
    checkpoint = make_model(tmp_path / "checkpoint-2")
    parquet.write_table(pa.Table.from_pylist(steps), tmp_path / "log.parquet")
    again = build(tmp_path / "log.parquet", checkpoints=[checkpoint], overwrite=True)
    np.testing.assert_array_equal(again.store.read("unnormalized", 0, slice(0, 9)), first)

    named = [
        {
            "sample_id": row["sample_id"],
            "timestep": row["timestep"],
            "checkpoint": str(checkpoint),
        }
        for row in steps
    ]
    index = build(table(tmp_path, named), overwrite=True)
    assert index.store.timestep[0, :, 0].tolist() == [10 * row + 1 for row in range(9)]
    assert set(open_log(tmp_path / "log.csv").events["noise_seed"]) == {UNKNOWN}
    assert not np.array_equal(index.store.read("unnormalized", 0, slice(0, 9)), first)


def test_pictures_without_events(tmp_path: Path, build: Build, queries: list[Path]) -> None:
    """An error lists them, unless it was said what they get; nothing comes from another one."""
    log = table(tmp_path, [{"sample_id": name, "timestep": 40, "step": 0} for name in NAMES[2:]])
    with pytest.raises(
        CallError,
        match=r"2 pictures have fewer than 1 event before a checkpoint: p000.png, p001.png",
    ):
        build(log)
    index = build(log, missing="skip")
    assert index.store.excluded == [0, 1]
    assert np.isnan(index.scores(queries, query_timesteps=2, query_draws=1)).sum(1).tolist() == [
        2,
        2,
    ]
    before = (index.store.location.path / "manifest/c000-s000000.json").stat().st_mtime_ns
    build(log, missing="skip")  # nothing to repair
    assert (index.store.location.path / "manifest/c000-s000000.json").stat().st_mtime_ns == before
    with pytest.raises(gradindex.GradindexError, match="log: "):
        build(log, missing="grid")
    index = build(log, missing="grid", events=2, overwrite=True)
    assert index.store.excluded == []
    assert index.store.timestep[0].tolist() == [[250, 750], [250, 750]] + 7 * [[500, 40]]


def drawn(names: list[str] = NAMES, **columns: object) -> list[dict[str, object]]:
    return [{"sample_id": name, **({"timestep": 1, "step": 0} | columns)} for name in names]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (drawn(["cat"]), {}, "of another data set; it has ids like 'cat'"),
        (drawn([*NAMES, "x"]), {}, "1 of its pictures are not in the data, such as 'x'"),
        (drawn(timestep=1000), {}, "of another scheduler: timestep 1000"),
        (drawn(timestep=0.5), {}, "of another scheduler: timestep 0.5"),
        (drawn(), {"checkpoints": ["{model}"]}, "knows no training before checkpoint"),
        (drawn(), {"draws": 2}, "the recorded noise of an event is one"),
        (drawn(), {"missing": "guess"}, "missing = 'guess'"),
        (drawn(timestep="x"), {}, "a column does not hold numbers"),
        (drawn(step=0.5), {}, "a step is no whole number"),
        (drawn(noise_seed=2**63), {}, "a column does not hold numbers"),
        (drawn(["cat"]), {"missing": "skip"}, "of another data set; it has ids like 'cat'"),
        (drawn(), {"missing": "skip", "events": 2}, "9 pictures have fewer than 2 events"),
        (drawn(), {"checkpoints": {"{model}": 0.0}}, "knows no training before checkpoint"),
        (drawn(checkpoint="c"), {}, "give one of the columns step and checkpoint"),
        (
            [{"sample_id": "p", "t": 1, "step": 0}],
            {},
            "no column timestep; it has sample_id, t, step",
        ),
    ],
)
def test_bad_logs_are_one_clear_line(
    tmp_path: Path,
    build: Build,
    model: Path,
    rows: list[dict[str, object]],
    options: dict[str, object],
    message: str,
) -> None:
    if "checkpoints" in options:
        options = {
            "checkpoints": [model]
            if isinstance(options["checkpoints"], list)
            else {str(model): 0.0}
        }
    with pytest.raises(CallError, match=message):
        build(table(tmp_path, rows), **options)
    assert not (tmp_path / "idx").exists()


def test_calls_that_do_not_go_together(
    tmp_path: Path, build: Build, model: Path, pictures: Path, run: Path
) -> None:
    for options, message in [
        ({"timesteps": "recorded"}, "go together"),
        ({"log": run / "log"}, "go together"),
        ({"events": 2}, "are for recorded timesteps"),
        ({"noise": "recorded"}, "are for recorded timesteps"),
        ({"timesteps": "recorded", "log": tmp_path / "none"}, "no such file or folder"),
        ({"timesteps": "recorded", "log": pictures}, "no training log"),
    ]:
        with pytest.raises(CallError, match=message):
            gradindex.build(tmp_path / "idx", model=model, data=pictures, **options)  # type: ignore[arg-type]
    index = build(run / "log", model=run / "checkpoint-4")
    with pytest.raises(CallError, match="recorded timesteps of its own here; use mean"):
        index.query([pictures / NAMES[0]], pairing="matched")


def test_a_learning_rate_of_zero_is_not_taken_in_silence(tmp_path: Path, build: Build) -> None:
    with TrainingRecorder(tmp_path / "run/log") as recorder:
        for step, lr in ((0, 0.1), (1, 0.0)):
            recorder.log(NAMES, [5] * 9, step)
            checkpoint = make_model(tmp_path / f"run/checkpoint-{step + 1}", seed=step)
            recorder.checkpoint(step + 1, checkpoint, lr)
    with pytest.raises(CallError, match="finite numbers, not all of them zero"):
        build(tmp_path / "run/log", checkpoints=[checkpoint])
    with pytest.warns(UserWarning, match="checkpoint-2 counts for nothing"):
        build(tmp_path / "run/log")


def test_labels_of_a_class_conditional_model_go_with_their_pictures(
    tmp_path: Path, queries: list[Path]
) -> None:
    model = make_model(tmp_path / "cond", num_class_embeds=2)
    for label in ("cat", "dog"):
        make_pictures(tmp_path / "data" / label, 2)
    names = [f"{label}/p00{number}.png" for number in (1, 0) for label in ("dog", "cat")]
    log = table(
        tmp_path, [{"sample_id": n, "timestep": 100 * j, "step": j} for j, n in enumerate(names)]
    )
    index = gradindex.build(
        tmp_path / "idx",
        model=model,
        data=tmp_path / "data",
        timesteps="recorded",
        log=log,
        noise="shared",
        projection="none",
        device="cpu",
    )
    pipeline = DDPMPipeline.from_pretrained(model)
    for row, name in enumerate(index.store.sample_ids):
        t = 100 * names.index(name)
        epsilon = torch.tensor(gradindex.noise(0, None, t, 0, SHAPE))
        x = oracles.load(tmp_path / "data" / name)
        truth = oracles.gradient(pipeline, x, t, epsilon, "mse", int(name.startswith("dog")))
        np.testing.assert_allclose(
            index.store.unnormalized[0, row, 0], truth, atol=1e-5 * np.abs(truth).max()
        )


def test_a_store_of_a_grid_says_nothing_of_logs(
    tmp_path: Path, model: Path, pictures: Path
) -> None:
    """So its recipe, and its digest, are those that it had before there were logs."""
    gradindex.build(tmp_path / "idx", model=model, data=pictures, timesteps=1, dim=8, device="cpu")
    recipe = json.loads((tmp_path / "idx/zarr.json").read_text())["attributes"]["gradindex"][
        "recipe"
    ]
    assert {"events", "log"}.isdisjoint(recipe)


def test_another_log_is_another_recipe(build: Build, tmp_path: Path) -> None:
    build(table(tmp_path, [{"sample_id": name, "timestep": 40, "step": 0} for name in NAMES]))
    other = table(
        tmp_path, [{"sample_id": name, "timestep": 41, "step": 0} for name in NAMES], "other.csv"
    )
    with pytest.raises(CallError, match=r"log: .*, now "):
        build(other)

"""Timesteps of flow matching as a training run drew them: recorded, replayed, and refused."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import oracles
import pytest
import tiny_pipelines
import torch
from family_oracle import gradient, read
from tiny_pipelines import SIDE, captioned_pictures
from torch import Tensor

import gradindex
from gradindex import TrainingRecorder
from gradindex.data.training_log import open_log
from gradindex.errors import CallError
from gradindex.models.examples import Pictures
from gradindex.models.loading import load_denoiser

CAPTIONS = ["a red digit", "digit zero", "the number two", "a dog"]
IDS = [f"p{number:03d}.png" for number in range(len(CAPTIONS))]
LATENT = (4, SIDE // 2, SIDE // 2)
SEED = 5
LR = 1e-3


class Example(NamedTuple):
    """What SD3 is trained on of a picture: its latent, its caption's hidden states and pooled."""

    latent: Tensor
    hidden: Tensor
    pooled: Tensor


class Run(NamedTuple):
    """A training run: its folder, and each picture's loss at its last event before the end."""

    folder: Path
    losses: dict[str, Tensor]


def example(pipeline: Any, file: Path, caption: str) -> Example:
    with torch.no_grad():
        latent = (pipeline.vae.encode(read(file)).latent_dist.mode() - 0.06) * 1.5
        hidden, _, pooled, _ = pipeline.encode_prompt(
            caption, caption, caption, do_classifier_free_guidance=False, max_sequence_length=77
        )
    return Example(latent, hidden, pooled)


def batch_of(examples: list[Example]) -> Example:
    return Example(*(torch.cat(column) for column in zip(*examples, strict=True)))


def script_losses(
    transformer: Any, scheduler: Any, batch: Example, t: Tensor, noise: Tensor
) -> Tensor:
    """The loss of each sample, [B], as in examples/dreambooth/train_dreambooth_sd3.py."""
    # Its get_sigmas: the place of each timestep among the scheduler's.
    steps = [(scheduler.timesteps == each).nonzero().item() for each in t]
    sigmas = scheduler.sigmas[steps].view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * batch.latent + sigmas * noise
    prediction = transformer(
        hidden_states=noisy,
        timestep=t,
        encoder_hidden_states=batch.hidden,
        pooled_projections=batch.pooled,
        return_dict=False,
    )[0]
    return (prediction - (noise - batch.latent)).square().flatten(1).mean(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three steps of training, two pictures each; checkpoints after two steps and after three."""
    folder = tmp_path_factory.mktemp("run")
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(
        tiny_pipelines.sd3(folder / "start")
    )
    files = captioned_pictures(folder / "data", CAPTIONS)
    captioned_pictures(folder / "queries", ["", ""], seed=5)
    examples = [example(pipeline, *pair) for pair in zip(files, CAPTIONS, strict=True)]
    transformer, scheduler = pipeline.transformer, pipeline.scheduler
    transformer.requires_grad_(True)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=LR)
    losses = {}
    with TrainingRecorder(folder / "log", seed=SEED, timesteps=scheduler.timesteps) as recorder:
        for step, batch in enumerate([(0, 1), (2, 3), (1, 2)]):
            if step == 2:
                pipeline.save_pretrained(folder / "checkpoint-2")
                recorder.checkpoint(2, folder / "checkpoint-2", LR)
            t, noise = recorder.draw([IDS[row] for row in batch], (2, *LATENT), step)
            assert t.dtype == torch.float32
            given = batch_of([examples[row] for row in batch])
            found = script_losses(transformer, scheduler, given, t, noise)
            losses |= dict(zip([IDS[row] for row in batch], found.detach(), strict=True))
            optimizer.zero_grad()
            found.mean().backward()
            optimizer.step()
        pipeline.save_pretrained(folder / "checkpoint-3")
        recorder.checkpoint(3, folder / "checkpoint-3", LR)
    return Run(folder, losses)


def build(run: Run, index: Path, **options: Any) -> gradindex.Index:
    settings = {
        "model": run.folder / "checkpoint-3",
        "data": run.folder / "data",
        "timesteps": "recorded",
        "log": run.folder / "log",
        "resolution": SIDE,
        "device": "cpu",
        "seed": 3,
    }
    return gradindex.build(index, **{**settings, **options})


def table(file: Path, timesteps: list[float], ids: list[str] = IDS) -> Path:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["sample_id", "timestep", "step"])
        writer.writerows([name, t, 0] for name, t in zip(ids, timesteps, strict=True))
    return file


def row(pipeline: Any, file: Path, caption: str, t: float, noise: np.ndarray) -> np.ndarray:
    """The gradient of one picture at a timestep, all parameters in a row."""
    one, sigma, epsilon = example(pipeline, file, caption), t / 1000, torch.tensor(noise)[None]
    noisy = (1 - sigma) * one.latent + sigma * epsilon
    model = pipeline.transformer.requires_grad_(True)
    prediction = model(noisy, one.hidden, one.pooled, torch.tensor([t])).sample
    return gradient(model, (prediction - (epsilon - one.latent)).square().mean())


def test_scores_equal_a_loop_of_autograd(tmp_path: Path, run: Run) -> None:
    """Each picture at its last event before each checkpoint, at its very timestep and noise."""
    index = build(run, tmp_path / "index", projection="none")
    log = open_log(run.folder / "log")
    queries = sorted((run.folder / "queries").glob("*.png"))
    prompts = ["a number", "zero"]
    training, asked = [], []
    for number, step in enumerate((2, 3)):
        pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(
            run.folder / f"checkpoint-{step}"
        )
        rows = []
        for place, (name, caption) in enumerate(zip(IDS, CAPTIONS, strict=True)):
            event = log.last_events([name], step, 1)[0, 0]
            t = float(event["timestep"])
            assert t in pipeline.scheduler.timesteps.tolist()
            assert index.store.timestep[number, place, 0] == event["timestep"]
            noise = gradindex.noise(SEED, name, t, int(event["draw"]), LATENT)
            rows.append(row(pipeline, run.folder / "data" / name, caption, t, noise)[None])
        training.append(np.stack(rows))
        # A query has its own grid, σ = 3u / (1 + 2u) at u = 1/6, 3/6 and 5/6, and noise of its own.
        query_rows = []
        for file, prompt in zip(queries, prompts, strict=True):
            key = hashlib.sha256(read(file)[0].numpy().tobytes()).hexdigest()
            grid = [(t, gradindex.noise(3, key, t, 0, LATENT)) for t in (375.0, 750.0, 937.5)]
            query_rows.append([row(pipeline, file, prompt, *each) for each in grid])
        asked.append(np.array(query_rows))
    assert index.store.header.weights == pytest.approx([LR * 2 / 3, LR / 3])
    assert any(not float(t).is_integer() for t in np.ravel(index.store.timestep))
    for method in ("tracin", "retrac"):
        options = {"query_timesteps": 3, "query_draws": 1, "whiten": False, "prompt": prompts}
        truth = oracles.score(training, asked, index.store.header.weights, method, "mean")
        scores = index.scores(queries, method, **options)
        np.testing.assert_allclose(scores, truth, rtol=1e-4)


def test_the_loss_of_a_recorded_event_is_the_loss_of_training(run: Run) -> None:
    """The last step's loss, of the weights before it, made again from the log and checkpoint-2."""
    names = [IDS[1], IDS[2]]
    events = open_log(run.folder / "log").last_events(names, 3, 1)[:, 0]
    noise = [
        gradindex.noise(int(each["noise_seed"]), name, each["timestep"], int(each["draw"]), LATENT)
        for name, each in zip(names, events, strict=True)
    ]
    denoiser = load_denoiser(run.folder / "checkpoint-2", resolution=(SIDE, SIDE))
    pictures = np.concatenate([read(run.folder / "data" / name).numpy() for name in names])
    examples = denoiser.encoder.encode(Pictures(pictures, names, captions=CAPTIONS[1:3]))
    again = denoiser.losses(
        torch.from_numpy(np.stack(examples.x)),
        torch.from_numpy(events["timestep"].copy()),
        torch.from_numpy(np.stack(noise)),
        {name: torch.from_numpy(np.stack(v)) for name, v in examples.conditions.items()},
        "mse",
    )
    truth = torch.stack([run.losses[name] for name in names])
    torch.testing.assert_close(again, truth, rtol=1e-5, atol=0)


def test_draws_are_uniform_over_the_scheduler_s_timesteps(tmp_path: Path) -> None:
    """As diffusers' scripts draw: `timesteps[(u * 1000).long()]`, the shifted ones."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=10, shift=3.0)
    settings = {"num_train_timesteps": 10, "timesteps": scheduler.timesteps}
    with TrainingRecorder(tmp_path / "log", **settings) as recorder:
        drawn = [recorder.draw(range(100), (1, 2, 2), step) for step in range(20)]
    timesteps = torch.cat([t for t, _ in drawn])
    counts = torch.tensor([(timesteps == t).sum() for t in scheduler.timesteps])
    assert counts.sum() == 2000
    assert ((counts - 200).abs() < 5 * 200**0.5).all()
    held = open_log(tmp_path / "log").events["timestep"]
    assert np.array_equal(held, timesteps.numpy())
    again = gradindex.noise(0, "7", float(drawn[3][0][7]), 3, (1, 2, 2))
    assert np.array_equal(drawn[3][1][7].numpy(), again)


def test_another_sampler_s_timesteps_are_logged(tmp_path: Path) -> None:
    """Logit-normal draws of the scheduler's timesteps, or any numbers up to the noisiest."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    u = torch.randn(64, generator=torch.Generator().manual_seed(0)).sigmoid()
    drawn = scheduler.timesteps[(u * 1000).long()]
    with TrainingRecorder(tmp_path / "log", timesteps=scheduler.timesteps) as recorder:
        recorder.log(range(64), drawn, 0)
        recorder.log(["a", "b"], [1000.0, 0.123], 1, noise_seed=4)
        for t in (0.0, 1000.1, float("nan")):
            message = "the recorder was made for numbers above 0, up to 1000"
            with pytest.raises(CallError, match=message):
                recorder.log(["a"], [t], 2)
    held = open_log(tmp_path / "log").events["timestep"]
    assert np.array_equal(held, [*drawn.numpy(), 1000, np.float32(0.123)])


def test_fractions_need_a_recorder_of_flow_matching(tmp_path: Path) -> None:
    """Told at the first step, not at the first draw of 1000."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    with TrainingRecorder(tmp_path / "log") as recorder:
        message = r"timestep 999\.666: .* whole; for flow matching give it the timesteps"
        with pytest.raises(CallError, match=message):
            recorder.log(["a"], scheduler.timesteps[1:2], 0)
    scheduler.set_timesteps(28)
    for timesteps in (scheduler.timesteps, range(1000), [float("nan")] * 1000):
        with pytest.raises(CallError, match=r"before set_timesteps: 1000 numbers above 0, up to"):
            TrainingRecorder(tmp_path / "other", timesteps=timesteps)


def test_a_resumed_run_has_the_same_timesteps(tmp_path: Path) -> None:
    grids = [
        diffusers.FlowMatchEulerDiscreteScheduler(shift=shift).timesteps for shift in (3.0, 1.0)
    ]
    for _ in range(2):
        TrainingRecorder(tmp_path / "log", timesteps=grids[0]).close()
    for other in (grids[1], None):
        with pytest.raises(CallError, match=r"made with other settings \(grid: "):
            TrainingRecorder(tmp_path / "log", timesteps=other)
    TrainingRecorder(tmp_path / "whole").close()
    with pytest.raises(CallError, match=r"made with other settings \(grid: null, now "):
        TrainingRecorder(tmp_path / "whole", timesteps=grids[0])


def test_logs_without_a_grid_are_those_of_before(tmp_path: Path) -> None:
    """A session of whole timesteps is written as ever, and an old one goes on."""
    with TrainingRecorder(tmp_path / "log") as recorder:
        recorder.log(["a"], [1], 0)
    content = (tmp_path / "log" / "rank-00000.log").read_bytes()
    assert b"grid" not in content
    names = ["format", "noise_version", "seed", "num_train_timesteps", "world", "time"]
    start = content.index(b'{"')  # what comes before it is binary
    session = json.loads(content[start : content.index(b"}") + 1])
    assert list(session) == names
    with TrainingRecorder(tmp_path / "log") as recorder:
        recorder.log(["a"], [2], 1)
    assert open_log(tmp_path / "log").events["timestep"].tolist() == [1, 2]


def test_tables_of_fractions_and_missing_events(tmp_path: Path, run: Run) -> None:
    file = table(tmp_path / "log.csv", [999.6656, 1000, 0.5], IDS[:3])
    index = build(run, tmp_path / "index", log=file, missing="grid", dim=16)
    # The last picture's is the grid of one: σ = 3u / (1 + 2u) at u = ½.
    held = index.store.timestep[0, :, 0]
    assert held.tolist() == [float(np.float32(999.6656)), 1000, 0.5, 750]
    assert np.isfinite(index.scores([run.folder / "queries" / "p000.png"], prompt="a")).all()


@pytest.mark.parametrize("timestep", [0, 1000.5, -1, float("nan")])
def test_timesteps_that_flow_matching_has_not(tmp_path: Path, run: Run, timestep: float) -> None:
    file = table(tmp_path / "log.csv", [timestep, 1, 1, 1])
    allowed = r"the model's has those above 0, up to 1000 \(flow matching\)"
    with pytest.raises(CallError, match=rf"of another scheduler: timestep .*, {allowed}"):
        build(run, tmp_path / "index", log=file)


def test_other_models_refuse_fractions(tmp_path: Path, run: Run) -> None:
    """A log of flow matching beside a model with betas."""
    model = tiny_pipelines.stable_diffusion(tmp_path / "sd")
    log = table(tmp_path / "log.csv", [999.6656, 1, 2, 3])
    with pytest.raises(CallError, match=r"timestep 999\.666, the model's has whole ones, 0 to 99"):
        build(run, tmp_path / "index", model=model, log=log)

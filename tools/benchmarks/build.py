"""Where the time of a build and of a query goes: `tools/bench build`."""

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import record
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from gradient_methods import (
    backward_to_input,
    make_batch,
    median_ratio,
    time_in_turns,
    training_step,
)
from picture_sets import write_pictures
from replaced_functions import replaced
from trained_models import model_and_pictures, parameter_names

import gradindex
from gradindex.builder.continuation import find_high_rank
from gradindex.builder.plan import DIM, RANK
from gradindex.builder.shards import fill
from gradindex.gradients import layers
from gradindex.gradients.batch_size import fitting_batch
from gradindex.gradients.batches import losses_of
from gradindex.gradients.capture import Capture
from gradindex.gradients.graphs import RUNS_BEFORE, GraphedCapture
from gradindex.gradients.layers import Copies, Factors
from gradindex.gradients.parameters import capture_for
from gradindex.gradients.projection import CountSketch
from gradindex.gradients.self_check import check_capture
from gradindex.models.denoiser import Denoiser
from gradindex.models.loading import load_denoiser
from gradindex.random_numbers import noise
from gradindex.recipe import Recipe

PICTURES = {"small": 512, "cifar10": 64}  # that are indexed
ROUNDS = {"small": 12, "cifar10": 3}  # batches of the bare capture, and of the profile
QUERIES = 5
STEPS = 50  # of DDIM, to generate a picture
TITLES = {
    "small": "UNet (32, 64, 128), 2.7 M parameters",
    "cifar10": "DDPM CIFAR-10, 35.7 M parameters",
}
BUILD_STEPS: dict[str, Callable[..., Any]] = {  # {step as published: function}
    "check against autograd": check_capture,
    "find strong weights": find_high_rank,
    "gradients": fill,
}
FACTOR_STEPS = {  # {part of a rule for weights that are matrices: what the part is, as published}
    "inputs": "inputs projected",
    "outputs": "output gradients projected",
    "weight": "weight gradients",
    "bias": "biases",
}

Seconds = defaultdict[str, float]  # {step: seconds spent in it so far}


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/build.json and .md.

    Args:
        only: some of the models "small" and "cifar10".
    """
    part = record.resumable(work / f"build-{device}")
    names = only or PICTURES
    results = {name: part(name, partial(measure, name, work, device)) for name in names}
    text = page(results)
    print(text)
    if not only:
        record.save("build", device, "tools/bench build", results, text)


def measure(name: str, work: Path, device: str) -> dict[str, Any]:
    """Build, query and profile with one model."""
    model, pictures = model_and_pictures(name, work)
    data = write_pictures(work / f"{name}-pictures", pictures[: PICTURES[name]])
    index = work / "index"
    results = throughput(model, data, index, device, ROUNDS[name])
    results["query"] = query_costs(model, index, pictures[-QUERIES:], device)
    results["profile"] = profile(name, results["batch"], results["strong"], device)
    return {"pictures": PICTURES[name], **results}


def throughput(model: Path, data: Path, folder: Path, device: str, rounds: int) -> dict[str, Any]:
    """Return a build's throughput beside that of the bare capture, and what its steps took.

    Args:
        folder: of the index, which is made from nothing, twice.
        rounds: batches of the bare capture.
    """
    shutil.rmtree(folder, ignore_errors=True)
    seconds: Seconds = defaultdict(float)
    build = partial(gradindex.build, folder, model=model, data=data, timesteps=10, device=device)
    began = time.perf_counter()
    with ExitStack() as stack:
        for step, function in BUILD_STEPS.items():
            timed_function = timed(function, step, seconds)
            stack.enter_context(replaced(function, timed_function))
        index = build()
    first_build = time.perf_counter() - began
    recipe = index.store.recipe
    denoiser = load_denoiser(model, device=device)
    batch = fitting_batch(denoiser, recipe)
    events = index.store.shape[1] * len(recipe.timesteps)
    bare = bare_capture(denoiser, recipe, batch, rounds) * events / batch
    # Once more, all rows over again, after the bare capture: the machine is shared, and its speed
    # varies.
    shutil.rmtree(folder / "manifest")
    began = time.perf_counter()
    build()
    second_build = time.perf_counter() - began
    shares = {step: seconds[step] / first_build for step in BUILD_STEPS}
    shares["loading, FAISS and the rest"] = 1 - sum(seconds.values()) / first_build
    return {
        "batch": batch,
        "gradients": events,
        "strong": recipe.high_rank,
        "throughput": 2 * bare / (first_build + second_build),
        "throughput of the gradients alone": bare / seconds["gradients"],
        "share of the first build": shares,
    }


def bare_capture(denoiser: Denoiser, recipe: Recipe, batch: int, rounds: int) -> float:
    """Return the seconds of one batch of nothing but captured gradients."""
    pictures = torch.from_numpy(noise(0, "bare", 0, 0, (batch, *recipe.image)))
    x = pictures.clamp(-1, 1).to(denoiser.device)
    t = torch.tensor((recipe.timesteps * batch)[:batch], device=denoiser.device)
    epsilon = torch.randn_like(x)
    inputs = {"x": x, "t": t, "epsilon": epsilon}
    losses = partial(losses_of, denoiser, recipe.loss)
    with capture_for(denoiser, recipe) as capture:
        graphed = GraphedCapture(denoiser, capture)
        for _ in range(RUNS_BEFORE + 1):
            graphed.gradients(losses, inputs)
        methods = {"bare": partial(graphed.gradients, losses, inputs)}
        seconds = time_in_turns(methods, rounds, denoiser.device.type)
    return float(np.mean(seconds["bare"]))


def query_costs(model: Path, folder: Path, pictures: np.ndarray, device: str) -> dict[str, float]:
    """Return what the parts of a query take, in units of generating its picture.

    A picture takes 50 DDIM steps; loading the model is not counted.

    Args:
        folder: of the index.
        pictures: [Q, channels, height, width], asked about one by one.
    """
    index = gradindex.open(folder, device=device)
    pipeline = DDIMPipeline.from_pretrained(model).to(device)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    index.query([torch.from_numpy(pictures[0])])  # loads the model
    generation = []
    seconds: dict[str, list[float]] = defaultdict(list)
    for picture in pictures:
        began = time.perf_counter()
        pipeline(num_inference_steps=STEPS)
        generation.append(time.perf_counter() - began)
        (result,) = index.query([torch.from_numpy(picture)])
        for part, duration in result.seconds.items():
            seconds[part].append(duration)
    costs = {}
    for part, durations in seconds.items():
        costs[part] = float(np.median(np.array(durations) / np.array(generation)))
    return costs


def profile(name: str, size: int, high_rank: Sequence[str], device: str) -> dict[str, float]:
    """Return where a batch's time goes, in training steps.

    The floor (forward and backward pass to the input), then what each part of the hooks takes above
    it, and all of it.

    Args:
        name: of the model. size: pictures of a batch.
        high_rank: weights that the projection shrinks less.
    """
    batch = make_batch(name, size, device)
    projection = CountSketch(DIM, 0, RANK, high_rank)
    capture = Capture(batch.model, parameter_names(batch.model), projection)

    def take_gradients() -> None:
        with capture:
            capture.gradients(batch.losses)

    methods: dict[str, Callable[[], object]] = {
        "training step": partial(training_step, batch),
        "floor": partial(backward_to_input, batch),
        "ours": take_gradients,
    }
    times = time_in_turns(methods, ROUNDS[name], device)
    step = float(np.median(times["training step"]))
    # The same once more with a clock in every rule and in the projection.
    seconds: Seconds = defaultdict(float)
    rules = {cls: _timed_rule(rule, seconds, device) for cls, rule in layers.RULES.items()}
    add = timed(CountSketch.add, "sums into the row", seconds, device)
    with mock.patch.object(layers, "RULES", rules), mock.patch.object(CountSketch, "add", add):
        capture = Capture(batch.model, parameter_names(batch.model), capture.projection)
        take_gradients()
        seconds.clear()
        for _ in range(ROUNDS[name]):
            take_gradients()
    parts = {part: spent / ROUNDS[name] / step for part, spent in seconds.items()}
    parts = {"sums into the row": parts.pop("sums into the row"), **parts}
    floor = median_ratio(times, "floor", "training step")
    whole = median_ratio(times, "ours", "training step")
    return {
        "floor": floor,
        **parts,
        "the rest: hooks, norms, colder caches": whole - floor - sum(parts.values()),
        "ours": whole,
    }


def _timed_rule(rule: Any, seconds: Seconds, device: str) -> Any:
    """A layer's rule whose parts add up the seconds that they take.

    Copies of parameters cannot be told from the forward pass, and stay as they are.
    """
    if isinstance(rule, Copies):
        return rule
    if not isinstance(rule, Factors):
        return timed(rule, "other layers", seconds, device)
    parts = {}
    for field, title in FACTOR_STEPS.items():
        parts[field] = timed(getattr(rule, field), title, seconds, device)
    return rule._replace(**parts)


def timed(
    function: Callable[..., Any], step: str, seconds: Seconds, device: str = "cpu"
) -> Callable[..., Any]:
    """Return a function that adds up the seconds that it takes in seconds[step]."""

    def call(*arguments: Any, **options: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        result = function(*arguments, **options)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds[step] += time.perf_counter() - began
        return result

    return call


def page(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    sections = [record.fill_page("build")]
    sections += [_model_section(name, model) for name, model in results.items()]
    return "\n\n".join(sections)


def _model_section(name: str, model: Mapping[str, Any]) -> str:
    """The section of one model."""
    shares = [
        {"part of the build": step, "share": f"{share:.1%}"}
        for step, share in model["share of the first build"].items()
    ]
    costs = [
        {"part of a batch": part, "cost": f"{cost:.3f}"} for part, cost in model["profile"].items()
    ]
    return record.fill_page(
        "build-model",
        title=TITLES[name],
        model=model,
        gradients_alone=model["throughput of the gradients alone"],
        shares=record.table(shares),
        costs=record.table(costs),
    )

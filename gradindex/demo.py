"""The whole job on real pictures: train a small DDPM on scikit-learn's digits, index it, query what it generates.

The one room besides `denoiser` that knows diffusers: it plays the user, who trains and samples a model.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from gradindex.builder import build
from gradindex.dataset import read_thumbnail
from gradindex.errors import MissingPackage
from gradindex.results import Result, to_html
from gradindex.search import Index

STEPS, BATCH, QUERIES, K = 1500, 64, 16, 5


def run_demo(out: Path, show: Callable[[str], None]) -> None:
    """Train, build, generate, query with both methods, show a table, write `out`/report.html.

    What is there already is used again: every step leaves its result under its final name only when it is done.
    """
    pictures = _once(out / "pictures", _write_digits)
    model = _once(out / "model", lambda folder: _train(pictures, folder))
    generated = sorted(_once(out / "generated", lambda folder: _generate(model, folder)).iterdir())
    index = build(out / "idx", model=model, data=pictures, timesteps=10, dim=1024)
    answers = {method: index.query(generated, K, method) for method in ("retrac", "tracin")}
    for method, results in answers.items():
        show(_table(method, results))
    for method, results in answers.items():
        show(summary(method, results))
    report = out / "report.html"
    report.write_text(_report(index, generated, answers), encoding="utf-8")
    show(f"\n{report.resolve()}")


def summary(method: str, results: Sequence[Result]) -> str:
    """How far the top lists agree on a label, and how many distinct pictures fill them."""
    shares = [Counter(map(_label, result.ids)).most_common(1)[0][1] / len(result.ids) for result in results]
    distinct = len({name for result in results for name in result.ids})
    return (
        f"{method}: {np.mean(shares):.0%} of a top-{K} share its most common label on average;"
        f" {distinct} distinct pictures fill the {len(results)} × {K} places"
    )


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    if not folder.exists():
        draft = folder.with_name(f".{folder.name}-draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        make(draft)
        draft.rename(folder)
    return folder


def _write_digits(folder: Path) -> None:
    """1,797 grey pictures of 8×8 pixels, one folder per digit."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPackage("the demo's pictures come with scikit-learn: pip install 'gradindex[demo]'") from error
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / str(label)
        place.mkdir(exist_ok=True)
        Image.fromarray(np.round(pixels / 16 * 255).astype(np.uint8)).save(place / f"{number:04d}.png")


def _train(pictures: Path, folder: Path) -> None:
    """A plain diffusers training loop on 8×8 digits."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    files = sorted(pictures.rglob("*.png"))
    x_0 = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files])[:, None] / 127.5 - 1).float()
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
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    for _ in tqdm(range(STEPS), desc="training", unit="step", delay=2, disable=None):
        x = x_0[torch.randint(len(x_0), (BATCH,))]
        t, noise = torch.randint(1000, (BATCH,)), torch.randn_like(x)
        loss = (model(scheduler.add_noise(x, noise, t), t).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    DDPMPipeline(model, scheduler).save_pretrained(folder)


def _generate(model: Path, folder: Path) -> None:
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    unet = UNet2DModel.from_pretrained(model / "unet", low_cpu_mem_usage=False)
    pipeline = DDIMPipeline(unet.eval(), DDIMScheduler.from_pretrained(model / "scheduler"))
    pipeline.set_progress_bar_config(disable=None, desc="generating", delay=2)
    made = pipeline(batch_size=QUERIES, num_inference_steps=50, generator=torch.Generator().manual_seed(0))
    for number, picture in enumerate(made.images):
        picture.save(folder / f"{number:02d}.png")


def _label(sample_id: str) -> str:
    return sample_id.partition("/")[0]


def _table(method: str, results: Sequence[Result]) -> str:
    lines = [f"{method}: top {K} of each generated picture — digit/file (score)"]
    for result in results:
        hits = "  ".join(f"{hit.id.removesuffix('.png')} ({hit.score:.3g})" for hit in result.hits)
        label, count = Counter(map(_label, result.ids)).most_common(1)[0]
        lines.append(f"  {Path(result.picture).name}  {hits}   {count} of {K} are a {label}")
    return "\n".join(lines) + "\n"


def _report(index: Index, generated: Sequence[Path], answers: dict[str, list[Result]]) -> str:
    notes = [
        "A small DDPM was trained on scikit-learn's 1,797 digits; the pictures on the left were generated by it."
        " Beside each: the training pictures whose loss gradients are most like its own.",
        *(summary(method, results) for method, results in answers.items()),
    ]
    shown = [read_thumbnail(file) for file in generated]
    return to_html(list(answers.items()), index.thumbnail, shown, "gradindex demo", notes, whitened=True)

"""The whole job: draw pictures, train a small DDPM on them, index it, ask what shaped its pictures.

It plays the user, who trains a model and samples from it. Beside `gradindex.models` it is the only
part that knows diffusers.
"""

import logging
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gradindex.builder.build import build
from gradindex.report.answers import PIXELS, answer
from gradindex.report.drawn_pictures import SIDE, drawn_pictures
from gradindex.report.page import write_report
from gradindex.search.results import Result
from gradindex.store.progress import progress

STEPS = 1300  # of training
BATCH = 16
LEARNING_RATE = 3e-3
MOST_WEIGHT = 5  # of a timestep's loss: min-SNR, Hang et al. 2023
NUM_TRAIN_TIMESTEPS = 1000
INFERENCE_STEPS = 20
TIMESTEPS = "weighted:3"  # at which gradients are taken
DIM = 1024  # numbers in a row
QUERIES = 16  # pictures that are generated
K = 10
SHOWN = 3  # hits of a picture in the table

LOGGER = logging.getLogger("gradindex")


def run_demo(out: Path, show: Callable[[str], None]) -> None:
    """Draw, train, generate, build, query with both methods, and write `out`/report.html.

    What is there already is used again: every step leaves its result under its final name only when
    it is done.

    Args:
        out: folder for everything.
        show: called with each text that people should see; what is being done goes to the log.
    """
    LOGGER.info(f"1 of 5: pictures by invented artists, drawn into {out / 'pictures'}")
    pictures = _once(out / "pictures", _write_pictures)
    LOGGER.info(f"2 of 5: a small diffusion model, trained on them: {out / 'model'}")
    model = _once(out / "model", partial(_train, pictures))
    LOGGER.info(f"3 of 5: {QUERIES} pictures that it generates: {out / 'generated'}")
    generated = sorted(_once(out / "generated", partial(_generate, model)).iterdir())
    LOGGER.info(f"4 of 5: an index of the training pictures' gradients: {out / 'idx'}")
    index = build(
        out / "idx",
        model=model,
        data=pictures,
        timesteps=TIMESTEPS,
        dim=DIM,
        weighting=f"min-snr:{MOST_WEIGHT}",
    )
    LOGGER.info(f"5 of 5: what shaped the generated pictures: {out / 'report.html'}")
    answers = answer(index, generated, K, group_by="folder")
    write_report(answers, out / "report.html", f"gradindex demo --out {shlex.quote(str(out))}")
    by_gradients = [listing for listing in answers.listings if listing.measure != PIXELS]
    show(_table(by_gradients[0].results))
    for listing in by_gradients:
        show(summary(listing.measure, listing.results))
    show(_next_steps(out))


def summary(method: str, results: Sequence[Result]) -> str:
    """Return how far the lists agree on an artist, and how many distinct pictures fill them."""
    shares = []
    for result in results:
        artists = Counter(name.partition("/")[0] for name in result.ids)
        shares.append(artists.most_common(1)[0][1] / len(result.ids))
    distinct = {name for result in results for name in result.ids}
    return (
        f"{method}: {np.mean(shares):.0%} of a top {K} are by its most common artist on average;"
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


def _write_pictures(folder: Path) -> None:
    """Write the pictures, one folder per artist, and things.csv: which thing each one shows."""
    lines = ["id,group"]
    for drawn in progress(list(drawn_pictures()), "drawing", unit="picture"):
        file = folder / drawn.name
        file.parent.mkdir(exist_ok=True)
        drawn.picture.save(file)
        lines.append(f"{drawn.name},{drawn.thing}")
    (folder / "things.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read_pictures(folder: Path) -> torch.Tensor:
    """The pictures as the model takes them, [N, 3, SIDE, SIDE] float32 in [−1, 1]."""
    arrays = np.stack([np.asarray(Image.open(file)) for file in sorted(folder.rglob("*.png"))])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1


def _train(pictures: Path, folder: Path) -> None:
    """Train a small UNet the usual way and save the pipeline in a folder."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    x_0 = _read_pictures(pictures)
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=SIDE,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    scheduler = DDPMScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
    )
    signal = scheduler.alphas_cumprod
    weights = (signal / (1 - signal)).clamp(max=MOST_WEIGHT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    for _ in progress(range(STEPS), "training", unit="step"):
        x = x_0[torch.randint(len(x_0), (BATCH,))]
        t = torch.randint(NUM_TRAIN_TIMESTEPS, (BATCH,))
        noisy = scheduler.add_noise(x, torch.randn_like(x), t)
        losses = (model(noisy, t).sample - x).square().mean((1, 2, 3))
        loss = (weights[t] * losses).mean()
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


def _table(results: Sequence[Result]) -> str:
    """A line for each generated picture: the largest share of an artist, and the first hits."""
    lines = ["picture  artist's share  training pictures of the highest scores (retrac)"]
    for result in results:
        largest = (result.groups or [])[0]
        share = f"{largest.group} {largest.share:.0%}"
        hits = "  ".join(hit.id.removesuffix(".png") for hit in result.hits[:SHOWN])
        lines.append(f"{Path(result.picture).name:8} {share:15} {hits}")
    return "\n".join(lines) + "\n"


def _next_steps(out: Path) -> str:
    """What to open, and commands to go on with."""
    command = "gradindex"
    if shutil.which(command) is None:
        command = f"{shlex.quote(sys.executable)} -m gradindex"
    names = ("idx", "generated/03.png", "pictures/things.csv")
    index, picture, things = (shlex.quote(str(out / name)) for name in names)
    serve = f"{command} serve {index}"
    if find_spec("fastapi") is None:
        serve = f"pip install 'gradindex[serve]', then {serve}"
    return (
        f"\nOpen this file in a browser:\n  {(out / 'report.html').resolve()}\n"
        "Run next:\n"
        f"  {serve}\n"
        f"  {command} query {index} {picture} --group-by {things}\n"
        f"  {command} duplicates {index}\n"
        "With a model of your own: docs/tutorial.md"
    )

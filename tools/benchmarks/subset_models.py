"""Models trained again, on random halves of the pictures and without some: what is true of scores.

`folder` is the benchmark's own in the work folder; data sets are in the work folder.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from picture_sets import small_fashion_mnist, write_pictures
from row_settings import CHECKPOINTS
from trained_models import TINY, batches, train

from gradindex.gradients.sampling import mean_losses
from gradindex.models.denoiser import Denoiser
from gradindex.models.examples import Examples
from gradindex.recipe import grid
from gradindex.store.digests import sha256

CONFIG = {**TINY, "block_out_channels": (24, 48)}  # 0.4 M parameters
PICTURES, QUERIES = 500, 64  # trained on; validation pictures, and as many generated ones
STEPS, BATCH, RATE = 700, 48, 1e-3
SUBSETS, SEEDS = 64, 2
TIMESTEPS, DRAWS = 50, 2  # of a true loss
WHOLE = 10_000  # seed of the model that is trained on all pictures
NOISE_SEED = 1000  # unlike any that rows are made with
DDIM_STEPS = 50

# {set of query pictures: its rows}
QUERY_SETS = {"validation": slice(0, QUERIES), "generated": slice(QUERIES, None)}


def untrained_unet() -> UNet2DModel:
    """Return a UNet of 0.4 M parameters, with torch's next random numbers."""
    return UNet2DModel(**CONFIG)


@dataclass(frozen=True)
class Subject:
    """Pictures, and a model that is trained on all of them and on random halves.

    Attributes:
        read: gives the pictures [·, channels, 16, 16] float32 in [−1, 1], of the work folder.
        untrained: makes a model with torch's next random numbers.
        pictures: N, trained on. queries: validation pictures, and as many generated ones.
        subsets: halves. seeds: models of each. steps: of a training.
        labelled: whether the model asks for class labels; all pictures have the same.
        seed: of the model that is trained on all pictures, and of those without some.
    """

    read: Callable[[Path], np.ndarray] = small_fashion_mnist
    untrained: Callable[[], Any] = untrained_unet
    pictures: int = PICTURES
    queries: int = QUERIES
    subsets: int = SUBSETS
    seeds: int = SEEDS
    steps: int = STEPS
    labelled: bool = False
    seed: int = WHOLE

    @property
    def query_sets(self) -> dict[str, slice]:
        """Return {set of query pictures: its rows}."""
        return {"validation": slice(0, self.queries), "generated": slice(self.queries, None)}

    def predict(self, model: Any, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the noise that a model sees in noisy pictures at timesteps [B]."""
        if not self.labelled:
            return model(noisy, t).sample
        return model(noisy, timestep=t, class_labels=torch.zeros_like(t)).sample

    def examples(self, pictures: np.ndarray) -> Examples:
        """Return pictures [B, channels, 16, 16] as the model takes them."""
        return Examples.of_pictures(pictures, [0] * len(pictures) if self.labelled else None)

    def denoiser(self, model: Any) -> Denoiser:
        """Return a model with its noise process, frozen."""
        return Denoiser(model, dict(DDPMScheduler().config), "", "cpu", "float32")

    def save(self, pipeline: DDPMPipeline, folder: Path) -> None:
        """Save a checkpoint as a new folder."""
        pipeline.save_pretrained(folder)

    def trained(self, checkpoint: Path) -> Any:
        """Return the model of a checkpoint."""
        return type(self.untrained()).from_pretrained(checkpoint / "unet")


FASHION = Subject()  # of `tools/bench lds`


@cache
def training_and_validation(
    folder: Path, subject: Subject = FASHION
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pictures trained on and those for validation, [·, channels, 16, 16] float32."""
    pictures = subject.read(folder.parent)[: subject.pictures + subject.queries]
    pictures = ((pictures + 1) * 127.5).round() / 127.5 - 1  # as in a PNG
    return pictures[: subject.pictures], pictures[subject.pictures :]


def subsets(subject: Subject = FASHION) -> np.ndarray:
    """Return which half of the pictures each model is trained on, [subsets, N] bool."""
    random = np.random.default_rng(0)
    count = subject.pictures
    return np.stack([random.permutation(count) < count // 2 for _ in range(subject.subsets)])


def new_pipeline(seed: int, subject: Subject = FASHION) -> DDPMPipeline:
    """Return an untrained pipeline; torch's random numbers go on from there."""
    torch.manual_seed(seed)
    return DDPMPipeline(subject.untrained(), DDPMScheduler())


def train_model(
    pictures: np.ndarray, seed: int, folders: Sequence[Path] = (), subject: Subject = FASHION
) -> Any:
    """Return a model trained on pictures [·, channels, 16, 16].

    Args:
        folders: its checkpoints, at equal distances, the last at the end; none are saved for none.
    """
    pipeline = new_pipeline(seed, subject)
    distance = subject.steps // len(folders) if folders else None

    def save(step: int) -> None:
        if distance and step % distance == 0:
            _save_whole(pipeline, folders[step // distance - 1], subject)

    train(
        pipeline,
        pictures,
        subject.steps,
        "half",
        BATCH,
        rate=RATE,
        decay=True,
        seed=seed,
        after=save,
        predict=subject.predict,
    )
    return pipeline.unet


def _save_whole(pipeline: DDPMPipeline, folder: Path, subject: Subject) -> None:
    """Save a checkpoint, so that a folder of that name is never half of one."""
    draft = folder.with_name(f"{folder.name}-draft")
    shutil.rmtree(draft, ignore_errors=True)
    subject.save(pipeline, draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def true_losses(model: Any, queries: np.ndarray, subject: Subject = FASHION) -> np.ndarray:
    """Return the mean loss of each picture over a fine grid, [Q] float64.

    The noise is shared by all pictures and models.
    """
    denoiser = subject.denoiser(model)
    timesteps = grid(TIMESTEPS, 1000)
    examples = subject.examples(queries)
    return mean_losses(denoiser, examples, timesteps, DRAWS, NOISE_SEED, "mse")


def generate_pictures(model: Any, subject: Subject = FASHION) -> np.ndarray:
    """Return pictures that a model makes in 50 DDIM steps, [queries, ·, 16, 16] float32."""
    scheduler = DDIMScheduler()
    random = torch.Generator().manual_seed(7)
    x = torch.randn(subject.queries, model.config.in_channels, 16, 16, generator=random)
    scheduler.set_timesteps(DDIM_STEPS)
    with torch.no_grad():
        for t in scheduler.timesteps:
            epsilon = subject.predict(model, x, t.expand(len(x)))
            x = scheduler.step(epsilon, t, x).prev_sample
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().numpy()
    return pixels / 127.5 - 1


def whole_model(folder: Path, subject: Subject = FASHION) -> list[Path]:
    """Return the checkpoints of the model trained on all pictures.

    It is trained now, unless they exist.
    """
    checkpoints = [folder / f"checkpoint-{number}" for number in range(CHECKPOINTS)]
    if not checkpoints[-1].exists():
        training, _ = training_and_validation(folder, subject)
        train_model(training, subject.seed, checkpoints, subject)
    return checkpoints


def training_log(folder: Path) -> Path:
    """Return a table for `build --log`: which timesteps the whole model was trained on, and when.

    What its training drew is drawn again.
    """
    file = folder / "training-log.csv"
    checkpoint = whole_model(folder)[-1]
    if not file.exists():
        lines = ["sample_id,timestep,checkpoint"]
        new_pipeline(WHOLE)  # leaves torch's generator where training began
        for rows, times, _ in batches((PICTURES, 1, 16, 16), STEPS, BATCH, WHOLE):
            for row, t in zip(rows, times.tolist(), strict=True):
                lines.append(f"{row:05d}.png,{t},{checkpoint}")
        draft = file.with_suffix(".draft")
        draft.write_text("\n".join(lines))
        os.replace(draft, file)
    return file


def picture_folder(folder: Path, subject: Subject = FASHION) -> Path:
    """Return a folder with the whole model's training pictures as files."""
    pictures = folder / "pictures"
    if not pictures.exists():
        training, _ = training_and_validation(folder, subject)
        write_pictures(folder / "pictures-draft", training).rename(pictures)
    return pictures


def query_pictures(folder: Path, subject: Subject = FASHION) -> np.ndarray:
    """Return validation pictures, then generated ones, [2 · queries, ·, 16, 16] float32."""

    def make() -> np.ndarray:
        return generate_pictures(subject.trained(whole_model(folder, subject)[-1]), subject)

    _, validation = training_and_validation(folder, subject)
    generated = load_or_make(folder / "generated.npy", make)
    return np.concatenate([validation, generated]).astype(np.float32)


def subset_losses(folder: Path, subset: int, seed: int, subject: Subject = FASHION) -> np.ndarray:
    """Return the losses of a model trained on a half, [2 · queries].

    It is trained now, unless that was done. All halves share a seed's initial weights, order of
    batches and noise, so that less of a difference is chance.

    Args:
        subset: number of the half.
    """

    def make() -> np.ndarray:
        training, _ = training_and_validation(folder, subject)
        half = training[subsets(subject)[subset]]
        model = train_model(half, 1 + seed, subject=subject)
        return true_losses(model, query_pictures(folder, subject), subject)

    return load_or_make(losses_file(folder, subset, seed), make)


def losses_file(folder: Path, subset: int, seed: int) -> Path:
    """Return where the losses of a half's model are."""
    return folder / f"losses-{subset:02d}-{seed}.npy"


def all_subset_losses(folder: Path, subject: Subject = FASHION) -> np.ndarray:
    """Return the losses of the models of all halves, [subsets, seeds, 2 · queries].

    They are trained in as many processes as torch has threads here.
    """
    query_pictures(folder, subject)  # made once, before the processes need it
    shape = subject.subsets, subject.seeds
    jobs = [(*numbers, subject) for numbers in np.ndindex(shape)]
    losses = map_in_processes(subset_losses, folder, *zip(*jobs, strict=True))
    return np.stack(losses).reshape(*shape, -1)


def losses_without(folder: Path, removed: np.ndarray, subject: Subject = FASHION) -> np.ndarray:
    """Return the losses of a model trained without some pictures, [2 · queries].

    Args:
        removed: their rows.
    """
    name = sha256(np.sort(removed).tobytes())[:16]

    def make() -> np.ndarray:
        training, _ = training_and_validation(folder, subject)
        model = train_model(np.delete(training, removed, axis=0), subject.seed, subject=subject)
        return true_losses(model, query_pictures(folder, subject), subject)

    return load_or_make(folder / f"without-{name}.npy", make)


def load_or_make(file: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array in a file; made now, unless it is there."""
    if not file.exists():
        draft = file.with_suffix(".draft.npy")
        np.save(draft, make())
        os.replace(draft, file)
    return np.load(file)


def map_in_processes(
    function: Callable[..., Any], folder: Path, *arguments: Iterable[Any]
) -> list[Any]:
    """Return what a function gives for a folder and each of some arguments, in their order.

    As many processes as torch has threads here, with one thread each.
    """
    with record.processes(torch.get_num_threads()) as pool:
        return list(pool.map(partial(function, folder), *arguments))

"""The models that benchmarks ask questions of: Fashion-MNIST at 16×16, with several training seeds.

Each seed has a folder in the work folder with its checkpoints, pictures and index, which is made
where it is missing and shared by benchmarks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from diffusers import DDIMScheduler, UNet2DModel
from kept_losses import ANSWERS, keep_losses, restore_losses
from subset_models import (
    DDIM_STEPS,
    FASHION,
    WHOLE,
    Subject,
    losses_without,
    map_in_processes,
    picture_folder,
    query_pictures,
    training_and_validation,
    true_losses,
    whole_model,
)

import gradindex
from gradindex.search.results import Results

SEEDS = (0, 1, 2)
SMOKE = "smoke"  # what a benchmark is given to try everything on few pictures
TRAIN, KEEP = "train", "keep"  # to train models alone, or keep the losses of those made so far
SMOKE_SUBJECT = replace(FASHION, pictures=120, queries=8, steps=20)
SCORES = {  # name: method, whether it is whitened; the default of `query` first
    "ReTrac, whitened": ("retrac", True),
    "TracIn, whitened": ("tracin", True),
    "ReTrac": ("retrac", False),
    "TracIn": ("tracin", False),
}
DEFAULT = next(iter(SCORES))
TOP = 10
USUAL_TIMESTEPS = "weighted:5"  # the default of a build, whatever it is later


@dataclass(frozen=True)
class SeededModel:
    """A model of one seed.

    Attributes:
        folder: of what is made for it.
        subject: its pictures, and how it is trained.
    """

    folder: Path
    subject: Subject

    @property
    def checkpoint(self) -> Path:
        """The trained pipeline."""
        return whole_model(self.folder, self.subject)[-1]

    @property
    def pictures(self) -> np.ndarray:
        """The training pictures, [N, 1, 16, 16] float32."""
        return training_and_validation(self.folder, self.subject)[0]

    def index(self) -> gradindex.Index:
        """Return the index of its training pictures, built with the default settings."""
        return self.build("index")

    def build(self, name: str, **options: Any) -> gradindex.Index:
        """Return an index of a name in its folder; made now, unless it is there."""
        data = options.pop("data", None) or picture_folder(self.folder, self.subject)
        return gradindex.build(
            self.folder / name,
            model=self.checkpoint,
            data=data,
            timesteps=USUAL_TIMESTEPS,
            device="cpu",
            **options,
        )

    @property
    def asked(self) -> list[torch.Tensor]:
        """The validation pictures, then generated ones, as a query takes them."""
        return list(torch.from_numpy(query_pictures(self.folder, self.subject)))

    def losses_without(self, removals: Sequence[np.ndarray]) -> np.ndarray:
        """Return the losses of models trained without some rows each, [removals, 2 · queries].

        They are trained in as many processes as torch has threads here, unless they are kept.
        """
        restore_losses(ANSWERS, self.folder.name, self.folder, self.subject)
        query_pictures(self.folder, self.subject)  # made once, before the processes need it
        subjects = [self.subject] * len(removals)
        return np.stack(map_in_processes(losses_without, self.folder, removals, subjects))

    def losses(self) -> np.ndarray:
        """Return the model's losses on the pictures asked about, [2 · queries]."""
        model = self.subject.trained(self.checkpoint)
        return true_losses(model, query_pictures(self.folder, self.subject), self.subject)


def seeded_model(work: Path, seed: int, smoke: bool, times: int = 1) -> SeededModel:
    """Return the model of a training seed, not trained yet; a small one for a smoke test.

    Args:
        times: how many times as many pictures it has, and steps.
    """
    subject = SMOKE_SUBJECT if smoke else FASHION
    name = f"{SMOKE}-{seed}" if smoke else str(seed)
    folder = work / (f"answers-{name}" if times == 1 else f"answers-{name}-times-{times}")
    folder.mkdir(parents=True, exist_ok=True)
    changes = {"pictures": times * subject.pictures, "steps": times * subject.steps}
    return SeededModel(folder, replace(subject, seed=WHOLE + seed, **changes))


def keep_all(work: Path) -> None:
    """Keep the losses of the models of all seeds that were trained without some pictures."""
    for seed in SEEDS:
        model = seeded_model(work, seed, smoke=False)
        if list(model.folder.glob("without-*.npy")):
            count = keep_losses(ANSWERS, model.folder.name, model.folder, model.subject)
            print(f"{model.folder.name}: {count} models")


def asked_seeds(only: Sequence[str]) -> Sequence[int]:
    """Return the seeds of a run; one for a smoke test.

    Raises:
        SystemExit: something else is named than the smoke test.
    """
    unknown = [name for name in only if name != SMOKE]
    if unknown:
        raise SystemExit(f"{unknown[0]}: no part; give {SMOKE}, or nothing")
    return SEEDS[:1] if only else SEEDS


def measure_seeds(
    name: str,
    measure: Callable[[Path, int, bool], Any],
    work: Path,
    device: str,
    only: Sequence[str],
) -> list[Any]:
    """Return what a benchmark measures of each seed, kept in a folder of its name.

    Args:
        measure: (work folder, seed, whether it is a smoke test) → JSON values.
        only: see `asked_seeds`.
    """
    smoke = SMOKE in only
    parts = {f"seed {seed}": partial(measure, work, seed, smoke) for seed in asked_seeds(only)}
    folder = work / (f"{name}-{SMOKE}" if smoke else name)
    return list(record.measure(folder, parts, device).values())


def regenerated(checkpoint: Path, pictures: np.ndarray, start: int, seed: int) -> np.ndarray:
    """Return pictures that a model made of others, which were noised to a timestep.

    SDEdit (Meng et al. 2022): noise, then DDIM steps of 20 timesteps to the end.

    Args:
        pictures: [Q, 1, 16, 16] float32 in [−1, 1], as what is returned.
        start: the timestep, a multiple of 20. seed: of the noise.
    """
    model = UNet2DModel.from_pretrained(checkpoint / "unet")
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(DDIM_STEPS)
    random = torch.Generator().manual_seed(seed)
    clean = torch.from_numpy(pictures)
    noise = torch.randn(clean.shape, generator=random)
    timesteps = scheduler.timesteps[scheduler.timesteps <= start]
    x = scheduler.add_noise(clean, noise, timesteps[:1].expand(len(clean)))
    with torch.no_grad():
        for t in timesteps:
            epsilon = model(x, t.expand(len(x))).sample
            x = scheduler.step(epsilon, t, x).prev_sample
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().numpy()
    return pixels / 127.5 - 1


def rows_of(results: Results) -> np.ndarray:
    """Return the row numbers of hits, best first, [Q, k]."""
    return np.array([[hit.row for hit in result.hits] for result in results])


def over_seeds(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean of a figure over seeds as text, with the lowest and the highest.

    >>> over_seeds([0.5, 0.75, 1.0])
    '0.75 (0.50–1.00)'
    """
    low, high = min(values), max(values)
    return f"{np.mean(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def verdict_on_aim(value: float, aim: float) -> str:
    """Return whether a share reaches its aim, as text."""
    if value >= aim:
        return f"The aim was {aim:.0%} and is reached: {value:.1%}."
    return f"**The aim was {aim:.0%} and is missed: {value:.1%}.**"

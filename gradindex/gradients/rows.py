"""Pictures → rows of the store: which parameters, which projection, which batch, every gradient averaged over draws."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradindex.errors import CallError, ModelError
from gradindex.gradients.capture import Capture
from gradindex.gradients.noise import noise
from gradindex.gradients.projection import Energies, Exact, make_projection
from gradindex.recipe import Recipe, grid

PRICE = 0.035  # variance that must be saved to shrink a weight less, for its share of all numbers: they are the work
LARGEST_BATCH = {"cpu": 64, "cuda": 1024}
MEMORY_SHARE = {"cpu": 1 / 8, "cuda": 1 / 2}  # of the device's memory, for what autograd keeps


def choose_parameters(names: Sequence[str], params: str | None) -> list[str]:
    """The names in which the regular expression `params` is found; all of them for None."""
    try:
        chosen = [name for name in names if params is None or re.search(params, name)]
    except re.error as error:
        raise CallError(f"params = {params!r}: not a regular expression ({error})") from error
    if not chosen:
        raise CallError(f"params = {params!r}: matches none of the {len(names)} parameters, such as {names[0]!r}")
    return chosen


def capture_for(denoiser: Any, recipe: Recipe) -> Capture:
    """The capture of a recipe's parameters and projection on a denoiser's model."""
    names = choose_parameters(denoiser.trainable, recipe.params)
    sizes = {name: denoiser.model.get_parameter(name).numel() for name in names}
    projection = make_projection(recipe.projection, recipe.dim, recipe.seed, recipe.rank, recipe.strong, sizes)
    return Capture(denoiser.model, names, projection)


@dataclass(frozen=True)
class Events:
    """Where the gradients of B pictures are taken: timesteps [B, T], and the noise of picture i's timestep j, draw m.

    `names` say in an error which picture it was.
    """

    names: Sequence[str]
    timesteps: np.ndarray
    draws: int
    noise: Callable[[int, int, int], np.ndarray]


def grid_events(
    recipe: Recipe, sample_ids: Sequence[str], timesteps: Sequence[int] | None = None, draws: int | None = None
) -> Events:
    """The same timesteps for every picture, with the recipe's noise.

    Args:
        sample_ids: B ids; they key the noise unless it is shared.
        timesteps, draws: in place of the recipe's (a query with its own grid).
    """
    chosen = timesteps or recipe.timesteps
    shared = lru_cache(4096)(lambda j, m: noise(recipe.seed, None, chosen[j], m, recipe.image))

    def noise_of(i: int, j: int, m: int) -> np.ndarray:
        if recipe.noise == "shared":
            return shared(j, m)
        return noise(recipe.seed, sample_ids[i], chosen[j], m, recipe.image)

    return Events(sample_ids, np.tile(chosen, (len(sample_ids), 1)), draws or recipe.draws, noise_of)


def recorded_events(recipe: Recipe, sample_ids: Sequence[str], events: np.ndarray) -> Events:
    """Each picture's own events [B, T] of a training log, with the very noise where the recipe's is the recorded.

    Noise that was not recorded comes from the recipe's seed, as if each picture had its own.
    """
    timesteps = events["timestep"].astype(np.int64)

    def noise_of(i: int, j: int, m: int) -> np.ndarray:
        t = int(timesteps[i, j])
        if recipe.noise != "recorded":
            return noise(recipe.seed, None if recipe.noise == "shared" else sample_ids[i], t, m, recipe.image)
        seed, draw = int(events["noise_seed"][i, j]), int(events["draw"][i, j])
        return noise(recipe.seed if seed < 0 else seed, sample_ids[i], t, draw, recipe.image)

    return Events(sample_ids, timesteps, recipe.draws, noise_of)


def sample_gradients(
    denoiser: Any,
    capture: Capture,
    recipe: Recipe,
    pictures: np.ndarray,
    events: Events,
    labels: Sequence[int] | None,
    *,
    batch_size: int,
    progress: Callable[[int], object] = lambda events: None,
) -> np.ndarray:
    """The projected gradient of every picture at every timestep, averaged over draws of the noise.

    Args:
        pictures: [B, channels, height, width] float32 in [−1, 1].
        events: timesteps and noise of each.
        labels: B class labels, or None for an unconditional model.
        batch_size: how many (picture, timestep, draw) go through the model at once; changes nothing else, and is
            halved when the device has not the memory.
        progress: called with the number of (picture, timestep, draw) that are done.

    Returns:
        [B, T, D] float32.

    Raises:
        ModelError: a loss or gradient is not finite; picture and timestep are named.
    """
    device, depth = denoiser.device, events.timesteps.shape[1]
    # Backward passes in float16 run on a loss summed over the picture's numbers: its mean would underflow.
    scale = float(np.prod(recipe.image)) if recipe.dtype == "float16" else 1.0
    sums = torch.zeros(len(pictures) * depth, capture.projection.dim, device=device)
    every = [(i, j, m) for i in range(len(pictures)) for j in range(depth) for m in range(events.draws)]
    done = 0
    while done < len(every):
        batch = every[done : done + batch_size]
        i, j, _ = np.array(batch).T
        x = torch.from_numpy(pictures[i]).to(device)
        t = torch.from_numpy(events.timesteps[i, j]).to(device)
        epsilon = torch.from_numpy(np.stack([events.noise(*event) for event in batch])).to(device)
        classes = None if labels is None else torch.tensor(labels)[i].to(device)
        try:
            rows = capture.gradients(partial(denoiser.losses, x, t, epsilon, classes, recipe.differentiated), scale)
        except torch.OutOfMemoryError as error:
            if batch_size == 1:
                raise ModelError("one picture at one timestep does not fit into the device's memory") from error
            batch_size = -(-len(batch) // 2)
            continue
        finite = rows.isfinite().all(1)
        if not finite.all():
            bad = batch[int(finite.int().argmin())][:2]
            raise ModelError(
                f"the gradient of {events.names[bad[0]]!r} at timestep {events.timesteps[bad]} is not finite"
            )
        sums.index_add_(0, torch.from_numpy(i * depth + j).to(device), rows)
        done += len(batch)
        progress(len(batch))
    return (sums / events.draws).view(len(pictures), depth, -1).cpu().numpy()


@torch.no_grad()
def mean_losses(
    denoiser: Any, pictures: np.ndarray, labels: Sequence[int] | None, timesteps: Sequence[int], draws: int, seed: int,
    loss: str,
) -> np.ndarray:  # fmt: skip
    """The denoising loss of each picture [Q, channels, height, width], float64 [Q]: its mean over timesteps and draws.

    The noise is the one that all pictures share at that seed.
    """
    x = torch.from_numpy(pictures).to(denoiser.device)
    classes = None if labels is None else torch.tensor(labels, device=denoiser.device)
    total = torch.zeros(len(x), dtype=torch.float64, device=denoiser.device)
    for t in timesteps:
        for draw in range(draws):
            epsilon = torch.from_numpy(noise(seed, None, t, draw, x.shape[1:])).to(x).expand_as(x)
            total += denoiser.losses(x, torch.full((len(x),), t, device=x.device), epsilon, classes, loss)
    return (total / (len(timesteps) * draws)).cpu().numpy()


def choose_strong(
    denoiser: Any,
    recipe: Recipe,
    pictures: np.ndarray,
    sample_ids: Sequence[str],
    labels: Sequence[int] | None,
    batch_size: int,
) -> tuple[str, ...]:
    """The weights that a two-sided projection must shrink less, or too much fidelity would be lost.

    What shrinking adds to the relative variance of an inner product is at most `variance(…) e²`, e being the weight's
    share of the gradient's squared norm, and what it saves is work in proportion to the weight's size. A few weights
    near input and output hold most of the gradient: where they add more, at the worst timestep, than `PRICE` times
    their share of the model's numbers, they are strong.

    Args:
        pictures, labels: some of the data set's, as for `sample_gradients`; sample_ids: theirs.
    """
    assert recipe.rank is not None
    names = choose_parameters(denoiser.trainable, recipe.params)
    energies = Energies(names, recipe.rank)
    timesteps = (
        recipe.timesteps[:: -(-len(recipe.timesteps) // 10)]
        if recipe.timesteps
        else grid(10, denoiser.num_train_timesteps)
    )
    events = grid_events(recipe, sample_ids, timesteps, draws=1)
    with Capture(denoiser.model, names, energies) as capture:
        rows = sample_gradients(denoiser, capture, recipe, pictures, events, labels, batch_size=batch_size)
    shares = rows / rows.sum(-1, keepdims=True).clip(min=1e-30)
    variances = np.array([energies.added.get(name, 0.0) for name in names])
    added = np.square(shares).mean(0).max(0) * variances
    sizes = np.array([denoiser.model.get_parameter(name).numel() for name in names])
    return tuple(sorted(np.array(names)[added > PRICE * sizes / sizes.sum()].tolist()))


def fitting_batch(denoiser: Any, recipe: Recipe, beside: int = 1) -> int:
    """How many events go through the model at once, a power of two: as many as fit into a share of the memory.

    So many processes `beside` each other have a part of that share each. What is kept of one event for the backward
    pass is counted, not timed: the same machine always finds the same batch.
    """
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in denoiser.model.parameters()}

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()

    x, t, labels = _random_events(denoiser, recipe, 1)
    with capture_for(denoiser, recipe) as capture:
        capture.watch = keep
        capture.gradients(partial(denoiser.losses, x, t, torch.zeros_like(x), labels, recipe.differentiated))
    fits = denoiser.memory * MEMORY_SHARE[denoiser.device.type] / beside / sum(kept.values())
    return int(2 ** np.floor(np.log2(np.clip(fits, 1, LARGEST_BATCH[denoiser.device.type]))))


def check_capture(denoiser: Any, recipe: Recipe) -> None:
    """Compare the hooks on a batch of two events with plain autograd on the first, parameter by parameter.

    Guards against what no rule can see: a weight that is used without its layer being called, samples that
    mix, a subclass that computes something else. Weights in half precision are widened for it.

    Raises:
        ModelError: some parameter's captured gradient is not the gradient, or a parameter has no rule.
    """
    names = choose_parameters(denoiser.trainable, recipe.params)
    dtype = denoiser.model.dtype
    denoiser.model.float()
    parameters = {name: denoiser.model.get_parameter(name) for name in names}
    exact = Exact({name: parameter.numel() for name, parameter in parameters.items()})
    x, t, labels = _random_events(denoiser, recipe, 2)

    def losses(count: int) -> Tensor:
        some = None if labels is None else labels[:count]
        return denoiser.losses(x[:count], t[:count], torch.zeros_like(x[:count]), some, recipe.differentiated)

    try:
        with Capture(denoiser.model, names, exact) as capture:
            captured = capture.gradients(partial(losses, 2))[0]
        for parameter in parameters.values():
            parameter.requires_grad_()
        with torch.enable_grad():
            truth = torch.autograd.grad(losses(1).sum(), list(parameters.values()), allow_unused=True)
    except torch.OutOfMemoryError as error:
        raise ModelError("two pictures at one timestep do not fit into the device's memory") from error
    finally:
        denoiser.model.requires_grad_(False).to(dtype)
    flat = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), truth, strict=True)}
    if not all(gradient.isfinite().all() for gradient in flat.values()):
        raise ModelError(f"the model's gradient is not finite, for a random picture at timestep {int(t[0])}")
    floor = 1e-5 * float(torch.stack([g.norm() for g in flat.values()]).norm())
    wrong = [
        name
        for name, gradient in flat.items()
        if not (captured[exact.slices[name]] - gradient.flatten()).norm() <= 1e-2 * gradient.norm() + floor
    ]
    if wrong:
        raise ModelError(f"the captured gradient is not autograd's for: {', '.join(wrong)}; leave them out with params")


def _random_events(denoiser: Any, recipe: Recipe, count: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Random pictures at the first timestep of the grid, or a middle one, and labels if the model takes any."""
    x = torch.from_numpy(noise(recipe.seed, "check", 0, 0, (count, *recipe.image))).to(denoiser.device).clamp(-1, 1)
    first, *_ = recipe.timesteps or grid(1, denoiser.num_train_timesteps)
    t = torch.tensor([first] * count, device=denoiser.device)
    return x, t, None if recipe.classes is None else torch.zeros(count, dtype=torch.long, device=denoiser.device)

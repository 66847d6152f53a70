"""Hooks that catch every layer's input and output gradient and turn them into projected rows, one per sample.

The weights stay frozen, so autograd skips the weight gradients, a third of a training step. A layer's input is
projected already in the forward pass, which keeps less memory than training does.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from gradindex.errors import CallError, ModelError
from gradindex.gradients.layers import Direct, Factors, rule_of
from gradindex.gradients.noise import noise
from gradindex.gradients.projection import CountSketch, Exact, make_projection
from gradindex.recipe import Recipe


def choose_parameters(names: Sequence[str], params: str | None) -> list[str]:
    """The names in which the regular expression `params` is found; all of them for None."""
    try:
        chosen = [name for name in names if params is None or re.search(params, name)]
    except re.error as error:
        raise CallError(f"params = {params!r}: not a regular expression ({error})") from error
    if not chosen:
        raise CallError(f"params = {params!r}: matches none of the {len(names)} parameters, such as {names[0]!r}")
    return chosen


class Capture:
    """Hooks on a frozen model, for the length of a `with` block.

    >>> with Capture(model, names, projection) as capture:
    ...     rows = capture.gradients(lambda: loss_of_each_sample(model, x))  # [n, D]

    Args:
        model: a module whose parameters all have `requires_grad=False`.
        names: the parameters to capture, as `model.named_parameters()` calls them.
        projection: adds one parameter's block [n, m] into the rows [n, D].

    Raises:
        ModelError: a chosen parameter lies in a layer kind without a rule; all such layers are listed.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], projection: Exact | CountSketch) -> None:
        self.projection = projection
        self._layers = list(_layers(model, set(names)))
        self._handles: list[Any] = []
        self._rows: Tensor | None = None

    def __enter__(self) -> Self:
        for path, layer, rule, names in self._layers:
            hook: Any = self._factors_forward if isinstance(rule, Factors) else self._direct_forward
            self._handles.append(layer.register_forward_hook(partial(hook, path, rule, names)))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._handles:
            self._handles.pop().remove()

    def gradients(self, losses: Callable[[], Tensor]) -> Tensor:
        """The projected gradient of every sample: `losses()` runs the model and gives [n]; returns [n, D] float32."""
        with torch.enable_grad():
            loss = losses()
            self._rows = rows = torch.zeros(len(loss), self.projection.dim, device=loss.device)
            loss.sum().backward()
        self._rows = None
        return rows

    def _factors_forward(
        self, path: str, rule: Factors, names: dict[str, str], layer: Any, args: tuple[Tensor], output: Tensor
    ) -> Tensor:
        x, weight, side_out, inputs = args[0].detach(), names.get("weight"), None, None
        if weight:
            side_out, side_in = self.projection.sides(weight, *rule.widths(layer), x.device)
            inputs = rule.inputs(layer, x, side_in)

        def backward(delta: Tensor) -> None:
            if "bias" in names:
                self._add(path, names["bias"], rule.bias(delta))
            if weight and inputs is not None:
                self._add(path, weight, rule.weight(layer, inputs, rule.outputs(layer, delta, side_out)).flatten(1))

        return _on_backward(output, backward)

    def _direct_forward(
        self, path: str, rule: Direct, names: dict[str, str], layer: Any, args: tuple[Tensor], output: Tensor
    ) -> Tensor:
        x = args[0].detach()

        def backward(delta: Tensor) -> None:
            for local, gradient in rule(layer, x, delta).items():
                if local in names:
                    self._add(path, names[local], gradient.flatten(1))

        return _on_backward(output, backward)

    def _add(self, path: str, name: str, block: Tensor) -> None:
        assert self._rows is not None
        if len(block) != len(self._rows):
            raise ModelError(
                f"layer {path} sees a batch of {len(block)} where {len(self._rows)} samples came in:"
                " its gradient cannot be told apart by sample"
            )
        self.projection.add(self._rows, name, block)


def _layers(model: nn.Module, chosen: set[str]) -> list[tuple[str, nn.Module, Factors | Direct, dict[str, str]]]:
    """Every module with chosen parameters of its own: (path, module, rule, {its name: the model's name})."""
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    layers, without_rule = [], []
    for path, module in model.named_modules():
        own = {local: canonical[id(parameter)] for local, parameter in module.named_parameters(recurse=False)}
        own = {local: name for local, name in own.items() if name in chosen}
        rule = rule_of(module)
        if own and rule is not None and own.keys() <= {"weight", "bias"}:
            layers.append((path, module, rule, own))
        elif own:
            without_rule.append(f"{type(module).__name__} ({path or 'the model itself'}: {', '.join(own)})")
    if without_rule:
        raise ModelError(f"no gradient rule for: {'; '.join(without_rule)}; leave them out with params")
    return layers


def _on_backward(output: Tensor, hook: Callable[[Tensor], None]) -> Tensor:
    """Have `hook` called with the gradient of `output`; the first layers start the graph."""
    if not output.requires_grad:
        output = output.detach().requires_grad_().clone()  # a clone, since code may add to a layer's output in place
    output.register_hook(hook)
    return output


def capture_for(denoiser: Any, recipe: Recipe) -> Capture:
    """The capture of a recipe's parameters and projection on a denoiser's model."""
    names = choose_parameters(denoiser.trainable, recipe.params)
    sizes = {name: denoiser.model.get_parameter(name).numel() for name in names}
    projection = make_projection(recipe.projection, recipe.dim, recipe.seed, recipe.rank, sizes)
    return Capture(denoiser.model, names, projection)


def sample_gradients(
    denoiser: Any,
    capture: Capture,
    recipe: Recipe,
    pictures: np.ndarray,
    sample_ids: Sequence[str],
    labels: Sequence[int] | None,
    *,
    timesteps: Sequence[int] | None = None,
    draws: int | None = None,
    batch_size: int,
    progress: Callable[[int], object] = lambda events: None,
) -> np.ndarray:
    """The projected gradient of every picture at every timestep, averaged over draws of the noise.

    Args:
        pictures: [B, channels, height, width] float32 in [−1, 1].
        sample_ids: B ids; they key the noise where the recipe says that every picture has its own.
        labels: B class labels, or None for an unconditional model.
        timesteps, draws: in place of the recipe's (a query with its own grid).
        batch_size: how many (picture, timestep, draw) go through the model at once; changes nothing else, and is
            halved when the device has not the memory.
        progress: called with the number of (picture, timestep, draw) that are done.

    Returns:
        [B, T, D] float32.

    Raises:
        ModelError: a loss or gradient is not finite; picture and timestep are named.
    """
    timesteps, draws = timesteps or recipe.timesteps, draws or recipe.draws
    device = denoiser.device
    images = torch.from_numpy(pictures).to(device)
    sums = torch.zeros(len(pictures) * len(timesteps), capture.projection.dim, device=device)
    events = [(i, j, m) for i in range(len(pictures)) for j in range(len(timesteps)) for m in range(draws)]
    shared: dict[tuple[int, int], np.ndarray] = {}

    def noise_of(i: int, j: int, m: int) -> np.ndarray:
        if recipe.noise == "own":
            return noise(recipe.seed, sample_ids[i], timesteps[j], m, recipe.image)
        if (j, m) not in shared:
            shared[j, m] = noise(recipe.seed, None, timesteps[j], m, recipe.image)
        return shared[j, m]

    done = 0
    while done < len(events):
        batch = events[done : done + batch_size]
        i = torch.tensor([event[0] for event in batch], device=device)
        j = torch.tensor([event[1] for event in batch], device=device)
        t = torch.tensor(timesteps, device=device)[j]
        epsilon = torch.from_numpy(np.stack([noise_of(*event) for event in batch])).to(device)
        classes = None if labels is None else torch.tensor(labels, device=device)[i]
        try:
            rows = capture.gradients(partial(denoiser.losses, images[i], t, epsilon, classes, recipe.loss))
        except torch.OutOfMemoryError as error:
            if batch_size == 1:
                raise ModelError("one picture at one timestep does not fit into the device's memory") from error
            batch_size = -(-len(batch) // 2)
            continue
        finite = rows.isfinite().all(1)
        if not finite.all():
            bad = batch[int(finite.int().argmin())]
            raise ModelError(f"the gradient of {sample_ids[bad[0]]!r} at timestep {timesteps[bad[1]]} is not finite")
        sums.index_add_(0, i * len(timesteps) + j, rows)
        done += len(batch)
        progress(len(batch))
    return (sums / draws).view(len(pictures), len(timesteps), -1).cpu().numpy()


def check_capture(denoiser: Any, recipe: Recipe) -> None:
    """Compare the hooks on a batch of two events with plain autograd on the first, parameter by parameter.

    Guards against what no rule can see: a weight that is used without its layer being called, samples that
    mix, a subclass that computes something else.

    Raises:
        ModelError: some parameter's captured gradient is not the gradient.
    """
    names = choose_parameters(denoiser.trainable, recipe.params)
    parameters = {name: denoiser.model.get_parameter(name) for name in names}
    exact = Exact({name: parameter.numel() for name, parameter in parameters.items()})
    x = torch.from_numpy(noise(recipe.seed, "check", 0, 0, (2, *recipe.image))).to(denoiser.device).clamp(-1, 1)
    t = torch.tensor(recipe.timesteps[:1] * 2, device=denoiser.device)
    labels = None if recipe.classes is None else torch.zeros(2, dtype=torch.long, device=denoiser.device)

    def losses(count: int) -> Tensor:
        some = None if labels is None else labels[:count]
        return denoiser.losses(x[:count], t[:count], torch.zeros_like(x[:count]), some, recipe.loss)

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
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    flat = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), truth, strict=True)}
    if not all(gradient.isfinite().all() for gradient in flat.values()):
        raise ModelError(f"the model's gradient is not finite, for a random picture at timestep {recipe.timesteps[0]}")
    floor = 1e-5 * float(torch.stack([g.norm() for g in flat.values()]).norm())
    wrong = [
        name
        for name, gradient in flat.items()
        if not (captured[exact.slices[name]] - gradient.flatten()).norm() <= 1e-2 * gradient.norm() + floor
    ]
    if wrong:
        raise ModelError(f"the captured gradient is not autograd's for: {', '.join(wrong)}; leave them out with params")

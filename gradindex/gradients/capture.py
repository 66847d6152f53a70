"""Hooks that catch every layer's input and output gradient and turn them into projected rows, one per sample.

The weights stay frozen, so autograd skips the weight gradients, a third of a training step. A layer's input is
projected already in the forward pass, which keeps less memory than training does.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from gradindex.errors import ModelError
from gradindex.gradients.bare import BareParameter, Watch
from gradindex.gradients.layers import Direct, Factors, mixes_samples, rule_of
from gradindex.gradients.projection import Projection

PIECE = 2**20  # numbers of a layer's input or output that a rule gets at once on a CPU


class Capture:
    """Hooks on a frozen model, for the length of a `with` block.

    >>> with Capture(model, names, projection) as capture:
    ...     rows = capture.gradients(lambda: loss_of_each_sample(model, x))  # [n, D]

    Args:
        model: a module whose parameters all have `requires_grad=False`, called with the samples first.
        names: the parameters to capture, as `model.named_parameters()` calls them.
        projection: adds one parameter's block [n, m] into the rows [n, D].

    Raises:
        ModelError: samples have no gradient of their own in this model, or not with these settings.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], projection: Projection) -> None:
        self.model, self.projection = model, projection
        self._layers = list(_layers(model, set(names)))
        self._handles: list[Any] = []
        self._rows: Tensor | None = None
        self._samples = 0
        self._unknown: dict[str, None] = {}  # an ordered set
        if mixing := [path for path, module in model.named_modules() if mixes_samples(module)]:
            raise ModelError(
                f"batch norm in training mode mixes the samples of a batch ({mixing[0]}): call model.eval()"
            )
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            raise ModelError("gradient checkpointing is on: call model.disable_gradient_checkpointing()")

    def __enter__(self) -> Self:
        self._handles.append(self.model.register_forward_pre_hook(self._count, with_kwargs=True))
        for path, layer, rule, names in self._layers:
            if rule is None:
                for local, name in names.items():
                    layer._parameters[local] = self._bare(path, layer, local, name)  # type: ignore[assignment]
            else:
                hook: Any = self._factors_forward if isinstance(rule, Factors) else self._direct_forward
                self._handles.append(layer.register_forward_hook(partial(hook, path, rule, names)))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._handles:
            self._handles.pop().remove()
        for _, layer, rule, names in self._layers:
            for local in names if rule is None else ():
                layer._parameters[local] = layer._parameters[local].parameter  # type: ignore[union-attr]

    def gradients(self, losses: Callable[[], Tensor], scale: float = 1) -> Tensor:
        """The projected gradient of every sample, [n, D] float32; `losses()` runs the model and gives [n].

        Args:
            scale: the backward pass runs on losses this much larger, against underflow in float16.
        """
        with torch.enable_grad():
            loss = losses()
            if self._unknown:
                raise ModelError(f"no gradient rule for: {'; '.join(self._unknown)}; leave them out with params")
            self._rows = rows = torch.zeros(len(loss), self.projection.dim, device=loss.device)
            if loss.requires_grad:  # not when no chosen parameter was used
                (loss.sum() * scale).backward()
        self._rows = None
        return rows if scale == 1 else rows / scale

    def _count(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._samples = len(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))

    def _bare(self, path: str, layer: nn.Module, local: str, name: str) -> BareParameter:
        def unknown(operation: str) -> None:
            self._unknown[f"{type(layer).__name__} ({path or 'the model itself'}: {local}, used by {operation})"] = None

        def caught(gradients: Tensor) -> None:
            self._check(path, gradients)
            self._add(name, gradients.reshape(len(gradients), -1))

        parameter = layer.get_parameter(local)
        watched = BareParameter.follow(
            parameter, parameter.detach(), lambda root: root, Watch(lambda: self._samples, caught, unknown)
        )
        watched.parameter = parameter
        return watched

    def _factors_forward(
        self, path: str, rule: Factors, names: dict[str, str], layer: Any, args: tuple[Tensor], output: Tensor
    ) -> Tensor:
        x, weight, side_out, inputs = args[0].detach(), names.get("weight"), None, None
        piece = _piece(x, output)
        if weight:
            sides = self.projection.sides(weight, *rule.widths(layer), layer.weight.numel(), x)
            side_out, inputs = sides[0], rule.inputs(layer, x, sides[1])

        def backward(delta: Tensor) -> None:
            for some in self._parts(path, delta, piece):
                if "bias" in names:
                    self._add(names["bias"], rule.bias(delta[some]), some)
                if weight and inputs is not None:
                    block = rule.weight(layer, inputs[some], rule.outputs(layer, delta[some], side_out))
                    self._add(weight, block, some)

        return _on_backward(output, backward)

    def _direct_forward(
        self, path: str, rule: Direct, names: dict[str, str], layer: Any, args: tuple[Tensor], output: Tensor
    ) -> Tensor:
        x, piece = args[0].detach(), _piece(args[0], output)

        def backward(delta: Tensor) -> None:
            for some in self._parts(path, delta, piece):
                for local, gradient in rule(layer, x[some], delta[some]).items():
                    if local in names:
                        self._add(names[local], gradient, some)

        return _on_backward(output, backward)

    def _parts(self, path: str, delta: Tensor, piece: int) -> Iterator[slice]:
        self._check(path, delta)
        return (slice(start, start + piece) for start in range(0, len(delta), piece))

    def _check(self, path: str, gradients: Tensor) -> None:
        if self._rows is None or len(gradients) != len(self._rows):
            raise ModelError(
                f"layer {path} sees a batch of {len(gradients)} where {self._samples} samples came in:"
                " its gradient cannot be told apart by sample"
            )

    def _add(self, name: str, block: Tensor, some: slice = slice(None)) -> None:
        assert self._rows is not None
        self.projection.add(self._rows[some], name, block.flatten(1).float())


def _layers(
    model: nn.Module, chosen: set[str]
) -> Iterator[tuple[str, nn.Module, Factors | Direct | None, dict[str, str]]]:
    """Every module with chosen parameters of its own: (path, module, rule, {its name: the model's name})."""
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    for path, module in model.named_modules():
        own = {local: canonical[id(parameter)] for local, parameter in module.named_parameters(recurse=False)}
        own = {local: name for local, name in own.items() if name in chosen}
        if own:
            rule = rule_of(module) if own.keys() <= {"weight", "bias"} else None
            yield path, module, rule, own


def _piece(x: Tensor, output: Tensor) -> int:
    """How many samples a rule gets at once: a CPU is faster on pieces that its caches hold, in memory not new to it."""
    largest = max(x.numel(), output.numel()) // len(output)
    return max(1, PIECE // largest) if output.device.type == "cpu" else len(output)


def _on_backward(output: Tensor, hook: Callable[[Tensor], None]) -> Tensor:
    """Have `hook` called with the gradient of `output`; the first layers start the graph."""
    if not output.requires_grad:
        output = output.detach().requires_grad_().clone()  # a clone, since code may add to a layer's output in place
    output.register_hook(hook)
    return output

"""Hooks that catch every layer's input and output gradient and turn them into projected rows, one per sample.

The weights stay frozen, so autograd skips the weight gradients, a third of a training step. A layer's input is
projected already in the forward pass and autograd is kept from holding on to it, so less memory is needed than in
training.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from gradindex.errors import ModelError
from gradindex.gradients.bare import BareParameter, Watch
from gradindex.gradients.layers import Copies, Factors, Rule, mixes_samples, rule_of, runs_its_own_forward
from gradindex.gradients.projection import Projection

PIECE = 2**26  # numbers of weight gradients in memory at once


class Capture:
    """Hooks on a frozen model, for the length of a `with` block.

    >>> with Capture(model, names, projection) as capture:
    ...     rows = capture.gradients(lambda: loss_of_each_sample(model, x))  # [n, D]

    Args:
        model: a module whose parameters all have `requires_grad=False`, called with the samples first.
        names: the parameters to capture, as `model.named_parameters()` calls them.
        projection: adds one parameter's block [n, m] into the rows [n, D].

    Attributes:
        watch: called with every tensor that is kept for the backward pass.

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
        self._input: int | None = None  # address of the running layer's input, which only a weight gradient needs
        self.watch: Callable[[Tensor], object] = lambda tensor: None
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
            elif isinstance(rule, Copies):
                layer.forward = partial(self._copies_forward, path, rule, names, layer)
            else:
                hook: Any = self._factors_forward if isinstance(rule, Factors) else self._direct_forward
                self._handles.append(layer.register_forward_hook(partial(hook, path, rule, names)))
                if isinstance(rule, Factors) and runs_its_own_forward(layer):
                    self._handles.append(layer.register_forward_pre_hook(self._before))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._handles:
            self._handles.pop().remove()
        for _, layer, rule, names in self._layers:
            if isinstance(rule, Copies):
                del layer.forward  # the class's comes to light again
            for local in names if rule is None else ():
                layer._parameters[local] = layer._parameters[local].parameter  # type: ignore[union-attr]

    def gradients(self, losses: Callable[[], Tensor], scale: float = 1) -> Tensor:
        """The projected gradient of every sample, [n, D] float32; `losses()` runs the model and gives [n].

        Args:
            scale: the backward pass runs on losses this much larger, against underflow in float16.
        """
        self._input = None
        with torch.enable_grad():
            with torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack):
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

    def _before(self, layer: nn.Module, args: tuple[Tensor]) -> None:
        self._input = args[0].data_ptr()

    def _pack(self, tensor: Tensor) -> Any:
        """What autograd keeps: of a layer's input, held for a weight gradient that nobody asks for, the shape alone."""
        if tensor.data_ptr() == self._input:
            return tensor.new_empty(()), tensor.shape
        self.watch(tensor)
        return tensor

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
        self._input = None
        x, weight, side_out, inputs = args[0].detach(), names.get("weight"), None, None
        some: list[Any] = [...]
        if weight:
            sides = self.projection.sides(weight, *rule.widths(layer), layer.weight.numel(), x)
            side_out, inputs = sides[0], rule.inputs(layer, x, sides[1])
            self.watch(inputs)
            if sides == (None, None):
                some = _pieces(len(x), layer.weight.numel())

        def backward(delta: Tensor) -> None:
            self._check(path, delta)
            if "bias" in names:
                self._add(names["bias"], rule.bias(delta))
            if weight and inputs is not None:
                outputs = rule.outputs(layer, delta, side_out)
                for piece in some:
                    self._add(weight, rule.weight(layer, inputs[piece], outputs[piece]), piece)

        return _on_backward(output, backward)

    def _direct_forward(
        self, path: str, rule: Any, names: dict[str, str], layer: Any, args: tuple[Tensor], output: Tensor
    ) -> Tensor:
        x = args[0].detach()

        def backward(delta: Tensor) -> None:
            self._check(path, delta)
            for local, gradient in rule(layer, x, delta).items():
                if local in names:
                    self._add(names[local], gradient)

        return _on_backward(output, backward)

    def _copies_forward(self, path: str, rule: Copies, names: dict[str, str], layer: Any, x: Tensor) -> Tensor:
        def caught(local: str, gradients: Tensor) -> None:
            self._check(path, gradients)
            self._add(names[local], gradients)

        copies = {}
        for local, value in layer.named_parameters(recurse=False):
            copies[local] = value.detach().expand(len(x), *value.shape).contiguous()
            if local in names:
                copies[local].requires_grad_().register_hook(partial(caught, local))
        return rule.forward(layer, x, copies["weight"], copies.get("bias"))

    def _check(self, path: str, gradients: Tensor) -> None:
        if self._rows is None or gradients.shape[0] != self._rows.shape[0]:
            raise ModelError(
                f"layer {path} sees a batch of {len(gradients)} where {self._samples} samples came in:"
                " its gradient cannot be told apart by sample"
            )

    def _add(self, name: str, block: Tensor, piece: Any = ...) -> None:
        assert self._rows is not None
        rows = self._rows if piece is ... else self._rows[piece]
        self.projection.add(rows, name, block.flatten(1).float())


def _layers(model: nn.Module, chosen: set[str]) -> Iterator[tuple[str, nn.Module, Rule | None, dict[str, str]]]:
    """Every module with chosen parameters of its own: (path, module, rule, {its name: the model's name})."""
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    for path, module in model.named_modules():
        own = {local: canonical[id(parameter)] for local, parameter in module.named_parameters(recurse=False)}
        own = {local: name for local, name in own.items() if name in chosen}
        if own:
            rule = rule_of(module) if own.keys() <= {"weight", "bias"} else None
            yield path, module, rule, own


def _unpack(kept: Any) -> Tensor:
    return kept[0].expand(kept[1]) if isinstance(kept, tuple) else kept


def _pieces(count: int, size: int) -> list[Any]:
    """What picks the samples whose weight gradients of `size` numbers are in memory at once."""
    step = max(1, PIECE // size)
    return [...] if step >= count else [slice(start, start + step) for start in range(0, count, step)]


def _on_backward(output: Tensor, hook: Callable[[Tensor], None]) -> Tensor:
    """Have `hook` called with the gradient of `output`; the first layers start the graph."""
    if not output.requires_grad:
        output = output.detach().requires_grad_().clone()  # a clone, since code may add to a layer's output in place
    output.register_hook(hook)
    return output

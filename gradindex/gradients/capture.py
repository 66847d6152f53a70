"""Hooks that turn each layer's input and output gradient into projected rows, one per sample.

The weights stay frozen, so that autograd skips the weight gradients, a third of a training step. A
layer's input is projected already in the forward pass and autograd is kept from holding on to it,
so that less memory is needed than in training.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from gradindex.errors import ModelError
from gradindex.gradients.bare_parameters import BareParameter, Watch
from gradindex.gradients.captured_layers import CapturedLayer, captured_layers
from gradindex.gradients.layers import Copies, Factors, mixes_samples, runs_its_own_forward
from gradindex.gradients.projection import WHOLE, Projection
from gradindex.models.devices import plain_torch

# Numbers of unprojected weight gradients in memory at once, 256 MiB in float32.
WEIGHT_GRADIENT_NUMBERS = 2**26


# The life of the hooks
#
# `with Capture(…)` puts them on and takes them off again. In between, every call of `gradients`
# goes through these steps:
#
# 1. Forward. A pre-hook of the model counts the samples. What then happens at a layer depends on
#    its rule (see layers.py):
#    - Factors: a pre-hook notes where the layer's input lies in memory. Autograd wants to keep that
#      input for the weight gradient, which is never computed since the weights are frozen; `_pack`,
#      which sees everything that autograd keeps, keeps its shape alone. The forward hook projects
#      the input, which is what is kept, and puts a tensor hook onto the output.
#    - Direct: the forward hook keeps the input and puts a tensor hook onto the output.
#    - Copies: in place of the layer's own `forward`, another runs that has a copy of the parameters
#      for every sample, each with a tensor hook.
#    - No rule: a `BareParameter` stands in the parameter's place, and calls back like a tensor
#      hook.
# 2. Rows of zeros are made, as many as there are losses.
# 3. Backward, of the losses' sum: sample i's loss depends on sample i alone, so that the gradient
#    of the sum with respect to an activation is each sample's own. Every tensor hook gets it,
#    computes the parameter's gradient for each sample, and has the projection add it into the rows.
#
# No parameter is a leaf of the graph: it starts at the output of the first layer that has a hook
# (`_on_backward`), and no backward pass runs below.


class Capture:
    """Hooks on a frozen model, for the length of a `with` block.

    Args:
        model: a module whose parameters all have `requires_grad=False`, called with the samples
            first.
        names: the parameters to capture, as `model.named_parameters()` calls them.
        projection: adds one parameter's block [n, m] into the rows [n, D].

    Attributes:
        watch: called with every tensor that is kept for the backward pass.

    Raises:
        ModelError: samples have no gradient of their own in this model, or not with these settings.

    >>> from gradindex.gradients.projection import Exact
    >>> model = nn.Linear(2, 1).requires_grad_(False)
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> with Capture(model, ["weight", "bias"], Exact({"weight": 2, "bias": 1})) as capture:
    ...     capture.gradients(lambda: model(x).sum(1))
    tensor([[1., 2., 1.],
            [3., 4., 1.]])
    """

    def __init__(self, model: nn.Module, names: Sequence[str], projection: Projection) -> None:
        self.model = model
        self.projection = projection
        self.watch: Callable[[Tensor], object] = lambda tensor: None
        self._layers = list(captured_layers(model, set(names)))
        self._handles: list[Any] = []
        self._rows: Tensor | None = None  # [n, D], during a backward pass
        self._samples = 0  # n of the running forward pass
        self._without_rule: dict[str, None] = {}  # an ordered set of texts
        # Address of the running layer's input, which only a weight gradient needs.
        self._released_input: int | None = None
        mixing = [path for path, module in model.named_modules() if mixes_samples(module)]
        if mixing:
            raise ModelError(
                f"batch norm in training mode mixes the samples of a batch ({mixing[0]}):"
                " call model.eval()"
            )
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            raise ModelError(
                "gradient checkpointing is on: call model.disable_gradient_checkpointing()"
            )

    def __enter__(self) -> Self:
        self._handles.append(
            self.model.register_forward_pre_hook(self._count_samples, with_kwargs=True)
        )
        for layer in self._layers:
            self._install(layer)
        return self

    def __exit__(
        self,
        exception_type: type | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        for layer in self._layers:
            if isinstance(layer.rule, Copies):
                del layer.module.forward  # of the instance: that of the class is used again
            elif layer.rule is None:
                parameters = layer.module._parameters
                for local_name in layer.names:
                    parameters[local_name] = parameters[local_name].parameter

    @plain_torch()
    def gradients(self, losses: Callable[[], Tensor], scale: float = 1) -> Tensor:
        """Return the projected gradient of every sample, [n, D] float32.

        Args:
            losses: runs the model and returns the loss of every sample, [n].
            scale: the backward pass runs on losses this much larger, against underflow in float16.

        Raises:
            ModelError: a chosen parameter has no rule, or a layer sees a batch of another size.
        """
        self._released_input = None
        with torch.enable_grad():
            with torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack):
                loss = losses()
            if self._without_rule:
                raise ModelError(
                    f"no gradient rule for: {'; '.join(self._without_rule)};"
                    " leave them out with params"
                )
            rows = torch.zeros(len(loss), self.projection.dim, device=loss.device)
            self._rows = rows
            if loss.requires_grad:  # not when no chosen parameter was used
                (loss.sum() * scale).backward()
        self._rows = None
        return rows if scale == 1 else rows / scale

    # Putting hooks on.

    def _install(self, layer: CapturedLayer) -> None:
        """Put the hooks onto a layer, or take the place of its forward or its parameters."""
        module = layer.module
        if layer.rule is None:
            for local_name in layer.names:
                module._parameters[local_name] = self._bare_parameter(layer, local_name)
        elif isinstance(layer.rule, Copies):
            module.forward = partial(self._forward_copies, layer)
        elif isinstance(layer.rule, Factors):
            self._handles.append(
                module.register_forward_hook(partial(self._after_factors_layer, layer))
            )
            # A forward of its own may need the input for more than the weight gradient.
            if runs_its_own_forward(module):
                self._handles.append(module.register_forward_pre_hook(self._before_factors_layer))
        else:
            self._handles.append(
                module.register_forward_hook(partial(self._after_direct_layer, layer))
            )

    def _bare_parameter(self, layer: CapturedLayer, local_name: str) -> BareParameter:
        """What stands in a parameter's place while the hooks are on."""

        def on_unknown(operation: str) -> None:
            location = layer.path or "the model itself"
            text = f"{type(layer.module).__name__} ({location}: {local_name}, used by {operation})"
            self._without_rule[text] = None

        def on_gradients(gradients: Tensor) -> None:
            self._require_all_samples(layer, gradients)
            self._add(layer.names[local_name], gradients.reshape(len(gradients), -1))

        parameter = layer.module.get_parameter(local_name)
        watch = Watch(lambda: self._samples, on_gradients, on_unknown)
        bare = BareParameter.follow(parameter, parameter.detach(), lambda root: root, watch)
        bare.parameter = parameter
        return bare

    # The hooks of the forward pass. Each hands autograd a function for the backward pass.

    def _count_samples(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        first_tensor = next(
            value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)
        )
        self._samples = len(first_tensor)

    def _before_factors_layer(self, module: nn.Module, args: tuple[Tensor]) -> None:
        self._released_input = args[0].data_ptr()

    def _after_factors_layer(
        self, layer: CapturedLayer, module: Any, args: tuple[Tensor], output: Tensor
    ) -> Tensor:
        self._released_input = None
        rule = layer.rule
        assert isinstance(rule, Factors)
        bias_name = layer.names.get("bias")
        weight_name = layer.names.get("weight")
        inputs = None
        if weight_name:
            x = args[0].detach()
            size = module.weight.numel()
            sides = self.projection.sides(weight_name, *rule.widths(module), size, x)
            inputs = rule.inputs(module, x, sides.inputs)
            self.watch(inputs)
            # Whole weight gradients are large: they are made for a few samples at a time.
            parts = _sample_slices(len(x), size) if sides == WHOLE else [slice(None)]

        def on_backward(delta: Tensor) -> None:
            self._require_all_samples(layer, delta)
            if bias_name:
                self._add(bias_name, rule.bias(delta))
            if weight_name and inputs is not None:
                outputs = rule.outputs(module, delta, sides.outputs)
                for samples in parts:
                    # No name for the gradients: they are gone before the next ones are made.
                    self._add(
                        weight_name, rule.weight(module, inputs[samples], outputs[samples]), samples
                    )

        return _on_backward(output, on_backward)

    def _after_direct_layer(
        self, layer: CapturedLayer, module: Any, args: tuple[Tensor], output: Tensor
    ) -> Tensor:
        rule: Any = layer.rule
        x = args[0].detach()

        def on_backward(delta: Tensor) -> None:
            self._require_all_samples(layer, delta)
            for local_name, gradients in rule(module, x, delta).items():
                if local_name in layer.names:
                    self._add(layer.names[local_name], gradients)

        return _on_backward(output, on_backward)

    def _forward_copies(self, layer: CapturedLayer, x: Tensor) -> Tensor:
        rule = layer.rule
        assert isinstance(rule, Copies)

        def on_backward(local_name: str, gradients: Tensor) -> None:
            self._require_all_samples(layer, gradients)
            self._add(layer.names[local_name], gradients)

        copies = {}
        for local_name, value in layer.module.named_parameters(recurse=False):
            copy = value.detach().expand(len(x), *value.shape).contiguous()
            if local_name in layer.names:
                copy.requires_grad_().register_hook(partial(on_backward, local_name))
            copies[local_name] = copy
        return rule.forward(layer.module, x, copies["weight"], copies.get("bias"))

    # What autograd keeps between the passes.

    def _pack(self, tensor: Tensor) -> Any:
        """What is kept of a tensor that autograd wants: of a released input, its shape alone."""
        if tensor.data_ptr() == self._released_input:
            return tensor.new_empty(()), tensor.shape
        self.watch(tensor)
        # Of the layer's output, which its own graph node may keep, only the numbers: node and
        # output would hold each other, and without a backward pass nothing would free them.
        return tensor.detach()

    # The backward pass.

    def _require_all_samples(self, layer: CapturedLayer, gradients: Tensor) -> None:
        if self._rows is None or gradients.shape[0] != self._rows.shape[0]:
            raise ModelError(
                f"layer {layer.path} sees a batch of {len(gradients)}"
                f" where {self._samples} samples came in:"
                " its gradient cannot be told apart by sample"
            )

    def _add(self, name: str, gradients: Tensor, samples: slice = slice(None)) -> None:
        """Add a parameter's gradients [n, …] into the rows of these samples."""
        assert self._rows is not None
        self.projection.add(self._rows[samples], name, gradients.flatten(1).float())


def _sample_slices(samples: int, size: int) -> list[slice]:
    """Which samples at a time have their weight gradients, of `size` numbers each, in memory."""
    step = max(1, WEIGHT_GRADIENT_NUMBERS // size)
    return [slice(start, start + step) for start in range(0, samples, step)]


def _unpack(kept: Any) -> Tensor:
    """What autograd gets for the backward pass; for a released input, any numbers of its shape."""
    if isinstance(kept, tuple):
        number, shape = kept
        return number.expand(shape)
    return kept


def _on_backward(output: Tensor, hook: Callable[[Tensor], None]) -> Tensor:
    """Have `hook` called with the gradient of `output`, and return the output to go on with."""
    if not output.requires_grad:
        # No chosen layer lies below: the graph starts here. A clone, since the model may change a
        # layer's output in place, which autograd forbids for a leaf.
        output = output.detach().requires_grad_().clone()
    output.register_hook(hook)
    return output

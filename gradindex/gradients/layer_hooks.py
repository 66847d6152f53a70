"""The hooks of a capture: what happens at each layer in the forward and the backward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradindex.gradients.bare_parameters import BareParameter, Watch
from gradindex.gradients.captured_layers import CapturedLayer
from gradindex.gradients.layers import Copies, Factors, runs_its_own_forward
from gradindex.gradients.projection import WHOLE, Projection
from gradindex.gradients.sample_rows import SampleRows

# Numbers of unprojected weight gradients in memory at once, 256 MiB in float32.
WEIGHT_GRADIENT_NUMBERS = 2**26


class LayerHooks:
    """Hooks on layers, put on by `install` and taken off by `remove`.

    Args:
        projection: adds one parameter's block [n, m] into the rows [n, D].
        sample_rows: which rows of a layer belong to which sample.
        samples: returns n of the running forward pass.
        watch: called with every tensor that is kept for the backward pass.
        on_unknown: called with the name of a bare parameter that cannot be followed.

    Attributes:
        called: the layers that the last forward pass called.
        called_without_gradient: those that it called where autograd keeps nothing.
    """

    def __init__(
        self,
        projection: Projection,
        sample_rows: SampleRows,
        samples: Callable[[], int],
        watch: Callable[[Tensor], object],
        on_unknown: Callable[[str], object],
    ) -> None:
        self.called: set[str] = set()
        self.called_without_gradient: set[str] = set()
        self._projection = projection
        self._sample_rows = sample_rows
        self._samples = samples
        self._watch = watch
        self._on_unknown = on_unknown
        self._layers: Sequence[CapturedLayer] = ()
        self._handles: list[Any] = []
        self._rows: Tensor | None = None  # [n, D], during a backward pass
        # Address of the running layer's input, which only a weight gradient needs.
        self._released_input: int | None = None

    @property
    def follows_bare_parameters(self) -> bool:
        """Whether any parameter is followed as a bare one."""
        return any(layer.rule is None for layer in self._layers)

    def not_called(self) -> set[str]:
        """Return the layers with a rule that the last forward pass did not call."""
        with_rule = {layer.path for layer in self._layers if layer.rule is not None}
        return with_rule - self.called - self.called_without_gradient

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Have autograd keep what the layers need, in the forward pass that runs inside."""
        self.called.clear()
        self.called_without_gradient.clear()
        self._released_input = None
        with torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack):
            yield

    @contextmanager
    def backward(self, rows: Tensor) -> Iterator[None]:
        """Have the backward pass that runs inside add gradients into the rows [n, D]."""
        self._rows = rows
        try:
            with self._sample_rows.taken():
                yield
        finally:
            self._rows = None

    # Putting hooks on.

    def install(
        self, model: nn.Module, layers: Sequence[CapturedLayer], count: Callable[..., None]
    ) -> None:
        """Put hooks onto the layers, and `count` before each call of the model."""
        self._handles.append(model.register_forward_pre_hook(count, with_kwargs=True))
        self._layers = layers
        for layer in layers:
            self._install(layer)

    def remove(self) -> None:
        """Take all hooks off, and put back what they took the place of."""
        while self._handles:
            self._handles.pop().remove()
        for layer in self._layers:
            if isinstance(layer.rule, Copies):
                del layer.module.forward  # of the instance: that of the class is used again
            elif layer.rule is None:
                parameters = layer.module._parameters
                for local_name in layer.names:
                    parameters[local_name] = parameters[local_name].parameter
        self._layers = ()

    def _install(self, layer: CapturedLayer) -> None:
        """Put the hooks onto a layer, or take the place of its forward or its parameters."""
        module = layer.module
        if layer.rule is None:
            for local_name in layer.names:
                module._parameters[local_name] = self._bare_parameter(layer, local_name)
        elif isinstance(layer.rule, Copies):
            module.forward = partial(self._forward_copies, layer)
        elif isinstance(layer.rule, Factors):
            after = partial(self._after_factors_layer, layer)
            self._handles.append(module.register_forward_hook(after, with_kwargs=True))
            # A forward of its own may need the input for more than the weight gradient.
            if runs_its_own_forward(module):
                before = self._before_factors_layer
                self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:
            after = partial(self._after_direct_layer, layer)
            self._handles.append(module.register_forward_hook(after, with_kwargs=True))

    def _bare_parameter(self, layer: CapturedLayer, local_name: str) -> BareParameter:
        """What stands in a parameter's place while the hooks are on."""
        name = layer.names[local_name]

        def on_gradients(gradients: Tensor) -> None:
            self._add(name, gradients.reshape(len(gradients), -1))

        parameter = layer.module.get_parameter(local_name)
        watch = Watch(
            batch_size=self._samples,
            on_gradients=on_gradients,
            on_unknown=lambda: self._on_unknown(name),
            is_open=lambda: self._sample_rows.is_open,
        )
        bare = BareParameter.follow(parameter, parameter.detach(), lambda root: root, watch)
        bare.parameter = parameter
        return bare

    # The hooks of the forward pass. Each hands autograd a function for the backward pass.

    def _before_factors_layer(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._released_input = _layer_input(args, kwargs).data_ptr()

    def _after_factors_layer(
        self,
        layer: CapturedLayer,
        module: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> Tensor:
        self._released_input = None
        if not self._is_captured(layer):
            return output
        rule = layer.rule
        assert isinstance(rule, Factors)
        bias_name = layer.names.get("bias")
        weight_name = layer.names.get("weight")
        kept = None
        if weight_name:
            x = _layer_input(args, kwargs).detach()
            size = module.weight.numel()
            sides = self._projection.sides(weight_name, *rule.widths(module), size, x)
            kept = rule.inputs(module, x, sides.inputs)
            self._watch(kept)

        def on_backward(delta: Tensor) -> None:
            count = self._sample_rows.per_sample(layer.path, delta)
            if not count:
                return
            if bias_name:
                self._add(bias_name, rule.bias(delta), count)
            if weight_name is None or kept is None:
                return
            inputs = kept
            outputs = rule.outputs(module, delta, sides.outputs)
            if rule.joins_rows and count > 1:
                inputs, outputs = _join_rows(inputs, count), _join_rows(outputs, count)
                count = 1
            samples = len(inputs) // count
            # Whole weight gradients are large: they are made for a few samples at a time.
            parts = _sample_slices(samples, size * count) if sides == WHOLE else [slice(samples)]
            for part in parts:
                rows = slice((part.start or 0) * count, part.stop * count)
                # No name for the gradients: they are gone before the next ones are made.
                self._add(
                    weight_name, rule.weight(module, inputs[rows], outputs[rows]), count, part
                )

        return _on_backward(output, on_backward)

    def _after_direct_layer(
        self,
        layer: CapturedLayer,
        module: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> Tensor:
        if not self._is_captured(layer):
            return output
        rule: Any = layer.rule
        x = _layer_input(args, kwargs).detach()

        def on_backward(delta: Tensor) -> None:
            count = self._sample_rows.per_sample(layer.path, delta)
            if not count:
                return
            for local_name, gradients in rule(module, x, delta).items():
                if local_name in layer.names:
                    self._add(layer.names[local_name], gradients, count)

        return _on_backward(output, on_backward)

    def _forward_copies(self, layer: CapturedLayer, *args: Any, **kwargs: Any) -> Tensor:
        x = _layer_input(args, kwargs)
        if not self._is_captured(layer):
            return type(layer.module).forward(layer.module, x)
        rule = layer.rule
        assert isinstance(rule, Copies)

        def on_backward(local_name: str, gradients: Tensor) -> None:
            count = self._sample_rows.per_sample(layer.path, gradients)
            if count:
                self._add(layer.names[local_name], gradients, count)

        copies = {}
        for local_name, value in layer.module.named_parameters(recurse=False):
            copy = value.detach().expand(len(x), *value.shape).contiguous()
            if local_name in layer.names:
                copy.requires_grad_().register_hook(partial(on_backward, local_name))
            copies[local_name] = copy
        return rule.forward(layer.module, x, copies["weight"], copies.get("bias"))

    def _is_captured(self, layer: CapturedLayer) -> bool:
        """Note that a layer was called, and return whether autograd keeps anything there."""
        if torch.is_grad_enabled():
            self.called.add(layer.path)
            return True
        self.called_without_gradient.add(layer.path)
        return False

    # What autograd keeps between the passes.

    def _pack(self, tensor: Tensor) -> Any:
        """What is kept of a tensor that autograd wants: of a released input, its shape alone."""
        if tensor.data_ptr() == self._released_input:
            return tensor.new_empty(()), tensor.shape
        self._watch(tensor)
        # Of the layer's output, which its own graph node may keep, only the numbers: node and
        # output would hold each other, and without a backward pass nothing would free them.
        return tensor.detach()

    # The backward pass.

    def _add(
        self, name: str, gradients: Tensor, count: int = 1, samples: slice = slice(None)
    ) -> None:
        """Add a parameter's gradients [n·count, …] into the rows of these samples."""
        assert self._rows is not None
        gradients = gradients.flatten(1).float()
        if count > 1:
            gradients = gradients.unflatten(0, (-1, count)).sum(1)
        self._projection.add(self._rows[samples], name, gradients)


def _layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a layer is called with, by place or by name."""
    return args[0] if args else next(iter(kwargs.values()))


def _join_rows(factor: Tensor, count: int) -> Tensor:
    """The rows of each sample as its positions, [n·count, s, …] → [n, count·s, …]."""
    return factor.reshape(-1, count * factor.shape[1], *factor.shape[2:])


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

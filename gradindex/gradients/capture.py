"""Hooks that turn each layer's input and output gradient into projected rows, one per sample.

The weights stay frozen, so that autograd skips the weight gradients, a third of a training step. A
layer's input is projected already in the forward pass and autograd is kept from holding on to it,
so that less memory is needed than in training.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from gradindex.errors import ModelError
from gradindex.gradients.by_autograd import ByAutograd
from gradindex.gradients.captured_layers import (
    captured_layers,
    require_separate_samples,
)
from gradindex.gradients.findings import findings_of, shrinking_layer
from gradindex.gradients.layer_hooks import WEIGHT_GRADIENT_NUMBERS, LayerHooks
from gradindex.gradients.layers import Factors, shrink_weight_gradient
from gradindex.gradients.projection import Projection
from gradindex.gradients.sample_count import SampleCount
from gradindex.gradients.sample_rows import SampleRows
from gradindex.models.devices import plain_torch

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
#
# Where the first pass shows that this does not fit some parameter (findings.py), the hooks are put
# on anew and the pass is repeated: a layer that was not called has its parameters followed as bare
# ones; a bare parameter that cannot be followed, or a layer whose rows are not the samples'
# (sample_rows.py), is left to autograd (by_autograd.py).


class Capture:
    """Hooks on a frozen model, for the length of a `with` block.

    Args:
        model: a module whose parameters all have `requires_grad=False`, best called with the
            samples first: their number is then known at once (see `SampleCount`).
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
        require_separate_samples(model)
        self.model = model
        self.projection = projection
        self.watch: Callable[[Tensor], object] = lambda tensor: None
        self._layers = list(captured_layers(model, set(names)))
        self._names = {name for layer in self._layers for name in layer.names.values()}
        self._findings = findings_of(model)
        self._count = SampleCount()
        self._sample_rows = SampleRows(self._findings)
        self._hooks = LayerHooks(
            projection,
            self._sample_rows,
            samples=lambda: self._count.samples,
            watch=lambda tensor: self.watch(tensor),
            on_unknown=self._findings.by_autograd.add,
        )
        self._by_autograd = ByAutograd({})

    @property
    def takes_single_samples(self) -> bool:
        """Whether batches of one are the cheapest, as far as the passes until now have shown."""
        return bool(self._names & self._findings.by_autograd)

    def __enter__(self) -> Self:
        self._install()
        return self

    def __exit__(
        self,
        exception_type: type | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    @plain_torch()
    def gradients(self, losses: Callable[[], Tensor], scale: float = 1) -> Tensor:
        """Return the projected gradient of every sample, [n, D] float32.

        Args:
            losses: runs the model and returns the loss of every sample, [n]; called again where a
                pass shows that a parameter must be captured in another way.
            scale: the backward pass runs on losses this much larger, against underflow in float16.

        Raises:
            ModelError: a layer with chosen parameters runs under torch.no_grad.
        """
        while True:
            rows = self._run(losses, scale)
            if rows is not None:
                return rows if scale == 1 else rows / scale
            self._remove()
            self._install()

    def _install(self) -> None:
        """Put the hooks on, by what is known of the model until now."""
        self._findings.spread(self._layers)
        by_autograd = self._findings.by_autograd
        layers = []
        for layer in self._layers:
            names = {key: name for key, name in layer.names.items() if name not in by_autograd}
            is_followed = layer.path in self._findings.passed_over
            if names:
                rule = None if is_followed else layer.rule
                layers.append(replace(layer, rule=rule, names=names))
        parameters = {
            name: self.model.get_parameter(name) for name in sorted(self._names & by_autograd)
        }
        self._by_autograd = ByAutograd(parameters, WEIGHT_GRADIENT_NUMBERS)
        self._hooks.install(self.model, layers, self._count.count)

    def _remove(self) -> None:
        """Take the hooks off and freeze all parameters again."""
        self._hooks.remove()
        self._by_autograd.close()

    def _run(self, losses: Callable[[], Tensor], scale: float) -> Tensor | None:
        """One forward and backward pass; None where they showed something and must be repeated."""
        known = self._findings.size
        with torch.enable_grad():
            with self._hooks.forward():
                loss = losses()
            self._require_gradients()
            self._findings.passed_over |= self._hooks.not_called()
            if self._findings.size > known:
                return None
            # The count matters to bare parameters alone.
            if not self._count.is_right(len(loss)) and self._hooks.follows_bare_parameters:
                return None
            rows = torch.zeros(len(loss), self.projection.dim, device=loss.device)
            if loss.requires_grad:  # not when no chosen parameter was used
                self._backward(loss * scale if scale != 1 else loss, rows)
        unfit = self._sample_rows.unfit
        if unfit or self._sample_rows.doubtful:
            self._leave_to_autograd(unfit)
            unfit.clear()
            return None
        return rows

    def _backward(self, losses: Tensor, rows: Tensor) -> None:
        """Add every sample's gradient into the rows, by the hooks and by autograd."""
        self._sample_rows.samples = len(losses)
        if self._sample_rows.doubtful:
            self._sample_rows.prove(losses)
            self._by_autograd.clear()
            if self._sample_rows.unfit:
                return
        if len(losses) > 1 and self.takes_single_samples:
            for samples, name, gradients in self._by_autograd.several(losses):
                self._add_whole(rows[samples], name, gradients)
        with self._hooks.backward(rows):
            losses.sum().backward()
        if len(losses) == 1:
            for name, gradients in self._by_autograd.single():
                self._add_whole(rows, name, gradients)
        self._by_autograd.clear()

    def _add_whole(self, rows: Tensor, name: str, gradients: Tensor) -> None:
        """Add gradients [n, *shape] that autograd took into the rows [n, D]."""
        gradients = gradients.float()
        layer = shrinking_layer(self._layers, name)
        if layer is None:
            self.projection.add(rows, name, gradients.flatten(1))
            return
        rule, module = layer.rule, layer.module
        assert isinstance(rule, Factors)
        size = module.weight.numel()
        sides = self.projection.sides(name, *rule.widths(module), size, module.weight)
        shrunk = shrink_weight_gradient(rule, module, gradients, sides.outputs, sides.inputs)
        self.projection.add(rows, name, shrunk)

    def _leave_to_autograd(self, paths: set[str]) -> None:
        """Have autograd take the gradients of these layers from now on."""
        for layer in self._layers:
            if layer.path in paths:
                self._findings.by_autograd.update(layer.names.values())

    def _require_gradients(self) -> None:
        """Raise ModelError if a layer ran where autograd keeps nothing."""
        paths = sorted(self._hooks.called_without_gradient - self._hooks.called)
        if paths:
            others = f" and {len(paths) - 3} others" if len(paths) > 3 else ""
            raise ModelError(
                f"the model runs {', '.join(paths[:3])}{others} under torch.no_grad, where"
                " gradients end: leave them out with params"
            )

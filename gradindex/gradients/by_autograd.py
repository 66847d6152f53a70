"""Gradients that autograd itself takes, one sample after the other, of parameters without a rule.

Such are weights that are made of several parameters (the LoHa, LoKr, OFT and AdaLoRA adapters), or
handed to a function of several inputs. Each sample takes a backward pass of the whole batch, so
that a batch of one is the cheapest: there the pass that the hooks listen to gives both.
"""

import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

# Samples whose gradients run through one batched backward pass: each has activations of its own.
BATCHED_SAMPLES = 8


class ByAutograd:
    """The parameters that autograd takes the gradients of; they require grad until `close`.

    Args:
        parameters: {name: parameter}.
        numbers: of gradients in memory at once; those of one sample always are.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], numbers: int = 0) -> None:
        self._parameters = dict(parameters)
        size = sum(parameter.numel() for parameter in self._parameters.values())
        self._step = min(max(1, numbers // max(1, size)), BATCHED_SAMPLES)
        self._is_batched = True  # until an operation turns out to have no batching rule
        for parameter in self._parameters.values():
            parameter.requires_grad_()

    def close(self) -> None:
        """Freeze the parameters again."""
        self.clear()
        for parameter in self._parameters.values():
            parameter.requires_grad_(False)

    def clear(self) -> None:
        """Let go of what a backward pass has added up."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def single(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, gradient [1, *shape]) after the backward pass of a batch of one sample."""
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                yield name, parameter.grad[None]
        self.clear()

    def several(self, losses: Tensor) -> Iterator[tuple[slice, str, Tensor]]:
        """Yield (samples, name, their gradients [samples, *shape]) of a batch; keeps its graph.

        Args:
            losses: [n], one for each sample.
        """
        for start in range(0, len(losses), self._step):
            samples = slice(start, min(start + self._step, len(losses)))
            gradients = self._of_samples(losses, samples)
            for name, gradient in zip(self._parameters, gradients, strict=True):
                if gradient is not None:  # not where the losses do not depend on it
                    yield samples, name, gradient

    def _of_samples(self, losses: Tensor, samples: slice) -> list[Tensor | None]:
        """The gradients of some samples' losses, [samples, *shape] of each parameter."""
        parameters = list(self._parameters.values())
        selections = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)[samples]
        if self._is_batched and len(selections) > 1:
            try:
                return _batched_gradients(losses, parameters, selections)
            except torch.OutOfMemoryError:
                raise
            except Exception:
                # An operation without a batching rule raises one error or another. Where the fault
                # is another one, the loop meets it again.
                self._is_batched = False
        rows = [
            torch.autograd.grad(losses, parameters, selection, retain_graph=True, allow_unused=True)
            for selection in selections
        ]
        return [None if part[0] is None else torch.stack(part) for part in zip(*rows, strict=True)]


def _batched_gradients(
    losses: Tensor, parameters: list[nn.Parameter], selections: Tensor
) -> list[Tensor | None]:
    """The gradients of `selections @ losses`, all in one backward pass."""
    with warnings.catch_warnings():
        # Of an operation that torch runs one sample at a time: slower, as right.
        warnings.filterwarnings("ignore", "There is a performance drop")
        gradients = torch.autograd.grad(
            losses,
            parameters,
            selections,
            retain_graph=True,
            is_grads_batched=True,
            allow_unused=True,
        )
    return list(gradients)

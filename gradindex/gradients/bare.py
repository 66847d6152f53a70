"""Parameters that a block holds itself and uses in its own forward: scale-shift tables, learned positions, gates.

No layer is called with them, so no hook sees them. In their place the block gets a tensor that is followed through
functions of itself alone, up to the operation that brings it together with the samples. There every sample receives
a copy of its own, and autograd keeps their gradients apart.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

SPREAD = {"expand", "expand_as", "broadcast_to", "repeat", "tile"}
ELEMENTWISE = {"add", "sub", "mul", "div", "truediv", "subtract", "multiply", "divide", "true_divide"}


class Watch(NamedTuple):
    """What happens to one parameter."""

    samples: Callable[[], int]  # the batch size of the running forward pass
    caught: Callable[[Tensor], None]  # called with the gradient of every sample, [n, *parameter.shape]
    unknown: Callable[[str], None]  # called with the name of an operation that cannot be followed


class BareParameter(Tensor):
    """A parameter, or what a block has made of it so far."""

    parameter: Tensor  # what it stands in for
    watch: Watch
    root: Tensor
    derive: Callable[[Tensor], Tensor]  # root → this tensor

    @classmethod
    def follow(cls, value: Tensor, root: Tensor, derive: Callable[[Tensor], Tensor], watch: Watch) -> "BareParameter":
        self = value.detach().as_subclass(cls)
        self.root, self.derive, self.watch = root, derive, watch
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.strip("_")
        values = [*args, *kwargs.values()]
        flat = [part for value in values for part in (value if isinstance(value, (tuple, list)) else [value])]
        with torch._C.DisableTorchFunctionSubclass():
            watched = [value for value in flat if isinstance(value, cls)]
            own = watched[0]

            def call(value: Tensor) -> Any:
                changed = {key: value if arg is own else arg for key, arg in kwargs.items()}
                return func(*(value if arg is own else arg for arg in args), **changed)

            plain = own.as_subclass(Tensor)
            tensors = [value for value in flat if isinstance(value, Tensor)]
            if name == "getitem" or all(value is own for value in tensors):
                return own._followed(call, name, call(plain))
            operation = name[1:] if name[1:] in ELEMENTWISE else name  # iadd, radd
            if operation in ELEMENTWISE and len(watched) == 1:
                whole = torch.broadcast_shapes(*(value.shape for value in tensors))
                shape = (1,) * (len(whole) - own.dim()) + own.shape
                if shape[0] == 1 and whole[0] == own.watch.samples():
                    return call(own._copies(lambda root: own.derive(root).reshape(shape)[0]))
            own.watch.unknown(name)
            return call(plain)

    def _followed(self, call: Callable[[Tensor], Any], name: str, result: Any) -> Any:
        """The result of a function of this tensor alone: followed, or copies if it was spread over the samples."""
        if isinstance(result, (tuple, list)):
            parts = [
                self._followed(lambda value, place=place: call(value)[place], name, part)  # type: ignore[misc]
                for place, part in enumerate(result)
            ]
            return type(result)(parts)
        if not isinstance(result, Tensor):
            return result
        one = self.dim() < result.dim() or (self.dim() > 0 and len(self) == 1)
        if name in SPREAD and one and len(result) == self.watch.samples():
            return self._copies(lambda root: call(self.derive(root))[0])
        return self.follow(result, self.root, lambda root: call(self.derive(root)), self.watch)

    def _copies(self, derive: Callable[[Tensor], Tensor]) -> Tensor:
        """One copy of `derive(root)` for every sample, [n, …], their gradients caught."""
        count = self.watch.samples()
        value = derive(self.root)
        copies = value.expand(count, *value.shape).detach().requires_grad_()

        def caught(delta: Tensor) -> None:
            with torch.enable_grad():
                root = self.root.detach().requires_grad_()
                gradients = torch.autograd.grad(derive(root), root, delta, is_grads_batched=True)[0]
            self.watch.caught(gradients)

        copies.register_hook(caught)
        return copies

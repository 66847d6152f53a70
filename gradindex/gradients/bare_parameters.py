"""Parameters that a block holds itself and uses in its own forward.

Such are scale-shift tables, learned positions and gates. No layer is called with them, so no hook
sees them. In their place the block gets a `BareParameter`, a tensor that is followed through
functions of itself alone (`derive` composes them) up to the operation that brings it together with
the samples. There every sample receives a copy of its own, autograd keeps the copies' gradients
apart, and each is taken back through `derive` to the parameter.

An operation that is neither a function of the parameter alone, nor spreads it over the samples, nor
combines it with them element by element, cannot be followed: it is reported by its name.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Operations that repeat a tensor along its first axis.
SPREADING = {"expand", "expand_as", "broadcast_to", "repeat", "tile"}
# Operations that combine two tensors element by element, as torch names them.
ELEMENTWISE = {
    "add",
    "sub",
    "mul",
    "div",
    "truediv",
    "subtract",
    "multiply",
    "divide",
    "true_divide",
}


class Watch(NamedTuple):
    """What happens to one parameter.

    Attributes:
        batch_size: returns n of the running forward pass.
        on_gradients: called with the gradient of every sample, [n, *parameter.shape].
        on_unknown: called with the name of an operation that cannot be followed.
    """

    batch_size: Callable[[], int]
    on_gradients: Callable[[Tensor], None]
    on_unknown: Callable[[str], None]


class BareParameter(Tensor):
    """A parameter, or what a block has made of it so far.

    Attributes:
        parameter: the parameter that it stands in for; only where it stands in its place.
        root: the parameter's values.
        derive: root → this tensor.
        watch: whom to tell.
    """

    parameter: Tensor
    root: Tensor
    derive: Callable[[Tensor], Tensor]
    watch: Watch

    @classmethod
    def follow(
        cls, value: Tensor, root: Tensor, derive: Callable[[Tensor], Tensor], watch: Watch
    ) -> "BareParameter":
        """Return `value`, which is `derive(root)`, as a tensor that is followed."""
        followed = value.detach().as_subclass(cls)
        followed.root = root
        followed.derive = derive
        followed.watch = watch
        return followed

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation that one of these tensors takes part in; torch calls this."""
        kwargs = kwargs or {}
        name = func.__name__.strip("_")  # __getitem__, add_
        arguments = _flatten([*args, *kwargs.values()])
        with torch._C.DisableTorchFunctionSubclass():
            bare_parameters = [value for value in arguments if isinstance(value, cls)]
            this = bare_parameters[0]

            def call(value: Tensor) -> Any:
                """The operation, with `value` in this tensor's place."""
                replaced = [value if argument is this else argument for argument in args]
                named = {key: value if arg is this else arg for key, arg in kwargs.items()}
                return func(*replaced, **named)

            plain = this.as_subclass(Tensor)
            tensors = [value for value in arguments if isinstance(value, Tensor)]
            is_alone = all(value is this for value in tensors)
            # An index may be a tensor too, but not one of the samples.
            if is_alone or name == "getitem":
                return this._follow_result(call, name, call(plain))
            if _is_elementwise(name) and len(bare_parameters) == 1:
                broadcast = torch.broadcast_shapes(*(value.shape for value in tensors))
                # The shape of this tensor with as many axes as the result. Where the result's
                # first axis is that of the samples and this tensor does not have it, every sample
                # meets a copy.
                shape = (1,) * (len(broadcast) - this.dim()) + this.shape
                if shape[0] == 1 and broadcast[0] == this.watch.batch_size():
                    return call(this._copy(lambda root: this.derive(root).reshape(shape)[0]))
            this.watch.on_unknown(name)
            return call(plain)

    def _follow_result(self, call: Callable[[Tensor], Any], name: str, result: Any) -> Any:
        """The result of a function of this tensor alone, followed.

        Where the function spread it over the samples: one copy for each, not followed any more.
        """
        if isinstance(result, (tuple, list)):
            parts = []
            for number, part in enumerate(result):
                part_call = partial(_call_for_part, call, number)
                parts.append(self._follow_result(part_call, name, part))
            return type(result)(parts)
        if not isinstance(result, Tensor):
            return result  # a shape, a dtype, …
        has_no_sample_axis = self.dim() < result.dim() or (self.dim() > 0 and len(self) == 1)
        if name in SPREADING and has_no_sample_axis and len(result) == self.watch.batch_size():
            return self._copy(lambda root: call(self.derive(root))[0])
        return self.follow(result, self.root, lambda root: call(self.derive(root)), self.watch)

    def _copy(self, derive: Callable[[Tensor], Tensor]) -> Tensor:
        """One copy of `derive(root)` for every sample, [n, …]; their gradients are reported."""
        count = self.watch.batch_size()
        value = derive(self.root)
        copies = value.expand(count, *value.shape).detach().requires_grad_()

        def on_backward(delta: Tensor) -> None:
            # From the gradients of the copies to those of the parameter, all samples at once.
            with torch.enable_grad():
                root = self.root.detach().requires_grad_()
                gradients = torch.autograd.grad(derive(root), root, delta, is_grads_batched=True)[0]
            self.watch.on_gradients(gradients)

        copies.register_hook(on_backward)
        return copies


def _flatten(arguments: list[Any]) -> list[Any]:
    """The arguments, with the parts of tuples and lists in their places."""
    flat: list[Any] = []
    for argument in arguments:
        if isinstance(argument, (tuple, list)):
            flat.extend(argument)
        else:
            flat.append(argument)
    return flat


def _is_elementwise(name: str) -> bool:
    """Whether an operation is elementwise, in place (iadd) or reflected (radd) too."""
    return name in ELEMENTWISE or name[1:] in ELEMENTWISE


def _call_for_part(call: Callable[[Tensor], Any], number: int, value: Tensor) -> Any:
    return call(value)[number]

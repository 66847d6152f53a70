"""Parameters that a block holds itself and uses in its own forward.

Such are scale-shift tables, learned positions and gates. No layer is called with them, so no hook
sees them. In their place the block gets a `BareParameter`, a tensor that is followed through
functions of itself alone (`derive` composes them) up to the operation that brings it together with
the samples. There every sample receives a copy of its own, autograd keeps the copies' gradients
apart, and each is taken back through `derive` to the parameter.

Constants of the parameter's own shape, such as the norms that a DoRA adapter divides its magnitudes
by, belong to the functions of itself alone. An operation of any other kind cannot be followed: the
parameter is reported, and autograd takes its gradients (by_autograd.py).
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
    "where",
}
# Norms, and the names of their arguments in order. The scale and shift that they are handed are
# multiplied and added after the norm.
NORM_ARGUMENTS = {
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
}


class Watch(NamedTuple):
    """What happens to one parameter.

    Attributes:
        batch_size: returns n of the running forward pass.
        on_gradients: called with the gradient of every sample, [n, *parameter.shape].
        on_unknown: called where an operation cannot be followed.
        is_open: returns whether gradients are taken in the running backward pass.
    """

    batch_size: Callable[[], int]
    on_gradients: Callable[[Tensor], None]
    on_unknown: Callable[[], object]
    is_open: Callable[[], bool]


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
        norm = _norm_arguments(name, args, kwargs)
        if norm is not None:
            return _scale_after_norm(func, **norm)
        with torch._C.DisableTorchFunctionSubclass():
            bare_parameters = [value for value in arguments if isinstance(value, cls)]
            this = bare_parameters[0]

            def call(value: Tensor) -> Any:
                """The operation, with `value` in this tensor's place."""
                replaced = [_replace(argument, this, value) for argument in args]
                named = {key: _replace(arg, this, value) for key, arg in kwargs.items()}
                return func(*replaced, **named)

            plain = this.as_subclass(Tensor)
            tensors = [value for value in arguments if isinstance(value, Tensor)]
            is_alone = all(value is this for value in tensors)
            if name == "detach" or func == Tensor.data.__get__:  # type: ignore[attr-defined]
                return call(plain)
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
                # After the copies: what meets a batch of one sample may be that sample.
                are_constants = not any(value.requires_grad for value in tensors)
                if are_constants and broadcast == this.shape:
                    return this._follow_result(call, name, call(plain))
            for bare in bare_parameters:
                bare.watch.on_unknown()
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
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result  # a shape, a dtype, a mask, …
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
            if not self.watch.is_open():
                return
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


def _replace(argument: Any, old: Tensor, new: Tensor) -> Any:
    """An argument with one tensor in another's place, in a tuple or list too."""
    if isinstance(argument, (tuple, list)) and any(part is old for part in argument):
        return type(argument)([new if part is old else part for part in argument])
    return new if argument is old else argument


def _norm_arguments(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any] | None:
    """A norm's arguments by name where bare parameters scale or shift it; else None."""
    names = NORM_ARGUMENTS.get(name, ())
    if len(args) > len(names):
        return None
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    if set(named) - set(names) or isinstance(named.get("input"), BareParameter):
        return None
    return named or None


def _scale_after_norm(func: Any, **named: Any) -> Tensor:
    """The norm without scale and shift, which are then multiplied and added."""
    weight, bias = named.pop("weight", None), named.pop("bias", None)
    output = func(**named)
    if weight is not None:
        output = output * weight
    return output if bias is None else output + bias


def _is_elementwise(name: str) -> bool:
    """Whether an operation is elementwise, in place (iadd) or reflected (radd) too."""
    return name in ELEMENTWISE or name[1:] in ELEMENTWISE


def _call_for_part(call: Callable[[Tensor], Any], number: int, value: Tensor) -> Any:
    return call(value)[number]

"""In which order a model uses its parameters, seen in one forward pass.

The order in which modules are registered is another one: diffusers' UNets register their middle
block after the last, and PixArt its embeddings after its output layers.
"""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradindex.errors import ModelError
from gradindex.gradients.events import timestep_array
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import plain_torch

# Of each model that was looked at: a pass is worth a third of a gradient.
_ORDERS: MutableMapping[nn.Module, tuple[str, ...]] = WeakKeyDictionary()


def order_of_use(denoiser: Denoiser) -> tuple[str, ...]:
    """Return the names of a model's parameters in the order in which each is first used.

    Parameters that no forward pass uses are left out.

    Args:
        denoiser: its model has no hooks of a `Capture`.

    Raises:
        ModelError: the model does not run on an example of its own shape.
    """
    if denoiser.model not in _ORDERS:
        _ORDERS[denoiser.model] = _observe(denoiser)
    return _ORDERS[denoiser.model]


@plain_torch()
@torch.no_grad()
def _observe(denoiser: Denoiser) -> tuple[str, ...]:
    """Run the model on one example of zeros and note which parameters it uses."""
    image, device = denoiser.description.image, denoiser.device
    x = torch.zeros(1, *image, device=device)
    t = torch.from_numpy(timestep_array(denoiser.process.grid(1))).to(device)
    conditions = denoiser.random_conditions(1, image)
    names = {id(parameter): name for name, parameter in denoiser.model.named_parameters()}
    try:
        with _FirstUses(names) as uses:
            denoiser.losses(x, t, torch.zeros_like(x), conditions, "mse")
    except torch.OutOfMemoryError as error:
        raise ModelError("one picture does not fit into the device's memory") from error
    return tuple(uses.order)


class _FirstUses(TorchFunctionMode):
    """Notes which parameters torch's functions are called with, inside its `with` block.

    Args:
        names: {id of a parameter: its name}.

    Attributes:
        order: the names, by first use; a dictionary for its order.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.order: dict[str, None] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch, which calls this in its place."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # Who asks a parameter for its dtype or shape does not use it.
        if any(isinstance(value, Tensor) for value in _flat([result])):
            for value in _flat([*args, *kwargs.values()]):
                if id(value) in self._names:
                    self.order.setdefault(self._names[id(value)])
        return result


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """The values, those in lists and tuples too."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value

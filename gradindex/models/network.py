"""A configuration and weight files become a network, with one copy of the weights in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, get_ident
from typing import Any

import torch
from torch import Tensor, nn

from gradindex.errors import ModelError, first_line
from gradindex.models.original_layout import is_original, to_diffusers
from gradindex.models.weights import check_weights, read_weights, with_todays_names

_making = Lock()  # networks are made one after the other, see `_without_weights`


def make_network(
    model_class: Any,
    arguments: dict[str, Any],
    config_file: Path,
    files: Sequence[Path],
    dtype: torch.dtype,
    origin: Path,
    *,
    with_weights: bool = True,
) -> Any:
    """Return the model of a configuration with the weights in some files.

    It is made without memory first, so that a config.json of a giant is refused by its shapes. Then
    the weights take their places one by one, each in `dtype`.

    Args:
        model_class: a class of diffusers. arguments: of it. config_file: where they are from.
        files: one, or the shards of one model.
        dtype: of the weights. origin: the checkpoint, for errors.
        with_weights: False: weights are checked all the same, one by one, and the model has none.

    Raises:
        ModelError: the configuration makes no model, or the weights are not its own, or not finite.
    """
    weights = read_weights(files)
    if is_original(weights):
        weights = to_diffusers(weights, model_class, arguments, files[0])
    _require_fewer_layers(arguments, len(weights), config_file, files[0])
    try:
        with torch.device("meta"):
            network = model_class.from_config(arguments)
    except Exception as error:  # diffusers and torch raise a dozen kinds
        raise ModelError(f"{config_file}: does not make a model ({first_line(error)})") from error
    expected = network.state_dict()
    weights = with_todays_names(weights, expected)
    check_weights(weights, expected, files[0])
    if not with_weights:
        for name, weight in weights.items():
            is_parameter = isinstance(_place(network, name)[1], nn.Parameter)
            _converted(name, weight, dtype if is_parameter else expected[name].dtype, dtype, origin)
        return network
    try:
        # What is drawn at random is replaced: the caller's random numbers stay what they were.
        with torch.random.fork_rng(devices=[]), _without_weights():
            network = model_class.from_config(arguments)
    except Exception as error:
        raise ModelError(f"{files[0]}: cannot be loaded ({first_line(error)})") from error
    _fill(network, weights, dtype, origin)
    return network


def _require_fewer_layers(
    arguments: dict[str, Any], weights: int, config_file: Path, file: Path
) -> None:
    """Raise ModelError where a config.json asks for more layers than a file has weights.

    To make them would take endless time.
    """
    for name, value in arguments.items():
        if "layers" not in name:
            continue
        for layers in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(layers, int) and layers > weights:
                raise ModelError(
                    f"{config_file}: {name} = {layers}, but {file} holds {weights} weights in all"
                )


@contextmanager
def _without_weights() -> Iterator[None]:
    """Have modules that this thread makes meanwhile hold parameters without memory.

    Buffers are real: many are not in weight files but computed, such as places of patches.
    """
    register, maker = nn.Module.register_parameter, get_ident()

    def register_without_memory(
        module: nn.Module, name: str, parameter: nn.Parameter | None
    ) -> None:
        is_here = get_ident() == maker
        if is_here and parameter is not None and not parameter.is_meta:  # a shared one stays it
            requires_grad = parameter.requires_grad
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=requires_grad)
        register(module, name, parameter)

    with _making:
        nn.Module.register_parameter = register_without_memory  # type: ignore
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore


def _fill(network: nn.Module, weights: dict[str, Tensor], dtype: torch.dtype, origin: Path) -> None:
    """Put weights into their places in a precision, and let go of them one by one.

    Raises:
        ModelError: one is not finite, as it is or in that precision.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}  # {without memory: filled}, for shared ones
    for name in list(weights):
        weight = weights.pop(name)
        owner, empty = _place(network, name)
        is_parameter = isinstance(empty, nn.Parameter)
        value = _converted(name, weight, dtype if is_parameter else empty.dtype, dtype, origin)
        if isinstance(empty, nn.Parameter):
            if empty not in made:
                made[empty] = nn.Parameter(value, requires_grad=empty.requires_grad)
            value = made[empty]
        setattr(owner, name.rpartition(".")[2], value)


def _place(network: nn.Module, name: str) -> tuple[nn.Module, Tensor]:
    """The module that has a weight, and what is there until the weight is."""
    owner_name, _, place = name.rpartition(".")
    owner = network.get_submodule(owner_name)
    return owner, getattr(owner, place)


def _converted(
    name: str, weight: Tensor, own_dtype: torch.dtype, dtype: torch.dtype, origin: Path
) -> Tensor:
    """A weight in a precision, or a buffer in its own.

    Raises:
        ModelError: it is not finite.
    """
    # A copy: what was read may be the file itself, which may change.
    value = weight.to(own_dtype, copy=True)
    if not value.isfinite().all():
        raise _not_finite(name, weight, dtype, origin)
    return value


def _not_finite(name: str, weight: Tensor, dtype: torch.dtype, origin: Path) -> ModelError:
    """The error of a weight that is not finite in a precision, or never was."""
    if not weight.double().isfinite().all():
        return ModelError(f"{origin}: weights {name!r} hold NaN or infinity")
    return ModelError(
        f"{origin}: weights {name!r} are beyond what {str(dtype).removeprefix('torch.')} holds;"
        " give dtype bfloat16 or float32"
    )

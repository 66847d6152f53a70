"""Which layers of a model a capture must put hooks on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from gradindex.errors import ModelError
from gradindex.gradients.layers import Rule, mixes_samples, rule_of


@dataclass(frozen=True)
class CapturedLayer:
    """A module with chosen parameters of its own.

    Attributes:
        path: its name in the model.
        module: the layer.
        rule: of the layer; None where the parameters are followed as bare ones.
        names: {a parameter's name in the module: its name in the model}, of the chosen ones.
    """

    path: str
    module: Any
    rule: Rule | None
    names: dict[str, str]


def captured_layers(model: nn.Module, chosen: set[str]) -> Iterator[CapturedLayer]:
    """Yield every module with chosen parameters of its own.

    A parameter that several modules share is captured at each of them, under its one name in the
    model: its gradient is the sum.

    Args:
        chosen: the parameters, as `model.named_parameters()` calls them.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    >>> [(layer.path, layer.names) for layer in captured_layers(model, {"2.weight"})]
    [('2', {'weight': '2.weight'})]
    """
    model_names = {id(parameter): name for name, parameter in model.named_parameters()}
    for path, module in model.named_modules():
        names = {}
        for local_name, parameter in module.named_parameters(recurse=False):
            if model_names[id(parameter)] in chosen:
                names[local_name] = model_names[id(parameter)]
        if names:
            # Rules are for weight and bias. A subclass that adds a third parameter uses it itself.
            rule = rule_of(module) if names.keys() <= {"weight", "bias"} else None
            yield CapturedLayer(path, module, rule, names)


def require_separate_samples(model: nn.Module) -> None:
    """Raise ModelError where a model's settings give no sample a gradient of its own."""
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

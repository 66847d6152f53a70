"""What the first passes through a model showed of it, for all captures of that model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import nn

from gradindex.gradients.captured_layers import CapturedLayer
from gradindex.gradients.layers import Factors


@dataclass
class Findings:
    """How a model uses its parameters where no rule fits.

    Attributes:
        by_autograd: the parameters whose gradients autograd itself must take.
        passed_over: layers with a rule that a pass did not call. Their parameters may be used by a
            function; they are followed as bare ones.
        rows_per_sample: (layer, k) where it is proved that a layer is called with k rows for each
            sample, those of a sample one after the other.
        is_unrepeatable: no graph can run it (graphs.py).
    """

    by_autograd: set[str] = field(default_factory=set)
    passed_over: set[str] = field(default_factory=set)
    rows_per_sample: set[tuple[str, int]] = field(default_factory=set)
    is_unrepeatable: bool = False

    @property
    def size(self) -> int:
        """How much was found: it only grows."""
        return len(self.by_autograd) + len(self.passed_over) + len(self.rows_per_sample)

    def spread(self, layers: Sequence[CapturedLayer]) -> None:
        """Have autograd take all parameters of a layer with a rule where it takes one of them.

        A parameter that another layer shares brings that one along. So does a weight that two
        layers with different rules share: their projections of it would differ.
        """
        rules: dict[str, set[int]] = {}
        for layer in layers:
            for name in layer.names.values():
                rules.setdefault(name, set()).add(id(layer.rule))
        self.by_autograd |= {name for name, users in rules.items() if len(users) > 1}
        while True:
            before = len(self.by_autograd)
            for layer in layers:
                names = set(layer.names.values())
                if layer.rule is not None and names & self.by_autograd:
                    self.by_autograd |= names
            if len(self.by_autograd) == before:
                return


_FINDINGS: WeakKeyDictionary[nn.Module, Findings] = WeakKeyDictionary()


def findings_of(model: nn.Module) -> Findings:
    """Return what is known of a model; every capture of it in this process adds to the same.

    >>> model = nn.Linear(2, 1)
    >>> findings_of(model).by_autograd.add("weight")
    >>> findings_of(model).by_autograd
    {'weight'}
    """
    return _FINDINGS.setdefault(model, Findings())


def shrinking_layer(layers: Sequence[CapturedLayer], name: str) -> CapturedLayer | None:
    """Return the layer whose rule would let a projection shrink this parameter's gradient."""
    for layer in layers:
        if isinstance(layer.rule, Factors) and layer.names.get("weight") == name:
            return layer
    return None

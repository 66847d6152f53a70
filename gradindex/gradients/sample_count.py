"""How many samples a call of a model has, known before its loss is."""

from typing import Any

from torch import Tensor


class SampleCount:
    """The length of the model's first argument that is a tensor, until a loss tells otherwise.

    Then that of the first argument as long as the loss has samples. So a model is best called with
    the noisy samples first: nothing is run twice then.

    Attributes:
        samples: of the running pass.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._source: int | str | None = None  # place or name of the argument; None: the first
        self._lengths: dict[int | str, int] = {}  # of the running call
        self._told = 0  # by the last loss, where no argument has that length

    def count(self, model: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count the samples of a call; a forward pre-hook of the model."""
        arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        self._lengths = {
            key: len(value)
            for key, value in arguments
            if isinstance(value, list) or (isinstance(value, Tensor) and value.dim() > 0)
        }
        first = next(iter(self._lengths.values()), 0)
        self.samples = self._told or self._lengths.get(self._source, first)  # type: ignore[arg-type]
        self._told = 0

    def is_right(self, samples: int) -> bool:
        """Return whether as many were counted as the loss has; if not, the next count is right."""
        if self.samples == samples:
            return True
        fitting = (key for key, length in self._lengths.items() if length == samples)
        self._source = next(fitting, None)
        self._told = self.samples = samples
        return False

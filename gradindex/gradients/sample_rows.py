"""Which rows of a layer's batch belong to which sample.

Most layers are called with a row for each sample. Some are called with k rows for each: the frames
of a video, the tokens of a caption, the sizes of a picture. Their gradients are added up. That is
right only where a sample's rows follow one another and belong to no other sample, which two
backward passes prove: of the losses of every other sample, and of the rest. A row that gets a
gradient in the wrong pass belongs to several samples.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from gradindex.gradients.findings import Findings


class SampleRows:
    """What every hook asks for before it takes the gradient of its layer.

    Args:
        findings: what is known of the model; what is proved is added to it.

    Attributes:
        samples: n, the samples of the running pass.
        doubtful: (layer, k) that saw k rows for each sample, and no proof yet.
        unfit: the layers whose rows are not the samples', as far as it is known.
    """

    def __init__(self, findings: Findings) -> None:
        self.samples = 0
        self.doubtful: set[tuple[str, int]] = set()
        self.unfit: set[str] = set()
        self._findings = findings
        self._is_open = False
        # 0 or 1 while it is proved that the even or the odd samples' rows are theirs alone.
        self._proved_half: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the running backward pass is the one that gradients are taken in."""
        return self._is_open

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have the hooks take gradients in the backward pass that runs inside."""
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False

    def per_sample(self, layer: str, delta: Tensor) -> int:
        """Return how many rows of `delta` [n·k, …] each sample has; 0: take no gradient now."""
        if not self._is_open and self._proved_half is None:
            return 0
        count, rest = divmod(len(delta), self.samples)
        if rest:
            self.unfit.add(layer)
            return 0
        if self._proved_half is not None:
            other_rows = delta.unflatten(0, (self.samples, count))[1 - self._proved_half :: 2]
            if other_rows.any():
                self.unfit.add(layer)
            return 0
        known = (layer, count) in self._findings.rows_per_sample
        if count > 1 and self.samples > 1 and not known:
            self.doubtful.add((layer, count))
            return 0
        return count

    def prove(self, losses: Tensor) -> None:
        """Sort the doubtful layers into proved and unfit ones.

        Args:
            losses: [n], of the running pass, whose graph is kept.
        """
        try:
            for self._proved_half in (0, 1):
                losses[self._proved_half :: 2].sum().backward(retain_graph=True)
        finally:
            self._proved_half = None
        proved = {(layer, count) for layer, count in self.doubtful if layer not in self.unfit}
        self._findings.rows_per_sample |= proved
        self.doubtful.clear()

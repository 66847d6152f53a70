"""CUDA graphs: the passes of a batch, recorded once and then launched as a whole.

Python launches the kernels of a forward and backward pass one by one, hundreds for a small model. A
fast GPU is done with each of them before the next one comes. Of a graph, one launch runs them all.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradindex.errors import ModelError
from gradindex.gradients.capture import Capture
from gradindex.gradients.findings import findings_of
from gradindex.gradients.projection import Rademacher
from gradindex.models.denoiser import Denoiser

TRIED_FROM = (2, 11)  # the torch from which on recordings, failed ones too, were tried
# Plain passes of a kind of batch before it is recorded. The first ones make what must not be part
# of a graph: signs, workspaces, and what is found about the model.
RUNS_BEFORE = 3
MOST_GRAPHS = 4  # each keeps the inputs and rows of its kind
# Of a row's norm: how far a graph's row may be from that of a plain pass, which is made by the same
# kernels. Some of them add in another order each time; a graph that is wrong is wrong by all of it.
LARGEST_DIFFERENCE = 0.05


class _Graph(NamedTuple):
    """What runs the passes of one kind of batch.

    Attributes:
        graph: a `torch.cuda.CUDAGraph`.
        inputs: where it reads, {name: [n, …]}. rows: what it writes, [n, D].
    """

    graph: Any
    inputs: dict[str, Tensor]
    rows: Tensor


class GraphedCapture:
    """Takes the gradients of batches by a capture, on a GPU by graphs.

    Each graph is first compared with the pass that it was recorded of. A model that no graph can
    run, since it waits for the GPU within a pass, is run as it is.

    Args:
        denoiser: its weights must stay where they are in memory.
        capture: the hooks on its model, inside their `with` block.
        many: whether so many batches are to come that recording them is worth its time.

    Attributes:
        graphs: {a kind of batch: what runs its passes}.
    """

    def __init__(self, denoiser: Denoiser, capture: Capture, many: bool = True) -> None:
        self.capture = capture
        self.graphs: dict[Hashable, _Graph] = {}
        self._denoiser = denoiser
        self._findings = findings_of(capture.model)
        self._runs: Counter[Hashable] = Counter()
        self._makes_graphs = (
            many
            and denoiser.device.type == "cuda"
            and denoiser.is_repeatable
            and not isinstance(capture.projection, Rademacher)  # its signs come from the host
            and tuple(map(int, torch.__version__.split(".")[:2])) >= TRIED_FROM
        )
        self._stream: Any = None  # of recordings: those that share their memory must share it

    def gradients(
        self,
        losses: Callable[[Mapping[str, Tensor]], Tensor],
        inputs: Mapping[str, Tensor],
        scale: float = 1,
    ) -> Tensor:
        """Return the projected gradient of every sample, [n, D]; valid until the next call.

        Args:
            losses: runs the model on `inputs` and returns the loss of every sample, [n].
            inputs: {name: [n, …]} on the device.
            scale: see `Capture.gradients`.

        Raises:
            ModelError: see `Capture.gradients`.
        """
        shapes = [(name, values.shape, values.dtype) for name, values in inputs.items()]
        kind = *shapes, scale
        if kind in self.graphs:
            return self._repeated(self.graphs[kind], inputs)
        rows = self.capture.gradients(partial(losses, inputs), scale)
        self._runs[kind] += 1
        if self._is_due(kind):
            graph = self._compared(losses, inputs, scale, rows)
            if graph is None:
                self._makes_graphs = False
            else:
                self.graphs[kind] = graph
        return rows

    def forget(self) -> bool:
        """Give back the memory of all graphs, make no more, and return whether there were any."""
        had_graphs = bool(self.graphs)
        self._makes_graphs = False
        self.graphs.clear()
        if had_graphs:
            torch.cuda.empty_cache()
        return had_graphs

    def _is_due(self, kind: Hashable) -> bool:
        """Whether a kind of batch came often enough to be recorded."""
        return (
            self._makes_graphs
            and self._runs[kind] >= RUNS_BEFORE
            and len(self.graphs) < MOST_GRAPHS
            and not self._findings.is_unrepeatable
            and not self.capture.takes_single_samples
        )

    def _compared(
        self,
        losses: Callable[[Mapping[str, Tensor]], Tensor],
        inputs: Mapping[str, Tensor],
        scale: float,
        rows: Tensor,
    ) -> _Graph | None:
        """The graph of a kind of batch; None where it does not give these inputs' rows [n, D]."""
        try:
            if not self.graphs:
                # A recording that fails keeps its memory: one of a single sample keeps little.
                single = {name: values[:1] for name, values in inputs.items()}
                self._record(losses, single, scale)
            graph = self._record(losses, inputs, scale)
            difference = (self._repeated(graph, inputs) - rows).norm(dim=1)
        except torch.OutOfMemoryError:
            return None
        except (RuntimeError, ModelError):
            self._findings.is_unrepeatable = True
            return None
        agrees = bool((difference <= LARGEST_DIFFERENCE * rows.norm(dim=1)).all())
        return graph if agrees else None

    def _repeated(self, graph: _Graph, inputs: Mapping[str, Tensor]) -> Tensor:
        """The rows [n, D] that a graph makes of these inputs."""
        for name, values in inputs.items():
            graph.inputs[name].copy_(values)
        self._denoiser.make_ready()
        graph.graph.replay()
        return graph.rows

    def _record(
        self,
        losses: Callable[[Mapping[str, Tensor]], Tensor],
        inputs: Mapping[str, Tensor],
        scale: float,
    ) -> _Graph:
        """The graph of a kind of batch; it has not run, and its inputs are zero.

        Graphs share their memory: one runs at a time, and its rows are kept apart.
        """
        own = {name: torch.zeros_like(values) for name, values in inputs.items()}
        first = next(iter(self.graphs.values()), None)
        pool = None if first is None else first.graph.pool()
        graph = torch.cuda.CUDAGraph()
        self._stream = self._stream or torch.cuda.Stream(self._denoiser.device)
        # Other threads prepare the next batches, on streams that are no part of the graph. Where a
        # recording fails, torch stays on its stream: this one's own block leaves it in any case.
        with (
            torch.cuda.device(self._denoiser.device),
            torch.cuda.stream(self._stream),
            torch.cuda.graph(
                graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
            ),
        ):
            rows = self.capture.gradients(partial(losses, own), scale)
        return _Graph(graph, own, rows)

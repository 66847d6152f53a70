"""When passes are recorded, and what is run in their place; without a GPU, a twin stands in."""

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradindex.errors import ModelError
from gradindex.gradients import graphs
from gradindex.gradients.capture import Capture
from gradindex.gradients.graphs import MOST_GRAPHS, RUNS_BEFORE, GraphedCapture
from gradindex.gradients.projection import Exact

Log = list[str]


class Twin(GraphedCapture):
    """Its graphs run the passes again, from what lies where a graph would read."""

    def __init__(self, log: Log, is_repeatable: bool = True, error: Exception | None = None):
        self.model = nn.Linear(2, 1).requires_grad_(False)
        self.log, self.error = log, error
        denoiser: Any = SimpleNamespace(
            device=torch.device("cuda"),
            is_repeatable=is_repeatable,
            make_ready=lambda: log.append("ready"),
        )
        super().__init__(denoiser, Capture(self.model, ["weight"], Exact({"weight": 2})))

    def _record(self, losses: Any, inputs: Mapping[str, Tensor], scale: float) -> Any:
        if self.error is not None:
            raise self.error
        own = {name: torch.zeros_like(values) for name, values in inputs.items()}
        rows = torch.zeros(len(own["x"]), 2)

        def replay() -> None:
            self.log.append("graph")
            rows.copy_(self.capture.gradients(partial(losses, own), scale))

        self.log.append("record")
        return graphs._Graph(SimpleNamespace(replay=replay), own, rows)

    def step(self, seed: int, count: int = 3, scale: float = 1) -> None:
        """Take gradients and compare them with the plain ones."""
        inputs = {"x": torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))}

        def losses(inputs: Mapping[str, Tensor]) -> Tensor:
            self.log.append("pass")
            return self.model(inputs["x"]).square().sum(1)

        with self.capture:
            found = self.gradients(losses, inputs, scale).clone()
            expected = self.capture.gradients(partial(losses, inputs), scale)
        assert self.log.pop() == "pass"  # of `expected`
        torch.testing.assert_close(found, expected)


def test_a_kind_of_batch_is_recorded_after_some_runs() -> None:
    log: Log = []
    twin = Twin(log)
    for seed in range(RUNS_BEFORE):
        twin.step(seed)
    recorded_and_compared = ["record", "record", "ready", "graph", "pass"]
    assert log == ["pass"] * RUNS_BEFORE + recorded_and_compared
    log.clear()
    assert [len(graph.rows) for graph in twin.graphs.values()] == [3]
    twin.step(7)
    twin.step(8)
    assert log == ["ready", "graph", "pass"] * 2


def test_each_shape_and_scale_has_its_own_graph() -> None:
    twin = Twin([])
    for seed in range(RUNS_BEFORE + 2):
        for count in range(1, MOST_GRAPHS + 2):
            twin.step(seed, count)
        twin.step(seed, 1, scale=2.0)
    assert len(twin.graphs) == MOST_GRAPHS
    assert {len(graph.rows) for graph in twin.graphs.values()} == {*range(1, MOST_GRAPHS + 1)}


@pytest.mark.parametrize(
    "error", [RuntimeError("capturing"), torch.OutOfMemoryError(), ModelError("cannot be run")]
)
def test_what_cannot_be_recorded_is_run(error: Exception) -> None:
    log: Log = []
    twin = Twin(log, error=error)
    for seed in range(RUNS_BEFORE + 3):
        twin.step(seed)
    assert log == ["pass"] * (RUNS_BEFORE + 3)
    assert twin.graphs == {}


@pytest.mark.parametrize("wrong", ["no input is read", "not finite"])
def test_a_graph_that_differs_from_a_plain_pass_is_not_used(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    record = Twin._record

    def wrong_record(self: Twin, losses: Any, inputs: Mapping[str, Tensor], scale: float) -> Any:
        graph = record(self, losses, inputs, scale)
        if wrong == "not finite":
            return graph._replace(rows=graph.rows + torch.nan)
        return graph._replace(inputs={"x": torch.zeros_like(inputs["x"])})

    monkeypatch.setattr(Twin, "_record", wrong_record)
    twin = Twin([])
    for seed in range(RUNS_BEFORE + 3):
        twin.step(seed)
    assert twin.graphs == {}


def test_python_that_nobody_knows_is_run_for_every_batch() -> None:
    log: Log = []
    twin = Twin(log, is_repeatable=False)
    for seed in range(RUNS_BEFORE + 2):
        twin.step(seed)
    assert log == ["pass"] * (RUNS_BEFORE + 2)


def test_graphs_that_were_forgotten_are_not_made_again() -> None:
    log: Log = []
    twin = Twin(log)
    for seed in range(RUNS_BEFORE + 1):
        twin.step(seed)
    assert twin.forget()
    assert not twin.forget()
    log.clear()
    twin.step(9)
    assert log == ["pass"]
    assert twin.graphs == {}

"""What projected gradients cost, in units of a training step on the same batch.

Times are medians over rounds, in one process, the methods taking turns.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from gradient_methods import (
    DENSE_DIM,
    METHODS,
    Batch,
    captured_gradients,
    dattri_projector,
    make_batch,
    median_ratio,
    peak_memory,
    time_in_turns,
    training_step,
    trak_projector,
    vmap_gradients,
)

from gradindex.gradients.projection import CountSketch, Rademacher

BATCH = {"small": 64, "cifar10": 16}
PEER_BATCH = 16
ROUNDS = {"small": 15, "cifar10": 7}
RANKS = (8, 16, 32)
RANK, DIM = 16, 4096  # of `build`
COLUMNS = {"small": 256, "cifar10": 16}  # of a dense matrix that are made
DEFAULT = f"auto, rank {RANK}, D = {DIM}"

Method = Callable[[], object]


def costs(name: str, device: str, high_rank: Mapping[int, Sequence[str]]) -> dict[str, float]:
    """Return {method: its time in training steps}.

    Args:
        name: of the model, "small" or "cifar10".
        high_rank: {rank: weights that a projection of that rank shrinks less}.
    """
    batch = make_batch(name, BATCH[name], device)
    methods = _reference_methods(batch)
    for rank in RANKS:
        projection = CountSketch(2 * DIM, 0, rank, high_rank[rank])
        methods[f"auto, rank {rank}"] = captured_gradients(batch, projection)
    projection = CountSketch(DIM, 0, RANK, high_rank[RANK])
    methods[DEFAULT] = captured_gradients(batch, projection)
    methods["sketch"] = captured_gradients(batch, CountSketch(2 * DIM, 0))
    seconds = time_in_turns(methods, ROUNDS[name], device)
    return {method: median_ratio(seconds, method, "training step") for method in methods}


def peer_costs(name: str, device: str, vmap_cost: float) -> dict[str, float]:
    """Return {method: its time in training steps} of dense projections.

    They are too slow for many rounds: one, beside a training step. Of a peer's matrix only some
    columns are made, since its time is in proportion to them; to it comes the time of gradients
    with vmap.

    Args:
        vmap_cost: of the gradients, in training steps.
    """
    batch = make_batch(name, PEER_BATCH, device)
    parameters = sum(parameter.numel() for parameter in batch.model.parameters())
    columns = COLUMNS[name]
    blocks = [gradient.flatten(1) for gradient in vmap_gradients(batch).values()]
    gradients = torch.cat(blocks, 1)
    costs_of_peers = {}
    for peer, projector in (("TRAK", trak_projector), ("dattri", dattri_projector)):
        project = projector(parameters, columns, device)
        ratio = _ratio_to_step(batch, partial(project, gradients), device)
        costs_of_peers[peer] = vmap_cost + ratio * DENSE_DIM / columns
    if name == "small":
        dense = captured_gradients(batch, Rademacher(DENSE_DIM, 0))
        costs_of_peers["rademacher"] = _ratio_to_step(batch, dense, device)
    return costs_of_peers


def memories(name: str, device: str, high_rank: Sequence[str]) -> dict[str, float]:
    """Return {method: peak memory of the tensors that it makes, in a training step's}."""
    batch = make_batch(name, BATCH[name], device)
    methods = _reference_methods(batch)
    projection = CountSketch(2 * DIM, 0, RANK, high_rank)
    methods[f"auto, rank {RANK}"] = captured_gradients(batch, projection)
    methods["sketch"] = captured_gradients(batch, CountSketch(2 * DIM, 0))
    peaks = {name: peak_memory(method, device) for name, method in methods.items()}
    return {name: peak / peaks["training step"] for name, peak in peaks.items()}


def _reference_methods(batch: Batch) -> dict[str, Method]:
    """The methods that ours are compared with, on a batch."""
    return {name: partial(method, batch) for name, method in METHODS.items()}


def _ratio_to_step(batch: Batch, method: Method, device: str) -> float:
    """The time of a method, measured once, in training steps on a batch."""
    step = partial(training_step, batch)
    methods: dict[str, Method] = {"training step": step, "method": method}
    return median_ratio(time_in_turns(methods, 1, device), "method", "training step")

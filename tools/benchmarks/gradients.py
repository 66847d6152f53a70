"""What a projected gradient costs and how faithful it is: `tools/bench gradients`.

Costs are times in units of a training step on the same batch; fidelity is agreement with exact full
gradients on trained models.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import record
from fidelity import dense_fidelity, fidelities, half_precision
from gradient_costs import BATCH, RANK, RANKS, costs, memories, peer_costs
from gradient_methods import PEERS
from gradients_page import page
from measured_model import MeasuredModel
from trained_models import model_and_pictures

TITLES = {
    "small": "UNet2DModel (32, 64, 128), 2.7 M parameters, Fashion-MNIST",
    "cifar10": "DDPM CIFAR-10 architecture, 35.7 M parameters, emoji",
}


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/gradients.json and .md.

    Args:
        only: some of the models "small" and "cifar10".
    """
    sys.path.insert(0, str(work / PEERS))
    models = {name: _open_model(name, work, device) for name in only or BATCH}
    part = record.resumable(work / f"gradients-{device}")
    results: dict[str, Any] = {}
    high_rank = {}
    for name, model in models.items():
        results[name] = {"title": TITLES[name], "batch": BATCH[name]}
        names_by_rank = part(f"{name} strong", partial(_high_rank_names, model))
        high_rank[name] = dict(zip(RANKS, names_by_rank, strict=True))
    # First what needs a quiet machine.
    for name in models:
        default_names = high_rank[name][RANK]
        cost = part(f"{name} cost", partial(costs, name, device, high_rank[name]))
        cost |= part(f"{name} peers", partial(peer_costs, name, device, cost["vmap"]))
        memory = part(f"{name} memory", partial(memories, name, device, default_names))
        results[name] |= {"strong": default_names, "cost": cost, "memory": memory}
    for name, model in models.items():
        measured = partial(fidelities, name, model, work / f"exact-{name}", high_rank[name])
        results[name]["fidelity"] = part(f"{name} fidelity", measured)
    if "small" in models:
        full, half = models["small"], _open_model("small", work, device, "bfloat16")
        results["dense"] = part("dense", partial(dense_fidelity, full))
        half_measured = partial(half_precision, half, full, high_rank["small"][RANK])
        results["half"] = part("half", half_measured)
    text = page(results)
    print(text)
    if not only:
        record.save("gradients", device, "tools/bench gradients", results, text)


def _open_model(name: str, work: Path, device: str, dtype: str = "float32") -> MeasuredModel:
    folder, pictures = model_and_pictures(name, work)
    return MeasuredModel(folder, pictures, device, dtype)


def _high_rank_names(model: MeasuredModel) -> Sequence[Sequence[str]]:
    """The weights that a projection of each rank of RANKS must shrink less."""
    return [model.high_rank(rank) for rank in RANKS]

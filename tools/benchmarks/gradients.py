"""What a projected gradient costs and how faithful it is: `tools/bench gradients`.

Costs are times in units of a training step on the same batch, in one process, the ways taking turns; their medians over
rounds. Fidelity is agreement with exact full gradients on trained models.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
import ways
from fidelity import GRID, QUERIES, TRAINING, Subject, agreement, scores_of
from subjects import subject
from torch import Tensor

from gradindex.gradients.projection import CountSketch, Rademacher

BATCH = {"small": 64, "cifar10": 16}
ROUNDS = {"small": 15, "cifar10": 7}
RANKS = (8, 16, 32)
RANK, DIM = 16, 4096  # of `build`
WIDTHS = (256, 1024, 4096, 8192)
SEEDS = {"small": (0, 1), "cifar10": (0,)}
ONE = 250  # the single timestep at which every way is compared
COLUMNS = {"small": 256, "cifar10": 16}  # of a dense matrix that are made; its time is in proportion
TITLES = {"small": "UNet2DModel (32, 64, 128), 2.7 M parameters, Fashion-MNIST",
          "cifar10": "DDPM CIFAR-10 architecture, 35.7 M parameters, emoji"}  # fmt: skip


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/gradients.json and .md."""
    sys.path.insert(0, str(work / ways.PEERS))
    models = {name: Subject(*subject(name, work), device) for name in only or BATCH}
    part = record.resumable(work / f"gradients-{device}")
    results: dict[str, Any] = {name: {"title": TITLES[name], "batch": BATCH[name]} for name in models}
    strong = {
        name: dict(zip(RANKS, part(f"{name} strong", lambda model=model: list(map(model.strong, RANKS))), strict=True))
        for name, model in models.items()
    }
    for name in models:  # first what needs a quiet machine
        cost = part(f"{name} cost", partial(costs, name, device, strong[name]))
        cost |= part(f"{name} peers", partial(peer_costs, name, device, cost))
        memory = part(f"{name} memory", partial(memories, name, device, strong[name][RANK]))
        results[name] |= {"strong": strong[name][RANK], "cost": cost, "memory": memory}
    for name, model in models.items():
        rows = partial(fidelities, name, model, work / f"exact-{name}", strong[name])
        results[name]["fidelity"] = part(f"{name} fidelity", rows)
    if "small" in models:
        half = Subject(*subject("small", work), device, "bfloat16")
        results["dense"] = part("dense", partial(dense_fidelity, models["small"]))
        results["half"] = part("half", partial(half_precision, half, models["small"], strong["small"][RANK]))
    text = page(results)
    print(text)
    if not only:
        record.save("gradients", device, "tools/bench gradients", results, text)


def costs(name: str, device: str, strong: Mapping[int, tuple[str, ...]]) -> dict[str, float]:
    """{way: time in training steps}."""
    batch = ways.make_batch(name, BATCH[name], device)
    all_ways: dict[str, Callable[[], object]] = {way: partial(make, batch) for way, make in ways.WAYS.items()}
    for rank in RANKS:
        all_ways[f"auto, rank {rank}"] = ways.ours(batch, CountSketch(2 * DIM, 0, rank, strong[rank]))
    all_ways[f"auto, rank {RANK}, D = {DIM}"] = ways.ours(batch, CountSketch(DIM, 0, RANK, strong[RANK]))
    all_ways["sketch"] = ways.ours(batch, CountSketch(2 * DIM, 0))
    times = ways.seconds(all_ways, ROUNDS[name], device)
    return {way: ways.ratio(times, way, "training step") for way in all_ways}


def peer_costs(name: str, device: str, cost: Mapping[str, float]) -> dict[str, float]:
    """{way: time in training steps} of dense projections, too slow for many rounds: one, beside a training step."""
    batch = ways.make_batch(name, 16, device)
    parameters, columns = sum(p.numel() for p in batch.model.parameters()), COLUMNS[name]
    gradients = torch.cat([gradient.flatten(1) for gradient in ways.vmap_gradients(batch).values()], 1)
    found = {}
    for peer, make in (("TRAK", ways.trak), ("dattri", ways.dattri)):
        project = make(parameters, columns, device)
        some = {"training step": partial(ways.training_step, batch), "projection": partial(project, gradients)}
        times = ways.seconds(some, 1, device)
        found[peer] = cost["vmap"] + ways.ratio(times, "projection", "training step") * ways.DENSE / columns
    if name == "small":
        some = {"training step": partial(ways.training_step, batch),
                "dense": ways.ours(batch, Rademacher(ways.DENSE, 0))}  # fmt: skip
        found["rademacher"] = ways.ratio(ways.seconds(some, 1, device), "dense", "training step")
    return found


def memories(name: str, device: str, strong: tuple[str, ...]) -> dict[str, float]:
    """{way: peak memory of the tensors that it makes, in training steps'}."""
    batch = ways.make_batch(name, BATCH[name], device)
    some: dict[str, Callable[[], object]] = {way: partial(make, batch) for way, make in ways.WAYS.items()}
    some[f"auto, rank {RANK}"] = ways.ours(batch, CountSketch(2 * DIM, 0, RANK, strong))
    some["sketch"] = ways.ours(batch, CountSketch(2 * DIM, 0))
    peaks = {way: ways.peak_memory(run, device) for way, run in some.items()}
    return {way: peak / peaks["training step"] for way, peak in peaks.items()}


def fidelities(name: str, model: Subject, cache: Path, strong: Mapping[int, tuple[str, ...]]) -> list[dict[str, Any]]:
    """Agreement with exact scores of every rank and width: one timestep, each of the grid, the grid's mean."""
    truth = model.exact(GRID, cache)
    found = []
    for rank in (*RANKS, None):
        grid = GRID if name == "small" or rank == RANK else (ONE,)
        places, one = [GRID.index(t) for t in grid], [grid.index(ONE)]
        matching = {method: scores[places] for method, scores in truth.items()}
        runs = [model.scores(grid, WIDTHS, seed, rank, strong[rank] if rank else ()) for seed in SEEDS[name]]
        for width in WIDTHS:
            row: dict[str, Any] = {"rank": rank, "dim": width, "seeds": len(runs)}
            each = [run[width] for run in runs]
            row["one timestep"] = _mean([agreement(scores, matching, over=one) for scores in each])
            if len(grid) > 1:
                row["each timestep"] = _mean([agreement(scores, matching) for scores in each])
                row["by timestep"] = {
                    str(t): _mean([agreement(scores, matching, over=[j]) for scores in each])
                    for j, t in enumerate(grid)
                }
                row["grid"] = _mean([agreement(scores, matching, over=range(len(grid))) for scores in each])
            found.append(row)
    return found


def dense_fidelity(model: Subject) -> dict[str, dict[str, float]]:
    """Agreement of dense projections of exact gradients to as many numbers as the peers', at one timestep."""
    exact = model.exact_gradients(ONE, range(TRAINING + QUERIES))
    truth = scores_of(exact[None].cpu().numpy())
    device = str(exact.device.type)
    rows = {
        "TRAK": ways.trak(exact.shape[1], ways.DENSE, device)(exact),
        "dattri": ways.dattri(exact.shape[1], ways.DENSE, device)(exact),
        "rademacher": _rademacher(exact),
    }
    return {way: agreement(scores_of(part[None].cpu().numpy()), truth) for way, part in rows.items()}


def half_precision(half: Subject, full: Subject, strong: tuple[str, ...]) -> dict[str, float]:
    """Agreement of the default's scores from bfloat16 weights with those from float32 weights."""
    scores = (model.scores(GRID[::3], [DIM], 0, RANK, strong)[DIM] for model in (half, full))
    return agreement(*scores, over=range(len(GRID[::3])))


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    parts = ["# What a projected gradient costs, and how faithful it is\n",
             "Cost and memory (the peak of all tensors made) are in units of a plain training step, forward and"
             " backward, on the same batch. Fidelity"
             f" is agreement with exact full gradients on a trained model: {TRAINING} training pictures, {QUERIES}"
             " queries that it never saw, shared noise; Spearman's ρ and recall of the ten best, means over queries:"
             " TracIn / ReTrac. Costs are medians over rounds; from run to run they move by .01.\n\n"
             f"The default is rank {RANK} and D = {DIM:,}: of the widths measured, the narrowest whose averaged scores"
             " keep 95 % of the exact ten best on both models, for both methods."]  # fmt: skip
    for name in (name for name in BATCH if name in results):
        found = results[name]
        rows = {(row["rank"], row["dim"]): row["one timestep"] for row in found["fidelity"]}
        parts.append(f"\n## {found['title']}\n\nBatch {found['batch']}; the figures of fidelity at t = {ONE}.\n")
        lines = []
        for way, cost in found["cost"].items():
            settings = OURS.get(way)
            near = rows[settings] if settings else results["dense"].get(way) if name == "small" else None
            dim = settings[1] if settings else ways.DENSE if way in DENSE_WAYS else None
            exact = "1 / 1" if way in ("loop", "vmap") else None
            lines.append({"way": NAMES.get(way, way), "D": dim, "cost": cost, "memory": found["memory"].get(way),
                          "ρ": exact or _pair(near, "spearman"),
                          "recall@10": exact or _pair(near, "recall@10")})  # fmt: skip
        parts.append(record.table(lines))
        parts.append(f"\n`auto` is rank {RANK}; strong weights: {', '.join(found['strong']) or 'none'}.\n")
        grid = ", ".join(map(str, GRID))
        parts.append(f"The frontier: the timesteps {grid} each by itself, and their averaged scores. One picture takes"
                     " 6 bytes × D × timesteps in the store (float32 and float16).\n")  # fmt: skip
        parts.append(record.table([_frontier(row, found["cost"]) for row in found["fidelity"]]))
        default = next(row for row in found["fidelity"] if row["rank"] == RANK and row["dim"] == 2 * DIM)
        parts.append(f"\nRank {RANK}, D = {2 * DIM}, timestep by timestep:\n")
        parts.append(record.table([{"t": str(t), "ρ": _pair(near, "spearman"), "recall@10": _pair(near, "recall@10")}
                                   for t, near in default["by timestep"].items()]))  # fmt: skip
    if near := results.get("half"):
        parts.append(f"\nWeights in bfloat16, `auto`, D = {DIM}, 4 timesteps, small model, against float32:"
                     f" ρ {_pair(near, 'spearman')}, recall@10 {_pair(near, 'recall@10')}.")  # fmt: skip
    return "\n".join(parts)


NAMES = {"floor": "forward + input gradients (the floor)", "loop": "one picture at a time (the paper's code)",
         "vmap": "`torch.func` vmap, no projection", "TRAK": "TRAK: vmap, dense projection",
         "dattri": "dattri: vmap, dense projection", "rademacher": "`rademacher`: hooks, dense projection",
         "sketch": "`sketch`",
         f"auto, rank {RANK}, D = {DIM}": "**auto, the default**"}  # fmt: skip
OURS = {"sketch": (None, 2 * DIM), f"auto, rank {RANK}, D = {DIM}": (RANK, DIM),
        **{f"auto, rank {rank}": (rank, 2 * DIM) for rank in RANKS}}  # fmt: skip
DENSE_WAYS = ("TRAK", "dattri", "rademacher")


def _frontier(row: dict[str, Any], cost: Mapping[str, float]) -> dict[str, Any]:
    way = "sketch" if row["rank"] is None else f"auto, rank {row['rank']}"
    line: dict[str, Any] = {
        "projection": f"`{way}`" if row["rank"] is None else way,
        "D": row["dim"],
        "cost": cost[way],
    }
    for title, key in ((f"t = {ONE}", "one timestep"), ("each", "each timestep"), ("averaged", "grid")):
        line[f"ρ, {title}"] = _pair(row.get(key), "spearman")
        line[f"recall, {title}"] = _pair(row.get(key), "recall@10")
    return {**line, "bytes, 10 timesteps": 60 * row["dim"]}


def _pair(near: dict[str, float] | None, figure: str) -> str:
    digits = 4 if figure == "spearman" else 3
    return "–" if near is None else f"{near[f'tracin {figure}']:.{digits}f} / {near[f'retrac {figure}']:.{digits}f}"


def _mean(figures: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([each[key] for each in figures])) for key in figures[0]}


def _rademacher(exact: Tensor) -> Tensor:
    rows = torch.zeros(len(exact), ways.DENSE, device=exact.device)
    Rademacher(ways.DENSE, 0).add(rows, "all parameters", exact)
    return rows

"""The page of `tools/bench gradients`."""

from collections.abc import Mapping
from typing import Any

import record
from fidelity import ONE
from gradient_costs import BATCH, DEFAULT, DIM, RANK, RANKS
from gradient_methods import DENSE_DIM
from measured_model import GRID, QUERIES, TRAINING

TITLES = {  # of methods that are not called by their names
    "floor": "forward + input gradients (the floor)",
    "loop": "one picture at a time (the paper's code)",
    "vmap": "`torch.func` vmap, no projection",
    "TRAK": "TRAK: vmap, dense projection",
    "dattri": "dattri: vmap, dense projection",
    "rademacher": "`rademacher`: hooks, dense projection",
    "sketch": "`sketch`",
    DEFAULT: "**auto, the default**",
}
EXACT = ("loop", "vmap")
DENSE = ("TRAK", "dattri", "rademacher")
# {method: rank and width of its projection}
PROJECTIONS: dict[str, tuple[int | None, int]] = {
    "sketch": (None, 2 * DIM),
    DEFAULT: (RANK, DIM),
    **{f"auto, rank {rank}": (rank, 2 * DIM) for rank in RANKS},
}
FRONTIER = {  # {heading: key of a row of fidelity}
    f"t = {ONE}": "one timestep",
    "each": "each timestep",
    "averaged": "grid",
}


def page(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    sections = [
        record.fill_page("gradients", training=TRAINING, queries=QUERIES, rank=RANK, dim=DIM)
    ]
    dense = results.get("dense", {})
    for name in BATCH:
        if name in results:
            # Dense projections were measured on the small model only.
            sections.append(_model_section(results[name], dense if name == "small" else {}))
    if "half" in results:
        half = results["half"]
        sections.append(
            record.fill_page(
                "gradients-half",
                dim=DIM,
                spearman=_pair(half, "spearman"),
                recall=_pair(half, "recall@10"),
            )
        )
    return "\n\n".join(sections)


def _model_section(model: Mapping[str, Any], dense: Mapping[str, Any]) -> str:
    """The section of one model.

    Args:
        dense: {method: agreement} of dense projections.
    """
    fidelity = model["fidelity"]
    by_setting = {(row["rank"], row["dim"]): row for row in fidelity}
    default_rank = by_setting[RANK, 2 * DIM]
    return record.fill_page(
        "gradients-model",
        title=model["title"],
        batch=model["batch"],
        timestep=ONE,
        costs=_cost_table(model, by_setting, dense),
        rank=RANK,
        high_rank=", ".join(model["strong"]) or "none",
        grid=", ".join(map(str, GRID)),
        frontier=record.table([_frontier_row(row, model["cost"]) for row in fidelity]),
        dim=2 * DIM,
        timesteps=_timestep_table(default_rank["by timestep"]),
    )


def _cost_table(
    model: Mapping[str, Any],
    by_setting: Mapping[tuple[int | None, int], Mapping[str, Any]],
    dense: Mapping[str, Any],
) -> str:
    """Every method's cost, memory and fidelity at one timestep."""
    rows = []
    for method, cost in model["cost"].items():
        dim = None
        agreement = dense.get(method)
        if method in PROJECTIONS:
            dim = PROJECTIONS[method][1]
            agreement = by_setting[PROJECTIONS[method]]["one timestep"]
        elif method in DENSE:
            dim = DENSE_DIM
        exact = "1 / 1" if method in EXACT else None
        rows.append(
            {
                "way": TITLES.get(method, method),
                "D": dim,
                "cost": cost,
                "memory": model["memory"].get(method),
                "ρ": exact or _pair(agreement, "spearman"),
                "recall@10": exact or _pair(agreement, "recall@10"),
            }
        )
    return record.table(rows)


def _frontier_row(row: Mapping[str, Any], cost: Mapping[str, float]) -> dict[str, Any]:
    """What a projection costs, and its fidelity at one timestep, at each, and averaged."""
    if row["rank"] is None:
        method, title = "sketch", "`sketch`"
    else:
        method = title = f"auto, rank {row['rank']}"
    cells: dict[str, Any] = {"projection": title, "D": row["dim"], "cost": cost[method]}
    for heading, key in FRONTIER.items():
        cells[f"ρ, {heading}"] = _pair(row.get(key), "spearman")
        cells[f"recall, {heading}"] = _pair(row.get(key), "recall@10")
    # float32 and float16 numbers at 10 timesteps
    cells["bytes, 10 timesteps"] = (4 + 2) * 10 * row["dim"]
    return cells


def _timestep_table(agreements: Mapping[str, Mapping[str, float]]) -> str:
    """The fidelity of a projection timestep by timestep."""
    rows = [
        {
            "t": t,
            "ρ": _pair(agreement, "spearman"),
            "recall@10": _pair(agreement, "recall@10"),
        }
        for t, agreement in agreements.items()
    ]
    return record.table(rows)


def _pair(agreement: Mapping[str, float] | None, figure: str) -> str:
    """A figure of TracIn and of ReTrac, "0.9812 / 0.9734"; a dash where it was not measured."""
    if agreement is None:
        return "–"
    digits = 4 if figure == "spearman" else 3
    tracin, retrac = agreement[f"tracin {figure}"], agreement[f"retrac {figure}"]
    return f"{tracin:.{digits}f} / {retrac:.{digits}f}"

"""The page of `tools/bench lds`."""

from collections.abc import Mapping
from typing import Any

import record
from row_settings import DEFAULT_ROWS, DEFAULT_SCORING, find_row

FORMER_DAMPING = 0.0003  # the default when results did not tell it
SETTING_COLUMNS = ("noise", "output", "timesteps", "draws", "checkpoints")
SCORING_COLUMNS = ("method", "pairing", "treatment", "gradients")


def page(results: Mapping[str, Any]) -> str:
    """Return the tables and what they are of."""
    models = results["models"]
    removed = [
        {"taken out": name, **_intervals(row)} for name, row in results["counterfactuals"].items()
    ]
    return record.fill_page(
        "lds",
        models=models,
        asked=results["asked"],
        more_models=models["subsets"] * models["seeds"],
        seeds_agree=results["seeds_agree"],
        default_damping=_default_damping(results),
        compared=record.table(_compared(results)),
        rows=record.table([_setting_row(row) for row in results["rows"]]),
        damping=record.table([_damping_row(row) for row in results["damping"]]),
        ideas=record.table([_idea_row(row) for row in results["ideas"]]),
        removed=record.table(removed),
    )


def _default_damping(results: Mapping[str, Any]) -> float:
    return float(results.get("default_damping", FORMER_DAMPING))


def _compared(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Our score in the first row, those of others below."""
    ours = find_row(results["rows"], DEFAULT_ROWS, DEFAULT_SCORING)
    rows = [
        {
            "score": "**retrac, as `query` gives it**",
            **_intervals(ours),
            "gradients": ours["gradients"],
            "damping": f"{_default_damping(results):g}",
            "×": "",
            "× at its cost": "",
        }
    ]
    for row in results["compared"]:
        dampings = row.get("damping", {}).values()
        rows.append(
            {
                "score": row["score"],
                **_intervals(row),
                "gradients": row["gradients"],
                "damping": " / ".join(f"{damping:g}" for damping in dampings),
                "×": _times(row, "ours"),
                "× at its cost": _times(row, "equal"),
            }
        )
    return rows


def _setting_row(row: Mapping[str, Any]) -> dict[str, Any]:
    cells = {name: row[name] for name in SETTING_COLUMNS}
    cells["dim"] = row["dim"] or "whole"
    cells |= {name: row[name] for name in SCORING_COLUMNS}
    cells |= _intervals(row)
    cells["seeds agree"] = f"{row['seeds_agree']:.2f}" if "seeds_agree" in row else ""
    return cells


def _damping_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dim": row["dim"],
        "timesteps": row["timesteps"],
        "method": row["method"],
        "damping": f"{row['damping']:g}",
        **_intervals(row),
    }


def _idea_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"method": row["method"], "blocks": row["idea"], **_intervals(row)}


def _times(row: Mapping[str, Any], which: str) -> str:
    """How many times a row's score ours is, for each query set, and how often it reaches the goal.

    Args:
        which: "ours", or "equal" for as many gradients; "" where it was not measured.
    """
    if which not in row:
        return ""
    times, reached = [], []
    for name, figures in row[which].items():
        low = row[name][1]
        times.append(f"{figures['times']:.2f}" if low > 0 else "–")
        reached.append(f"{figures['reached']:.0%}")
    return f"{' / '.join(times)} ({' / '.join(reached)})"


def _intervals(row: Mapping[str, Any]) -> dict[str, str]:
    """The mean and its interval for validation and generated pictures."""
    cells = {}
    for name in ("validation", "generated"):
        mean, low, high = row[name]
        cells[name] = f"{mean:.1f} ({low:.1f} … {high:.1f})"
    return cells

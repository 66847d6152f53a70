"""The plots of `tools/bench parts`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from parts_page import QUERIES, SHOWN_KINDS, frontier
from parts_timesteps import TODAY, timestep_sets

matplotlib.use("svg")

TODAYS_TIMESTEPS = len(timestep_sets()[TODAY])
GREY, LIGHT_BLUE, DARK_BLUE, RED = "#888", "#9bd", "#246", "#c33"
LABEL = "linear datamodeling score × 100"
NOTE: dict[str, Any] = {
    "fontsize": 6,
    "rotation": 30,
    "xytext": (3, 2),
    "textcoords": "offset points",
}
NAMED_APART = 1.4  # times the cost of the point named before
COLOURS = {"whitened": DARK_BLUE, "plain": LIGHT_BLUE}


def draw(results: Mapping[str, Any], file: Path) -> None:
    """Draw each choice's score against its training steps: a row of plots for each subject.

    All are judged by the halves that did not choose; names are of the frontier, where they fit.
    """
    figure, grid = _grid(results)
    for axes_of_subject, subject in zip(grid, results["subjects"].values(), strict=True):
        best = frontier(subject["chosen"])
        for axes, query in zip(axes_of_subject, QUERIES, strict=True):
            for treatment, colour in COLOURS.items():
                _points(axes, subject["chosen"], treatment, query, colour, alpha=0.25, s=8)
                _points(axes, best, treatment, query, colour, s=24, label=treatment)
                for row in _apart(best, treatment):
                    place = row["steps"], row[query][0]
                    axes.annotate(f"{row['kind']} × {row['timesteps']}", place, **NOTE)
            today, pixels = (subject["halves"][name][query][0] for name in ("today", "pixels"))
            steps = TODAYS_TIMESTEPS * subject["kinds"][0]["steps"]
            axes.scatter([steps], [today], marker="*", s=80, c=RED, label="former default")
            axes.axhline(pixels, color=GREY, ls=":", label="pixel cosine")
            axes.set_xscale("log", subs=(1, 2, 5))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
            axes.set(title=f"{subject['subject']['title']}: {query}", ylabel=LABEL)
            axes.set_xlabel("training steps for a picture")
    grid[0][0].legend(loc="lower right", frameon=False)
    figure.savefig(file)


def draw_timesteps(results: Mapping[str, Any], file: Path) -> None:
    """Draw the whitened ReTrac of single timesteps against their log-SNR."""
    figure, grid = _grid(results)
    for axes_of_subject, subject in zip(grid, results["subjects"].values(), strict=True):
        for axes, query in zip(axes_of_subject, QUERIES, strict=True):
            for kind in SHOWN_KINDS:
                rows = [
                    row
                    for row in subject["singles"]
                    if (row["kind"], row["method"], row["treatment"])
                    == (kind, "retrac", "whitened")
                ]
                if rows:
                    ratios = [row["log_snr"] for row in rows]
                    axes.plot(ratios, [row[query][0] for row in rows], marker=".", label=kind)
            axes.set(title=f"{subject['subject']['title']}: {query}", ylabel=LABEL)
            axes.set_xlabel("log-SNR of the one timestep")
    grid[0][0].legend(fontsize=6, frameon=False)
    figure.savefig(file)


def _grid(results: Mapping[str, Any]) -> tuple[Any, Any]:
    """A figure with a row for each subject and a column for each query set."""
    rows = len(results["subjects"])
    return plt.subplots(rows, 2, figsize=(11, 4.5 * rows), squeeze=False, layout="constrained")


def _apart(best: Sequence[Mapping[str, Any]], treatment: str) -> list[Mapping[str, Any]]:
    """Those of a treatment whose names do not cover each other's: of costs that differ enough."""
    named: list[Mapping[str, Any]] = []
    of_treatment = [row for row in best if row["treatment"] == treatment]
    for row in sorted(of_treatment, key=lambda row: row["steps"]):
        if not named or row["steps"] > NAMED_APART * named[-1]["steps"]:
            named.append(row)
    return named


def _points(axes: Any, rows: Any, treatment: str, query: str, colour: str, **options: Any) -> None:
    of_treatment = [row for row in rows if row["treatment"] == treatment]
    steps = [row["steps"] for row in of_treatment]
    axes.scatter(steps, [row[query][0] for row in of_treatment], color=colour, **options)

"""The plots of `tools/bench lds`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from row_settings import DEFAULT_SCORING, RowSetting, Scoring, find_row

from gradindex.search.scoring import METHODS

matplotlib.use("svg")

GREY, LIGHT_BLUE, DARK_BLUE = "#888", "#9bd", "#246"
QUERY_SETS = ("validation", "generated")
LABEL = "linear datamodeling score × 100"
TREATMENTS = ("plain", "centred", "whitened")
PAIRINGS = (("own", "mean"), ("shared", "mean"), ("shared", "matched"))  # noise and pairing
CURVES = {  # of the second plot, over a query's gradients
    "timesteps": [RowSetting(timesteps=count) for count in (1, 2, 3, 5, 10, 25, 50)],
    "draws at 10 timesteps": [RowSetting(draws=count) for count in (1, 2, 4, 16)],
    "checkpoints at 10 timesteps": [RowSetting(), RowSetting(checkpoints=4)],
}
DIMS = [256, 512, 1024, 2048, 4096, 8192]
GRADIENT_TICKS = [1, 2, 5, 10, 20, 50, 160]


def draw(results: Mapping[str, Any], file: Path) -> None:
    """Draw a bar for each score at ten timesteps, with its interval, beside pixels."""
    rows = {"pixel cosine": _pixel_row(results)}
    colours = [GREY]
    for noise, pairing in PAIRINGS:
        for treatment in TREATMENTS:
            for method in METHODS:
                scoring = Scoring(method, pairing, treatment)
                name = f"{treatment} {method}, {noise} noise, {pairing}"
                rows[name] = find_row(results["rows"], RowSetting(noise=noise), scoring)
                colours.append(DARK_BLUE if treatment == "whitened" else LIGHT_BLUE)
    figure, both = plt.subplots(1, 2, figsize=(11, 6), sharey=True, layout="constrained")
    for axes, queries in zip(both, QUERY_SETS, strict=True):
        means, below, above = _bars(list(rows.values()), queries)
        names = list(rows)
        axes.barh(names, means, xerr=[below, above], color=colours, error_kw={"lw": 1})
        axes.axvline(means[0], color=GREY, lw=1, ls=":")
        axes.set(title=f"{queries} pictures", xlabel=LABEL)
    both[0].invert_yaxis()
    figure.savefig(file)


def draw_costs(results: Mapping[str, Any], file: Path) -> None:
    """Draw the score against a query's gradients and a row's numbers, beside pixels."""
    dims = [RowSetting(dim=dim) for dim in DIMS]
    figure, grid = plt.subplots(
        2, 2, figsize=(11, 7), sharex="col", sharey="row", layout="constrained"
    )
    for (gradient_axes, dim_axes), queries in zip(grid, QUERY_SETS, strict=True):
        for name, settings in CURVES.items():
            gradients = [setting.gradients for setting in settings]
            _curve(gradient_axes, results, queries, gradients, settings, name)
        _curve(dim_axes, results, queries, DIMS, dims, "10 timesteps")
        pixels = _pixel_row(results)[queries][0]
        for axes, ticks in ((gradient_axes, GRADIENT_TICKS), (dim_axes, DIMS)):
            axes.axhline(pixels, color=GREY, ls=":", label="pixel cosine")
            axes.set(xscale="log", title=f"{queries} pictures", ylim=(0, None))
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axes.minorticks_off()
        gradient_axes.set_ylabel(LABEL)
    grid[1, 0].set_xlabel("gradients of a query")
    grid[1, 1].set_xlabel("numbers of a projected gradient")
    for axes in grid[0]:
        axes.legend(loc="lower right", frameon=False)
    figure.savefig(file)


def _curve(
    axes: Any,
    results: Mapping[str, Any],
    queries: str,
    x: Sequence[int],
    settings: Sequence[RowSetting],
    name: str,
) -> None:
    """The default's scores of settings, with intervals, at positions x."""
    rows = [find_row(results["rows"], setting, DEFAULT_SCORING) for setting in settings]
    means, below, above = _bars(rows, queries)
    axes.errorbar(x, means, [below, above], marker="o", capsize=2, lw=1, label=name)


def _bars(
    rows: Sequence[Mapping[str, Any]], queries: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The means of rows, and how far their intervals go below and above."""
    means, lows, highs = np.array([row[queries] for row in rows]).T
    return means, means - lows, highs - means


def _pixel_row(results: Mapping[str, Any]) -> dict[str, Any]:
    return next(row for row in results["compared"] if row["score"] == "pixel cosine")

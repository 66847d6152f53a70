"""The page of `tools/bench paper`, docs/reproduction.md, and its plots."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record
from matplotlib.figure import Figure
from paper_parts import LENGTH, WHOLE
from paper_training import BATCH, CHECKPOINT_STEPS, SNEAKERS, STEPS, ZEROS

from gradindex.report.ranking import SHARES
from gradindex.report.self_influence import SELF_DRAWS, SELF_TIMESTEPS
from gradindex.search.query import QUERY_DRAWS, QUERY_TIMESTEPS
from gradindex.search.scoring import METHODS

OUTLIERS = 600  # sneakers that zeros are compared with as outliers
QUERIES, TRACED = 64, 16  # generated pictures, and generated zeros, that are queries
LENGTHS = (5, 10, 20, 50, 100)
PRECISIONS = (10, 50, 200)
TITLES = {"tracin": "TracIn", "retrac": "ReTrac"}
STUDENT = 3.182  # half of the 95 % interval of a mean of four, in standard errors

Run = Mapping[str, Any]  # everything about one training seed


class Figures:
    """The figures of several training seeds."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs

    def values(self, *keys: str) -> list[Any]:
        """Return what each run has under these keys, one after the other."""
        values = []
        for run in self.runs:
            value: Any = run
            for key in keys:
                value = value[key]
            values.append(value)
        return values

    def mean(self, *keys: str, digits: int = 2) -> str:
        """Return the mean and half its 95 % interval, "0.52 ± 0.03"."""
        values = self.values(*keys)
        half = float("nan")
        if len(values) > 1:
            half = STUDENT * np.std(values, ddof=1) / np.sqrt(len(values))
        return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"

    def by_title(self, keys_of: Callable[[str], Sequence[str]], digits: int = 2) -> dict[str, str]:
        """Return the mean of each method, {title of the method: mean}.

        Args:
            keys_of: method → the figure's keys.
        """
        return {title: self.mean(*keys_of(m), digits=digits) for m, title in TITLES.items()}


def page(runs: Sequence[Run]) -> str:
    """Return docs/reproduction.md."""
    figures = Figures(runs)
    general_rows = _general_rows(figures)
    ratios = [row["ReTrac / TracIn"] for row in general_rows]
    ratios = [ratio for ratio in ratios if ratio is not None]
    outliers = [
        {"method": row["method"], "AUC": row["outliers, AUC"]}
        for row in _part_rows(runs)
        if (row["timesteps"], row["parameters"]) == ("recorded", WHOLE)
    ]
    recorder_share = float(np.mean(figures.values("recorder's share of a step")))
    return record.fill_page(
        "reproduction",
        sneakers=SNEAKERS,
        zeros=ZEROS,
        steps=STEPS,
        batch=BATCH,
        checkpoints=STEPS // CHECKPOINT_STEPS,
        seeds=len(runs),
        queries=QUERIES,
        query_timesteps=QUERY_TIMESTEPS,
        query_draws=QUERY_DRAWS,
        general=record.table(general_rows),
        held=sum(ratio <= 1 / 3 for ratio in ratios),
        settings=len(ratios),
        reversed=sum(ratio > 1 for ratio in ratios),
        distinct=record.table(_distinct_rows(figures)),
        norms=record.table(_norm_rows(figures)),
        tracing=record.table(_tracing_rows(figures)),
        compared=OUTLIERS,
        self_timesteps=SELF_TIMESTEPS,
        self_draws=SELF_DRAWS,
        outliers=record.table(outliers),
        part_length=LENGTH,
        parts=record.table(_part_rows(runs)),
        change=record.table(_change_rows(figures)),
        recorder_share=recorder_share,
    )


def _general_rows(figures: Figures) -> list[dict[str, Any]]:
    """How many pictures are generally influential, for each length of lists and share of them."""
    rows = []
    for k in map(str, LENGTHS):
        for share in map(str, SHARES):

            def keys_of(method: str, k: str = k, share: str = share) -> Sequence[str]:
                return "general", "recorded", method, k, "general", share

            sums = {method: sum(figures.values(*keys_of(method))) for method in METHODS}
            ratio = sums["retrac"] / sums["tracin"] if sums["tracin"] else None
            rows.append(
                {
                    "k": int(k),
                    "share of lists": f"{float(share):.0%}",
                    **figures.by_title(keys_of, digits=1),
                    "ReTrac / TracIn": ratio,
                }
            )
    return rows


def _distinct_rows(figures: Figures) -> list[dict[str, Any]]:
    """How many distinct pictures all lists together have, for each length and kind of rows."""
    rows = []
    for k in map(str, LENGTHS):
        for name in figures.runs[0]["general"]:

            def keys_of(method: str, name: str = name, k: str = k) -> Sequence[str]:
                return "general", name, method, k, "distinct"

            tracin, retrac = (figures.values(*keys_of(method)) for method in METHODS)
            ratios = [b / a for a, b in zip(tracin, retrac, strict=True)]
            rows.append(
                {
                    "k": int(k),
                    "rows": name,
                    **figures.by_title(keys_of, digits=0),
                    "ReTrac / TracIn": float(np.mean(ratios)),
                }
            )
    return rows


def _norm_rows(figures: Figures) -> list[dict[str, Any]]:
    """How a picture's mean score goes with its gradient norm, for each kind of rows."""
    rows = []
    for name in figures.runs[0]["general"]:

        def keys_of(method: str, name: str = name) -> Sequence[str]:
            return "general", name, method, "10", "norm_correlation"

        rows.append({"rows": name, **figures.by_title(keys_of)})
    return rows


def _tracing_rows(figures: Figures) -> list[dict[str, Any]]:
    """The share of zeros among the highest scores of generated zeros, for each kind of score."""
    rows = []
    for name in figures.runs[0]["tracing"][str(PRECISIONS[0])]:
        shares = {f"k = {k}": figures.mean("tracing", str(k), name) for k in PRECISIONS}
        rows.append({"way": name, **shares})
    return rows


def _change_rows(figures: Figures) -> list[dict[str, Any]]:
    """How far other rows agree with recorded ones, for each kind of rows."""
    rows = []
    for name in figures.runs[0]["change"]:
        row = {"rows": name}
        for method, title in TITLES.items():
            agreement = figures.mean("change", name, method, "spearman")
            common = figures.mean("change", name, method, "overlap@10")
            row[title] = f"{agreement}, {common}"
        rows.append(row)
    return rows


def _part_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """How parts of the model answer, for each kind of timesteps."""
    rows = []
    for number, first in enumerate(runs[0]["parts"]):
        figures = Figures([run["parts"][number] for run in runs])
        rows.append(
            {
                "timesteps": first["timesteps"],
                "parameters": first["part"],
                "method": TITLES[first["method"]],
                "zeros traced": figures.mean("tracing"),
                "outliers, AUC": figures.mean("outliers"),
                "distinct pictures": figures.mean("distinct", digits=0),
            }
        )
    return rows


def plot(runs: Sequence[Run], folder: Path) -> None:
    """Write paper-norms.png and paper-general.png into a folder."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        timesteps = [point["timestep"] for point in run["norm"]]
        medians = [point["median"] for point in run["norm"]]
        axes.plot(timesteps, medians, label=f"seed {run['seed']}")
    axes.set(xlabel="timestep", ylabel="median norm of the loss gradient", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(folder / "paper-norms.png", dpi=120)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    percents = [100 * share for share in SHARES]
    for method, title in TITLES.items():
        numbers = []
        for run in runs:
            general = run["general"]["recorded"][method]["10"]["general"]
            numbers.append([general[str(share)] for share in SHARES])
        axes.plot(percents, np.mean(numbers, 0), marker="o", label=title)
    axes.set(xlabel="in at least … % of the top 10s", ylabel="pictures")
    axes.legend(frameon=False)
    figure.savefig(folder / "paper-general.png", dpi=120)

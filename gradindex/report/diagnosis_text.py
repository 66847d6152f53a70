"""A diagnosis for people: lines of text, and the files that `gradindex diagnose` writes."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradindex.errors import first_line
from gradindex.report.agreement import SettingAgreement
from gradindex.report.diagnose import Diagnosis, NormStatistics
from gradindex.report.printable import printable
from gradindex.report.ranking import Influence
from gradindex.report.self_influence import Outliers
from gradindex.search.scoring import METHODS
from gradindex.wording import counted

NAME_WIDTH = 44  # columns of text
VALUE_WIDTH = 10
OUTLIERS_SHOWN = 5


def to_text(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as some lines of text, a column for each method."""
    kind = "whitened" if diagnosis["whitened"] else "plain"
    queries = counted(len(diagnosis["queries"]), "query", "queries")
    lines = [
        f"{queries}, their {diagnosis['k']} highest {kind} scores",
        "",
        _table_line("", METHODS),
        *_influence_lines([diagnosis["influence"][method] for method in METHODS]),
    ]
    for setting in diagnosis.get("noise", []):
        lines += _agreement_lines(setting)
    for method, outliers in diagnosis.get("self_influence", {}).items():
        lines.append(_outlier_line(method, outliers))
    lines += ["", *diagnosis.get("verdict", [])]
    return "\n".join(lines)


def _table_line(name: str, values: Sequence[Any], number_format: str = "") -> str:
    """A line of the table: a name, and a value for each method."""
    columns = "".join(f"{value:>{VALUE_WIDTH}{number_format}}" for value in values)
    return f"{name:<{NAME_WIDTH}}{columns}"


def _influence_lines(influences: Sequence[Influence]) -> list[str]:
    """How general the influential pictures are, by each method."""
    most = influences[0]["most"]
    distinct = [influence["distinct"] for influence in influences]
    lines = [_table_line(f"distinct pictures (of {most} possible)", distinct)]
    for share in influences[0]["general"]:
        counts = [influence["general"][share] for influence in influences]
        name = f"pictures in 2 lists and {float(share):.0%} of all, or more"
        lines.append(_table_line(name, counts))
    correlations = [influence["norm_correlation"] for influence in influences]
    lines.append(_table_line("correlation of mean score and gradient norm", correlations, ".2f"))
    return lines


def _agreement_lines(setting: SettingAgreement) -> list[str]:
    """How far two noise seeds agree at a setting."""
    agreements = [setting["tracin"], setting["retrac"]]
    correlations = [agreement["spearman"] for agreement in agreements]
    overlaps = [agreement["overlap"] for agreement in agreements]
    timesteps = counted(setting["timesteps"], "timestep")
    budget = f"{timesteps} × {counted(setting['draws'], 'draw')}"
    return [
        _table_line(f"two noise seeds agree, {budget}: ρ", correlations, ".2f"),
        _table_line(f"{'overlap of the lists':>{NAME_WIDTH}}", overlaps, ".2f"),
    ]


def _outlier_line(method: str, outliers: Outliers) -> str:
    """The ids of the first pictures that stand out by self-influence."""
    end = "highest" if method == "tracin" else "lowest"
    names = ", ".join(printable(picture["id"]) for picture in outliers["outliers"][:OUTLIERS_SHOWN])
    return f"outliers, {end} plain self-influence ({method}): {names}"


def save(diagnosis: Diagnosis, folder: Path) -> list[Path]:
    """Write diagnose.json and norms.png, the figure of gradient norms against timesteps.

    Without matplotlib there is no figure, and a warning says so.

    Returns:
        The files that were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    json_file = folder / "diagnose.json"
    json_file.write_text(json.dumps(diagnosis, indent=1) + "\n", encoding="utf-8")
    figure_file = folder / "norms.png"
    try:
        _plot_norms(diagnosis["norm"], figure_file)
    except ImportError as error:
        figure_file.unlink(missing_ok=True)  # of a diagnosis before this one
        warnings.warn(
            f"no norms.png without matplotlib ({first_line(error)}): pip install 'gradindex[plot]'",
            stacklevel=2,
        )
        return [json_file]
    return [json_file, figure_file]


def _plot_norms(norm: Sequence[NormStatistics], file: Path) -> None:
    """Write the figure of norms against timesteps: their median, and the middle 80 %.

    Raises:
        ImportError: matplotlib is not installed, or does not fit what is.
    """
    from matplotlib.figure import Figure

    timesteps = [statistics["timestep"] for statistics in norm]
    low = [statistics["p10"] for statistics in norm]
    high = [statistics["p90"] for statistics in norm]
    median = [statistics["median"] for statistics in norm]
    figure = Figure(figsize=(6, 4), layout="constrained")  # inches
    axes = figure.subplots()
    axes.fill_between(timesteps, low, high, alpha=0.25, label="10–90 %")
    axes.plot(timesteps, median, marker="o", markersize=3, label="median")
    axes.set(xlabel="timestep", ylabel="norm of the loss gradient", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)

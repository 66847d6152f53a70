"""The page and the plots of `tools/bench lds`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import record
from kinds import OURS, Setting

from gradindex.search_index import METHODS
from gradindex.whiten import DAMPING

matplotlib.use("svg")


def page(results: dict[str, Any]) -> str:
    """The tables and what they are of."""
    models, asked, ours = results["models"], results["asked"], _row(results["rows"], *OURS)
    short = [{"score": "**retrac, as `query` gives it**", **_shown(ours), "gradients": ours["gradients"],
              "damping": f"{DAMPING:g}", "×": "", "× at its cost": ""}]  # fmt: skip
    for facts in results["compared"]:
        damping = " / ".join(f"{value:g}" for value in facts.get("damping", {}).values())
        short.append(
            {"score": facts["score"], **_shown(facts), "gradients": facts["gradients"], "damping": damping,
             "×": _times(facts, "ours"), "× at its cost": _times(facts, "equal")}
        )  # fmt: skip
    setting = ("noise", "output", "timesteps", "draws", "checkpoints")
    whole = [
        {
            **{name: facts[name] for name in setting},
            "dim": facts["dim"] or "whole",
            **{name: facts[name] for name in ("method", "pairing", "treatment", "gradients")},
            **_shown(facts),
            "seeds agree": f"{facts['seeds_agree']:.2f}" if "seeds_agree" in facts else "",
        }
        for facts in results["rows"]
    ]
    damping = [{"dim": facts["dim"], "timesteps": facts["timesteps"], "method": facts["method"],
                "damping": f"{facts['damping']:g}", **_shown(facts)} for facts in results["damping"]]  # fmt: skip
    ideas = [{"method": facts["method"], "blocks": facts["idea"], **_shown(facts)} for facts in results["ideas"]]
    removed = [{"taken out": name, **_shown(facts)} for name, facts in results["counterfactuals"].items()]
    return f"""# How far a score can be trusted

A model ({models["parameters"]:,} parameters, {models["steps"]} steps of {models["batch"]} pictures, learning rate
falling to zero) was trained on {asked["training"]} Fashion-MNIST pictures at 16×16, and
{models["subsets"] * models["seeds"]} more on {models["subsets"]} random halves of them, {models["seeds"]} on each. The
linear datamodeling score × 100 is Spearman's ρ, over the halves, between a half's summed scores for a picture and its
models' mean loss on that picture; the mean over {asked["each kind"]} validation pictures, or over as many that the
model generated; in brackets its 95 % bootstrap interval over pictures and halves. Losses of two models of the same half
go together by ρ = {results["seeds_agree"]["validation"]:.2f} (validation) and
{results["seeds_agree"]["generated"]:.2f} (generated), so that not even a perfect score could reach 100. What a score
costs is the gradients of a query; a training picture's are as many.

![scores](lds.svg)

## Beside others

The first line is what `query` gives unless told otherwise: shared noise, matched, whitened. ×: how many times the score
of a line it has, for validation and generated pictures (– where an interval reaches 0), and in how many resamples of
pictures and halves {asked["goal"]} times or more; *at its cost*: with as many timesteps as the line has gradients.

The paper's ways, TRAK's and D-TRAK's are as gradindex makes them: noise of each picture's own, means over timesteps,
plain or whitened (by rows that are means, too), of the loss or of the mean square of the output; whitened with the
damping that is best for them here, for validation and for generated pictures. *Timesteps of training* are the last 25
that a picture was trained on, with two draws of noise at each.

{record.table(short)}

## What gradients and numbers buy

![costs](lds-costs.svg)

## Everything that was measured

Noise *trained*: each picture's own, at timesteps of training. Pairing *mean*: means of queries over timesteps, and of
scores; *mean-rows*: whitened by rows that are means, too; *averaged*: rows and queries are means over checkpoints. Dim
*whole*: no projection. *seeds agree*: Spearman's ρ between the scores of two seeds, of noise and projection both.

{record.table(whole)}

## How much damping

Matched, shared noise; in mean squares of a row's norm, {DAMPING:g} being the default.

{record.table(damping)}

## Other sums over timesteps

What they add to the score, whitened, shared noise, matched; the interval is of the difference.

{record.table(ideas)}

## Taking the highest out

By how many per cent a picture's loss rises when a model is trained without the {asked["taken out"]} pictures of its
highest scores, above that of models without {asked["taken out"]} random ones; mean over
{asked["taken out for each kind"]} pictures of each kind.

{record.table(removed)}"""


def _times(other: dict[str, Any], which: str) -> str:
    """How many times another's score ours is, for each kind, and how often that reaches the goal."""
    ours = other.get(which, {})
    times = [f"{facts['times']:.2f}" if other[kind][1] > 0 else "–" for kind, facts in ours.items()]
    reached = [f"{facts['reached']:.0%}" for facts in ours.values()]
    return f"{' / '.join(times)} ({' / '.join(reached)})" if ours else ""


def _row(rows: list[dict[str, Any]], setting: Setting, *way: str) -> dict[str, Any]:
    """The facts of a setting's method, pairing and treatment."""
    wanted = {**asdict(setting), **dict(zip(("method", "pairing", "treatment"), way, strict=True))}
    return next(row for row in rows if wanted.items() <= row.items())


def _shown(facts: dict[str, Any]) -> dict[str, str]:
    """Means with their intervals."""
    kinds = {kind: [format(value, ".1f") for value in facts[kind]] for kind in ("validation", "generated")}
    return {kind: f"{mean} ({low} … {high})" for kind, (mean, low, high) in kinds.items()}


WAYS = [  # of the plot: its name, the setting, method, pairing and treatment
    (f"{treatment} {method}, {noise} noise, {pairing}", Setting(noise=noise), method, pairing, treatment)
    for noise, pairing in (("own", "mean"), ("shared", "mean"), ("shared", "matched"))
    for treatment in ("plain", "centred", "whitened")
    for method in METHODS
]


def draw(results: dict[str, Any], file: Path) -> None:
    """A bar for each way at ten timesteps, with its interval, beside pixels."""
    bars = {"pixel cosine": _pixels(results)}
    for name, setting, *way in WAYS:
        bars[name] = _row(results["rows"], setting, *way)
    figure, both = plt.subplots(1, 2, figsize=(11, 6), sharey=True, layout="constrained")
    for axes, kind in zip(both, ("validation", "generated"), strict=True):
        means, lows, highs = np.array([bar[kind] for bar in bars.values()]).T
        colours = ["#888", *("#246" if "whitened" in name else "#9bd" for name, *_ in WAYS)]
        axes.barh(list(bars), means, xerr=[means - lows, highs - means], color=colours, error_kw={"lw": 1})
        axes.axvline(means[0], color="#888", lw=1, ls=":")
        axes.set(title=f"{kind} pictures", xlabel="linear datamodeling score × 100")
    both[0].invert_yaxis()
    figure.savefig(file)


def draw_costs(results: dict[str, Any], file: Path) -> None:
    """The score against a query's gradients and against the numbers of a row, with intervals, beside pixels."""
    series = {
        "timesteps": [Setting(timesteps=n) for n in (1, 2, 3, 5, 10, 25, 50)],
        "draws at 10 timesteps": [Setting(draws=n) for n in (1, 2, 4, 16)],
        "checkpoints at 10 timesteps": [Setting(), Setting(checkpoints=4)],
    }
    dims = [Setting(dim=n) for n in (256, 512, 1024, 2048, 4096, 8192)]
    figure, grid = plt.subplots(2, 2, figsize=(11, 7), sharex="col", sharey="row", layout="constrained")
    for line, kind in zip(grid, ("validation", "generated"), strict=True):
        for name, settings in series.items():
            _curve(line[0], results, kind, [s.gradients for s in settings], settings, name)
        _curve(line[1], results, kind, [s.dim for s in dims], dims, "10 timesteps")
        for axes, ticks in zip(line, ([1, 2, 5, 10, 20, 50, 160], [s.dim for s in dims]), strict=True):
            axes.axhline(_pixels(results)[kind][0], color="#888", ls=":", label="pixel cosine")
            axes.set(xscale="log", title=f"{kind} pictures", ylim=(0, None))
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axes.minorticks_off()
        line[0].set_ylabel("linear datamodeling score × 100")
    for axes, label in zip(grid[1], ("gradients of a query", "numbers of a projected gradient"), strict=True):
        axes.set_xlabel(label)
    for axes in grid[0]:
        axes.legend(loc="lower right", frameon=False)
    figure.savefig(file)


def _curve(
    axes: Any, results: dict[str, Any], kind: str, x: Sequence[int], settings: Sequence[Setting], name: str
) -> None:
    means, lows, highs = np.array([_row(results["rows"], setting, *OURS[1:])[kind] for setting in settings]).T
    axes.errorbar(x, means, [means - lows, highs - means], marker="o", capsize=2, lw=1, label=name)


def _pixels(results: dict[str, Any]) -> dict[str, Any]:
    return next(facts for facts in results["compared"] if facts["score"] == "pixel cosine")

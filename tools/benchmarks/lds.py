"""How far a score can be trusted: `tools/bench lds`. Scores of every kind against models trained on random halves."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import record
from diffusers import UNet2DModel
from halves import (
    ASKED,
    BATCH,
    PICTURES,
    SEEDS,
    STEPS,
    SUBSETS,
    asked_pictures,
    in_processes,
    losses_without,
    pictures,
    subsets,
    train_all,
    whole_model,
)
from kinds import SEEDED, SETTINGS, Rows, Setting

from gradindex.evaluate import LDS, interval, lds
from gradindex.ranking import spearman
from gradindex.scoring import unit
from gradindex.search_index import METHODS

OURS = (Setting(), "retrac", "matched", "whitened")  # what `query` does unless told otherwise
PEERS = {
    f"{name}, {timesteps} gradients": (Setting(noise="own", output=output, timesteps=timesteps), *way)
    for timesteps in (10, 50)
    for name, output, *way in (
        ("the paper's TracIn", "loss", "tracin", "mean", "plain"),
        ("the paper's ReTrac", "loss", "retrac", "mean", "plain"),
        ("TRAK's", "loss", "tracin", "mean", "whitened"),
        ("D-TRAK's", "mean-square", "tracin", "mean", "whitened"),
    )
}
DAMPINGS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)


def run(work: Path, device: str, only: list[str]) -> None:
    """Train, measure, print, and write docs/benchmarks/lds.json, .md and .png; `train` only trains."""
    work = work / "lds"
    work.mkdir(parents=True, exist_ok=True)
    losses = train_all(work)
    if only == ["train"]:
        return
    every = {setting: Rows.of(work, setting) for setting in SETTINGS}
    other = {setting: Rows.of(work, replace(setting, seed=1)) for setting in SEEDED}
    truth = Truth(losses.mean(1), subsets())
    baselines = {"pixel cosine": cosine(pictures(work.parent)[0], asked_pictures(work)), "random": random_scores()}
    others = {name: every[setting].scores(*way) for name, (setting, *way) in PEERS.items()}
    others["pixel cosine"] = baselines["pixel cosine"]
    results = {
        "models": {"subsets": SUBSETS, "seeds": SEEDS, "steps": STEPS, "batch": BATCH, "parameters": parameters(work)},
        "seeds_agree": {kind: spearman(*losses[:, :, part].transpose(1, 2, 0)) for kind, part in KINDS.items()},
        "baselines": {name: truth.of(scores) for name, scores in baselines.items()},
        "ratios": {name: truth.ratio(every[OURS[0]].scores(*OURS[1:]), scores) for name, scores in others.items()},
        "rows": [row for setting, rows in every.items() for row in measured(truth, setting, rows, other.get(setting))],
        "damping": [
            {"dim": setting.dim, "timesteps": setting.timesteps, "method": method, "damping": damping,
             **truth.of(every[setting].scores(method, "matched", "whitened", damping))}
            for setting in SETTINGS if setting in SWEPT for method in METHODS for damping in DAMPINGS
        ],
    }  # fmt: skip
    results["counterfactuals"] = counterfactuals(work)
    text = page(results)
    print(text)
    if not only:
        record.save("lds", device, "tools/bench lds", results, text)
        draw(results, record.FOLDER / "lds.svg")


KINDS = {"validation": slice(0, ASKED), "generated": slice(ASKED, None)}  # of pictures that are asked
SWEPT = [Setting(), *(Setting(dim=n) for n in (256, 1024, 8192)), *(Setting(timesteps=n) for n in (1, 50))]


@dataclass(frozen=True)
class Truth:
    """What the retrained models say: losses [SUBSETS, 2 · ASKED] of models trained on subsets [SUBSETS, PICTURES]."""

    losses: np.ndarray
    subsets: np.ndarray

    def of(self, scores: np.ndarray) -> dict[str, list[float]]:
        """The linear datamodeling score × 100 of scores [2 · ASKED, PICTURES]: mean, low, high, for each kind."""
        found = self._each(scores)
        return {kind: [100 * value for value in (one.mean, one.low, one.high)] for kind, one in found.items()}

    def ratio(self, scores: np.ndarray, others: np.ndarray) -> dict[str, list[float]]:
        """How many times others' the score of some is: mean, low, high, for each kind."""
        found = {}
        for (kind, one), other in zip(self._each(scores).items(), self._each(others).values(), strict=True):
            ends = np.quantile(one.resampled / other.resampled, [0.025, 0.975])
            found[kind] = [one.mean / other.mean, *ends.tolist()]
        return found

    def _each(self, scores: np.ndarray) -> dict[str, LDS]:
        return {kind: lds(scores[part], self.subsets, self.losses[:, part]) for kind, part in KINDS.items()}


def measured(truth: Truth, setting: Setting, rows: Rows, other: Rows | None) -> list[dict[str, Any]]:
    """Every score that can be made of some rows; `other` are those of another noise seed."""
    found = []
    for method, pairing in sorted(rows.products):
        for treatment in ("plain", "centred", "whitened"):
            scores = rows.scores(method, pairing, treatment)
            facts = {**asdict(setting), "method": method, "pairing": pairing, "treatment": treatment}
            facts |= {"gradients": setting.gradients, **truth.of(scores)}
            if other:
                facts["seeds_agree"] = spearman(scores, other.scores(method, pairing, treatment))
            found.append(facts)
    return found


BEST = {  # whose pictures are taken out, beside those of pixels and random ones
    "tracin, whitened": ("tracin", "matched", "whitened"),
    "retrac, whitened": ("retrac", "matched", "whitened"),
    "retrac, plain": ("retrac", "matched", "plain"),
}
TAKEN_OUT, REMOVED_FOR, RANDOM = 50, (*range(8), *range(ASKED, ASKED + 8)), 8  # pictures; for which ones asked; models


def counterfactuals(work: Path) -> dict[str, dict[str, list[float]]]:
    """What taking out a picture's highest does to its loss, in per cent of the mean loss after random removals.

    Mean and the ends of its 95 % bootstrap interval over pictures, for validation and generated ones.
    """
    rows, (training, asked) = Rows.of(work, Setting()), (pictures(work.parent)[0], asked_pictures(work))
    ways = {name: rows.scores(*way) for name, way in BEST.items()} | {"pixel cosine": cosine(training, asked)}
    jobs = {f"random-{number}": np.random.default_rng(number).permutation(PICTURES)[:TAKEN_OUT]
            for number in range(RANDOM)}  # fmt: skip
    jobs |= {f"{name}-{query}": np.argsort(-scores[query])[:TAKEN_OUT] for name, scores in ways.items()
             for query in REMOVED_FOR}  # fmt: skip
    losses = dict(zip(jobs, in_processes(losses_without, work, jobs, jobs.values()), strict=True))
    base = np.mean([losses[f"random-{number}"] for number in range(RANDOM)], axis=0)
    found: dict[str, dict[str, list[float]]] = {}
    for name in ways:
        rise = {query: 100 * (losses[f"{name}-{query}"][query] / base[query] - 1) for query in REMOVED_FOR}
        kinds = {"validation": [value for query, value in rise.items() if query < ASKED],
                 "generated": [value for query, value in rise.items() if query >= ASKED]}  # fmt: skip
        found[name] = {kind: list(interval(np.array(values))) for kind, values in kinds.items()}
    return found


def cosine(training: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Of pixels, [Q, N]."""
    return unit(asked.reshape(len(asked), -1)) @ unit(training.reshape(len(training), -1)).T


def parameters(work: Path) -> int:
    return UNet2DModel.from_pretrained(whole_model(work)[-1] / "unet").num_parameters()


def random_scores() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((2 * ASKED, PICTURES))


def page(results: dict[str, Any]) -> str:
    """The tables and what they are of."""
    rows, models = results["rows"], results["models"]
    ours = _row(rows, *OURS)
    short = [
        {"score": "**retrac, as `query` gives it**", **_shown(ours), "gradients": ours["gradients"]},
        *({"score": name, **_shown(results["baselines"][name]), "gradients": 0} for name in results["baselines"]),
        *({"score": name, **_shown(_row(rows, *way)), "gradients": way[0].gradients} for name, way in PEERS.items()),
    ]
    ratios = [{"compared with": name, **_shown(ratio, ".2f")} for name, ratio in results["ratios"].items()]
    whole = [
        {
            **{name: facts[name] for name in ("noise", "output", "timesteps", "draws", "checkpoints")},
            "dim": facts["dim"] or "whole",
            **{name: facts[name] for name in ("method", "pairing", "treatment", "gradients")},
            **_shown(facts),
            "seeds agree": facts.get("seeds_agree"),
        }
        for facts in rows
    ]
    damping = [{"dim": facts["dim"], "timesteps": facts["timesteps"], "method": facts["method"],
                "damping": f"{facts['damping']:g}", **_shown(facts)} for facts in results["damping"]]  # fmt: skip
    removed = [{"taken out": name, **_shown(facts)} for name, facts in results["counterfactuals"].items()]
    return f"""# How far a score can be trusted

A model ({models["parameters"]:,} parameters, {models["steps"]} steps of {models["batch"]} pictures, learning rate
falling to zero) was trained on {PICTURES} Fashion-MNIST pictures at 16×16, and {models["subsets"]} times
{models["seeds"]} more on random halves of them. The linear datamodeling score × 100 is Spearman's ρ, over the halves,
between a half's summed scores for a picture and its models' mean loss on that picture, mean over {ASKED} validation
pictures, or over as many that the model generated; in brackets its 95 % bootstrap interval over pictures and halves.
Losses of two seeds on the same halves go together by ρ = {results["seeds_agree"]["validation"]:.2f} (validation) and
{results["seeds_agree"]["generated"]:.2f} (generated), so that not even a perfect score could reach 100. What a score
costs is the gradients of a query; a training picture's are as many.

{record.table(short)}

How many times that of others the score of `query` is, whose defaults these are (shared noise, matched, whitened):

{record.table(ratios)}

## Everything that was measured

*averaged*: rows are averaged over checkpoints before anything else. *whole*: no projection. *seeds agree*: Spearman's ρ
between the scores of two seeds, of noise and projection both.

{record.table(whole)}

## How much damping

Matched, shared noise; in mean squares of a row's norm, 0.001 being the default.

{record.table(damping)}

## Taking the highest out

By how many per cent a picture's loss rises when a model is trained without the {TAKEN_OUT} pictures of its highest
scores, above that of models without {TAKEN_OUT} random ones; mean over {len(REMOVED_FOR) // 2} pictures of each kind.

{record.table(removed)}"""


def _row(rows: list[dict[str, Any]], setting: Setting, *way: str) -> dict[str, Any]:
    """The facts of a setting's method, pairing and treatment."""
    wanted = {**asdict(setting), **dict(zip(("method", "pairing", "treatment"), way, strict=True))}
    return next(row for row in rows if wanted.items() <= row.items())


WAYS = [  # of the plot: its name, the setting, method, pairing and treatment
    (f"{treatment} {method}, {noise} noise, {pairing}", Setting(noise=noise), method, pairing, treatment)
    for noise, pairing in (("own", "mean"), ("shared", "mean"), ("shared", "matched"))
    for treatment in ("plain", "centred", "whitened")
    for method in METHODS
]


def draw(results: dict[str, Any], file: Path) -> None:
    """A bar for each way at ten timesteps, with its interval, beside pixels."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    bars = {"pixel cosine": results["baselines"]["pixel cosine"]}
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


def _shown(facts: dict[str, Any], form: str = ".1f") -> dict[str, str]:
    """Means with their intervals."""
    kinds = {kind: [format(value, form) for value in facts[kind]] for kind in ("validation", "generated")}
    return {kind: f"{mean} ({low} … {high})" for kind, (mean, low, high) in kinds.items()}

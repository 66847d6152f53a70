"""How far a score can be trusted: `tools/bench lds`. Scores of every kind against models trained on random halves."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from build import write_pictures
from halves import (
    ASKED,
    BATCH,
    CHECKPOINTS,
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

import gradindex
from gradindex.evaluate import interval, lds
from gradindex.plan import DIM
from gradindex.ranking import spearman
from gradindex.scoring import unit
from gradindex.search_index import METHODS
from gradindex.whiten import DAMPING


@dataclass(frozen=True)
class Setting:
    """Rows of one kind: how the store is built; dim 0 for whole gradients."""

    noise: str = "shared"
    output: str = "loss"
    timesteps: int = 10
    draws: int = 1
    checkpoints: int = 1
    dim: int = 4096
    seed: int = 0

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in asdict(self).values())

    @property
    def gradients(self) -> int:
        """Of a query."""
        return self.timesteps * self.draws * self.checkpoints


SETTINGS = [
    Setting(),
    Setting(noise="own"),
    Setting(output="mean-square"),
    Setting(noise="own", output="mean-square"),
    *(Setting(timesteps=n) for n in (1, 2, 3, 5, 25, 50)),
    *(Setting(draws=n) for n in (2, 4, 16)),
    Setting(timesteps=5, draws=2),
    Setting(timesteps=25, draws=2),
    *(Setting(dim=n) for n in (256, 512, 1024, 2048, 8192)),
    Setting(timesteps=5, dim=0),
    Setting(checkpoints=CHECKPOINTS, dim=1024),
    Setting(checkpoints=CHECKPOINTS),
]
SEEDED = [Setting(), Setting(noise="own"), Setting(timesteps=5), Setting(timesteps=50), Setting(draws=4)]
DAMPINGS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Rows:
    """What scores are made of: products of training rows with each other and with the queries'.

    Attributes:
        products: for each (method, pairing), K [blocks, N, N] and B [blocks, N, Q]; a block is a
            (checkpoint, timestep), a checkpoint for the mean pairing, a timestep for rows averaged over checkpoints.
    """

    products: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, work: Path, setting: Setting) -> "Rows":
        file = work / f"rows-{setting.name}.npz"
        if not file.exists():
            print(setting, flush=True)
            draft = file.with_suffix(".draft.npz")
            np.savez(draft, **products(work, setting))
            os.replace(draft, file)
        with np.load(file) as arrays:
            names = {name[:-2] for name in arrays}
            every = {tuple(name.split(" ")): (arrays[f"{name} K"], arrays[f"{name} B"]) for name in names}
        return cls(every)

    def scores(self, method: str, pairing: str, treatment: str, damping: float = DAMPING) -> np.ndarray:
        """[Q, N], the mean over blocks. (GᵀG/N + λI)⁻¹ is taken on the other side: G (…)⁻¹ q = (GGᵀ/N + λI)⁻¹ G q."""
        among, asked = self.products[method, pairing]
        if treatment == "plain":
            return asked.mean(0).T
        if treatment == "centred":  # rows and queries, by the mean row
            return (asked - among.mean(2, keepdims=True)).mean(0).T
        moments = among.astype(np.float64) / among.shape[1]
        loads = damping * np.trace(moments, axis1=1, axis2=2)
        return np.linalg.solve(moments + loads[:, None, None] * np.eye(among.shape[1]), asked).mean(0).T


def products(work: Path, setting: Setting) -> dict[str, np.ndarray]:
    """The arrays of `Rows`, from a store that gradindex builds and from the query gradients that it takes."""
    data, folders = work / "pictures", whole_model(work)
    if not data.exists():
        write_pictures(data, pictures(work.parent)[0])
    chosen = folders[-setting.checkpoints :] if setting.checkpoints > 1 else []
    index = gradindex.build(
        work / f"store-{setting.name}", model=folders[-1], data=data, checkpoints=chosen or None,
        timesteps=setting.timesteps, draws=setting.draws, noise=setting.noise, output=setting.output, seed=setting.seed,
        dim=setting.dim or DIM, projection="auto" if setting.dim else "none", device="cpu",
    )  # fmt: skip
    asked, found = list(torch.from_numpy(asked_pictures(work))), {}
    rows = index.store.unnormalized[:]
    grids = {"matched": {}, "mean": {"query_timesteps": setting.timesteps, "query_draws": setting.draws}}
    if setting.checkpoints > 1:
        grids["averaged"] = {}
    for pairing, options in grids.items():
        way = {"pairing": "mean" if pairing == "mean" else "matched", "whiten": False}
        blocks = index._query_blocks(asked, *METHODS, **way, **options)
        for method, block in zip(METHODS, blocks, strict=True):
            own = unit(rows) if method == "retrac" else rows
            if pairing == "mean":
                own, block = own.mean(2, keepdims=True), block[:, :, :1]
            if pairing == "averaged":  # over checkpoints, a timestep by itself
                own, block = own.mean(0, keepdims=True), block.mean(1, keepdims=True)
            pairs = [(own[c, :, t], block[:, c, t]) for c in range(own.shape[0]) for t in range(own.shape[2])]
            found[f"{method} {pairing} K"] = np.stack([g @ g.T for g, _ in pairs])
            found[f"{method} {pairing} B"] = np.stack([g @ q.T for g, q in pairs])
    return found


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
    pixels = pictures(work.parent)[0], asked_pictures(work)
    results = {
        "models": {"subsets": SUBSETS, "seeds": SEEDS, "steps": STEPS, "batch": BATCH},
        "seeds_agree": spearman(losses[:, 0].T, losses[:, 1].T),
        "baselines": {"pixel cosine": truth.of(cosine(*pixels)), "random": truth.of(random_scores())},
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


SWEPT = [Setting(), *(Setting(dim=n) for n in (256, 1024, 8192)), *(Setting(timesteps=n) for n in (1, 50))]


@dataclass(frozen=True)
class Truth:
    """What the retrained models say: losses [SUBSETS, 2 · ASKED] of models trained on subsets [SUBSETS, PICTURES]."""

    losses: np.ndarray
    subsets: np.ndarray

    def of(self, scores: np.ndarray) -> dict[str, list[float]]:
        """The linear datamodeling score × 100 of scores [2 · ASKED, PICTURES]: mean, low, high, for each kind."""
        halves = {"validation": slice(0, ASKED), "generated": slice(ASKED, None)}
        found = {kind: lds(scores[part], self.subsets, self.losses[:, part]) for kind, part in halves.items()}
        return {kind: [100 * value for value in (one.mean, one.low, one.high)] for kind, one in found.items()}


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


def random_scores() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((2 * ASKED, PICTURES))


def page(results: dict[str, Any]) -> str:
    """The tables and what they are of."""
    baselines = [{"score": name, **_shown(facts)} for name, facts in results["baselines"].items()]
    rows = [
        {
            **{name: facts[name] for name in ("noise", "output", "timesteps", "draws", "checkpoints", "dim")},
            **{name: facts[name] for name in ("method", "pairing", "treatment", "gradients")},
            **_shown(facts),
            "seeds agree": facts.get("seeds_agree"),
        }
        for facts in results["rows"]
    ]
    damping = [{**{name: facts[name] for name in ("dim", "timesteps", "method", "damping")}, **_shown(facts)}
               for facts in results["damping"]]  # fmt: skip
    return f"""# How far a score can be trusted

{record.table(baselines)}

{record.table(rows)}

{record.table(damping)}"""


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
        wanted = {**asdict(setting), **dict(zip(("method", "pairing", "treatment"), way, strict=True))}
        bars[name] = next(row for row in results["rows"] if wanted.items() <= row.items())
    figure, both = plt.subplots(1, 2, figsize=(11, 6), sharey=True, layout="constrained")
    for axes, kind in zip(both, ("validation", "generated"), strict=True):
        means, lows, highs = np.array([bar[kind] for bar in bars.values()]).T
        colours = ["#888", *("#246" if "whitened" in name else "#9bd" for name, *_ in WAYS)]
        axes.barh(list(bars), means, xerr=[means - lows, highs - means], color=colours, error_kw={"lw": 1})
        axes.axvline(means[0], color="#888", lw=1, ls=":")
        axes.set(title=f"{kind} pictures", xlabel="linear datamodeling score × 100")
    both[0].invert_yaxis()
    figure.savefig(file)


def _shown(facts: dict[str, Any]) -> dict[str, str]:
    """Means with their intervals."""
    return {kind: "{:.1f} ({:.1f} … {:.1f})".format(*facts[kind]) for kind in ("validation", "generated")}

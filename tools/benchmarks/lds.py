"""How far a score can be trusted: `tools/bench lds`. Scores of every kind against models trained on random halves."""

from collections.abc import Mapping
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
from kinds import OURS, PEERS, SEEDED, SETTINGS, Rows, Setting, make_rows
from lds_page import draw, draw_costs, page

from gradindex.evaluate import LDS, interval, lds
from gradindex.ranking import spearman
from gradindex.scoring import unit
from gradindex.search_index import METHODS

DAMPINGS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)
GOAL = 1.5  # times the score of others


def run(work: Path, device: str, only: list[str]) -> None:
    """Train, measure, print, and write docs/benchmarks/lds.json, .md and two .svg; `train` only trains."""
    work = work / "lds"
    work.mkdir(parents=True, exist_ok=True)
    losses = train_all(work)
    if only == ["train"]:
        return
    in_processes(make_rows, work, [*SETTINGS, *(replace(setting, seed=1) for setting in SEEDED)])
    every = {setting: Rows.of(work, setting) for setting in SETTINGS}
    other = {setting: Rows.of(work, replace(setting, seed=1)) for setting in SEEDED}
    results = {
        "models": {"subsets": SUBSETS, "seeds": SEEDS, "steps": STEPS, "batch": BATCH, "parameters": parameters(work)},
        "seeds_agree": {kind: spearman(*losses[:, :, part].transpose(1, 2, 0)) for kind, part in KINDS.items()},
        **measured(Truth(losses.mean(1), subsets()), every, other, baselines(work)),
        "counterfactuals": counterfactuals(work),
    }
    text = page(results)
    print(text)
    if not only:
        record.save("lds", device, "tools/bench lds", results, text)
        draw(results, record.FOLDER / "lds.svg")
        draw_costs(results, record.FOLDER / "lds-costs.svg")


KINDS = {"validation": slice(0, ASKED), "generated": slice(ASKED, None)}  # of pictures that are asked


@dataclass(frozen=True)
class Truth:
    """What the retrained models say: losses [SUBSETS, 2 · ASKED] of models trained on subsets [SUBSETS, PICTURES]."""

    losses: np.ndarray
    subsets: np.ndarray

    def of(self, scores: np.ndarray) -> dict[str, list[float]]:
        """The linear datamodeling score × 100 of scores [2 · ASKED, PICTURES]: mean, low, high, for each kind."""
        found = self._each(scores)
        return {kind: [100 * value for value in (one.mean, one.low, one.high)] for kind, one in found.items()}

    def times(self, scores: np.ndarray, others: np.ndarray) -> dict[str, list[float]]:
        """How many times others' the score of some is, and the share of resamples where it is GOAL or more."""
        found = {}
        for (kind, one), other in zip(self._each(scores).items(), self._each(others).values(), strict=True):
            found[kind] = [one.mean / other.mean, float((one.resampled >= GOAL * other.resampled).mean())]
        return found

    def _each(self, scores: np.ndarray) -> dict[str, LDS]:
        return {kind: lds(scores[part], self.subsets, self.losses[:, part]) for kind, part in KINDS.items()}


def measured(
    truth: Truth, every: Mapping[Setting, Rows], other: Mapping[Setting, Rows], baselines: Mapping[str, np.ndarray]
) -> dict[str, list[dict[str, Any]]]:
    """The scores of everything: `other` are rows of another seed."""
    ours, compared = every[OURS[0]].scores(*OURS[1:]), []
    for name, scores in baselines.items():
        compared.append({"score": name, "gradients": 0, **truth.of(scores), "times": truth.times(ours, scores)})
    for name, (setting, *way) in PEERS.items():
        ways = {damping: every[setting].scores(*way, damping=damping) for damping in DAMPINGS}
        best = max(ways, key=lambda damping: truth.of(ways[damping])["validation"][0])
        compared.append(
            {"score": name, "gradients": setting.gradients, "damping": best if "whitened" in way else None,
             **truth.of(ways[best]), "times": truth.times(ours, ways[best])}
        )  # fmt: skip
    return {
        "compared": compared,
        "rows": [
            row for setting, rows in every.items() for row in every_way(truth, setting, rows, other.get(setting))
        ],
        "damping": [
            {"dim": setting.dim, "timesteps": setting.timesteps, "method": method, "damping": damping,
             **truth.of(every[setting].scores(method, "matched", "whitened", damping=damping))}
            for setting in SWEPT for method in METHODS for damping in DAMPINGS
        ],
        "ideas": ideas(truth, every[Setting()], other[Setting()]),
    }  # fmt: skip


SWEPT = [Setting(), *(Setting(dim=n) for n in (256, 1024, 8192)), *(Setting(timesteps=n) for n in (1, 50))]


def every_way(truth: Truth, setting: Setting, rows: Rows, other: Rows | None) -> list[dict[str, Any]]:
    """Every score that can be made of some rows."""
    found = []
    for method, pairing in sorted(rows.asked):
        for treatment in ("plain", "centred", "whitened"):
            if pairing == "mean-rows" and treatment != "whitened":  # the same as the mean pairing
                continue
            scores = rows.scores(method, pairing, treatment)
            facts = {**asdict(setting), "method": method, "pairing": pairing, "treatment": treatment}
            facts |= {"gradients": setting.gradients, **truth.of(scores)}
            if other:
                facts["seeds_agree"] = spearman(scores, other.scores(method, pairing, treatment))
            found.append(facts)
    return found


def ideas(truth: Truth, rows: Rows, other: Rows) -> list[dict[str, Any]]:
    """Scores that sum up blocks in other ways: what might lift the default, and what it does."""
    found = []
    for method in METHODS:
        way = (method, "matched", "whitened")
        blocks, among = rows.blocks(*way), rows.among[method, "rows"]
        norms, spreads = np.sqrt(np.trace(among, axis1=1, axis2=2)), blocks.std((1, 2))
        ways = {
            "as it is": blocks,
            "two seeds pooled, 20 gradients": np.concatenate([blocks, other.blocks(*way)]),
            "timesteps weighted by their rows' norm": blocks * norms[:, None, None],
            "timesteps weighted to spread alike": blocks / spreads[:, None, None],
        }
        found += [{"method": method, "idea": idea, **truth.of(some.mean(0))} for idea, some in ways.items()]
    return found


BEST = {  # whose pictures are taken out, beside those of pixels and random ones
    "retrac, whitened": ("retrac", "matched", "whitened"),
    "tracin, whitened": ("tracin", "matched", "whitened"),
    "tracin, plain": ("tracin", "matched", "plain"),
}
TAKEN_OUT, REMOVED_FOR, RANDOM = 50, (*range(8), *range(ASKED, ASKED + 8)), 8  # pictures; for which ones asked; models


def counterfactuals(work: Path) -> dict[str, dict[str, list[float]]]:
    """What taking out a picture's highest does to its loss, in per cent of the mean loss after random removals.

    Mean and the ends of its 95 % bootstrap interval over pictures, for validation and generated ones.
    """
    rows = Rows.of(work, Setting())
    ways = {name: rows.scores(*way) for name, way in BEST.items()}
    ways["pixel cosine"] = baselines(work)["pixel cosine"]
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


def baselines(work: Path) -> dict[str, np.ndarray]:
    """Scores [2 · ASKED, PICTURES] that take no gradients."""
    training, asked = (unit(some.reshape(len(some), -1)) for some in (pictures(work.parent)[0], asked_pictures(work)))
    chance = np.random.default_rng(5).standard_normal((2 * ASKED, PICTURES))
    return {"pixel cosine": asked @ training.T, "random": chance}


def parameters(work: Path) -> int:
    return UNet2DModel.from_pretrained(whole_model(work)[-1] / "unet").num_parameters()

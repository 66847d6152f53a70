"""How far a score can be trusted: `tools/bench lds`. Scores of every kind against models trained on random halves."""

from collections.abc import Mapping, Sequence
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
    picture_folder,
    pictures,
    subsets,
    train_all,
    training_log,
    whole_model,
)
from kinds import OURS, PEERS, PLACES, SEEDED, SETTINGS, Rows, Setting, make_rows
from lds_page import draw, draw_costs, page

from gradindex.evaluate import LDS, interval, lds
from gradindex.ranking import spearman
from gradindex.scoring import unit
from gradindex.search_index import METHODS

DAMPINGS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1, 1.0)
GOAL = 1.5  # times the score of others


def run(work: Path, device: str, only: list[str]) -> None:
    """Train, measure, print, and write docs/benchmarks/lds.json, .md and two .svg; `train` only trains."""
    work = work / "lds"
    work.mkdir(parents=True, exist_ok=True)
    picture_folder(work), training_log(work)  # which the processes below share
    losses = train_all(work)
    if only == ["train"]:
        return
    in_processes(make_rows, work, [*SETTINGS, *(replace(setting, seed=1) for setting in SEEDED)])
    every = {setting: Rows.of(work, setting) for setting in SETTINGS}
    other = {setting: Rows.of(work, replace(setting, seed=1)) for setting in SEEDED}
    results = {
        "models": {"subsets": SUBSETS, "seeds": SEEDS, "steps": STEPS, "batch": BATCH, "parameters": parameters(work)},
        "asked": {"training": PICTURES, "each kind": ASKED, "goal": GOAL, "taken out": TAKEN_OUT,
                  "taken out for each kind": len(REMOVED_FOR) // 2},
        "seeds_agree": {kind: spearman(*losses[:, :, part].transpose(1, 2, 0)) for kind, part in KINDS.items()},
        **measured(Truth(losses.mean(1), subsets()), every, other, baselines(work)),
        "counterfactuals": counterfactuals(work),
    }  # fmt: skip
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
        return {kind: [100 * value for value in (one.mean, one.low, one.high)] for kind, one in self._each(scores)}

    def against(self, scores: np.ndarray, others: np.ndarray) -> dict[str, dict[str, Any]]:
        """The score × 100 of some minus others': mean, low, high; how many times it is; how often GOAL times or more.

        How often: the share of resamples of pictures and subsets, which are the same for both.
        """
        found = {}
        for (kind, one), (_, other) in zip(self._each(scores), self._each(others), strict=True):
            ends = np.quantile(one.resampled - other.resampled, [0.025, 0.975])
            found[kind] = {
                "difference": [100 * (one.mean - other.mean), *(100 * ends).tolist()],
                "times": one.mean / other.mean,
                "reached": float((one.resampled >= GOAL * other.resampled).mean()),
            }
        return found

    def _each(self, scores: np.ndarray) -> list[tuple[str, LDS]]:
        return [(kind, lds(scores[part], self.subsets, self.losses[:, part])) for kind, part in KINDS.items()]


def measured(
    truth: Truth, every: Mapping[Setting, Rows], other: Mapping[Setting, Rows], baselines: Mapping[str, np.ndarray]
) -> dict[str, list[dict[str, Any]]]:
    """The scores of everything: `other` are rows of another seed."""
    costs = {rows.gradients for rows in PLACES.values()}
    ours = {n: every[replace(OURS[0], timesteps=n)].scores(*OURS[1:]) for n in costs}
    first = ours[OURS[0].gradients]
    compared = [{"score": name, "gradients": 0, **truth.of(scores), "ours": truth.against(first, scores)}
                for name, scores in baselines.items()]  # fmt: skip
    for place, rows in PLACES.items():
        for name, (output, *way) in PEERS.items():
            setting = replace(rows, output=output)
            facts, scores = at_best(truth, every[setting], way)
            facts |= {"score": f"{name}, {place}", "gradients": setting.gradients}
            facts |= {"ours": truth.against(first, scores), "equal": truth.against(ours[setting.gradients], scores)}
            compared.append(facts)
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


def at_best(truth: Truth, rows: Rows, way: Sequence[str]) -> tuple[dict[str, Any], np.ndarray]:
    """The facts and scores of a way, whitened with the damping that is best for it, for each kind of pictures."""
    if "whitened" not in way:
        scores = rows.scores(*way)
        return truth.of(scores), scores
    facts: dict[str, Any] = {"damping": {}}
    parts = []
    tried = {damping: rows.scores(*way, damping=damping) for damping in DAMPINGS}
    worth = {damping: truth.of(scores) for damping, scores in tried.items()}
    for kind, part in KINDS.items():
        best = max(worth, key=lambda damping: worth[damping][kind][0])
        facts[kind], facts["damping"][kind] = worth[best][kind], best
        parts.append(tried[best][part])
    return facts, np.concatenate(parts)


SWEPT = [Setting(), *(Setting(dim=n) for n in (256, 1024, 8192)), *(Setting(timesteps=n) for n in (1, 50))]


def every_way(truth: Truth, setting: Setting, rows: Rows, other: Rows | None) -> list[dict[str, Any]]:
    """Every score that can be made of some rows."""
    found = []
    for method, pairing in sorted(rows.asked):
        for treatment in ("plain", "centred", "whitened"):
            if pairing == "mean-rows" and treatment != "whitened":  # as in the mean pairing
                continue
            scores = rows.scores(method, pairing, treatment)
            facts = {**asdict(setting), "method": method, "pairing": pairing, "treatment": treatment}
            facts |= {"gradients": setting.gradients, **truth.of(scores)}
            if other:
                facts["seeds_agree"] = spearman(scores, other.scores(method, pairing, treatment))
            found.append(facts)
    return found


def ideas(truth: Truth, rows: Rows, other: Rows) -> list[dict[str, Any]]:
    """Scores that sum up blocks in other ways: what might lift the default, and how far it does."""
    found = []
    for method in METHODS:
        way = (method, "matched", "whitened")
        blocks, second = rows.blocks(*way), other.blocks(*way)
        ways = {
            "two seeds pooled, 20 gradients": np.concatenate([blocks, second]),
            "timesteps weighted to spread alike": blocks / blocks.std(2).mean(1)[:, None, None],
        }
        if method == "tracin":  # rows of the other have norm 1
            norms = np.sqrt(np.trace(rows.among[method, "rows"], axis1=1, axis2=2))
            ways["timesteps weighted by their rows' norm"] = blocks * norms[:, None, None]
        for idea, some in ways.items():
            lift = truth.against(some.mean(0), blocks.mean(0))
            facts = {kind: lift[kind]["difference"] for kind in KINDS}
            found.append({"method": method, "idea": idea, **facts})
    return found


BEST = {  # whose pictures are taken out, beside those of pixels and random ones
    "retrac, whitened": ("retrac", "matched", "whitened"),
    "tracin, whitened": ("tracin", "matched", "whitened"),
    "tracin, plain": ("tracin", "matched", "plain"),
}
TAKEN_OUT, REMOVED_FOR, RANDOM = 50, (*range(6), *range(ASKED, ASKED + 6)), 8  # pictures; for which ones asked; models


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
    losses = dict(zip(jobs, in_processes(losses_without, work, jobs.values()), strict=True))
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

"""How far a score can be trusted: `tools/bench lds`.

Scores of many settings against models trained on random halves of the pictures.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import record
from baselines import baseline_scores
from counterfactuals import QUERIES_EACH, TAKEN_OUT, counterfactuals_of_rows
from diffusers import UNet2DModel
from lds_page import page
from lds_plots import draw, draw_costs
from row_products import RowProducts, make_products
from row_settings import (
    DAMPED,
    DEFAULT_ROWS,
    DEFAULT_SCORING,
    PEER_ROWS,
    PEERS,
    SEEDED,
    SETTINGS,
    RowSetting,
    Scoring,
)
from subset_models import (
    BATCH,
    PICTURES,
    QUERIES,
    QUERY_SETS,
    SEEDS,
    STEPS,
    SUBSETS,
    all_subset_losses,
    map_in_processes,
    picture_folder,
    subsets,
    training_log,
    whole_model,
)

from gradindex.report.evaluate import LDS, lds
from gradindex.report.ranking import spearman
from gradindex.search.factors import DAMPING
from gradindex.search.scoring import METHODS

DAMPINGS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1, 1.0)
TREATMENTS = ("plain", "centred", "whitened")
GOAL = 1.5  # times the score of others

Rows = list[dict[str, Any]]
ProductsOfSettings = Mapping[RowSetting, RowProducts]


def run(work: Path, device: str, only: list[str]) -> None:
    """Train, measure, print, and write docs/benchmarks/lds.json, .md and two .svg.

    Args:
        only: "train" does nothing but train the models.
    """
    folder = work / "lds"
    folder.mkdir(parents=True, exist_ok=True)
    # What the processes below share.
    picture_folder(folder)
    training_log(folder)
    losses = all_subset_losses(folder)
    if only == ["train"]:
        return
    seeded = {setting: replace(setting, seed=1) for setting in SEEDED}
    map_in_processes(make_products, folder, [*SETTINGS, *seeded.values()])
    products = {setting: RowProducts.of(folder, setting) for setting in SETTINGS}
    reseeded = {setting: RowProducts.of(folder, other) for setting, other in seeded.items()}
    retrained = RetrainedModels(losses.mean(1), subsets())
    results = {
        "models": _describe_models(folder),
        "asked": {
            "training": PICTURES,
            "each kind": QUERIES,
            "goal": GOAL,
            "taken out": TAKEN_OUT,
            "taken out for each kind": QUERIES_EACH,
        },
        "default_damping": DAMPING,
        "seeds_agree": _seed_agreement(losses),
        "compared": comparison(retrained, products, baseline_scores(folder)),
        "rows": all_rows(retrained, products, reseeded),
        "damping": damping_rows(retrained, products),
        "ideas": ideas(retrained, products[DEFAULT_ROWS], reseeded[DEFAULT_ROWS]),
        "counterfactuals": counterfactuals_of_rows(folder),
    }
    text = page(results)
    print(text)
    if not only:
        record.save("lds", device, "tools/bench lds", results, text)
        draw(results, record.FOLDER / "lds.svg")
        draw_costs(results, record.FOLDER / "lds-costs.svg")


def _describe_models(folder: Path) -> dict[str, int]:
    model = UNet2DModel.from_pretrained(whole_model(folder)[-1] / "unet")
    return {
        "subsets": SUBSETS,
        "seeds": SEEDS,
        "steps": STEPS,
        "batch": BATCH,
        "parameters": model.num_parameters(),
    }


def _seed_agreement(losses: np.ndarray) -> dict[str, float]:
    """How far two seeds of training agree, {set of queries: mean over queries}.

    It is Spearman's ρ between their losses over halves.

    Args:
        losses: [SUBSETS, SEEDS, 2 · QUERIES].
    """
    agreement = {}
    for name, queries in QUERY_SETS.items():
        first, second = losses[:, :, queries].transpose(1, 2, 0)
        agreement[name] = spearman(first, second)
    return agreement


@dataclass(frozen=True)
class RetrainedModels:
    """What models that were trained again say of scores.

    Attributes:
        losses: of each model on each query, [SUBSETS, 2 · QUERIES].
        subsets: which pictures each model was trained on, [SUBSETS, PICTURES] bool.
    """

    losses: np.ndarray
    subsets: np.ndarray

    def score(self, scores: np.ndarray) -> dict[str, list[float]]:
        """Return the linear datamodeling score × 100 of scores [2 · QUERIES, PICTURES].

        Returns:
            {set of queries: mean, and the ends of its interval}.
        """
        return {
            name: [100 * result.mean, 100 * result.low, 100 * result.high]
            for name, result in self._results(scores).items()
        }

    def compare(self, scores: np.ndarray, others: np.ndarray) -> dict[str, dict[str, Any]]:
        """Compare the linear datamodeling scores of two tables of scores.

        Returns:
            {set of queries: figures}. "difference": mean, and the ends of its interval, × 100;
            "times": how many times the second's score the first's is; "reached": in which share of
            resamples of pictures and subsets, the same for both, it is GOAL times or more.
        """
        results, other_results = self._results(scores), self._results(others)
        figures = {}
        for name, result in results.items():
            other = other_results[name]
            ends = np.quantile(result.resampled - other.resampled, [0.025, 0.975])
            reached = result.resampled >= GOAL * other.resampled
            figures[name] = {
                "difference": [100 * (result.mean - other.mean), *(100 * ends).tolist()],
                "times": result.mean / other.mean,
                "reached": float(reached.mean()),
            }
        return figures

    def _results(self, scores: np.ndarray) -> dict[str, LDS]:
        """The linear datamodeling score for each set of queries."""
        return {
            name: lds(scores[queries], self.subsets, self.losses[:, queries])
            for name, queries in QUERY_SETS.items()
        }


def comparison(
    retrained: RetrainedModels, products: ProductsOfSettings, baselines: Mapping[str, np.ndarray]
) -> Rows:
    """Return the scores of others beside ours, with as many gradients as they have, and with 10."""
    ours = {}
    for setting in PEER_ROWS.values():
        count = setting.gradients
        same_cost = products[replace(DEFAULT_ROWS, timesteps=count)]
        ours[count] = same_cost.scores(DEFAULT_SCORING)
    default = ours[DEFAULT_ROWS.gradients]
    rows: Rows = []
    for name, scores in baselines.items():
        row = {"score": name, "gradients": 0, **retrained.score(scores)}
        rows.append({**row, "ours": retrained.compare(default, scores)})
    for title, peer_rows in PEER_ROWS.items():
        for name, (output, scoring) in PEERS.items():
            setting = replace(peer_rows, output=output)
            row, scores = at_best_damping(retrained, products[setting], scoring)
            row["score"] = f"{name}, {title}"
            row["gradients"] = setting.gradients
            row["ours"] = retrained.compare(default, scores)
            row["equal"] = retrained.compare(ours[setting.gradients], scores)
            rows.append(row)
    return rows


def at_best_damping(
    retrained: RetrainedModels, products: RowProducts, scoring: Scoring
) -> tuple[dict[str, Any], np.ndarray]:
    """Return figures and scores, whitened ones with the damping that is best for each query set."""
    if scoring.treatment != "whitened":
        scores = products.scores(scoring)
        return dict(retrained.score(scores)), scores
    scores_at = {damping: products.scores(scoring, damping) for damping in DAMPINGS}
    figures_at = {damping: retrained.score(scores) for damping, scores in scores_at.items()}
    row: dict[str, Any] = {"damping": {}}
    best_scores = []
    for name, queries in QUERY_SETS.items():
        means = [figures_at[damping][name][0] for damping in DAMPINGS]
        best = DAMPINGS[int(np.argmax(means))]
        row[name] = figures_at[best][name]
        row["damping"][name] = best
        best_scores.append(scores_at[best][queries])
    return row, np.concatenate(best_scores)


def all_rows(
    retrained: RetrainedModels, products: ProductsOfSettings, reseeded: ProductsOfSettings
) -> Rows:
    """Return every score that can be made of every setting's rows.

    Args:
        reseeded: the products of another seed, of settings that have one.
    """
    rows: Rows = []
    for setting, of_setting in products.items():
        other = reseeded.get(setting)
        for method, pairing in sorted(of_setting.products):
            for treatment in TREATMENTS:
                if pairing == "mean-rows" and treatment != "whitened":  # as in the mean pairing
                    continue
                scoring = Scoring(method, pairing, treatment)
                scores = of_setting.scores(scoring)
                row = {**asdict(setting), **scoring._asdict(), "gradients": setting.gradients}
                row |= retrained.score(scores)
                if other:
                    row["seeds_agree"] = spearman(scores, other.scores(scoring))
                rows.append(row)
    return rows


def damping_rows(retrained: RetrainedModels, products: ProductsOfSettings) -> Rows:
    """Return the scores of whitened rows with every damping."""
    rows: Rows = []
    for setting in DAMPED:
        for method in METHODS:
            for damping in DAMPINGS:
                scoring = Scoring(method, "matched", "whitened")
                scores = products[setting].scores(scoring, damping)
                rows.append(
                    {
                        "dim": setting.dim,
                        "timesteps": setting.timesteps,
                        "method": method,
                        "damping": damping,
                        **retrained.score(scores),
                    }
                )
    return rows


def ideas(retrained: RetrainedModels, products: RowProducts, reseeded: RowProducts) -> Rows:
    """Return what other sums of blocks add to the default's score.

    Args:
        reseeded: the products of another seed.
    """
    rows: Rows = []
    for method in METHODS:
        scoring = Scoring(method, "matched", "whitened")
        blocks, other_blocks = products.blocks(scoring), reseeded.blocks(scoring)
        spread = blocks.std(2).mean(1)[:, None, None]
        ideas_of_method = {
            "two seeds pooled, 20 gradients": np.concatenate([blocks, other_blocks]),
            "timesteps weighted to spread alike": blocks / spread,
        }
        if method == "tracin":  # rows of the other have norm 1
            squares = np.trace(products.grams[method, "rows"], axis1=1, axis2=2)
            norms = np.sqrt(squares)[:, None, None]
            ideas_of_method["timesteps weighted by their rows' norm"] = blocks * norms
        for idea, changed_blocks in ideas_of_method.items():
            lift = retrained.compare(changed_blocks.mean(0), blocks.mean(0))
            differences = {name: lift[name]["difference"] for name in QUERY_SETS}
            rows.append({"method": method, "idea": idea, **differences})
    return rows

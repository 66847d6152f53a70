"""Whether the groups that scores name shaped a picture: `tools/bench groups`.

Models are trained again without each group of the training pictures, and without random ones. The
rise of a picture's loss says what is true.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
from groups_cost import groups_cost
from picture_sets import fashion_labels
from seeded_models import (
    DEFAULT,
    KEEP,
    SCORES,
    SMOKE,
    TRAIN,
    SeededModel,
    asked_seeds,
    keep_all,
    over_seeds,
    seeded_model,
)
from subset_models import query_pictures

from gradindex.gradients.fold import unit
from gradindex.report.ranking import ranks
from gradindex.search.index import Index
from gradindex.search.results import Group

CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SPLIT = "bag"  # the class that is two groups at random: nothing tells them apart
RANDOM = 8  # models of a seed that are trained without random pictures
Experiments = list[tuple[SeededModel, np.ndarray]]  # of each seed, with its pictures' groups


def run(work: Path, device: str, only: list[str]) -> None:
    """Train, ask, print, and write docs/benchmarks/groups.json and .md.

    Args:
        only: "train" does nothing but train the models; "keep" keeps their losses in docs, from
            where they are taken on another machine; "smoke" tries everything.
    """
    if only == [KEEP]:
        keep_all(work)
        return
    is_smoke = only == [SMOKE]
    seeds = asked_seeds([] if only == [TRAIN] else only)
    experiments: Experiments = []
    for seed in seeds:
        model = seeded_model(work, seed, is_smoke)
        experiments.append((model, groups_of(work, model.subject.pictures, seed)))
    for model, names in experiments:
        train(model, names)
    if only == [TRAIN]:
        return
    part = record.resumable(work / f"groups-{device}")
    figures = [
        part(model.folder.name, partial(measure, model, names)) for model, names in experiments
    ]
    model, names = experiments[0]
    asked = {
        "training": model.subject.pictures,
        "each kind": model.subject.queries,
        "random": RANDOM,
    }
    results = {
        "asked": asked,
        "groups": sizes(names),
        "seeds": figures,
        "ceiling": ceiling(experiments),
        "cost": part("cost", partial(cost, work, model, is_smoke)),
    }
    text = page(results)
    print(text)
    if not only:
        record.save("groups", device, "tools/bench groups", results, text)


def cost(work: Path, model: SeededModel, is_smoke: bool) -> dict[str, Any]:
    """Return what groups cost a query of many pictures; of few for a smoke test."""
    folder = work / f"{model.folder.name}-groups-cost"
    return groups_cost(folder, model, pictures=2000) if is_smoke else groups_cost(folder, model)


def groups_of(work: Path, pictures: int, seed: int) -> np.ndarray:
    """Return the name of each training picture's group, [N]."""
    names = np.array(CLASSES, dtype=object)[fashion_labels(work)[:pictures]]
    split = np.random.default_rng(seed).permutation(np.flatnonzero(names == SPLIT))
    names[split[::2]] = f"{SPLIT} 1"
    names[split[1::2]] = f"{SPLIT} 2"
    return names.astype(str)


def sizes(names: np.ndarray) -> dict[str, int]:
    """Return {group: how many pictures it has}, by name."""
    groups, counts = np.unique(names, return_counts=True)
    return dict(zip(groups.tolist(), counts.tolist(), strict=True))


def removals(names: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows without which a model is trained: of each group by name, then random ones."""
    for group in sizes(names):
        yield np.flatnonzero(names == group)
    usual = len(names) // len(CLASSES)
    for number in range(RANDOM):
        yield np.sort(np.random.default_rng(number).permutation(len(names))[:usual])


def train(model: SeededModel, names: np.ndarray) -> np.ndarray:
    """Return the losses of the models trained without some pictures, [removals, 2 · queries].

    They are trained in as many processes as torch has threads here, unless that was done.
    """
    return model.losses_without(list(removals(names)))


def measure(model: SeededModel, names: np.ndarray) -> dict[str, Any]:
    """Return what scores of one seed say of what is true, {set of queries: {score: figures}}."""
    truth = Truth.of(train(model, names) - model.losses(), names)
    index, pictures = model.index(), model.asked
    answers = answers_of(index, pictures, names, *SCORES[DEFAULT])
    scores = {
        title: score_table(answers_of(index, pictures, names, *settings), truth.groups)
        for title, settings in SCORES.items()
    }
    scores |= pixel_sums(model, names, truth.groups)
    figures: dict[str, Any] = {}
    for kind, queries in model.subject.query_sets.items():
        rises = truth.rises[queries]
        figures[kind] = {
            "scores": {title: agreement(table[queries], rises) for title, table in scores.items()},
            "judged": judged(answers[queries], truth.taken(queries)),
        }
    return figures


def ceiling(experiments: Experiments) -> list[dict[str, float]]:
    """Return how well the models of one seed tell those of the next, for validation pictures."""
    rises = []
    for model, names in experiments:
        truth = Truth.of(train(model, names) - model.losses(), names)
        rises.append(truth.taken(model.subject.query_sets["validation"]).rises)
    return [agreement(rises[seed - 1], rises[seed]) for seed in range(len(rises))]


@dataclass(frozen=True)
class Truth:
    """What the models that were trained again say.

    Attributes:
        groups: their G names. sizes: [G], how many pictures each has.
        rises: of each picture's loss without each group, [Q, G].
        random: of each picture's loss without random pictures, [Q, RANDOM].
        usual: how many pictures these were.
    """

    groups: list[str]
    sizes: np.ndarray
    rises: np.ndarray
    random: np.ndarray
    usual: int

    @classmethod
    def of(cls, rises: np.ndarray, names: np.ndarray) -> "Truth":
        """Return the truth of rises of losses [removals, Q]."""
        counts = sizes(names)
        own = np.array(list(counts.values()))
        return cls(
            list(counts),
            own,
            rises[: len(own)].T,
            rises[len(own) :].T,
            len(names) // len(CLASSES),
        )

    def taken(self, queries: slice) -> "Truth":
        """Return the truth of some pictures alone."""
        return Truth(self.groups, self.sizes, self.rises[queries], self.random[queries], self.usual)

    def standing(self) -> np.ndarray:
        """Return how far each rise lies above those without random pictures, [Q, G].

        In standard deviations of these; a random group of another size has a mean in proportion.
        """
        mean = self.random.mean(1, keepdims=True) * self.sizes / self.usual
        return (self.rises - mean) / self.random.std(1, ddof=1, keepdims=True)


def answers_of(
    index: Index, pictures: list[Any], names: np.ndarray, method: str, whiten: bool
) -> list[list[Group]]:
    """Return the groups of each picture asked about, as `query --group-by` gives them."""
    group_by = dict(zip(index.ids, names.tolist(), strict=True))
    return index.query_groups(pictures, group_by, method, whiten=whiten)


def score_table(answers: list[list[Group]], groups: list[str]) -> np.ndarray:
    """Return the sums of groups in the order of their names, [Q, G]."""
    by_name = [{group.group: group.score for group in answer} for answer in answers]
    return np.array([[scores[name] for name in groups] for scores in by_name])


def pixel_sums(model: SeededModel, names: np.ndarray, groups: list[str]) -> dict[str, np.ndarray]:
    """Return the sums and the means of the cosines of pixels, {score: [Q, G]}."""
    training = model.pictures
    asked = query_pictures(model.folder, model.subject)
    # All pictures are dark around: as they are, each is alike to each.
    mean = training.mean(0)
    cosines = (
        unit((asked - mean).reshape(len(asked), -1))
        @ unit((training - mean).reshape(len(training), -1)).T
    )
    member = names == np.array(groups)[:, None]
    return {
        "pixel cosine, sum": cosines @ member.T,
        "pixel cosine, mean": cosines @ member.T / member.sum(1),
    }


def agreement(scores: np.ndarray, rises: np.ndarray) -> dict[str, float]:
    """Return how well scores [Q, G] tell the rises [Q, G] of losses.

    Returns:
        "first": the share of pictures whose highest group is the true one. "three": whose true one
        is among the three highest. "correlation": Spearman's ρ over groups, mean over pictures.
    """
    true_group = rises.argmax(1)[:, None]
    order = np.argsort(-scores, axis=1)
    ranked, true_ranks = ranks(scores), ranks(rises)
    correlations = [
        np.corrcoef(own, other)[0, 1] for own, other in zip(ranked, true_ranks, strict=True)
    ]
    return {
        "first": float((order[:, :1] == true_group).mean()),
        "three": float((order[:, :3] == true_group).any(1).mean()),
        "correlation": float(np.mean(correlations)),
    }


def judged(answers: list[list[Group]], truth: Truth) -> dict[str, float | None]:
    """Return how far the words *below noise* and the ranges of sums are right.

    Returns:
        "above", "below": the share of groups called so. "above true", "below true": the share of
        these that shaped the picture, whose rise is beyond that of 95 % of random groups.
        "apart": the share of pairs of groups whose ranges are apart, and "apart right" how many of
        these the rises order likewise; "overlapping right" of the others.
    """
    standing = truth.standing()
    beyond = standing > 1.645  # standard deviations: 5 % of a normal distribution are above
    above, calls = [], []
    apart, overlapping = [], []
    column = {name: number for number, name in enumerate(truth.groups)}
    for query, answer in enumerate(answers):
        for group in answer:
            above.append(not group.below_noise)
            calls.append(beyond[query, column[group.group]])
        for first, group in enumerate(answer):
            for other in answer[first + 1 :]:
                rises = truth.rises[query, [column[group.group], column[other.group]]]
                (apart if group.low > other.high else overlapping).append(rises[0] > rises[1])
    is_above, is_true = np.array(above), np.array(calls)
    return {
        "above": _share(is_above),
        "above true": _share(is_true[is_above]),
        "below true": _share(is_true[~is_above]),
        "apart": len(apart) / (len(apart) + len(overlapping)),
        "apart right": _share(apart),
        "overlapping right": _share(overlapping),
    }


def _share(right: Any) -> float | None:
    """The share of calls that are right; None of none."""
    return float(np.mean(right)) if len(right) else None


def page(results: Mapping[str, Any]) -> str:
    """Return the tables and what they are of."""
    seeds = results["seeds"]
    kinds = list(seeds[0])
    titles = list(seeds[0][kinds[0]]["scores"])
    scores = []
    for title in titles:
        row = {"score": title}
        for kind in kinds:
            for figure in ("first", "three", "correlation"):
                values = [seed[kind]["scores"][title][figure] for seed in seeds]
                row[f"{figure}, {kind}"] = _cell(values)
        scores.append(row)
    ceiling_row = {"score": "another seed's truth"}
    for figure in results["ceiling"][0]:
        values = [row[figure] for row in results["ceiling"]]
        ceiling_row[f"{figure}, validation"] = _cell(values)
    scores.append({**dict.fromkeys(scores[0], "–"), **ceiling_row})
    judgements = []
    for figure in seeds[0][kinds[0]]["judged"]:
        row = {"figure": figure}
        for kind in kinds:
            row[kind] = _cell([seed[kind]["judged"][figure] for seed in seeds])
        judgements.append(row)
    groups = ", ".join(f"{name} ({count})" for name, count in results["groups"].items())
    return record.fill_page(
        "groups",
        asked=results["asked"],
        groups=groups,
        count=len(results["groups"]),
        chance=1 / len(results["groups"]),
        seeds=len(seeds),
        split=SPLIT,
        cost=results["cost"],
        scores=record.table(scores),
        judged=record.table(judgements),
    )


def _cell(values: Sequence[float | None]) -> str:
    """The mean over seeds, with the lowest and the highest; – where none is known."""
    known = [value for value in values if value is not None]
    return over_seeds(known) if known else "–"

"""Whether the groups that scores name shaped a picture: `tools/bench groups`.

Models are trained again without each group of the training pictures, and without random ones. The
rise of a picture's loss says what is true.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
from answer_models import SEEDS, asked_pictures, index_of, seeded, whole_losses
from picture_sets import fashion_labels
from subset_models import (
    FASHION,
    Subject,
    losses_without,
    map_in_processes,
    query_pictures,
    training_and_validation,
)

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
Experiments = list[tuple[tuple[Path, Subject], np.ndarray]]  # of each seed, and its groups

SCORES = {
    "ReTrac, whitened": ("retrac", True),
    "TracIn, whitened": ("tracin", True),
    "ReTrac, plain": ("retrac", False),
    "TracIn, plain": ("tracin", False),
}
VALIDATION = FASHION.query_sets["validation"]
JUDGED = "ReTrac, whitened"  # whose ranges and words are judged: what `query` gives


def run(work: Path, device: str, only: list[str]) -> None:
    """Train, ask, print, and write docs/benchmarks/groups.json and .md.

    Args:
        only: "train" does nothing but train the models.
    """
    experiments: Experiments = [
        (seeded(work, seed), groups_of(work, seed)) for seed in range(SEEDS)
    ]
    for (folder, subject), names in experiments:
        train(folder, subject, names)
    if only == ["train"]:
        return
    part = record.resumable(work / f"groups-{device}")
    seeds = [
        part(folder.name, partial(measure, folder, subject, names))
        for (folder, subject), names in experiments
    ]
    _, subject = experiments[0][0]
    results = {
        "asked": {"training": subject.pictures, "each kind": subject.queries, "random": RANDOM},
        "groups": sizes(experiments[0][1]),
        "seeds": seeds,
        "ceiling": ceiling(experiments),
    }
    text = page(results)
    print(text)
    if not only:
        record.save("groups", device, "tools/bench groups", results, text)


def groups_of(work: Path, seed: int) -> np.ndarray:
    """Return the name of each training picture's group, [N]."""
    _, subject = seeded(work, seed)
    labels = fashion_labels(work)[: subject.pictures]
    names = np.array(CLASSES, dtype=object)[labels]
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


def train(folder: Path, subject: Subject, names: np.ndarray) -> np.ndarray:
    """Return the losses of the models trained without some pictures, [removals, 2 · queries].

    They are trained in as many processes as torch has threads here, unless that was done.
    """
    query_pictures(folder, subject)  # made once, before the processes need it
    removed = list(removals(names))
    subjects = [subject] * len(removed)
    return np.stack(map_in_processes(losses_without, folder, removed, subjects))


def measure(folder: Path, subject: Subject, names: np.ndarray) -> dict[str, Any]:
    """Return what scores of one seed say of what is true, {set of queries: {score: figures}}."""
    truth = Truth.of(train(folder, subject, names) - whole_losses(folder, subject), names)
    index = index_of(folder, subject)
    pictures = asked_pictures(folder, subject)
    answers = answers_of(index, pictures, names, *SCORES[JUDGED])
    scores = {
        title: score_table(answers_of(index, pictures, names, *settings), truth.groups)
        for title, settings in SCORES.items()
    }
    scores |= pixel_sums(folder, subject, names, truth.groups)
    figures: dict[str, Any] = {}
    for kind, queries in subject.query_sets.items():
        rises = truth.rises[queries]
        figures[kind] = {
            "scores": {title: agreement(table[queries], rises) for title, table in scores.items()},
            "judged": judged(answers[queries], truth.taken(queries)),
        }
    return figures


def ceiling(experiments: Experiments) -> list[dict[str, float]]:
    """Return how well the models of one seed tell those of the next, for validation pictures."""
    rises = [
        Truth.of(train(*subject, names) - whole_losses(*subject), names).taken(VALIDATION).rises
        for subject, names in experiments
    ]
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


def pixel_sums(
    folder: Path, subject: Subject, names: np.ndarray, groups: list[str]
) -> dict[str, np.ndarray]:
    """Return the sums and the means of the cosines of pixels, {score: [Q, G]}."""
    training, _ = training_and_validation(folder, subject)
    asked = query_pictures(folder, subject)
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
        "random": np.random.default_rng(5).standard_normal((len(asked), len(groups))),
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
                row[f"{figure}, {kind}"] = _with_range(values)
        scores.append(row)
    ceiling_row = {"score": "another seed's truth"}
    for figure in results["ceiling"][0]:
        values = [row[figure] for row in results["ceiling"]]
        ceiling_row[f"{figure}, validation"] = _with_range(values)
    scores.append({**dict.fromkeys(scores[0], "–"), **ceiling_row})
    judgements = []
    for figure in seeds[0][kinds[0]]["judged"]:
        row = {"figure": figure}
        for kind in kinds:
            row[kind] = _with_range([seed[kind]["judged"][figure] for seed in seeds])
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
        scores=record.table(scores),
        judged=record.table(judgements),
    )


def _with_range(values: list[float | None]) -> str:
    """The mean over seeds, with the lowest and the highest."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{np.mean(known):.2f} ({min(known):.2f} to {max(known):.2f})"

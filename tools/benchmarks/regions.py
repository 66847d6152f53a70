"""Which training picture a part of a picture is from: `tools/bench regions`.

Pictures are put together of two training pictures, and asked about part by part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import record
from picture_sets import fashion_labels, write_pictures
from seeded_models import (
    DEFAULT,
    SCORES,
    TOP,
    measure_seeds,
    regenerated,
    rows_of,
    seeded_model,
    verdict_on_aim,
)

from gradindex.report.evaluate import interval

SIDE = 16
COMPOSITES, FEW_COMPOSITES = 64, 6  # of each layout and seed; of a smoke test
STARTS = (200, 400)  # timesteps from which composites are made again
AIM = 0.9  # share of parts whose source is first
PIXELS = "pixels"  # of what is asked about
FIRST, IN_TEN = "first", "in ten"


@dataclass(frozen=True)
class Part:
    """A part of a composite.

    Attributes:
        name: what the page calls it.
        box: left, top, right, bottom in pixels.
        outside: whether the part is what is around the box.
    """

    name: str
    box: tuple[int, int, int, int]
    outside: bool = False

    @property
    def mask(self) -> np.ndarray:
        """Where the part is, [16, 16] bool."""
        left, top, right, bottom = self.box
        inside = np.zeros((SIDE, SIDE), bool)
        inside[top:bottom, left:right] = True
        return inside ^ self.outside

    @property
    def options(self) -> dict[str, Any]:
        """How a query is asked about it."""
        return {"mask": self.mask} if self.outside else {"region": self.box}


# {layout: its two parts, the first from one training picture and the second from another}
LAYOUTS = {
    "halves": (Part("a half", (0, 0, 8, 16)), Part("a half", (8, 0, 16, 16))),
    "middle": (
        Part("the middle quarter", (4, 4, 12, 12)),
        Part("around the middle", (4, 4, 12, 12), outside=True),
    ),
}


def run(work: Path, device: str, only: list[str]) -> None:
    """Train, ask, print, and write docs/benchmarks/regions.json and .md.

    Args:
        only: "smoke" tries everything on few pictures.
    """
    seeds = measure_seeds("regions", measure, work, device, only)
    results = {"composites": COMPOSITES, "rows": pooled(seeds)}
    text = page(results)
    print(text)
    if not only:
        record.save("regions", device, "tools/bench regions", results, text)


def measure(work: Path, seed: int, smoke: bool) -> list[dict[str, Any]]:
    """Return for each part, score and kind of question where the right source stands.

    Returns:
        Rows with `first` and `in ten`, of each composite 1 or 0.
    """
    model = seeded_model(work, seed, smoke)
    index, training = model.index(), model.pictures
    labels = fashion_labels(work)[: len(training)]
    count = FEW_COMPOSITES if smoke else COMPOSITES
    rows = []
    for parts in LAYOUTS.values():
        sources = draw_sources(labels, count, seed)
        exact = composed(training, sources, parts[0].mask)
        made = {"exact": exact}
        for start in STARTS:
            again = regenerated(model.checkpoint, exact, start, seed)
            made[f"made again from t = {start}"] = again
        for kind, pictures in made.items():
            folder = write_pictures(model.folder / "composites", pictures)
            files = sorted(folder.glob("*.png"))
            whole = rankings(index, files, pictures, training)
            for number, part in enumerate(parts):
                asked = rankings(index, files, pictures, training, part)
                for question, tops in (("the part", asked), ("the whole", whole)):
                    for score, top in tops.items():
                        right = top == sources[:, number : number + 1]
                        row = {"part": part.name, "pictures": kind, "asked": question}
                        places = {FIRST: right[:, 0], IN_TEN: right.any(1)}
                        values = {
                            name: place.astype(int).tolist() for name, place in places.items()
                        }
                        rows.append({**row, "score": score, **values})
    return rows


def draw_sources(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the rows of two training pictures of different classes for each composite, [Q, 2]."""
    random = np.random.default_rng(seed)
    pairs: list[np.ndarray] = []
    while len(pairs) < count:
        pair = random.choice(len(labels), 2, replace=False)
        if labels[pair[0]] != labels[pair[1]]:
            pairs.append(pair)
    return np.stack(pairs)


def composed(training: np.ndarray, sources: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return composites [Q, 1, 16, 16]: of the first source where the mask is, else the second."""
    first, second = training[sources[:, 0]], training[sources[:, 1]]
    return np.where(mask, first, second)


def rankings(
    index: Any,
    files: Sequence[Path],
    pictures: np.ndarray,
    training: np.ndarray,
    part: Part | None = None,
) -> dict[str, np.ndarray]:
    """Return the rows of the ten best training pictures, {score: [Q, 10]}.

    Args:
        part: that is asked about; the whole picture for None.
    """
    options = {} if part is None else part.options
    tops = {}
    for score, (method, whiten) in SCORES.items():
        results = index.query(files, TOP, method, whiten=whiten, **options)
        tops[score] = rows_of(results)
    mask = np.ones((SIDE, SIDE), bool) if part is None else part.mask
    queries, others = pictures[:, :, mask][:, None], training[:, :, mask][None]
    distances = np.square(queries - others).sum((2, 3))
    tops[PIXELS] = np.argsort(distances, axis=1)[:, :TOP]
    return tops


def pooled(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return shares over all seeds, with 95 % intervals over composites, and those of each seed.

    Both halves of a composite are one value, the mean of theirs.
    """
    keys = list(dict.fromkeys(_key(row) for row in seeds[0]))
    rows = []
    for key in keys:
        row: dict[str, Any] = dict(zip(("part", "pictures", "asked", "score"), key, strict=True))
        for place in (FIRST, IN_TEN):
            of_seeds = [
                np.mean([other[place] for other in seed if _key(other) == key], axis=0)
                for seed in seeds
            ]
            row[place] = list(interval(np.concatenate(of_seeds)))
            row[f"{place}, by seed"] = [float(values.mean()) for values in of_seeds]
        rows.append(row)
    return rows


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["part"], row["pictures"], row["asked"], row["score"]


def page(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    rows = results["rows"]
    judged = [row for row in rows if row["score"] == DEFAULT and row["asked"] == "the part"]
    exact, *others = (row for row in judged if row["part"] == "a half")
    (middle, *_), (around, *_) = (
        [row for row in judged if row["part"] == part.name] for part in LAYOUTS["middle"]
    )
    made_again = ", ".join(f"{_share(row[FIRST])} {row['pictures']}" for row in others)
    return record.fill_page(
        "regions",
        composites=results["composites"],
        verdict=verdict_on_aim(exact[FIRST][0], AIM),
        made_again=made_again,
        middle=_share(middle[FIRST]),
        around=_share(around[FIRST]),
        first=_table(rows, FIRST),
        in_ten=_table(rows, IN_TEN),
        by_seed=_by_seed(exact),
    )


def _by_seed(row: Mapping[str, Any]) -> str:
    """The shares of each seed, as text."""
    return ", ".join(f"{share:.0%}" for share in row[f"{FIRST}, by seed"])


def _table(rows: Sequence[Mapping[str, Any]], place: str) -> str:
    """A line for each part, kind of pictures and question, a column for each score."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = _key(row)[:3]
        names = dict(zip(("part", "pictures", "asked about"), key, strict=True))
        lines.setdefault(key, names)[row["score"]] = _share(row[place])
    return record.table(list(lines.values()))


def _share(figure: Sequence[float]) -> str:
    """A share and its interval, in per cent."""
    mean, low, high = (100 * value for value in figure)
    return f"{mean:.0f}% ({low:.0f}–{high:.0f})"

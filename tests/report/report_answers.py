"""Answers for tests of reports, without a model: drawn pictures and random scores."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from gradindex.report.answers import Answers, Asked, Listing
from gradindex.search.results import Hit, Result, Verdict
from gradindex.search.standing import Standing

TIMESTEPS = [50.0 + 100 * j for j in range(10)]
NO_CAPTION: Callable[[int], str | None] = lambda row: None  # noqa: E731


def drawing(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A disc of one colour before another."""
    random = np.random.default_rng(seed)
    ground, disc = (tuple(random.integers(0, 256, 3).tolist()) for _ in range(2))
    picture = Image.new("RGB", size, ground)
    x, y = random.integers(0, size[0] // 2), random.integers(0, size[1] // 2)
    ImageDraw.Draw(picture).ellipse([x, y, x + size[0] // 2, y + size[1] // 2], fill=disc)
    return picture


def answers(
    queries: int = 4,
    k: int = 10,
    pictures: int = 60,
    measures: Sequence[str] = ("retrac", "tracin", "pixels"),
    *,
    opponents: bool = False,
    picture_of: Callable[[int], Image.Image | None] = drawing,
    name_of: Callable[[int], str] = lambda row: f"folder {row % 3}/picture {row:04d}.png",
    query_name: Callable[[int], str] = lambda q: f"out/generated {q}.png",
    caption_of: Callable[[int], str | None] = NO_CAPTION,
    group_of: Callable[[int], str | None] = lambda row: f"folder {row % 3}",
    prompt: str | None = None,
    first: Callable[[int], int | None] = lambda q: 0,
    notes: Sequence[str] = (),
    verdict: Verdict | None = None,
    spread: float = 1,
) -> Answers:
    """Answers with random scores.

    Args:
        verdict: of every query, by the first measure.
        first: gives the row that heads the lists of a query, whatever the scores; None: none does.
        spread: standard deviation of the scores.
    """
    random = np.random.default_rng(0)
    listings = []
    for measure in measures:
        scores = (spread * random.standard_normal((queries, pictures))).astype(np.float32)
        for q in range(queries):
            row = first(q)
            if row is not None:
                scores[q, row] = 8
        results = []
        standings = [Standing.of(own) for own in scores]
        for q, own in enumerate(scores):
            order = np.argsort(-own, kind="stable")

            def hit(rank: int, row: int, own: np.ndarray = own, measure: str = measure) -> Hit:
                parts = dict.fromkeys(TIMESTEPS, float(own[row]) / len(TIMESTEPS))
                caption = caption_of(row)
                if measure == "pixels":
                    return Hit(rank, name_of(row), row, float(own[row]), None, caption=caption)
                return Hit(rank, name_of(row), row, float(own[row]), 0.1, parts, caption=caption)

            best = [hit(rank, row) for rank, row in enumerate(order[:k].tolist(), 1)]
            worst = None
            if opponents and measure != "pixels":
                worst = [hit(rank, row) for rank, row in enumerate(order[::-1][:k].tolist(), 1)]
            worst = None if worst is None else standings[q].with_z(worst)
            judged = verdict if measure == measures[0] else None
            hits = standings[q].with_z(best)
            results.append(Result(query_name(q), hits, worst, verdict=judged))
        listings.append(Listing(measure, results, standings))
    asked = [
        Asked(query_name(q), lambda q=q: picture_of(1000 + q), prompt)  # type: ignore[misc]
        for q in range(queries)
    ]
    return Answers(
        queries=asked,
        listings=listings,
        k=k,
        index="idx",
        pictures=pictures,
        picture_of=picture_of,
        group_of=group_of,
        facts={"Model": "UNet2DModel", "Data": "pictures"},
        notes=notes,
    )

"""What an answer comes to, in one line: copied, attributable, or nothing stands out.

copied: a hit is nearer in pixels than a third of the mean of the 50 nearest, and at most 5 % of
training pictures are as near to another, see `copies`.
attributable: of the ten best hits, those that stand out of the bulk of all scores, at a false
discovery rate of 1 % (see `standing`), have a quarter of all positive influence.

Both have to be: in a small set ten pictures have a quarter by chance, and in a large one many stand
out whose removal changes little, for what a picture does to a model is one N-th of its score
(Koh & Liang 2017). A quarter was chosen on models of Fashion-MNIST and judged on others:
`tools/bench attributable`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gradindex.errors import GradindexError, first_line
from gradindex.search.copies import MOST_READ, NEIGHBOURS, Copy, copies
from gradindex.search.pixels import TrainingPixels
from gradindex.search.results import Hit, Result, Verdict
from gradindex.search.standing import FEWEST_JUDGED, Standing
from gradindex.search.training_pictures import TrainingPictures
from gradindex.store.store import Store
from gradindex.wording import counted

JUDGED = 10  # hits of the highest scores that a verdict is about
FALSE_DISCOVERIES = 0.01  # among what stands out
SHARE = 0.25  # of all positive influence that is attributable
AS_NEAR = 0.05  # of the training pictures, at most, have another as near as a copy


def with_verdicts(
    store: Store,
    pixels: TrainingPixels,
    arrays: Iterable[np.ndarray],
    results: Sequence[Result],
    standings: Sequence[Standing],
    k: int,
) -> list[Result]:
    """Results that say what they come to, with the k first of their hits and opponents.

    Args:
        pixels: of the training pictures.
        arrays: the Q pictures that were asked about, as the model takes them.
        results: with `JUDGED` hits or more, where there are as many pictures.
    """
    hits = [result.hits for result in results]
    found: Sequence[Copy | None] = [None] * len(results)
    fault = why_not_read(store, pixels.pictures)
    if not fault:
        found = copies(store, pixels, arrays, hits)
    return [
        replace(
            result,
            hits=result.hits[:k],
            opponents=None if result.opponents is None else result.opponents[:k],
            verdict=verdict(result.hits, standing, copy, fault),
        )
        for result, standing, copy in zip(results, standings, found, strict=True)
    ]


def reads_pixels(
    asked_for: bool | None, verdict: bool, store: Store, pictures: TrainingPictures
) -> bool:
    """Whether the hits' pixels are told: where asked for, or None and a verdict reads them.

    Raises:
        CallError: they are asked for, and the training pictures are gone.
    """
    if asked_for:
        pictures.require()
    return verdict and not why_not_read(store, pictures) if asked_for is None else asked_for


def why_not_read(store: Store, pictures: TrainingPictures) -> str:
    """Why no pixels are read unless asked for, and copies not looked for; empty where they are."""
    if store.shape[1] - len(store.excluded) > MOST_READ:
        return f"there are more than {MOST_READ:,} pictures"
    if not (pictures.source and Path(pictures.source).exists()):
        return "the pictures are not files on this machine"
    try:
        return "the pictures are not as they were" if pictures.dataset is None else ""
    except GradindexError as error:  # they are not where the caller says
        return first_line(error)


def verdict(hits: Sequence[Hit], standing: Standing, copy: Copy | None, fault: str = "") -> Verdict:
    """What the hits of one picture come to.

    Args:
        hits: the `JUDGED` best, or more. copy: what it may be a copy of.
        fault: why copies were not looked for; empty: they were.
    """
    named, q, share = standing_out(hits[:JUDGED], standing)
    notes = f"; copies were not looked for: {fault}" if fault else ""
    if copy is not None:
        distance = (
            f"{copy.hit.id} is identical in pixels"
            if copy.is_same
            else f"in pixels {copy.hit.id} is {copy.ratio:.2g} times as far away as the"
            f" {NEIGHBOURS} nearest are on average"
        )
        if copy.as_near <= AS_NEAR:
            ids, text = [copy.hit.id], f"copied: {distance}"
            return Verdict("copied", text, ids, q, share, copy.ratio, copy.as_near)
        notes = f"; {distance}, but {copy.as_near:.0%} of training pictures have another as near"
    of_all = counted(standing.pictures, "training picture")
    if any(hit.duplicates for hit in hits):
        text = f"no verdict: the scores are sums over near-duplicates{notes}"
        return Verdict(None, text, [], None, None)
    if standing.sampled < FEWEST_JUDGED:
        text = f"no verdict: {of_all}; it takes {FEWEST_JUDGED} to tell what stands out{notes}"
        return Verdict(None, text, [], None, None)
    if q is None or share is None:
        text = f"no verdict: of the scores of {of_all} too many are alike{notes}"
        return Verdict(None, text, [], None, None)
    if not named:
        text = f"nothing stands out: scores as high are to be expected among {of_all}{notes}"
        return Verdict("nothing stands out", text, [], q, share)
    stand, have = ("stands", "has") if len(named) == 1 else ("stand", "have")
    which = f"of {of_all} the {len(named)} that {stand} out {have}"
    if share < SHARE:
        text = f"many had a part: {which} only {share:.0%} of all positive influence{notes}"
        return Verdict("nothing stands out", text, [], q, share)
    text = f"attributable: {which} {share:.0%} of all positive influence{notes}"
    return Verdict("attributable", text, [hit.id for hit in named], q, share)


def standing_out(
    hits: Sequence[Hit], standing: Standing
) -> tuple[Sequence[Hit], float | None, float | None]:
    """The hits that stand out, the lowest false discovery rate, and their share of the influence.

    It is not known, None, where there are too few scores, or these are sums of several.
    """
    if not hits or any(hit.duplicates for hit in hits):
        return [], None, None
    q = standing.q_values([hit.score for hit in hits])
    if q is None:
        return [], None, None
    named = [hit for hit, value in zip(hits, q, strict=True) if value <= FALSE_DISCOVERIES]
    return named, float(q[0]), standing.share([hit.score for hit in named])

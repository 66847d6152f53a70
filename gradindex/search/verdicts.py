"""What an answer comes to, in one line: copied, attributable, or nothing stands out.

copied: a hit is nearer in pixels than a third of the mean of the 50 nearest, and at most 5 % of
training pictures are as near to another, see `copies`.
attributable: some hits' scores do not continue the tail of all scores, at a false discovery rate of
5 % (Benjamini & Hochberg 1995) among all training pictures, see `tail`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gradindex.errors import GradindexError, first_line
from gradindex.search.copies import MOST_READ, NEIGHBOURS, Copy, copies
from gradindex.search.pixels import TrainingPixels
from gradindex.search.results import Hit, Result, Verdict
from gradindex.search.standing import Standing
from gradindex.search.tail import FEWEST
from gradindex.search.training_pictures import TrainingPictures
from gradindex.store.store import Store
from gradindex.wording import counted

FALSE_DISCOVERIES = 0.05  # of what is called attributable or copied


def with_verdicts(
    store: Store,
    pixels: TrainingPixels,
    arrays: Iterable[np.ndarray],
    results: Sequence[Result],
    standings: Sequence[Standing],
) -> list[Result]:
    """Results that say what they come to.

    Args:
        pixels: of the training pictures.
        arrays: the Q pictures that were asked about, as the model takes them.
    """
    hits = [result.hits for result in results]
    found: Sequence[Copy | None] = [None] * len(results)
    fault = why_not_read(store, pixels.pictures)
    if not fault:
        found = copies(store, pixels, arrays, hits)
    return [
        replace(result, verdict=verdict(result.hits, standing, copy, fault))
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
        copy: what it may be a copy of. fault: why copies were not looked for; empty: they were.
    """
    # Sums of several scores are not compared with single ones.
    is_merged = any(hit.duplicates for hit in hits)
    q = None if is_merged else standing.q_values([hit.score for hit in hits])
    lowest = None if q is None or not len(q) else float(q[0])
    notes = f"; copies were not looked for: {fault}" if fault else ""
    if copy is not None:
        distance = (
            f"{copy.hit.id} is identical in pixels"
            if copy.is_same
            else f"in pixels {copy.hit.id} is {copy.ratio:.2g} times as far away as the"
            f" {NEIGHBOURS} nearest are on average"
        )
        if copy.as_near <= FALSE_DISCOVERIES:
            text = f"copied: {distance}"
            return Verdict("copied", text, [copy.hit.id], lowest, copy.ratio, copy.as_near)
        notes = f"; {distance}, but {copy.as_near:.0%} of training pictures have another as near"
    of_all = counted(standing.pictures, "training picture")
    if is_merged:
        text = f"no verdict: the scores are sums over near-duplicates{notes}"
        return Verdict(None, text, [], None)
    if standing.sampled < FEWEST:
        text = f"no verdict: {of_all}; it takes {FEWEST} to tell what stands out{notes}"
        return Verdict(None, text, [], None)
    if lowest is None or q is None:
        text = f"no verdict: of the scores of {of_all} too many are alike{notes}"
        return Verdict(None, text, [], None)
    ids = [hit.id for hit, value in zip(hits, q, strict=True) if value <= FALSE_DISCOVERIES]
    if ids:
        stand = "stands" if len(ids) == 1 else "stand"
        text = f"attributable: {len(ids)} of {of_all} {stand} out from the tail of all"
        return Verdict("attributable", f"{text} (q = {lowest:.2g}){notes}", ids, lowest)
    text = f"no single picture stands out: scores as high are to be expected among {of_all}"
    return Verdict("nothing stands out", f"{text} (q = {lowest:.2g}){notes}", [], lowest)

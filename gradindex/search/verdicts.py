"""What an answer comes to, in one line: copied, attributable, or nothing stands out.

copied: a hit is nearer in pixels than a third of the mean of the 50 nearest, and at most 5 % of
training pictures are as near to another, see `copies`.
attributable: of the best hits, those that stand out of the bulk of all scores (see `standing`) have
a quarter of all positive influence. The best are 2 % of the pictures, ten at the most.

Both have to be: of a normal bulk nothing stands out, however few pictures there are, and in a large
set much stands out whose removal changes little, for what a picture does to a model is one N-th of
its score (Koh & Liang 2017). A quarter was chosen by models of Fashion-MNIST, 500 pictures each;
`tools/bench attributable` judges it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gradindex.errors import GradindexError, first_line
from gradindex.search.copies import MOST_READ, NEIGHBOURS, Copy, copies
from gradindex.search.pixels import TrainingPixels
from gradindex.search.query import Query
from gradindex.search.results import Hit, Result, Verdict
from gradindex.search.standing import BEST, FEWEST_JUDGED, Standing
from gradindex.search.training_pictures import TrainingPictures
from gradindex.store.store import Store
from gradindex.wording import counted

JUDGED, JUDGED_SHARE = BEST, 0.02  # hits that a verdict is about, and share of the pictures
FALSE_DISCOVERIES = 0.01  # among what stands out, of a normal bulk
SHARE = 0.25  # of all positive influence that is attributable
AS_NEAR = 0.05  # of the training pictures, at most, have another as near as a copy


def with_verdicts(
    store: Store,
    pixels: TrainingPixels,
    query: Query,
    results: Sequence[Result],
    standings: Sequence[Standing],
    k: int,
) -> list[Result]:
    """Results that say what they come to, with the k first of their hits and opponents.

    Args:
        pixels: of the training pictures.
        query: of the Q pictures that were asked about.
        results: with `JUDGED` hits or more, where there are as many pictures.
    """
    hits = [result.hits[:JUDGED] for result in results]
    found: Sequence[Copy | None] = [None] * len(results)
    fault = _why_no_copies(query) or why_not_read(store, pixels.pictures)
    if not fault:
        found = copies(store, pixels, query.pictures.arrays[: len(results)], hits)
    return [
        replace(
            result,
            hits=result.hits[:k],
            opponents=None if result.opponents is None else result.opponents[:k],
            verdict=verdict(best, standing, copy, fault),
        )
        for result, best, standing, copy in zip(results, hits, standings, found, strict=True)
    ]


def _why_no_copies(query: Query) -> str:
    """Why a query is no question about whole pictures; empty where it is one."""
    if query.contrast:
        return "what two queries differ by is no picture"
    return "" if query.pictures.masks is None else "only a part of the picture was asked about"


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
        hits: the `JUDGED` best. copy: what it may be a copy of.
        fault: why copies were not looked for; empty: they were.
    """
    named, q, share = standing_out(hits, standing)
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
    one = len(named) == 1
    which = f"the {len(named)} that {'stands' if one else 'stand'} out {'has' if one else 'have'}"
    if share < SHARE:
        percent = int(100 * share)  # not rounded up to a quarter
        text = (
            f"not attributable to few pictures: of {of_all} {which} only {percent}% of all"
            " positive influence"
        )
        return Verdict("nothing stands out", text + notes, [], q, share)
    text = f"attributable: of {of_all} {which} {share:.0%} of all positive influence{notes}"
    return Verdict("attributable", text, [hit.id for hit in named], q, share)


def standing_out(
    hits: Sequence[Hit], standing: Standing
) -> tuple[Sequence[Hit], float | None, float | None]:
    """The hits that stand out, the lowest false discovery rate, and their share of the influence.

    It is not known, None, where there are too few scores, or these are sums of several.
    """
    if not hits or any(hit.duplicates for hit in hits):
        return [], None, None
    scores = [hit.score for hit in hits[: max(1, int(JUDGED_SHARE * standing.pictures))]]
    q = standing.q_values(scores)
    if q is None:
        return [], None, None
    count = int((q <= FALSE_DISCOVERIES).sum())
    return hits[:count], float(q[0]), standing.share([hit.score for hit in hits], count)

"""The shares of groups of training pictures in a report: texts and lengths of bars."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradindex.report.printable import printable
from gradindex.search.results import Group
from gradindex.wording import counted

SHOWN = 8  # groups of a query; the others are in the data inside the report


@dataclass(frozen=True)
class ShareView:
    """A group and what it did to one picture.

    Attributes:
        share: of the positive influence, as text.
        pictures: how many it has, as text.
        bar: length of its sum of scores in percent; start, end: of the sum's range.
        is_noise: whether it is below noise.
    """

    name: str
    share: str
    pictures: str
    bar: int
    start: int
    end: int
    is_noise: bool


def share_views(groups: Sequence[Group] | None, count: int = SHOWN) -> list[ShareView]:
    """Return the first `count` groups of a query, drawn to one scale.

    The end of a range is 100 on it; what is below 0 has no length.

    >>> values = {"score": 2.0, "mean": 0.7, "share": 1.0, "low": 1.0, "high": 4.0}
    >>> view = share_views([Group("ann", pictures=3, **values, below_noise=False)])[0]
    >>> view.share, view.bar, view.start, view.end
    ('100 %', 50, 25, 100)
    """
    shown = (groups or [])[:count]
    largest = max([group.high for group in shown if group.high > 0], default=1.0)

    def length(value: float) -> int:
        return round(100 * min(max(value / largest, 0), 1))

    return [
        ShareView(
            name=printable(group.group),
            share=f"{100 * group.share:.0f} %",
            pictures=counted(group.pictures, "picture"),
            bar=length(group.score),
            start=length(group.low),
            end=length(group.high),
            is_noise=group.below_noise,
        )
        for group in shown
    ]

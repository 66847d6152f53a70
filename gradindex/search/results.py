"""What a query gives back: a ranking of training pictures for each of its pictures."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hit:
    """One training picture in a ranking.

    Attributes:
        rank: position in the ranking, from 1.
        id: the picture's id in the data set.
        row: its row in the store.
        score: exact, from the store's rows.
        stderr: standard error of the score over timesteps; None where it is not known, as for a
            single timestep.
        by_timestep: {timestep: what it adds to the score}, which add up to it; None unless asked
            for.
    """

    rank: int
    id: str
    row: int
    score: float
    stderr: float | None
    by_timestep: dict[float, float] | None = None


@dataclass(frozen=True)
class Group:
    """What a group of training pictures did to one picture: all of its pictures, not only hits.

    Attributes:
        group: its name.
        pictures: how many of it count: skipped and removed ones do not.
        score: the sum of their scores, exact. mean: their mean.
        share: of the positive influence: the sum, where it is positive, over that of all groups
            whose sum is positive; 0 for the others.
        low, high: the middle 95 % of the sum, when its pictures and the timesteps are drawn again
            (a Bayesian bootstrap).
        below_noise: whether the sum does not stand above that of random groups of as many
            pictures: the range reaches down to their average, or the sum into their middle 95 %.
    """

    group: str
    pictures: int
    score: float
    mean: float
    share: float
    low: float
    high: float
    below_noise: bool


@dataclass(frozen=True)
class Result:
    """The answer for one picture.

    Attributes:
        picture: its path or number, see `picture_name`.
        hits: its proponents, the training pictures of the highest scores, best first.
        opponents: those of the lowest scores, most negative first; None unless asked for.
        groups: all groups of training pictures, best first; None unless asked for.
        seconds: how long the call took for all of its pictures, {"gradients": …, "search": …};
            loading the model is in neither, whitening in the search.

    >>> result = Result("gen.png", hits=[Hit(1, "cat/7.png", row=17, score=0.42, stderr=0.03)])
    >>> result.ids, result.scores
    (['cat/7.png'], [0.42])
    """

    picture: str
    hits: list[Hit]
    opponents: list[Hit] | None = None
    groups: list[Group] | None = None
    seconds: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def ids(self) -> list[str]:
        """The ids of the hits, best first."""
        return [hit.id for hit in self.hits]

    @property
    def scores(self) -> list[float]:
        """The scores of the hits, best first."""
        return [hit.score for hit in self.hits]

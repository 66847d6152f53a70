"""What a query gives back: a ranking of training pictures for each of its pictures."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, SupportsIndex, overload

from PIL import Image

from gradindex.search.notebook import results_html
from gradindex.wording import timestep_text

if TYPE_CHECKING:
    import pandas

# A table's columns, a row for each hit; where they are known, the caption and one for each timestep
# asked for follow.
COLUMNS = (
    *("picture", "list", "rank", "id", "row", "score", "stderr", "z"),
    *("pixel", "embedding", "duplicates"),
)


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
        z: how many robust standard deviations the score lies above the median of all training
            pictures' scores, see `Standing`; None where more than half of them are the same.
        duplicates: ids of the near-duplicates whose scores are added to this picture's; None where
            they are not merged.
        pixel: cosine of the pixels of this picture and the one asked about, at up to 64 a side;
            embedding: cosine of their vectors in an embedding. None where not asked for, or where
            the picture is gone.
        caption: of the picture; None where the model is given none, or the picture is gone.
    """

    rank: int
    id: str
    row: int
    score: float
    stderr: float | None
    by_timestep: dict[float, float] | None = None
    z: float | None = None
    duplicates: list[str] | None = None
    pixel: float | None = None
    embedding: float | None = None
    caption: str | None = None


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
            pictures: in 2.5 % of the draws it is no higher than their average, or it is in the
            middle 95 % of what they get.
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
class Verdict:
    """What the answer for one picture comes to.

    Attributes:
        kind: "copied", "attributable" or "nothing stands out" (enough); None where it cannot be
            said: the training pictures are too few, too many scores alike, or sums of several.
        text: the same on one line, with its reason.
        ids: the training picture that it is a copy of, or the hits that it is attributable to.
        q: the lowest false discovery rate at which a hit stands out, were the bulk of all scores
            normal; share: of all positive influence that the hits that stand out have. None: not
            known.
        ratio: of a copy's distance in pixels to the mean of those of the 50 nearest; as_near: share
            of the training pictures that are as near to another one. None for the other kinds.
    """

    kind: str | None
    text: str
    ids: list[str]
    q: float | None
    share: float | None = None
    ratio: float | None = None
    as_near: float | None = None


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
        verdict: what it comes to; None unless asked for.
        asked: what of the picture was asked about, where not simply all of it: those of the options
            region, mask, against, against_prompt, timesteps, pairing and damping that were given.

    Examples:
        >>> result = Result("gen.png", hits=[Hit(1, "cat/7.png", row=17, score=0.42, stderr=0.03)])
        >>> result.ids, result.scores
        (['cat/7.png'], [0.42])
    """

    picture: str
    hits: list[Hit]
    opponents: list[Hit] | None = None
    groups: list[Group] | None = None
    seconds: dict[str, float] = field(default_factory=dict, compare=False, repr=False)
    verdict: Verdict | None = None
    asked: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def ids(self) -> list[str]:
        """The ids of the hits, best first."""
        return [hit.id for hit in self.hits]

    @property
    def scores(self) -> list[float]:
        """The scores of the hits, best first."""
        return [hit.score for hit in self.hits]


class Results(list[Result]):
    """The results of a query, one for each picture: a list, and a table of all hits.

    A notebook shows it as a table with pictures.

    Args:
        results: of the pictures, in their order.
        picture_of: the training picture of a row, for the notebook; None where it is gone.

    Examples:
        >>> hit = Hit(1, "cat/7.png", row=17, score=0.4, stderr=None)
        >>> results = Results([Result("gen.png", [hit])])
        >>> len(results), results[0].ids
        (1, ['cat/7.png'])
        >>> next(results.rows())
        ('gen.png', 'proponents', 1, 'cat/7.png', 17, 0.4, None, None, None, None, None)
    """

    def __init__(
        self,
        results: Iterable[Result] = (),
        picture_of: Callable[[int], Image.Image | None] | None = None,
    ) -> None:
        super().__init__(results)
        self._picture_of = picture_of

    @overload
    def __getitem__(self, number: SupportsIndex, /) -> Result: ...
    @overload
    def __getitem__(self, numbers: slice, /) -> Self: ...
    def __getitem__(self, place: SupportsIndex | slice, /) -> Result | Self:
        """Return the result of a picture, or `Results` of some."""
        if isinstance(place, slice):
            return type(self)(super().__getitem__(place), self._picture_of)
        return super().__getitem__(place)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the results alone, without the index that they come from."""
        return type(self), (list(self),)

    @property
    def columns(self) -> list[str]:
        """The names of the table's columns: COLUMNS, `caption` where a hit has one, and `t=500` for
        each timestep asked for.
        """
        of_timesteps = (f"t={timestep_text(timestep)}" for timestep in self._timesteps())
        return [*COLUMNS, *["caption"] * self._has_captions(), *of_timesteps]

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield the values of `columns` for every hit: proponents, then opponents if asked for."""
        timesteps, has_captions = self._timesteps(), self._has_captions()
        for picture, title, hit in self._hits():
            parts = hit.by_timestep or {}
            place = (picture, title, hit.rank, hit.id, hit.row)
            known = (hit.score, hit.stderr, hit.z, hit.pixel, hit.embedding, hit.duplicates)
            yield *place, *known, *[hit.caption] * has_captions, *map(parts.get, timesteps)

    def _hits(self) -> Iterator[tuple[str, str, Hit]]:
        """Every hit, with its picture and the name of its list."""
        for result in self:
            for title, hits in (("proponents", result.hits), ("opponents", result.opponents or [])):
                for hit in hits:
                    yield result.picture, title, hit

    def _has_captions(self) -> bool:
        """Whether a hit has a caption."""
        return any(hit.caption is not None for _, _, hit in self._hits())

    def _timesteps(self) -> list[float]:
        """All timesteps of which a hit tells what they add; recorded ones differ by picture."""
        return sorted({t for _, _, hit in self._hits() for t in hit.by_timestep or ()})

    def to_frame(self) -> "pandas.DataFrame":
        """Return a pandas table of all hits, with the names of `columns`.

        What is not known is NaN; a cell of duplicates is a list of ids, or None.
        """
        import pandas

        table = pandas.DataFrame(list(self.rows()), columns=self.columns)
        return table.astype(dict.fromkeys(("stderr", "z", "pixel", "embedding"), float))

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return the table as CSV, and write it to a file in UTF-8 where a path is given.

        What is not known is empty. Ids of duplicates have a semicolon and a space between them.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        for row in self.rows():
            writer.writerow("; ".join(cell) if isinstance(cell, list) else cell for cell in row)
        if path is not None:
            # A name of other bytes than UTF-8 has characters that no text file can hold.
            content = text.getvalue().encode("utf-8", "backslashreplace")
            Path(path).write_bytes(content)
        return text.getvalue()

    def to_parquet(self, path: str | Path) -> None:
        """Write the table as a Parquet file, in which duplicates are lists."""
        import pyarrow
        from pyarrow import parquet

        text, whole, number = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
        kinds = dict.fromkeys(("picture", "list", "id", "caption"), text)
        kinds |= {"rank": whole, "row": whole, "duplicates": pyarrow.list_(text)}
        names = self.columns
        cells = list(zip(*self.rows(), strict=True)) or [()] * len(names)
        table = {
            name: pyarrow.array([_utf8(value) for value in values], kinds.get(name, number))
            for name, values in zip(names, cells, strict=True)
        }
        parquet.write_table(pyarrow.table(table), path)

    def _repr_html_(self) -> str:
        """Return a table with pictures, for a notebook."""
        return results_html(
            [(result.picture, result.hits) for result in self], self._picture_of or _nothing
        )


def _utf8(value: Any) -> Any:
    """A value; a name of other bytes than UTF-8, alone or in a list, with escapes for these."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_utf8(name) for name in value]
    return value


def _nothing(row: int) -> None:
    """No picture."""

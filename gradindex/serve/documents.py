"""What the JSON answers have in them, for the OpenAPI description."""

from dataclasses import dataclass, field
from typing import Any

from gradindex.search.results import Group
from gradindex.search.results import Verdict as AnswerVerdict


@dataclass(frozen=True)
class Problem:
    """Why a request was not answered, in one line."""

    detail: str


@dataclass(frozen=True)
class HitFields:
    """A training picture in a ranking; see docs/cli.md."""

    rank: int
    id: str
    row: int
    score: float
    stderr: float | None
    by_timestep: list[list[float]] | None = None
    z: float | None = None
    duplicates: list[str] | None = None
    pixel: float | None = None
    embedding: float | None = None
    caption: str | None = None


@dataclass(frozen=True)
class PictureFields:
    """The answer for one picture."""

    picture: str
    hits: list[HitFields]
    opponents: list[HitFields] | None = None
    groups: list[Group] | None = None
    verdict: AnswerVerdict | None = None
    asked: dict[str, Any] | None = None


@dataclass(frozen=True)
class QueryAnswer:
    """The answer of a query, as `gradindex query --format json` writes it."""

    index: str
    method: str
    k: int
    queries: list[PictureFields]
    whitened: bool = False


@dataclass(frozen=True)
class IndexName:
    """An index that is served: the name it has in requests, and where it lies."""

    name: str
    path: str
    pictures: int
    captioned: bool
    classes: int | None


@dataclass(frozen=True)
class TrainingPicture:
    """A training picture, and what is known of it."""

    id: str
    row: int
    caption: str | None
    class_label: int | None
    excluded: bool


@dataclass(frozen=True)
class Verdict:
    """What `gradindex verify` found: a line for each file that is damaged or missing."""

    whole: bool
    damages: list[str] = field(default_factory=list)


# Statuses that any request may be answered with.
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body of the request cannot be read."},
    401: {"model": Problem, "description": "The token is missing."},
    403: {"model": Problem, "description": "Asked by the page of another site."},
    404: {"model": Problem, "description": "There is no such index, picture or address."},
    413: {"model": Problem, "description": "The picture is too large."},
    415: {"model": Problem, "description": "It is no picture that opens."},
    422: {"model": Problem, "description": "The question does not fit; the line says why."},
    503: {"model": Problem, "description": "Too many questions wait already."},
}

"""An open index behind the server: what is asked of it, one question after the other."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from fastapi import HTTPException
from fastapi.concurrency import run_in_threadpool
from PIL import Image

from gradindex.errors import CallError
from gradindex.report.answers import Answers, answer
from gradindex.report.answers import Asked as AskedPicture
from gradindex.report.rendering import to_json
from gradindex.search.copies import MOST_READ
from gradindex.search.index import Index
from gradindex.search.pictures import picture_name
from gradindex.serve.options import ApiQuery, PageQuery, QueryFields
from gradindex.serve.pictures import Upload
from gradindex.store.progress import watched
from gradindex.store.removals import header_with_removals

MOST_WAITING = 64  # questions to one index; more are refused

Value = TypeVar("Value")


@dataclass
class Job:
    """How far a question is.

    Attributes:
        ahead: questions before it; 0 while it is answered.
        title: what is done now; done: how much of it, of `total`, where that is known.
        is_stopped: whether nobody waits for it any more.
    """

    ahead: int = 0
    title: str = ""
    done: int = 0
    total: int | None = None
    is_stopped: bool = False

    def tell(self, title: str, done: int, total: int | None) -> None:
        """Note progress, see `watched`; CallError where nobody waits for the answer any more."""
        if self.is_stopped:
            raise CallError("stopped: nobody waits for the answer")
        self.title, self.done, self.total = title, done, total


class Asked(NamedTuple):
    """A picture that is asked about.

    Attributes:
        name: what it is called in the answer.
        open: gives it; the prompt and class label are those that are known of it.
        is_training: whether it is a training picture, which would be called a copy of itself.
    """

    name: str
    open: Callable[[], Image.Image]
    prompt: str | None = None
    class_label: int | None = None
    is_training: bool = False


@dataclass
class ServedIndex:
    """An open index, the name it has in requests, and the queue before it.

    Args:
        path: as it was typed; answers repeat it.
        embedding: a vision model by which pictures are compared, too; None: by none.
    """

    name: str
    path: str
    index: Index
    embedding: str | None = None
    kept: dict[str, Any] = field(default_factory=dict)  # the last answers, by what was asked
    _line: list[Job] = field(default_factory=list)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, work: Callable[[], Value], job: Job | None = None) -> Value:
        """Return what some work returns, when all that came before it is done.

        Args:
            job: is told how far it is.

        Raises:
            HTTPException: 503: too many wait already.
        """
        job = job or Job()
        if len(self._line) >= MOST_WAITING:
            detail = f"busy: {MOST_WAITING} questions wait already; ask again later"
            raise HTTPException(503, detail, headers={"Retry-After": "10"})
        self._line.append(job)
        self._count()
        try:
            async with self._turn:
                working = asyncio.ensure_future(run_in_threadpool(self._watched, work, job))
                try:
                    return await asyncio.shield(working)
                except asyncio.CancelledError:
                    # Nobody waits for the answer: the turn ends with the work, which ends soon.
                    job.is_stopped = True
                    await asyncio.wait([working])
                    working.exception()  # looked at, or asyncio would print its traceback
                    raise
        finally:
            self._line.remove(job)
            self._count()

    def keep(self, key: str, value: Any, most: int) -> None:
        """Keep an answer; the oldest of more than `most` is forgotten."""
        self.kept[key] = value
        while len(self.kept) > most:
            del self.kept[next(iter(self.kept))]

    def _count(self) -> None:
        """Tell each job how many are before it."""
        for ahead, job in enumerate(self._line):
            job.ahead = ahead

    def _watched(self, work: Callable[[], Value], job: Job) -> Value:
        store = self.index.store
        store.require_in_place()
        if header_with_removals(store.location).removed != store.header.removed:
            detail = f"{self.path}: pictures were removed from it; start the server again"
            raise HTTPException(503, detail)
        with watched(job.tell):
            return work()

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each id."""
        return {name: row for row, name in enumerate(self.index.ids)}

    @property
    def is_captioned(self) -> bool:
        """Whether the model is given captions."""
        return bool(self.index.store.recipe.captioned)

    @cached_property
    def compares_pixels(self) -> bool:
        """Whether the training pictures are there, and few enough to be compared by pixels."""
        count = self.index.store.shape[1] - len(self.index.store.excluded)
        return self.index.training_pictures.dataset is not None and count <= MOST_READ

    @cached_property
    def has_folders(self) -> bool:
        """Whether training pictures are in folders, by their ids."""
        return any("/" in name for name in self.index.ids)

    def row(self, name: str) -> int:
        """Return the row of an id; HTTPException 404 where the index has none of that id."""
        if name not in self.row_of:
            raise HTTPException(404, f"id = {name[:200]!r}: the index has no such training picture")
        return self.row_of[name]

    def of_upload(self, upload: Upload) -> Asked:
        """Return a picture that came in, to be asked about."""
        return Asked(upload.name, upload.open)

    def of_training(self, name: str) -> Asked:
        """Return a training picture to be asked about, with its caption and class label."""
        row = self.row(name)
        pictures = self.index.training_pictures
        try:
            dataset = pictures.require()
        except CallError as error:
            raise HTTPException(404, str(error)) from error
        labels = dataset.labels_of([row], self.index.store.recipe.classes)
        caption = None if dataset.captions is None else dataset.captions[row]
        label = None if labels is None else labels[0]
        return Asked(name, lambda: pictures.picture(row), caption, label, is_training=True)

    def json(self, asked: Asked, fields: ApiQuery) -> str:
        """Return the answer of `gradindex query --format json` for a picture."""
        options = self.options(asked, fields)
        with named_errors(asked.name), asked.open() as picture:
            results = self.index.query(
                picture,
                fields.k,
                fields.method,
                by_timestep=fields.by_timestep,
                verdict=not asked.is_training,
                pixels=self.compares_pixels,
                embedding=self.embedding,
                **options,
            )
        named = [replace(result, picture=asked.name) for result in results]
        return to_json(named, self.path, fields.method, fields.k, fields.whiten)

    def answers(self, asked: Asked, fields: PageQuery) -> Answers:
        """Return what a report shows of a picture."""
        pixels = None if fields.pixels else False
        options = self.options(asked, fields)
        # Closed, it still has its pixels, which the page shows.
        with named_errors(asked.name), asked.open() as picture:
            answers = answer(
                self.index,
                picture,
                fields.k,
                fields.method,
                pixels=pixels,
                embedding=self.embedding,
                **options,
            )
        if asked.is_training:
            answers = _without_verdict(answers)
        return _named(answers, asked.name, self.path)

    def options(self, asked: Asked, fields: QueryFields) -> dict[str, Any]:
        """Return the options of a query, with what is known of its picture."""
        options = fields.options()
        if fields.merge_duplicates and not self.compares_pixels:
            raise CallError(
                f"merge_duplicates: of {MOST_READ:,} training pictures at the most, which are there"
            )
        prompt = asked.prompt if fields.prompt is None else fields.prompt
        if prompt or self.is_captioned:
            options["prompt"] = prompt
        if options["class_label"] is None:
            options["class_label"] = asked.class_label
        return options


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Have errors of the only picture of a query tell its name, not its number."""
    number = f"{picture_name(None, 0)}: "
    try:
        yield
    except CallError as error:
        text = str(error)
        if not text.startswith(number):
            raise
        raise CallError(f"{name}: {text.removeprefix(number)}") from error


def _without_verdict(answers: Answers) -> Answers:
    """Answers that do not say what they come to."""
    first, *others = answers.listings
    results = [replace(result, verdict=None) for result in first.results]
    return replace(answers, listings=[replace(first, results=results), *others])


def _named(answers: Answers, name: str, path: str) -> Answers:
    """Answers with the name of their only picture, and the path of the index as it was typed."""
    listings = [
        replace(listing, results=[replace(one, picture=name) for one in listing.results])
        for listing in answers.listings
    ]
    queries = [_small(replace(query, name=name)) for query in answers.queries]
    return replace(answers, queries=queries, listings=listings, index=path)


def _small(query: AskedPicture) -> AskedPicture:
    """A picture asked about that keeps its thumbnail alone: an upload may have 50 megapixels."""
    try:
        thumbnail = query.open_picture()
    except Exception:  # Pillow raises errors of many types for files that are damaged
        thumbnail = None
    return replace(query, open_picture=lambda: thumbnail)


def index_names(paths: Sequence[str]) -> list[str]:
    """Return a name for each index: the last part of its path, with a number where it is taken.

    >>> index_names(["a/idx", "b/idx/", "s3://bucket/other"])
    ['idx', 'idx-2', 'other']
    """
    names: list[str] = []
    for path in paths:
        name = path.replace("\\", "/").rstrip("/").rpartition("/")[2] or "index"
        number = 2
        unique = name
        while unique in names:
            unique = f"{name}-{number}"
            number += 1
        names.append(unique)
    return names

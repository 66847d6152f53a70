"""The pages for people, and the parts of them that are answered live."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from gradindex.builder.verify import damages
from gradindex.errors import CallError, GradindexError, first_line
from gradindex.report.answers import Answers
from gradindex.report.index_facts import index_files
from gradindex.report.info import NAME_WIDTH, describe
from gradindex.report.page import TEMPLATES as REPORT_TEMPLATES
from gradindex.report.page import render, to_fragment, to_html
from gradindex.report.printable import one_line, printable
from gradindex.report.shares import share_views
from gradindex.serve.api import Indexes, Name
from gradindex.serve.comparison import compared, side_of
from gradindex.serve.options import PageQuery
from gradindex.serve.pictures import SIDE, UPLOAD_BYTES, Uploads, encoded, read_upload, suffixes
from gradindex.serve.served_index import Asked, Job, ServedIndex
from gradindex.serve.standing import QUERIES, TEMPLATES, common_and_outliers
from gradindex.wording import size_text

LOGGER = logging.getLogger("gradindex")

TABS = {
    "Query": "/",
    "Compare": "/compare",
    "Groups": "/groups",
    "Common and outliers": "/common",
    "Health": "/health",
}
TICK = 0.2  # seconds between two words of how far an answer is
KEPT = 16  # answers of an index that are kept
FEWEST_LETTERS, MOST_IDS = 1, 20  # of a text that ids are looked for by; of ids that are offered

Method = Annotated[Literal["retrac", "tracin"], Query()]


def make_pages(indexes: Indexes) -> APIRouter:
    """Return the addresses of the pages, which ask some indexes."""
    pages = APIRouter(include_in_schema=False)
    uploads = Uploads()
    files = {
        "/style.css": (_joined("report.css", "serve.css"), "text/css"),
        "/script.js": (_joined("report.js", "serve.js"), "text/javascript"),
    }

    @pages.get("/style.css")
    @pages.get("/script.js")
    def static(request: Request) -> Response:
        text, kind = files[request.url.path]
        return Response(text, media_type=kind)

    def shell(template: str, here: str, served: ServedIndex, **more: Any) -> HTMLResponse:
        title = next(name for name, address in TABS.items() if address == here)
        context = {
            "title": title,
            "view": template.removesuffix(".html"),
            "here": here,
            "tabs": TABS,
            "served": served,
            "names": [one.name for one in indexes.served],
            "classes": served.index.store.recipe.classes,
            "damping": f"{served.index.ranker.usual_damping:g}",
            "accept": ",".join(suffixes()),
            **more,
        }
        return HTMLResponse(render(template, context, TEMPLATES))

    @pages.get("/")
    def query_page(index: Name = None) -> Response:
        return shell("query.html", "/", indexes.get(index))

    @pages.get("/groups")
    def groups_page(index: Name = None) -> Response:
        return shell("groups.html", "/groups", indexes.get(index))

    @pages.get("/compare")
    def compare_page(index: Name = None) -> Response:
        return shell("compare.html", "/compare", indexes.get(index))

    @pages.get("/common")
    def common_page(index: Name = None) -> Response:
        return shell("common.html", "/common", indexes.get(index), queries=QUERIES)

    @pages.get("/health")
    def health_page(index: Name = None) -> Response:
        served = indexes.get(index)
        store = served.index.store
        facts = _facts(describe(store))
        size = size_text(sum(index_files(store).bytes.values()))
        return shell("health.html", "/health", served, facts=facts, size=size)

    @pages.post("/uploads")
    async def take_upload(picture: UploadFile) -> dict[str, Any]:
        upload = read_upload(await picture.read(UPLOAD_BYTES + 1), picture.filename)
        uploads.keep(upload)
        return {"upload": upload.key, "name": upload.name, "prompt": upload.prompt}

    @pages.get("/uploads/{key}")
    def show_upload(key: str) -> Response:
        try:
            content, kind = encoded(uploads.get(key).thumbnail(SIDE))
        except HTTPException:
            raise
        except Exception as error:  # Pillow raises whatever damaged bytes lead it to
            raise HTTPException(415, f"not a picture that opens ({first_line(error)})") from error
        return Response(content, media_type=kind)

    @pages.get("/ids")
    def find_ids(like: str = "", index: Name = None) -> list[str]:
        served = indexes.get(index)
        text = like.strip().lower()
        if len(text) < FEWEST_LETTERS:
            return []
        excluded = set(served.index.store.excluded)
        found = (
            name
            for row, name in enumerate(served.index.ids)
            if text in name.lower() and row not in excluded
        )
        return [name for name, _ in zip(found, range(MOST_IDS), strict=False)]

    def asked_of(served: ServedIndex, fields: PageQuery) -> Asked:
        if fields.training:
            return served.of_training(fields.training)
        if not fields.upload:
            raise HTTPException(422, "give a picture, or the id of a training picture")
        return served.of_upload(uploads.get(fields.upload))

    def answers_of(served: ServedIndex, fields: PageQuery) -> Callable[[], Answers]:
        """What gives the answers, which are kept for the other views of them."""
        asked = asked_of(served, fields)
        # An upload may come again by another name.
        key = asked.name + fields.model_copy(update={"view": "cards"}).model_dump_json()

        def answers() -> Answers:
            if key not in served.kept:
                served.keep(key, served.answers(asked, fields), KEPT)
            return served.kept[key]

        return answers

    @pages.get("/answer")
    async def answer(fields: Annotated[PageQuery, Query()]) -> Response:
        served = indexes.get(fields.index)
        answers = answers_of(served, fields)
        show = _shares if fields.view == "groups" else to_fragment
        return _live(partial(served.run, lambda: show(answers())))

    @pages.get("/report")
    async def report(fields: Annotated[PageQuery, Query()]) -> Response:
        served = indexes.get(fields.index)
        answers = answers_of(served, fields)
        text = await served.run(lambda: to_html(answers()))
        headers = {"Content-Disposition": 'attachment; filename="gradindex.html"'}
        return HTMLResponse(text.encode("utf-8", "backslashreplace"), headers=headers)

    @pages.get("/compare/answer")
    async def compare_answer(fields: Annotated[PageQuery, Query()]) -> Response:
        first, second = indexes.get(fields.index), indexes.get(fields.other or fields.index)
        asked = asked_of(first, fields)

        async def work(job: Job) -> str:
            methods = (first, fields.method), (second, fields.other_method)
            sides = [
                await served.run(partial(side_of, served, method, asked, fields), job)
                for served, method in methods
            ]
            first_side, second_side = sides
            name = printable(asked.name)
            return await run_in_threadpool(compared, first_side, second_side, name, fields.k)

        return _live(work)

    @pages.get("/common/answer")
    async def common_answer(
        method: Method = "retrac",
        k: Annotated[int, Query(ge=1, le=100)] = 10,
        index: Name = None,
    ) -> Response:
        served = indexes.get(index)
        key = f"common {method} {k}"

        def work() -> str:
            if key not in served.kept:
                served.keep(key, common_and_outliers(served, method, k), KEPT)
            return served.kept[key]

        return _live(partial(served.run, work))

    @pages.get("/verify")
    async def verify(index: Name = None) -> Response:
        served = indexes.get(index)

        def work() -> str:
            lines = [printable(line) for line in damages(served.index.store.location)]
            return render("verified.html", {"damages": lines}, TEMPLATES)

        return _live(partial(served.run, work))

    return pages


def _joined(report_file: str, own_file: str) -> str:
    """A file of the report's templates, and one of the pages'."""
    files = (REPORT_TEMPLATES / report_file, TEMPLATES / own_file)
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def _facts(description: str) -> list[tuple[str, str]]:
    """The lines of `gradindex info` as names and texts.

    >>> _facts("index       idx\\nrows        9 pictures")
    [('index', 'idx'), ('rows', '9 pictures')]
    """
    facts = []
    for line in description.splitlines():
        end = (line + " ").index(" ", NAME_WIDTH)  # a long name pushes its text on
        facts.append((line[:end].strip(), line[end:].strip()))
    return facts


def _shares(answers: Answers) -> str:
    """All groups of the only query, as a part of a page."""
    result = answers.listings[0].results[0]
    if result.groups is None:
        raise CallError("groups: give folder, or a column of the training data's table")
    views = share_views(result.groups, len(result.groups))
    context = {
        "name": printable(result.picture),
        "shares": list(zip(views, result.groups, strict=True)),
    }
    return render("shares.html", context, TEMPLATES)


def _live(work: Callable[[Job], Coroutine[Any, Any, str]]) -> StreamingResponse:
    """An answer line by line: how far it is, and in the end a part of the page, or an error."""
    return StreamingResponse(_lines(work), media_type="application/x-ndjson")


async def _lines(work: Callable[[Job], Coroutine[Any, Any, str]]) -> AsyncIterator[str]:
    job, told = Job(), None
    task = asyncio.create_task(work(job))
    try:
        while not (await asyncio.wait([task], timeout=TICK))[0]:
            if told != (told := asdict(job)):
                yield json.dumps(told) + "\n"
        yield json.dumps(_outcome(task)) + "\n"
    finally:
        task.cancel()  # whoever asked is gone, or has the answer


def _outcome(task: "asyncio.Future[str]") -> dict[str, str]:
    """What came of an answer: {"html": …} or {"error": …}."""
    try:
        return {"html": task.result()}
    except HTTPException as error:
        return {"error": str(error.detail)}
    except GradindexError as error:
        # Python's names of arguments say nothing to whoever looks at a page.
        return {"error": one_line(re.sub(r" \(\w+=\)", "", str(error)))}
    except Exception as error:
        LOGGER.exception("an answer failed")
        return {
            "error": one_line(f"the server failed ({type(error).__name__}: {first_line(error)})")
        }

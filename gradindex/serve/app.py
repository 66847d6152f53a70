"""The application: JSON and pages about some open indexes, behind a guard."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException

import gradindex
from gradindex.errors import CallError, GradindexError, first_line, quoted
from gradindex.report.printable import one_line
from gradindex.search.index import Index
from gradindex.serve.api import Indexes, make_api
from gradindex.serve.documents import REFUSALS
from gradindex.serve.guard import Guard
from gradindex.serve.pages import make_pages
from gradindex.serve.served_index import ServedIndex, index_names

LOGGER = logging.getLogger("gradindex")


def make_app(
    indexes: Sequence[Index],
    paths: Sequence[str],
    embedding: str | None = None,
    *,
    host: str = "127.0.0.1",
    hosts: Iterable[str] = (),
    token: str | None = None,
) -> FastAPI:
    """Return the application that answers about some open indexes.

    Args:
        paths: of the indexes, as they were typed.
        embedding: a vision model by which pictures are compared, too.
        host, hosts, token: see `Guard`.
    """
    served = [
        ServedIndex(name, path, index, embedding)
        for name, path, index in zip(index_names(paths), paths, indexes, strict=True)
    ]
    app = FastAPI(
        title="gradindex",
        version=gradindex.__version__,
        description="Which training pictures shaped a generated picture.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # these pages fetch their script from elsewhere
        redoc_url=None,
        responses=REFUSALS,
    )
    asked = Indexes(served)
    app.include_router(make_api(asked))
    app.include_router(make_pages(asked))
    app.add_middleware(Guard, host=host, hosts=hosts, token=token)
    app.add_exception_handler(AnyHTTPException, _tell)
    app.add_exception_handler(RequestValidationError, _tell_fields)
    app.add_exception_handler(GradindexError, _tell_fault)
    app.add_exception_handler(Exception, _tell_bug)
    return app


def _problem(status: int, detail: str, headers: Any = None) -> JSONResponse:
    """A refusal in one line."""
    return JSONResponse({"detail": one_line(detail)}, status, headers)


async def _tell(request: Request, error: Any) -> JSONResponse:
    """The answer to a request that is refused."""
    return _problem(error.status_code, str(error.detail), error.headers)


async def _tell_fields(request: Request, error: Any) -> JSONResponse:
    """The answer to a request whose fields have other values than are allowed."""
    return _problem(422, "; ".join(map(_field_text, error.errors())))


def _field_text(error: dict[str, Any]) -> str:
    """What is wrong with a field, in words.

    >>> _field_text({"loc": ("body", "k"), "input": "x", "msg": "Give a number", "type": "int"})
    "k = 'x': give a number"
    """
    name = ".".join(str(part) for part in error["loc"][1:]) or "request"
    text = error["msg"][:1].lower() + error["msg"][1:]
    if error["type"] == "missing":
        return f"{name}: give it"
    if error["type"] == "extra_forbidden":
        return f"{name}: there is no such field"
    value = error.get("input")
    if isinstance(value, str) and "UploadFile" in text:
        return f"{name} = {quoted(value)}: a text; send a file, such as curl -F {name}=@FILE"
    shown = f" = {quoted(value)}" if isinstance(value, str | int | float) else ""
    return f"{name}{shown}: {text}"


async def _tell_fault(request: Request, error: Any) -> JSONResponse:
    """The answer where gradindex raised an error on purpose."""
    is_call = isinstance(error, CallError)
    if not is_call:
        LOGGER.warning("%s: %s", request.url.path, error)
    return _problem(422 if is_call else 500, str(error))


async def _tell_bug(request: Request, error: Any) -> JSONResponse:
    """The answer to what nobody foresaw; the server logs the traceback."""
    return _problem(500, f"the server failed ({type(error).__name__}: {first_line(error)})")

"""What went wrong, as the HTTP response to it.

Every response has FastAPI's own shape, ``{"detail": ...}``: a sentence, or, for fields that a
client got wrong (409, 422), a list that says which and why. None contains a driver's text, SQL, or
what the client sent.
"""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from sqlalchemy.exc import NoResultFound, SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from fields import BULK_MAX
from store import Conflict, Fault, Kind, NotFound, StaleVersion
from store_sql import sql_fault

FAULTS = {
    Kind.CONFLICT: (409, "Another row refers to this one, or has the same value."),
    Kind.BAD_VALUE: (422, "The database cannot store this value."),
    Kind.BUSY: (503, "The database is busy with other changes. Retry."),
    Kind.UNREACHABLE: (503, "The database is unreachable. Retry."),
    Kind.TOO_SLOW: (503, "The database took too long. Retry."),
    Kind.READ_ONLY: (503, "The database takes no changes now. Retry."),
    Kind.NO_TRANSACTIONS: (503, "This MongoDB has no transactions: it takes single users only."),
    Kind.REFUSED: (503, "The database rejects Roster's login. Its operator has to look."),
    Kind.CORRUPT: (503, "The database's file is corrupt. Its operator has to look."),
    Kind.FULL: (507, "The database is full."),
}
BUG = 500, "Internal Server Error"


class Problem(BaseModel):
    """Why a request was not done."""

    detail: str


class FieldProblem(BaseModel):
    """What is wrong with one field: ``loc`` is the way to it, from the body, query or path."""

    type: str
    loc: list[str | int]
    msg: str


class FieldProblems(BaseModel):
    """Which fields a request was not done for."""

    detail: list[FieldProblem]


def answer(status: int, detail: str | list[FieldProblem]) -> JSONResponse:
    """Return the response for an error."""
    content: Any = detail
    if not isinstance(detail, str):
        content = [problem.model_dump() for problem in detail]
    return JSONResponse({"detail": content}, status, {"Retry-After": "1"} if status == 503 else {})


async def on_not_found(_: Request, error: NotFound) -> Response:
    return answer(404, str(error))


async def on_no_row(_: Request, __: NoResultFound) -> Response:
    """Answer 404: the row that ``session.get_one`` asks for isn't there."""
    return answer(404, "There is nothing with this id.")


async def on_stale_version(_: Request, error: StaleVersion) -> Response:
    return answer(412, str(error))


async def on_invalid_request(_: Request, error: RequestValidationError) -> Response:
    """Answer 422 without what was sent: FastAPI's own handler would echo it, passwords too."""

    def readable(part: str | int) -> str | int:
        # The name of an unknown field is the client's: any length, and not always valid Unicode.
        return part if isinstance(part, int) else part.encode(errors="replace").decode()[:100]

    problems = []
    for found in error.errors()[:BULK_MAX]:
        message = found["msg"].removeprefix("Value error, ")
        if found["type"] == "json_invalid":
            message += f": {found['ctx']['error']}"
        loc = [readable(part) for part in found["loc"]]
        problems.append(FieldProblem(type=found["type"], loc=loc, msg=message))
    return answer(422, problems)


async def on_http_exception(request: Request, error: HTTPException) -> Response:
    """Answer as FastAPI does, but with all methods of the path in Allow (RFC 9110, 15.5.6).

    Starlette names those of the first route that has the path.
    """
    if error.status_code == 405:
        routes = iter_route_contexts(request.app.routes)  # included routers' too
        found = [route for route in routes if route.matches(request.scope)[0] != Match.NONE]
        methods = {m for route in found for m in route.methods or ()}
        methods = methods or {"GET", "HEAD"}  # the page's
        error.headers = {"Allow": ", ".join(sorted(methods))}
    return await http_exception_handler(request, error)


async def on_conflict(_: Request, error: Conflict) -> Response:
    problems = [FieldProblem(type="conflict", loc=[*loc], msg=msg) for loc, msg in error.problems]
    return answer(409, problems)


async def on_fault(request: Request, error: Fault) -> Response:
    """Answer for a database that fails; the log gets the reason."""
    request.state.reason = str(error)
    status, detail = FAULTS[error.kind]
    if status in (409, 422):
        return answer(status, [FieldProblem(type="database", loc=["body"], msg=detail)])
    return answer(status, detail)


async def on_session_error(request: Request, error: SQLAlchemyError) -> Response:
    """Answer for a handler's own use of a session. What is no fault is a bug, with a traceback."""
    if fault := sql_fault(error):
        return await on_fault(request, fault)
    raise error


def describe(**texts: str) -> dict[int | str, dict[str, Any]]:
    """Return the entries of statuses (``_404="..."``) for the OpenAPI document."""
    statuses = {int(name[1:]): text for name, text in texts.items()}
    return {
        status: {
            "description": text,
            "model": FieldProblems if status in (409, 422) else Problem,
        }
        for status, text in statuses.items()
    }


LIVE = describe(_403="Not from here, or not with this token: the detail says why.")
UNREACHABLE = describe(
    _503="The database is unreachable or busy. Retry after `Retry-After` seconds."
)
READ = LIVE | UNREACHABLE
READ |= describe(_401="A token is needed, or this one is not known.", _422="A field is wrong.")
WRITE = READ | describe(_507="The database is full.")
SEND = WRITE | describe(_408="The body did not arrive in time.", _413="The body is over 1 MiB.")
NOT_FOUND = describe(_404="Nothing has this id.")
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "You have this version."}}
TAKEN = describe(_409="A value is taken, refers to nothing, or is still referred to.")
STALE = describe(_412="The version is another than `If-Match` names. Nothing was changed.")

HANDLERS: dict[type[Exception], Any] = {
    NotFound: on_not_found,
    NoResultFound: on_no_row,
    StaleVersion: on_stale_version,
    HTTPException: on_http_exception,
    RequestValidationError: on_invalid_request,
    Conflict: on_conflict,
    Fault: on_fault,
    SQLAlchemyError: on_session_error,
}


def install(app: FastAPI) -> None:
    """Make an app answer as this module does."""
    for error, handler in HANDLERS.items():
        app.add_exception_handler(error, handler)

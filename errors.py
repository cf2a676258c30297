"""What went wrong, as the HTTP response to it.

Every response has FastAPI's own shape, ``{"detail": ...}``: a sentence, or a list of the fields
that a client got wrong (409, 422). None contains a driver's text, SQL, or what the client sent.
"""

from collections.abc import Callable
from typing import Any

from fastapi import Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from sqlalchemy.exc import NoResultFound, SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from engine import NotSQL
from faults_sql import sql_fault
from fields import BULK_MAX
from store import Conflict, Fault, Kind, NotFound, StaleVersion

FAULTS = {
    Kind.CONFLICT: (409, "Another row refers to this one, or has the same value."),
    Kind.BAD_VALUE: (422, "The database cannot store this value."),
    Kind.BUSY: (503, "The database is busy with other changes. Retry."),
    Kind.UNREACHABLE: (503, "The database is unreachable. Retry."),
    Kind.TOO_SLOW: (503, "The database took too long. Retry."),
    Kind.READ_ONLY: (503, "The database takes no changes now. Retry."),
    Kind.NO_TRANSACTIONS: (503, "This database has no transactions: send single users only."),
    Kind.REFUSED: (503, "The database rejects Roster's login. Ask its operator."),
    Kind.CORRUPT: (503, "The database's file is corrupt. Ask its operator."),
    Kind.FULL: (507, "The database is full. Ask its operator to make room."),
}
BUG = 500, "Internal Server Error"
LATER = {"Retry-After": "1"}  # seconds


class Problem(BaseModel):
    detail: str


class FieldProblem(BaseModel):
    """What is wrong with one field: ``loc`` is the way to it, from the body, query or path."""

    type: str
    loc: list[str | int]
    msg: str


class FieldProblems(BaseModel):
    detail: list[FieldProblem]


def answer(status: int, detail: str | list[dict[str, Any]]) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, LATER if status in (429, 503) else {})


def saying(status: int, detail: str = "") -> Callable[[Request, Exception], Any]:
    """Return a handler that answers with a detail, or with the text of the exception."""

    async def handle(_: Request, error: Exception) -> Response:
        return answer(status, detail or str(error))

    return handle


async def on_invalid_request(_: Request, error: RequestValidationError) -> Response:
    """Answer 422 without what was sent: FastAPI's own handler would echo it, passwords too."""

    def readable(part: str | int) -> str | int:  # the name of an unknown field is the client's
        return part if isinstance(part, int) else part.encode(errors="replace").decode()[:100]

    problems = []
    for found in error.errors()[:BULK_MAX]:
        message = found["msg"].removeprefix("Value error, ")
        if found["type"] == "json_invalid":
            message += f": {found['ctx']['error']}"
        loc = [*map(readable, found["loc"])]
        problems.append({"type": found["type"], "loc": loc, "msg": message})
    return answer(422, problems)


async def on_http_exception(request: Request, error: HTTPException) -> Response:
    """Answer as FastAPI does, but with all methods of the path in Allow (RFC 9110, 15.5.6).

    Starlette names those of the first route that has the path.
    """
    if error.status_code == 405:
        routes = iter_route_contexts(request.app.routes)  # included routers' too
        found = [route for route in routes if route.matches(request.scope)[0] != Match.NONE]
        literal = [route for route in found if "{" not in (route.path or "")]  # as edge.Route
        methods = {m for route in literal or found for m in route.methods or ()}
        if "GET" in methods or not methods:  # the page's files
            methods |= {"GET", "HEAD"}
        error.headers = {"Allow": ", ".join(sorted(methods))}
    return await http_exception_handler(request, error)


async def on_stale_version(request: Request, error: StaleVersion) -> Response:
    return answer(412, getattr(request.state, "why_412", str(error)))


async def on_conflict(_: Request, error: Conflict) -> Response:
    problems = [{"type": "conflict", "loc": loc, "msg": msg} for loc, msg in error.problems]
    return answer(409, problems)


async def on_fault(request: Request, error: Fault) -> Response:
    """Answer for a database that fails; the log gets the reason."""
    request.state.reason = str(error)
    status, detail = FAULTS[error.kind]
    problem = [{"type": "database", "loc": ["body"], "msg": detail}]
    return answer(status, problem if status in (409, 422) else detail)


async def on_session_error(request: Request, error: SQLAlchemyError) -> Response:
    """Answer for a handler's own use of a session. What is no fault is a bug, with a traceback.

    So is a value that the database cannot store, if the client has not sent any.
    """
    sent = request.path_params or request.query_params or request.scope.get("method") != "GET"
    if (fault := sql_fault(error)) and (sent or fault.kind is not Kind.BAD_VALUE):
        return await on_fault(request, fault)
    raise error


def describe(**texts: str) -> dict[int | str, dict[str, Any]]:
    """Return the entries of statuses (``_404="..."``) for the OpenAPI document."""
    lists = {"_409": FieldProblems, "_422": FieldProblems}
    return {
        int(name[1:]): {"description": text, "model": lists.get(name, Problem)}
        for name, text in texts.items()
    }


LIVE = describe(_403="Not from here, or not with this token: the detail says why.")
UNREACHABLE = describe(_503="The database is unreachable or busy: see `Retry-After`.")
READ = describe(_401="A token is needed, or this one is not known.", _422="A field is wrong.")
READ |= describe(_429="Too many requests of this token are under way.") | LIVE | UNREACHABLE
WRITE = READ | describe(_507="The database is full.")
SEND = WRITE | describe(_408="The body did not arrive in time.", _413="The body is over 1 MiB.")
NOT_FOUND = describe(_404="Nothing has this id.")
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "You have this version."}}
TAKEN = describe(_409="A value is taken, refers to nothing, or is still referred to.")
STALE = describe(_412="The version is another than `If-Match` names. Nothing was changed.")

HANDLERS: dict[type[Exception], Any] = {
    NotFound: saying(404),
    NoResultFound: saying(404, "There is nothing with this id."),  # session.get_one raises it
    StaleVersion: on_stale_version,
    NotSQL: saying(501),
    HTTPException: on_http_exception,
    RequestValidationError: on_invalid_request,
    Conflict: on_conflict,
    Fault: on_fault,
    SQLAlchemyError: on_session_error,
}

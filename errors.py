"""What went wrong -> the HTTP answer: what a client sent, and what a database said, in one table.

Every answer has FastAPI's own shape, ``{"detail": ...}``: a sentence, or for the fields that a
client got wrong (409, 422) a list that says which and why. None holds a driver's text, SQL, or what
the client sent.
"""

import logging
from enum import Enum
from typing import Any

from fastapi import FastAPI, Request, Response, status
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from sqlalchemy.exc import NoResultFound
from starlette.exceptions import HTTPException
from starlette.routing import Match

from models import BULK_MAX
from store import Backend, Code, EmailTaken, NotFound, StaleVersion


class TwoASecond(logging.Filter):
    """Lets two warnings a second through and counts the others: an outage must not fill a disk."""

    since = 0.0
    said = left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is to be printed."""
        if record.levelno != logging.WARNING:
            return True
        if record.created - self.since >= 1:
            self.since, self.said = record.created, 0
        self.said += 1
        if self.said > 2:
            self.left_out += 1
            return False
        if self.left_out:
            record.msg = f"{record.msg} ({self.left_out} more were left out)"
            self.left_out = 0
        return True


logger = logging.getLogger("uvicorn.error")  # uvicorn prints what is logged here
logger.addFilter(TwoASecond())


class Fault(Enum):
    """A kind of failure of a database: the status and the detail of the answer to it."""

    def __init__(self, status: int, detail: str) -> None:
        self.status = status
        self.detail = detail

    CONFLICT = 409, "This contradicts what is stored."
    BAD_VALUE = 422, "The database cannot store this value."
    BUSY = 503, "The database is busy with other changes. Try again."
    AWAY = 503, "The database does not answer. Try again."
    TOO_SLOW = 503, "The database took too long. Try again."
    READ_ONLY = 503, "The database takes no changes now. Try again."
    NO_TRANSACTIONS = (
        503,
        "This MongoDB is a standalone server without transactions: no lists, only single users.",
    )
    REFUSED = 503, "The database does not let Roster in. Its operator has to look."
    DAMAGED = 503, "The database's file is damaged. Its operator has to look."
    FULL = 507, "The database is full."
    BUG = 500, "Internal Server Error"


# Each driver's own code for it: PostgreSQL's SQLSTATE or its class (the first two characters),
# MySQL's and MariaDB's number, SQLite's name or the beginning of it, "MongoDB" and its number, the
# word that Redis begins an error with; or else a class of exceptions.
CODES: dict[Fault, tuple[Code, ...]] = {
    Fault.CONFLICT: (
        *("23505", "23503", 1062, 1451, 1452, "MongoDB 11000"),
        *("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"),
        "SQLITE_CONSTRAINT_FOREIGNKEY",
    ),
    Fault.BAD_VALUE: (
        *("22", "23502", "23514", 1048, 1264, 1366, 1406, "SQLITE_CONSTRAINT"),
        *("MongoDB 121", "BSONError", "OverflowError", "UnicodeEncodeError"),
    ),
    # 1305: no such savepoint; a deadlock has undone the transaction and its savepoints.
    Fault.BUSY: (
        *("40001", "40P01", "55P03", 1020, 1205, 1213, 1305, "SQLITE_BUSY", "SQLITE_LOCKED"),
        *("MongoDB 24", "MongoDB 112", "MongoDB 246", "MongoDB 251", "BUSY", "StaleDataError"),
    ),
    # 1180: a commit without most of the other nodes (Galera).
    # 42P01 and 1146, 42703 and 1054: no table yet, or not yet with all columns (migrations/), in a
    # database that was away when the app started.
    Fault.AWAY: (
        *("08", "57P01", "57P02", "57P03", "53300", "55000", "42P01", "42703"),
        *(1040, 1047, 1053, 1054, 1146, 1180, 1927, *range(2002, 2014), 2055),
        *("MongoDB 6", "MongoDB 7", "MongoDB 91", "MongoDB 189", "MongoDB 9001", "MongoDB 11600"),
        *("MongoDB 11602", "ConnectionFailure", "LOADING", "MASTERDOWN"),
        *("ConnectionError", "TimeoutError", "OSError", "TargetServerAttributeNotMatched"),
    ),
    Fault.TOO_SLOW: (
        *("57014", 1969, 3024, "SQLITE_INTERRUPT"),
        *("MongoDB 50", "MongoDB 64", "MongoDB 202", "MongoDB 262", "NetworkTimeout"),
    ),
    Fault.READ_ONLY: (
        *("25006", 1290, 1792, 1836, "SQLITE_READONLY"),
        *("MongoDB 10107", "MongoDB 13435", "MongoDB 13436", "NotPrimaryError"),
        *("READONLY", "MISCONF", "NOREPLICAS"),
    ),
    Fault.NO_TRANSACTIONS: ("MongoDB 20",),
    # 8000: MongoDB Atlas. ConfigurationError: no such name for mongodb+srv, or too old a server.
    # 08P01, 26000 and 42P05: PgBouncer, not set up for Roster.
    Fault.REFUSED: (
        *("08P01", "26000", "42P05", "28", "3D000", "42501", 1044, 1045, 1049, 1142),
        *("SQLITE_CANTOPEN", "SQLITE_READONLY_DBMOVED"),
        *("MongoDB 13", "MongoDB 18", "MongoDB 8000", "ConfigurationError"),
        *("AuthenticationError", "NOAUTH", "WRONGPASS", "NOPERM", "NOSUCHDB"),
        *("SSLCertVerificationError", "ClientConfigurationError", 3159),
    ),
    Fault.DAMAGED: ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR"),
    Fault.FULL: (
        *("53100", 1021, 1114, "SQLITE_FULL", "MongoDB 14031", "OOM"),
        *("2200H", 167, 1467),  # no id is left, as while users are copied into it
    ),
}
# What uvloop and asyncmy say, as a RuntimeError, of a connection that the server closed just now.
CLOSED_JUST_NOW = ("the handler is closed", "Transport does not expose socket")
BY_CODE = {code: fault for fault, codes in CODES.items() for code in codes}


def classify(error: BaseException, code: Code | None) -> Fault:
    """Return what kind of failure an exception is, by its driver's code for it or by its class."""
    if isinstance(error, RuntimeError) and any(words in str(error) for words in CLOSED_JUST_NOW):
        return Fault.AWAY
    general = None
    if isinstance(code, str):
        # SQLITE_BUSY_SNAPSHOT is a SQLITE_BUSY, 22021 is of class 22.
        general = "_".join(code.split("_")[:2]) if code.startswith("SQLITE_") else code[:2]
    keys = [code, general, *(kind.__name__ for kind in type(error).__mro__)]
    return next((BY_CODE[key] for key in keys if key in BY_CODE), Fault.BUG)


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
    """Return an error's response."""
    if isinstance(detail, str):
        content: dict[str, Any] = {"detail": detail}
    else:
        content = {"detail": [problem.model_dump() for problem in detail]}
    return JSONResponse(content, status, {"Retry-After": "1"} if status == 503 else None)


async def on_invalid_request(_: Request, error: RequestValidationError) -> Response:
    """Answer 422 without what was sent: FastAPI's own handler would echo it, passwords too."""

    def readable(part: str | int) -> str | int:
        # The name of an unknown field is the client's: any length, and not always valid Unicode.
        if isinstance(part, str):
            return part.encode(errors="replace").decode()[:100]
        return part

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
    if error.status_code == status.HTTP_405_METHOD_NOT_ALLOWED:
        routes = iter_route_contexts(request.app.routes)  # included routers' too
        found = [route for route in routes if route.matches(request.scope)[0] != Match.NONE]
        methods = {m for route in found for m in route.methods or ()}
        methods = methods or {"GET", "HEAD"}  # the page's
        error.headers = {"Allow": ", ".join(sorted(methods))}
    return await http_exception_handler(request, error)


async def on_email_taken(_: Request, error: EmailTaken) -> Response:
    """Answer 409 with the place of each address that somebody has."""
    msg = "Somebody has this email address already."
    return answer(409, [FieldProblem(type="taken", loc=[*loc], msg=msg) for loc in error.locations])


async def on_not_found(_: Request, __: NotFound) -> Response:
    """Answer 404."""
    return answer(404, "There is no user with this id.")


async def on_no_row(_: Request, __: NoResultFound) -> Response:
    """Answer 404: what ``session.get_one`` was asked for is not there."""
    return answer(404, "There is nothing with this id.")


async def on_stale_version(_: Request, __: StaleVersion) -> Response:
    """Answer 412."""
    return answer(412, "The user has been changed since: get it again, then decide.")


def describe(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the entries of these statuses for the OpenAPI document."""
    said = {
        401: "A token is needed, or this one is not known.",
        403: "Not from here, or not with this token: the detail says why.",
        404: "No user has this id.",
        408: "The body did not come in time.",
        409: "An email address is taken. Nothing was stored.",
        412: "The user has another version than `If-Match` names. Nothing was changed.",
        413: "The body is over 1 MiB.",
        422: "A field is wrong.",
        503: "The database is away or busy. Try again after `Retry-After` seconds.",
        507: "The database is full.",
    }
    return {
        status: {
            "description": said[status],
            "model": FieldProblems if status in (409, 422) else Problem,
        }
        for status in statuses
    }


READING = describe(401, 403, 422, 503)
WRITING = READING | describe(507)
SENDING = WRITING | describe(408, 413)
MISSED = describe(404)
TAKEN = describe(409)
STALE = describe(412)
LIVE = describe(403)
AWAY = describe(503)


def install(app: FastAPI, backend: Backend) -> None:
    """Make an app that uses this backend give the answers of this module."""

    async def on_database_error(request: Request, error: Exception) -> Response:
        """Answer what the table says; what it does not know is a bug: its traceback is logged."""
        code = backend.driver_code(error)
        fault = classify(error, code)
        if fault is Fault.BUG:
            raise error
        reason = code or type(error).__name__
        # auth.py logs it
        request.state.reason = f"{fault.name} ({reason}), {backend.place()}"
        if fault.status in (409, 422):
            problem = FieldProblem(type="database", loc=["body"], msg=fault.detail)
            return answer(fault.status, [problem])
        return answer(fault.status, fault.detail)

    handlers: dict[type[Exception], Any] = {
        HTTPException: on_http_exception,
        RequestValidationError: on_invalid_request,
        EmailTaken: on_email_taken,
        NotFound: on_not_found,
        NoResultFound: on_no_row,
        StaleVersion: on_stale_version,
        **dict.fromkeys((OSError, RuntimeError, *backend.DRIVER_ERRORS), on_database_error),
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)

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
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from models import BULK_MAX
from store import Backend, Code, EmailTaken, NotFound, StaleVersion

logger = logging.getLogger("uvicorn.error")  # uvicorn prints what is logged here


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
    Fault.BUSY: (
        *("40001", "40P01", "55P03", 1020, 1205, 1213, "SQLITE_BUSY", "SQLITE_LOCKED"),
        *("MongoDB 24", "MongoDB 112", "MongoDB 246", "MongoDB 251", "BUSY", "StaleDataError"),
    ),
    # 42P01 and 1146: no table yet, in a database that was away when the app started.
    Fault.AWAY: (
        *("08", "57P01", "57P02", "57P03", "53300", "55000", "42P01"),
        *(1040, 1047, 1053, 1146, 1927, *range(2002, 2014), 2055),
        *("MongoDB 6", "MongoDB 7", "MongoDB 91", "MongoDB 189", "MongoDB 9001", "MongoDB 11600"),
        *("MongoDB 11602", "ConnectionFailure", "LOADING", "MASTERDOWN"),
        *("ConnectionError", "TimeoutError", "OSError"),
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
    Fault.REFUSED: (
        *("28", "3D000", "42501", 1044, 1045, 1049, 1142, "SQLITE_CANTOPEN"),
        *("MongoDB 13", "MongoDB 18", "MongoDB 8000", "ConfigurationError"),
        *("AuthenticationError", "NOAUTH", "WRONGPASS", "NOPERM", "NOSUCHDB"),
        "SSLCertVerificationError",
    ),
    Fault.FULL: ("53100", 1021, 1114, "SQLITE_FULL", "MongoDB 14031", "OOM"),
}
BY_CODE = {code: fault for fault, codes in CODES.items() for code in codes}


def classify(error: BaseException, code: Code | None) -> Fault:
    """Return what kind of failure an exception is, by its driver's code for it or by its class."""
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
        routes = [
            route for route in request.app.routes if route.matches(request.scope)[0] != Match.NONE
        ]
        error.headers = {"Allow": ", ".join(sorted({m for route in routes for m in route.methods}))}
    return await http_exception_handler(request, error)


async def on_email_taken(_: Request, error: EmailTaken) -> Response:
    """Answer 409 with the place of each address that somebody has."""
    msg = "Somebody has this email address already."
    return answer(409, [FieldProblem(type="taken", loc=[*loc], msg=msg) for loc in error.locations])


async def on_not_found(_: Request, __: NotFound) -> Response:
    """Answer 404."""
    return answer(404, "There is no user with this id.")


async def on_stale_version(_: Request, __: StaleVersion) -> Response:
    """Answer 412."""
    return answer(412, "The user has been changed since: get it again, then decide.")


async def on_bug(_: Request, __: Exception) -> Response:
    """Answer 500; Starlette raises the exception again after this, and uvicorn logs it."""
    return answer(Fault.BUG.status, Fault.BUG.detail)


def describe(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the entries of these statuses for the OpenAPI document."""
    said = {
        404: "No user has this id.",
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


READING = describe(422, 503)
WRITING = describe(422, 503, 507)
SENDING = WRITING | describe(413)
MISSED = describe(404)
TAKEN = describe(409)
STALE = describe(412)
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
        logger.warning("%s %s: %s (%s)", request.method, request.url.path, fault.name, reason)
        if fault.status in (409, 422):
            problem = FieldProblem(type="database", loc=["body"], msg=fault.detail)
            return answer(fault.status, [problem])
        return answer(fault.status, fault.detail)

    handlers: dict[type[Exception], Any] = {
        HTTPException: on_http_exception,
        RequestValidationError: on_invalid_request,
        EmailTaken: on_email_taken,
        NotFound: on_not_found,
        StaleVersion: on_stale_version,
        **dict.fromkeys((OSError, *backend.DRIVER_ERRORS), on_database_error),
        Exception: on_bug,
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)

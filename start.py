"""Starting: at once, or as soon as the database answers, or not at all, and then one line says why.

https://fastapi.tiangolo.com/advanced/events/ explains what a lifespan is.
"""

import asyncio
import gc
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi.telemetry import TelemetryConfig

from errors import Fault, classify, logger
from store import UNFINISHED, Backend, Code, UnfinishedCopy, WrongTables

# What is wrong with DATABASE_URL, in words, by the driver's code.
WRONG_PART: dict[Code, str] = {
    **dict.fromkeys(
        ("28P01", "MongoDB 18", "WRONGPASS", "NOAUTH", "AuthenticationError"),
        "does not know this user name with this password",
    ),
    # PostgreSQL and MariaDB say the same of a connection that is not encrypted, if it has to be.
    **dict.fromkeys(
        ("28000", 1045), "does not take this user name with this password, or not without TLS"
    ),
    **dict.fromkeys(("3D000", 1049, "NOSUCHDB"), "has no database of this name"),
    **dict.fromkeys(
        ("42501", 1044, 1142, "MongoDB 13", "MongoDB 8000", "NOPERM"),
        "does not let this user into the database",
    ),
    "ConfigurationError": "has a name that is not known, or is older than PyMongo takes",
    "SSLCertVerificationError": (
        "has a TLS certificate that is not for this host, is out of date,"
        " or has nobody known who vouches for it"
    ),
    "ClientConfigurationError": (
        "has an option with a wrong value after its ?, or sslmode=verify-full without sslrootcert"
    ),
    3159: "takes nobody without TLS",
    "SQLITE_CANTOPEN": "cannot be opened: the folder is not there, or you may not write in it",
    "SQLITE_CORRUPT": "is damaged: restore it from a backup",
    "SQLITE_NOTADB": "is not a SQLite database",
    **dict.fromkeys(("SQLITE_READONLY", "SQLITE_READONLY_DIRECTORY"), "cannot be written to"),
    "UnfinishedCopy": "holds a copy that is not finished: run that `cli.py copy` again",
    "08P01": "does not take Roster's settings: see PgBouncer in the README",
    **dict.fromkeys(
        ("26000", "42P05"),
        "forgets prepared statements: behind PgBouncer, add ?prepared_statement_cache_size=0",
    ),
    **dict.fromkeys(
        ("TypeError", "42704"), "does not know an option that the URL gives after its ?"
    ),
}
WAITED_FOR = (Fault.AWAY, Fault.BUSY, Fault.TOO_SLOW)


class CannotStart(Exception):
    """A backend does not start; the text is one line, without a secret.

    ``wait`` is whether it may help to try again.
    """

    def __init__(self, backend: Backend, error: Exception) -> None:
        code = backend.driver_code(error)
        self.wait = classify(error, code) in WAITED_FOR
        reason = code or type(error).__name__
        said = "does not answer yet" if self.wait else WRONG_PART.get(reason, "cannot be used")
        said = str(error) if isinstance(error, WrongTables) else f"{said} ({reason})."
        super().__init__(f"DATABASE_URL: {backend.place()} {said}")


async def start(backend: Backend, unfinished: bool = False) -> None:
    """Start a backend, with an unfinished copy in it only if that is said. Raises CannotStart."""
    try:
        await backend.start()
        store = await backend.get_store()
        if not unfinished and await store.last_id() >= UNFINISHED:
            raise UnfinishedCopy
    except Exception as error:  # noqa: BLE001 (whatever it is, a person reads it)
        raise CannotStart(backend, error) from None


async def keep_trying(backend: Backend) -> None:
    """Start a backend as soon as its database lets it; say why not, once for each reason."""
    said = ""
    while True:
        await asyncio.sleep(1)
        try:
            return await start(backend)
        except CannotStart as failure:
            if str(failure) != said:
                said = str(failure)
                logger.warning(said)


def telemetry() -> TelemetryConfig:
    """Return whether FastAPI feeds OpenTelemetry: if a variable of its own, ``OTEL_...``, is set.

    Otherwise FastAPI would look, in each request, whether somebody collects spans by now.
    """
    wanted = any(name.startswith("OTEL_") for name in os.environ)
    return {"tracing": wanted, "metrics": wanted, "logs": wanted}


@asynccontextmanager
async def running(backend: Backend) -> AsyncIterator[None]:
    """Start a backend, and stop it when the block is left.

    If the database is away, the app serves all the same (503, but ``/livez``), and the backend is
    started as soon as it answers. If it is there and says no, the app ends with one line.
    """
    trying = None
    try:
        try:
            await start(backend)
        except CannotStart as failure:
            if not failure.wait:
                sys.tracebacklimit = 0  # uvicorn prints a traceback; this leaves its last line
                # A connection that breaks while PyMongo closes it has nothing to add.
                asyncio.get_running_loop().set_exception_handler(lambda *_: None)
                raise SystemExit(str(failure)) from None
            logger.warning(str(failure))
            trying = asyncio.create_task(keep_trying(backend))
        # What is there now stays: the garbage collector need not look through it again and again,
        # each time for as long as some twenty requests take; nor look for more after 700 new
        # objects, for a page of users is as many.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000)
        yield
    finally:
        if trying:
            trying.cancel()
            with suppress(asyncio.CancelledError):
                await trying
        # A server that stands still does not say good-bye.
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await backend.stop()

"""Start and stop: at once, or when the database answers, or not at all with one line that says why.

https://fastapi.tiangolo.com/advanced/events/ explains what a lifespan is.
"""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from sqlalchemy.exc import SQLAlchemyError

from db import get_backend
from edge import get_callers
from engine import Database, SettingsError, codes
from faults_sql import REASONS as SQL_REASONS
from faults_sql import sql_fault
from schema import WrongTables, make_tables
from store import UNFINISHED, Backend, Fault, Kind, UserStore, logger
from store_sql import SQLUserStore

# What is wrong with DATABASE_URL, whatever the database; each store has its own reasons, too.
REASONS = {
    "SSLCertVerificationError": "has a TLS certificate that is not for this host, has expired,"
    " or whose issuer is unknown",
    "TypeError": "does not know an option that the URL has after its ?",
    "UnfinishedCopy": "holds an unfinished copy: run that `cli.py copy` again",
}


class UnfinishedCopy(Exception):
    """The database holds the beginning of a copy (``cli.py copy``), or one not yet compared."""


class StartError(Exception):
    """A database does not start; the text is one line, without a secret.

    ``wait`` is whether it may help to retry.
    """

    def __init__(self, backend: Backend, error: Exception) -> None:
        cause = error.__cause__ if isinstance(error, Fault) else error
        found = getattr(backend, "codes", codes)(cause or error)
        if isinstance(error, SQLAlchemyError):
            error = sql_fault(error) or error
        if isinstance(error, Fault):
            found = [error.code, *found]
        passing = (Kind.UNREACHABLE, Kind.BUSY, Kind.TOO_SLOW)
        self.wait = isinstance(error, Fault) and error.kind in passing
        reasons = REASONS | getattr(backend, "reasons", SQL_REASONS)
        code = next((code for code in found if code in reasons), found[0])
        if isinstance(error, WrongTables):
            said = str(error)
        elif self.wait:
            said = f"is unreachable, busy or slow ({code})."
        else:
            said = f"{reasons.get(code, 'cannot be used')} ({code})."
        super().__init__(f"DATABASE_URL: {backend.place} {said}")


@asynccontextmanager
async def open_store(backend: Backend, read_only: bool = False) -> AsyncIterator[UserStore]:
    """Yield a store for work outside a request. Raises Fault."""
    if isinstance(backend, Database):
        try:
            async with backend.session(read_only) as session:
                yield SQLUserStore(session)
        except SQLAlchemyError as error:
            raise sql_fault(error) or error from error
    else:
        yield cast(UserStore, backend)


async def start(backend: Any, unfinished: bool = False) -> None:
    """Start a database, with an unfinished copy in it only if asked to. Raises StartError."""
    try:
        if isinstance(backend, Database):
            await backend.start(make_tables)
        else:
            await backend.start()
        async with open_store(backend) as store:
            await store.ping()
            if not unfinished and await store.last_id() >= UNFINISHED:
                raise UnfinishedCopy
    except Exception as error:  # noqa: BLE001 (whatever it is, a person reads it)
        raise StartError(backend, error) from None


async def keep_trying(backend: Backend) -> None:
    """Start a database as soon as it can be; log why not, once for each reason."""
    said = ""
    while True:
        await asyncio.sleep(1)
        try:
            await start(backend)
            return logger.warning("%s answers.", backend.place)
        except StartError as failure:
            if str(failure) != said:
                said = str(failure)
                logger.warning(said)


async def watch_descriptors() -> None:
    """Log when none is left: uvloop then closes new connections without a word."""
    while True:
        await asyncio.sleep(1)
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            logger.error("No file descriptor is left (%s): raise LimitNOFILE.", error.strerror)


def telemetry() -> TelemetryConfig:
    """Let FastAPI feed OpenTelemetry, which slows each request, only if a variable asks for it."""
    wanted = any(name.startswith("OTEL_") for name in os.environ)
    return {"tracing": wanted, "metrics": wanted, "logs": wanted}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start the database of the settings; stop it at the end.

    While the database is unreachable, the app serves all the same (503, except for ``/livez``),
    and starts the database as soon as it answers. If it refuses, or a setting is wrong, the app
    ends with one line.
    """
    if not logger.hasHandlers():  # another server than uvicorn
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
    tasks = []
    try:
        callers, backend = get_callers(), get_backend()
        access = f"{len(callers)} tokens" if callers else "this machine only, without tokens"
        logger.info("Database: %s. Access: %s.", backend.place, access)
        try:
            await start(backend)
        except StartError as failure:
            if not failure.wait:
                raise
            logger.warning("%s Roster keeps trying.", failure)
            tasks.append(asyncio.create_task(keep_trying(backend)))
    except (SettingsError, StartError) as error:
        sys.tracebacklimit = 0  # uvicorn prints a traceback; this leaves its last line
        # A connection that breaks while PyMongo closes it has nothing to add.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        raise SystemExit(str(error)) from None
    tasks.append(asyncio.create_task(watch_descriptors()))
    app.state.started = True
    # What exists now stays, so the garbage collector need not look through it again and again; nor
    # after 700 new objects, as many as a page of users has (engine/README.md has what it gives).
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        # A hung server never completes the close handshake.
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await backend.stop()

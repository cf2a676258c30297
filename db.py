"""Settings, ``DATABASE_URL``; and for SQL: URL -> engine, and a session for each request."""

import logging
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL, Executable, Row, event, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn
from sqlmodel.ext.asyncio.session import AsyncSession

import sqlite_async

# The pool prints a traceback for a connection that died while it was out, though whoever had it
# has met the error and says so.
logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)


class Settings(BaseSettings):
    """What the environment says, or a file ``.env`` in the current folder; README has the table."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore")

    database_url: SecretStr = SecretStr("sqlite:///roster.db")
    pool_size: int = Field(default=10, ge=2, le=1000)


@cache
def get_settings() -> Settings:
    """Return the settings; leave with one line, without any value, if one of them is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = error.errors(include_input=False)[0]
        sys.exit(f"{str(wrong['loc'][0]).upper()}: {wrong['msg']}.")
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f".env: cannot be read ({type(error).__name__}).")


def database_url() -> URL:
    """Return ``DATABASE_URL`` in parts; leave with one line if it is not a URL."""
    try:
        url = make_url(get_settings().database_url.get_secret_value())
    except (ArgumentError, ValueError):
        sys.exit("DATABASE_URL: not a URL; an example: postgresql://user:password@host:5432/name")
    if url.host and "@" in f"{url.host}{url.database}":
        sys.exit("DATABASE_URL: write an @ in the user name or the password as %40, a / as %2F.")
    return url


class Engines(NamedTuple):
    """Two pools: one whose connections may change something, and one whose may only read."""

    writer: AsyncEngine
    reader: AsyncEngine


@cache
def get_engines() -> Engines:
    """Return the engines of ``DATABASE_URL``; leave with one line if it is wrong."""
    url = database_url()
    if url.get_backend_name() == "sqlite":
        memory = url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"
        if url.host or memory:
            sys.exit("DATABASE_URL: SQLite needs a file, for example sqlite:///roster.db")
    elif not url.database:
        sys.exit("DATABASE_URL: it must name a database, as in postgresql://host:5432/name")
    try:
        return make_engines(url, get_settings().pool_size)
    except (ArgumentError, TypeError, ValueError) as error:
        sys.exit(f"DATABASE_URL: an option after its ? is wrong ({type(error).__name__}).")


# A pool has no overflow connections, which would be opened and closed under load all the time; a
# session that finds every connection taken waits for one, 5 seconds at most.
POOL: dict[str, Any] = {"max_overflow": 0, "pool_timeout": 5, "hide_parameters": True}
# A statement that reads is a transaction by itself: there is nothing to begin and to end.
AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True}


def make_engines(url: URL, size: int) -> Engines:
    """Return engines with ``size`` connections together, at most. Nothing is connected yet."""
    match url.get_backend_name():
        case "sqlite":
            return Engines(*sqlite_async.make_engines(url, **POOL))
        case "postgresql" | "postgres":
            make_engine = make_postgresql_engine
        case _:
            make_engine = make_mysql_engine
    return Engines(
        writer=make_engine(url, reading=False, pool_size=size // 2, pool_recycle=1800, **POOL),
        reader=make_engine(
            url, reading=True, pool_size=size - size // 2, pool_recycle=1800, **POOL, **AUTOCOMMIT
        ),
    )


def make_postgresql_engine(url: URL, reading: bool, **options: Any) -> AsyncEngine:
    """Return an engine on asyncpg."""
    # Others write sslmode, as libpq does; asyncpg calls it ssl and takes the same words.
    if "sslmode" in url.query:
        mode = url.query["sslmode"]
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})
    server = {"statement_timeout": "5000", "lock_timeout": "3000"}
    if reading:
        server["default_transaction_read_only"] = "on"
    else:
        # A plan that PostgreSQL kept from when the table was small would read all of it later.
        server["plan_cache_mode"] = "force_custom_plan"
    engine = create_async_engine(
        url.set(drivername="postgresql+asyncpg"),
        connect_args={"timeout": 3, "command_timeout": 10, "server_settings": server},
        **options,
    )

    @event.listens_for(engine.sync_engine, "checkout")
    def on_checkout(_: Any, record: Any, __: object) -> None:
        # asyncpg knows that a server hung up, without a question that would cost a round trip.
        if record.driver_connection.is_closed():
            raise DisconnectionError

    return engine


def make_mysql_engine(url: URL, reading: bool, **options: Any) -> AsyncEngine:
    """Return an engine on asyncmy."""
    settings = (
        "innodb_lock_wait_timeout=3"
        # Each of the two comments is read by one of MariaDB and MySQL.
        f" /*M!100100 , max_statement_time=5, tx_read_only={reading:d} */"
        f" /*!50720 , max_execution_time=5000, transaction_read_only={reading:d} */"
    )
    # At PostgreSQL's default isolation there are no locks on gaps, and so few deadlocks.
    options = {"isolation_level": "READ COMMITTED", **options}
    return create_async_engine(
        url.set(drivername="mysql+asyncmy"),
        pool_pre_ping=True,
        connect_args={
            "charset": "utf8mb4",
            "connect_timeout": 3,
            "read_timeout": 10,
            "init_command": f"SET SESSION {settings}",
        },
        **options,
    )


@asynccontextmanager
async def open_session(reading: bool = False) -> AsyncIterator[AsyncSession]:
    """Yield a session; commit when the block is left, roll back if an exception leaves it."""
    engines = get_engines()
    session = AsyncSession(engines.reader if reading else engines.writer, expire_on_commit=False)
    try:
        yield session
        if not reading:
            await session.commit()
    finally:
        # "async with" would do this in a task of its own: more work, and while it waits for its
        # turn others wait for the connection.
        await session.close()


async def read(statement: Executable, parameters: dict[str, Any]) -> Sequence[Row[Any]]:
    """Run one statement that reads, and return its rows.

    It needs no session, which would keep track of objects and take twice as long.
    """

    def run() -> Sequence[Row[Any]]:
        with get_engines().reader.sync_engine.connect() as connection:
            return connection.execute(statement, parameters).all()

    return await greenlet_spawn(run)


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """Yield the session of a request: for reading if it is a GET or a HEAD, else for changes."""
    async with open_session(reading=request.method in ("GET", "HEAD")) as session:
        yield session


# scope="function" ends the session before the answer is sent: with FastAPI's default a client would
# be told 201 before a commit that fails.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]

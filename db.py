"""Settings; and for SQL: the engines of ``DATABASE_URL``, and a session for each request."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from ssl import PROTOCOL_TLS_CLIENT, SSLContext
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import Depends, Request
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL, Executable
from sqlalchemy.exc import ArgumentError
from sqlmodel.ext.asyncio.session import AsyncSession

from direct import Rows, read_by_sqlalchemy
from engines import Engines, hosts, kind, make_engines, parse_url

HAVE_READ_URL = ("postgresql", "postgres", "mysql", "mariadb")
# What drivers call the option of a URL that names who vouches for the server's certificate.
AUTHORITIES = ("sslrootcert", "ssl_ca", "tlsCAFile", "ssl_ca_certs")


class Settings(BaseSettings):
    """What the environment says, or a file ``.env`` in the current folder; README has the table."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore")

    database_url: SecretStr = SecretStr("sqlite:///roster.db")
    read_database_url: SecretStr = SecretStr("")
    # As many as SQLAlchemy opens by itself, 5 and 10 more under load; here they stay open.
    pool_size: int = Field(default=15, ge=2, le=1000)
    api_tokens: SecretStr = SecretStr("")
    api_read_tokens: SecretStr = SecretStr("")


@cache
def get_settings() -> Settings:
    """Return the settings; leave with one line, without any value, if one of them is wrong."""
    try:
        settings = Settings()
    except ValidationError as error:
        wrong = error.errors(include_input=False)[0]
        sys.exit(f"{str(wrong['loc'][0]).upper()}: {wrong['msg']}.")
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f".env: cannot be read ({type(error).__name__}).")
    check_authorities("DATABASE_URL", settings.database_url)
    check_authorities("READ_DATABASE_URL", settings.read_database_url)
    scheme = settings.database_url.get_secret_value().partition(":")[0].partition("+")[0]
    if settings.read_database_url.get_secret_value() and scheme not in HAVE_READ_URL:
        sys.exit(
            "READ_DATABASE_URL: only for PostgreSQL, MySQL and MariaDB; MongoDB takes an option of"
            " DATABASE_URL, ?readPreference=secondaryPreferred"
        )
    return settings


def check_authorities(setting: str, url: SecretStr) -> None:
    """Leave with one line if a URL names a file of certificates that is none, or not there.

    To the drivers it would be as if the server were away.
    """
    for option, file in parse_qsl(url.get_secret_value().partition("?")[2]):
        if option in AUTHORITIES:
            try:
                SSLContext(PROTOCOL_TLS_CLIENT).load_verify_locations(file)
            except (OSError, ValueError) as error:
                sys.exit(f"{setting}: {option}: no file of certificates ({type(error).__name__}).")


def database_url() -> URL:
    """Return ``DATABASE_URL`` in parts; leave with one line if it is not a URL."""
    return parse_url("DATABASE_URL", get_settings().database_url.get_secret_value())


def replica_url() -> URL | None:
    """Return ``READ_DATABASE_URL`` in parts, None if it is not set; leave as ``database_url``."""
    value = get_settings().read_database_url.get_secret_value()
    return parse_url("READ_DATABASE_URL", value) if value else None


@cache
def get_engines() -> Engines:
    """Return the engines of ``DATABASE_URL``; leave with one line if it is wrong.

    Raises RuntimeError if it names no SQL database.
    """
    url = database_url()
    if kind(url) == "sqlite":
        memory = url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"
        if url.host or memory:
            sys.exit("DATABASE_URL: SQLite needs a file, for example sqlite:///roster.db")
    elif kind(url) not in HAVE_READ_URL:
        # A handler of one's own got here: Roster's ask the store.
        raise RuntimeError("a session needs an SQL database, and DATABASE_URL names none")
    elif not url.database:
        sys.exit("DATABASE_URL: it must name a database, as in postgresql://host:5432/name")
    if len(hosts(url)) > 1:
        url = url.set(query={"target_session_attrs": "primary", **url.query})
    replica = replica_url()
    if replica and kind(replica) != kind(url):
        sys.exit("READ_DATABASE_URL: it must name a replica of DATABASE_URL's server.")
    try:
        return make_engines(url, get_settings().pool_size, replica)
    except (ArgumentError, TypeError, ValueError) as error:
        sys.exit(f"DATABASE_URL: an option after its ? is wrong ({type(error).__name__}).")


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


async def read(statement: Executable, values: dict[str, Any], fresh: bool = False) -> Rows:
    """Run one statement that reads, and return its rows; not those of a replica, if ``fresh``.

    It is fast with a statement that is built once, and has its values as parameters.
    """
    engines = get_engines()
    if fresh and replica_url():
        return await read_by_sqlalchemy(engines.writer.sync_engine, statement, values)
    return await engines.read(statement, values)


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """Yield the session of a request: for reading if it is a GET or a HEAD, else for changes."""
    async with open_session(reading=request.method in ("GET", "HEAD")) as session:
        yield session


# scope="function" ends the session before the answer is sent: with FastAPI's default a client would
# be told 201 before a commit that fails.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]

"""Settings, the database that they name, and what a handler gets: a session or a store."""

from collections.abc import AsyncIterator
from functools import cache
from typing import Annotated, cast

from fastapi import Depends
from fastapi.requests import HTTPConnection
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlmodel.ext.asyncio.session import AsyncSession

from engine import SQL_SCHEMES, Database, Session, SettingsError  # this Session is an AsyncSession
from store import Backend, UserStore
from store_sql import SQLUserStore


class Settings(BaseSettings):
    """Settings from environment variables, or else from a file ``.env`` in the current folder."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore")

    database_url: SecretStr = SecretStr("sqlite:///roster.db")
    read_database_url: SecretStr = SecretStr("")  # of a replica: reads go there
    pool_size: int = Field(default=15, ge=2, le=1000)
    requests_per_caller: int = Field(default=20, ge=1)  # at the same time
    api_tokens: SecretStr = SecretStr("")  # name:token, by commas; none: only this machine
    api_read_tokens: SecretStr = SecretStr("")  # these may only read


@cache
def get_settings() -> Settings:
    """Return the settings. Raises SettingsError, whose text never shows a value."""
    try:
        return Settings()
    except ValidationError as error:
        setting, reason = error.errors()[0]["loc"][0], error.errors()[0]["msg"]
        raise SettingsError(f"{str(setting).upper()}: {reason}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f".env: cannot be read ({type(error).__name__}).") from None


def open_backend(url: str, replica: str = "", size: int = 15) -> Backend:
    """Return the database that a URL names. Nothing is connected yet. Raises SettingsError."""
    url, replica = url.strip(), replica.strip()
    scheme = url.partition(":")[0].partition("+")[0]
    if replica and scheme not in SQL_SCHEMES:
        raise SettingsError("READ_DATABASE_URL: only for PostgreSQL, MySQL and MariaDB.")
    try:
        if scheme in SQL_SCHEMES:
            return Database(url, replica, size)
        if scheme == "mongodb":  # and mongodb+srv
            from store_mongo import MongoUserStore

            return MongoUserStore(url, size)
        if scheme in ("redis", "rediss", "unix"):
            from store_redis import RedisUserStore

            return RedisUserStore(url, size)
    except ModuleNotFoundError as error:
        needed = f"needs the package {error.name}: pip install -r requirements-servers.txt"
        raise SettingsError(f"DATABASE_URL: {scheme} {needed}") from None
    known = "sqlite:///, postgresql://, mysql://, mariadb://, mongodb://, redis://, unix://"
    raise SettingsError(f"DATABASE_URL: it must begin with one of {known} (with TLS: rediss://).")


@cache
def get_backend() -> Backend:
    """Return the database of the settings. Raises SettingsError."""
    settings = get_settings()
    replica = settings.read_database_url.get_secret_value()
    return open_backend(settings.database_url.get_secret_value(), replica, settings.pool_size)


def open_session(read_only: bool = False) -> AsyncSession:
    """Return a session for ``async with``. Its end commits; an exception rolls back."""
    backend = get_backend()  # with MongoDB and Redis, a session raises NotSQL when it is used
    return Session(backend if isinstance(backend, Database) else None, read_only)


async def get_session(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    """Yield a session: for reading in a GET or a HEAD, for changes elsewhere, like a WebSocket."""
    async with open_session(connection.scope.get("method") in ("GET", "HEAD")) as session:
        yield session


# scope="function" ends the session, and commits, before the response is sent. With FastAPI's
# default, a client could get a 201 before the commit fails.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
StreamSessionDep = Annotated[AsyncSession, Depends(get_session)]  # ends when all has been sent


async def get_store(session: SessionDep) -> UserStore:
    """Return the store of users: on SQL, one that uses the session; else the backend itself."""
    if isinstance(session, Session) and session.database is None:  # a test may use another class
        return cast(UserStore, get_backend())
    return SQLUserStore(session)


StoreDep = Annotated[UserStore, Depends(get_store)]

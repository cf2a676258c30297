"""A database, its sessions, and two functions that bypass them: ``fetch``, ``insert_row``."""

import asyncio
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, cast

from sqlalchemy import Connection, Executable, Insert, event
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession as AnySession
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.direct import WAIT_MAX, Rows, Server, Values, execute
from engine.errors import DEMOTED, codes, on_error
from engine.url import SettingsError, hosts, parse_url

# The products that the schemes of URLs stand for. Each has a module of this package.
SQL_SCHEMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "postgres": "PostgreSQL"}
SQL_SCHEMES |= {"mysql": "MySQL", "mariadb": "MySQL"}
# Without overflow connections, which would be opened and closed all the time under load.
POOL: dict[str, Any] = {"max_overflow": 0, "pool_timeout": WAIT_MAX, "hide_parameters": True}
# "It exists already", or is being made: another process that started just now was faster.
MADE_BY_ANOTHER = {*"23505 40P01 42710 42P07 1050 1061 1062 1213 1412 1684".split()}  # noqa: SIM905 (readable)
READ_ONLY = {*DEMOTED, "SQLITE_READONLY"}


class NotSQL(Exception):
    """A session was used, and the database is none of SQL."""


class Database:
    """An SQL database: two pools of at most ``size`` connections, and sessions that use them."""

    def __init__(self, url: str, replica: str = "", size: int = 15) -> None:
        self.url = parse_url("DATABASE_URL", url)
        self.replica = parse_url("READ_DATABASE_URL", replica) if replica else None
        self.product = SQL_SCHEMES[self.url.get_backend_name()]
        other = self.replica and SQL_SCHEMES.get(self.replica.get_backend_name())
        if self.replica and (other != self.product or other == "SQLite"):
            reason = "only for PostgreSQL and MySQL: a replica of the same."
            raise SettingsError(f"READ_DATABASE_URL: {reason}")
        try:
            connect = import_module(f"engine.{self.product.lower()}").connect
            server: Server = connect(self.url, self.replica or self.url, size, **POOL)
        except (ArgumentError, TypeError, ValueError) as error:
            reason = f"an option after its ? is wrong ({type(error).__name__})."
            raise SettingsError(f"DATABASE_URL: {reason}") from None
        self.writer, self.reader, self.read_directly, self.insert_directly = server
        self.expensive = asyncio.Semaphore(max(2, cast(Any, self.reader.pool).size() // 3))
        for engine, writes in ((self.writer, True), (self.reader, False)):
            event.listen(engine.sync_engine, "handle_error", partial(on_error, writes), retval=True)

    @property
    def place(self) -> str:
        """The kind of the database and where it is, without user and password."""
        if self.product == "SQLite":
            return f"the SQLite file {self.url.database}"
        where = " or ".join(hosts(self.url))
        if self.replica:
            where += f" (READ_DATABASE_URL: {' or '.join(hosts(self.replica))})"
        return f"{self.product} at {where}, database {self.url.database}"

    def session(self, read_only: bool = False) -> "Session":
        return Session(self, read_only)

    async def read(self, statement: Executable, values: Values) -> Rows:
        return await execute(self.reader.sync_engine, self.read_directly, statement, values)

    async def insert(self, statement: Insert, row: Values) -> Any:
        return (await execute(self.writer.sync_engine, self.insert_directly, statement, row))[0][0]

    async def start(self, make_tables: Callable[[Connection], None]) -> None:
        """Make tables in a transaction; retry if another process was faster."""
        for more_tries in reversed(range(20)):
            try:
                async with self.writer.begin() as connection:
                    await connection.run_sync(make_tables)
                return
            except DBAPIError as error:
                if not more_tries or MADE_BY_ANOTHER.isdisjoint(codes(error)):
                    raise
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        await self.reader.dispose()
        await self.writer.dispose()


class Session(AsyncSession):
    """A session of a ``Database``: made when it is used, committed when its block ends well."""

    used = False  # and so has SQLAlchemy's half
    ended = False

    def __init__(self, database: Database | None, read_only: bool = False) -> None:
        self.database = database
        self.read_only = read_only

    def __getattr__(self, name: str) -> Any:
        if self.database is None:
            raise NotSQL("This needs an SQL database, and DATABASE_URL names another kind.")
        if self.ended:
            raise InvalidRequestError(
                "This session has ended with its request. Use a session of your own: "
                "async with open_session() as session"
            )
        if self.used or name.startswith("__"):
            raise AttributeError(name)
        engine = self.database.reader if self.read_only else self.database.writer
        super().__init__(engine, expire_on_commit=False)
        self.used = True
        return getattr(self, name)

    @property
    def idle(self) -> Database | None:
        """The database, if the session could be used and no transaction has begun."""
        busy = self.ended or (self.used and self.sync_session.in_transaction())
        return None if busy else self.database

    async def __aexit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        try:
            if self.used and self.read_only:
                changed = self.new or self.deleted or any(map(self.is_modified, self.dirty))
                refused = isinstance(error, DBAPIError) and READ_ONLY & {*codes(error)}
                if refused or (changed and not error):
                    raise InvalidRequestError(
                        "This session is for reading (GET, HEAD), and there is something to write."
                        " Write in a POST, PUT, PATCH or DELETE, or in a session of open_session()."
                    )
            elif self.used and not error:
                await self.commit()
        finally:
            self.ended = True
            if self.used:
                # SQLAlchemy's own way closes in another task: more work, and others wait for it.
                await self.close()
                del self.sync_session, self._proxied, self.used


def place_of(session: AnySession) -> str:
    """Return the kind of a session's database and where it is, if it is a ``Session``."""
    database = session.database if isinstance(session, Session) else None
    return database.place if database else "a session of its own"


async def fetch(
    session: AnySession,
    statement: Executable,
    values: Values | None = None,
    primary: bool = False,  # ask the server that takes the changes, not a replica
    expensive: bool = False,  # it may take long: wait until it is one of few such statements
) -> Rows:
    """Return the rows of a statement that selects columns."""
    if expensive and isinstance(session, Session) and session.database:
        async with session.database.expensive:
            return await fetch(session, statement, values, primary)
    values = values or {}
    if isinstance(session, Session) and session.read_only and (database := session.idle):
        if primary and database.replica:
            return await execute(database.writer.sync_engine, None, statement, values)
        return await database.read(statement, values)
    await session.flush()
    return (await (await session.connection()).execute(statement, values)).all()


async def insert_row(session: AnySession, statement: Insert, row: Values) -> Any:
    """Insert a row and commit; return its primary key, of one column. Raises IntegrityError."""
    if isinstance(session, Session) and not session.read_only and (database := session.idle):
        return await database.insert(statement, row)
    result: Any = await (await session.connection()).execute(statement, row)
    await session.commit()
    return result.inserted_primary_key[0]

"""A database, its sessions, and the two statements that go round them."""

import asyncio
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from sqlalchemy import Executable, Insert, MetaData, event
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession as AnySession
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.direct import Rows, Server, read_by_sqlalchemy
from engine.errors import (
    DEMOTED,
    codes,
    leave_demoted_server,
    leave_rejected_statement,
    wrap_the_rest,
)
from engine.pool import WAIT_MAX
from engine.tables import make_tables
from engine.url import SettingsError, hosts, parse_url

# What the scheme of a URL stands for: a module of this package, and the name of the product.
SERVERS = {
    "sqlite": ("sqlite", "SQLite"),
    **dict.fromkeys(("postgresql", "postgres"), ("postgresql", "PostgreSQL")),
    **dict.fromkeys(("mysql", "mariadb"), ("mysql", "MySQL")),
}
# Without overflow connections, which would be opened and closed all the time under load.
POOL: dict[str, Any] = {"max_overflow": 0, "pool_timeout": WAIT_MAX, "hide_parameters": True}
# "It exists already", or is being made: another process that started just now was faster.
MADE_BY_ANOTHER = {*"23505 40P01 42710 42P07 1050 1061 1062 1213 1412 1684".split()}  # noqa: SIM905
READ_ONLY = {*DEMOTED, "SQLITE_READONLY"}


class NotSQL(Exception):
    """A session was used, and the database is none of SQL."""


class Database:
    """An SQL database: two pools of connections, and sessions that use them.

    ``url`` and ``replica`` are URLs as SQLAlchemy and libpq write them; the replica, if there is
    one, answers what only reads. ``size`` is the most connections to a server (SQLite: always six).
    Nothing is connected before it is needed. Raises SettingsError.
    """

    def __init__(self, url: str, replica: str = "", size: int = 15) -> None:
        self.url = parse_url("DATABASE_URL", url)
        self.replica = parse_url("READ_DATABASE_URL", replica) if replica else None
        module, self.product = SERVERS[self.url.get_backend_name()]
        wrong = ""
        if self.replica and SERVERS[self.replica.get_backend_name()][0] != module:
            wrong = "READ_DATABASE_URL: it must name a replica of DATABASE_URL's server."
        elif module != "sqlite" and not self.url.database:
            wrong = "DATABASE_URL: it must name a database, as in postgresql://host:5432/name"
        try:
            server: Server = import_module(f"engine.{module}").connect(
                self.url, self.replica or self.url, size, **POOL
            )
        except (ArgumentError, TypeError, ValueError) as error:
            wrong = f"DATABASE_URL: an option after its ? is wrong ({type(error).__name__})."
        if wrong:
            raise SettingsError(wrong)
        self.writer, self.reader, self.read, self.insert = server
        self.dear = asyncio.Semaphore(max(2, cast(Any, self.reader.pool).size() // 3))
        event.listen(self.writer.sync_engine, "handle_error", leave_demoted_server)
        for engine in (self.writer, self.reader):
            event.listen(engine.sync_engine, "handle_error", leave_rejected_statement)
            event.listen(engine.sync_engine, "handle_error", wrap_the_rest, retval=True)

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
        """Return a session for a block: ``async with database.session() as session``."""
        return Session(self, read_only)

    async def start(self, metadata: MetaData, migrations: Path) -> None:
        """Make the tables if there are none. Raises WrongTables.

        ``migrations`` is Alembic's folder.
        """
        for more_tries in reversed(range(20)):
            try:
                async with self.writer.begin() as connection:
                    await connection.run_sync(make_tables, metadata, migrations)
                return
            except DBAPIError as error:
                if not more_tries or MADE_BY_ANOTHER.isdisjoint(codes(error)):
                    raise
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Close the connections."""
        await self.reader.dispose()
        await self.writer.dispose()


class Session(AsyncSession):
    """A session of a ``Database``: made when it is used, committed when its block ends well.

    An exception rolls it back. A session that reads uses connections that cannot write, and its
    block raises InvalidRequestError if there is something to write. So does every use of a session
    whose block has ended. Without a database, every use raises NotSQL.
    """

    database: Database | None
    read_only: bool
    ended = False

    def __init__(self, database: Database | None, read_only: bool = False) -> None:
        self.database = database
        self.read_only = read_only

    def __getattr__(self, name: str) -> Any:
        # SQLAlchemy's half is missing: nothing has used this session yet.
        if self.database is None:
            raise NotSQL("a session needs an SQL database, and DATABASE_URL names none")
        if self.ended:
            raise InvalidRequestError(
                "This session has ended with its request. Use a session of your own: "
                "async with open_session() as session"
            )
        if "sync_session" in self.__dict__ or name.startswith("__"):
            raise AttributeError(name)
        engine = self.database.reader if self.read_only else self.database.writer
        super().__init__(engine, expire_on_commit=False)
        if self.read_only:
            event.listen(self.sync_session, "before_flush", refuse_to_write)
        return getattr(self, name)

    @property
    def idle(self) -> Database | None:
        """The database, if the session could be used and no transaction has begun."""
        began = "sync_session" in self.__dict__ and self.sync_session.in_transaction()
        return None if began or self.ended else self.database

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        try:
            if "sync_session" not in self.__dict__:
                return
            if error is None and not self.read_only:
                await self.commit()
            elif error is None and (
                self.new or self.deleted or any(map(self.sync_session.is_modified, self.dirty))
            ):
                refuse_to_write()
            elif self.read_only and isinstance(error, DBAPIError) and READ_ONLY & {*codes(error)}:
                refuse_to_write(error)
        finally:
            if "sync_session" in self.__dict__:
                # SQLAlchemy's own way closes in another task: more work, and others wait for it.
                await self.close()
                del self.sync_session, self._proxied
            self.ended = True


def refuse_to_write(*cause: Any) -> None:
    """Raise InvalidRequestError."""
    raise InvalidRequestError(
        "This session is for reading (GET, HEAD), and there is something to write. "
        "Write in a POST, PUT, PATCH or DELETE, or in a session of open_session()."
    ) from next((error for error in cause if isinstance(error, Exception)), None)


def place_of(session: AnySession) -> str:
    """Return the kind of a session's database and where it is, if it is a ``Session``."""
    database = session.database if isinstance(session, Session) else None
    return database.place if database else "a session of its own"


async def fetch(
    session: AnySession,
    statement: Executable,
    values: dict[str, Any] | None = None,
    primary: bool = False,
    dear: bool = False,
) -> Rows:
    """Return the rows of a statement that selects columns.

    It is fast in an idle session for reading, with a statement that is built once and takes its
    values as bind parameters. ``primary``: ask the server that takes the changes, not a replica.
    ``dear``: it may take long, and waits until it is one of few such statements.
    """
    if dear and isinstance(session, Session) and session.database:
        async with session.database.dear:
            return await fetch(session, statement, values, primary)
    if isinstance(session, Session) and session.read_only and (database := session.idle):
        if primary and database.replica:
            return await read_by_sqlalchemy(database.writer.sync_engine, statement, values or {})
        return await database.read(statement, values or {})
    await session.flush()
    return (await (await session.connection()).execute(statement, values or {})).all()


async def insert_row(session: AnySession, statement: Insert, row: dict[str, Any]) -> Any:
    """Insert a row and commit; return its primary key, of one column.

    It is fast in an idle session, with a statement that is built once. Raises IntegrityError.
    """
    if isinstance(session, Session) and not session.read_only and (database := session.idle):
        return await database.insert(statement, row)
    connection = await session.connection()
    key: Any = (await connection.execute(statement, row)).inserted_primary_key
    await session.commit()
    return key[0]

"""SQLAlchemy's statements, run by the driver itself.

SQLAlchemy still writes the text of a statement, converts values, and lends the connection. Left out
are its own steps from the one to the other, which take several times as long as a small statement.
Two things go this way, for nearly every request is one of them: one statement that reads, and one
row that is stored. Whatever is not usual is done by SQLAlchemy: a statement that it has to finish
for each run, a connection that must be opened, or has died. ``AsText`` is the other way round:
Python does what the driver is slow at.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, cast

from asyncpg import (
    IntegrityConstraintViolationError,
    InterfaceError,
    InternalClientError,
    PostgresError,
    ReadOnlySQLTransactionError,
)
from sqlalchemy import Column, Dialect, Engine, Executable, Insert
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine
from sqlalchemy.util import greenlet_spawn

from pool import InOrderPool

Rows = Sequence[Sequence[Any]]


class TimeAsText(TypeEngine[datetime]):
    """A time that the database sends as text."""

    def __init__(self, nullable: bool | None) -> None:
        self.nullable = nullable

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        """Return what makes a datetime of it: C alone, if it can, is twice as fast."""
        parse = datetime.fromisoformat
        return (lambda text: text and parse(text)) if self.nullable else parse


class AsText(FunctionElement[Any]):
    """A column of ``Millis`` in a SELECT that databases are to send as text, with its time zone.

    From a text, Python makes a datetime several times as fast as the drivers make one.
    """

    inherit_cache = True

    def __init__(self, column: Column[Any]) -> None:
        super().__init__(column)
        self.type = TimeAsText(column.nullable)


TEXT = {
    "sqlite": "{} || '+00:00'",
    # A cast would follow PostgreSQL's DateStyle, which is set for a database or a role.
    "postgresql": "to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00:00')",
    "mysql": "concat({}, '+00:00')",
}


@compiles(AsText)
def as_text(read: AsText, compiler: SQLCompiler, **options: Any) -> str:
    """Return the SQL (https://docs.sqlalchemy.org/en/21/core/compiler.html)."""
    column = compiler.process(read.clauses, **options)
    return TEXT.get(compiler.dialect.name, "{}").format(column)


class Compiled(NamedTuple):
    """A statement as a driver takes it."""

    sql: str
    names: Sequence[str]  # of its parameters, in their order
    constants: dict[str, Any]  # the values of those that the statement brings
    bind: Sequence[Callable[[Any], Any] | None]  # what makes a parameter of a value
    result: dict[int, Callable[[Any], Any]]  # what makes a value of a column's, by its place

    def parameters(self, values: dict[str, Any]) -> list[Any]:
        """Return the values in their order."""
        if self.constants:
            values = self.constants | values
        return [
            convert(values[name]) if convert else values[name]
            for name, convert in zip(self.names, self.bind, strict=False)
        ]

    def rows(self, rows: Rows) -> Rows:
        """Return the rows that the driver has fetched, converted."""
        if not (self.result and rows):
            return rows
        columns: list[Any] = [*zip(*rows, strict=True)]
        for place, convert in self.result.items():
            columns[place] = map(convert, columns[place])
        return [*zip(*columns, strict=True)]


@lru_cache(maxsize=256)
def compiled(
    statement: Executable, dialect: Dialect, columns: tuple[str, ...] | None = None
) -> Compiled | None:
    """Return a statement as the driver takes it (an INSERT: of these columns), None if it cannot.

    It is found again by its identity: one that is built anew for each request gains nothing.
    """
    found = cast(Any, statement).compile(dialect=dialect, column_keys=columns)
    if found.post_compile_params or found.literal_execute_params:  # a list, for example
        return None
    if isinstance(statement, Insert):
        table: Any = statement.table
        number = table.autoincrement_column
        numbered = number is not None and number.key not in (columns or ())
        if not numbered or len(table.primary_key) > 1 or found.insert_prefetch:
            return None  # the last: a default that Python makes
    names = found.positiontup or []
    try:
        bind = [
            found.binds[name].type.dialect_impl(dialect).bind_processor(dialect) for name in names
        ]
        result = [
            column.type.dialect_impl(dialect).result_processor(dialect, None)
            for column in found._result_columns  # in selected_columns, texts are left out
        ]
    except TypeError:  # a type that asks what the database calls it
        return None
    constants = {name: found.params[name] for name in names if not found.binds[name].required}
    places = {place: convert for place, convert in enumerate(result) if convert}
    return Compiled(found.string, names, constants, bind, places)


async def read_by_sqlalchemy(engine: Engine, statement: Executable, values: dict[str, Any]) -> Rows:
    """Run one statement that reads, and return its rows.

    It needs no session, which keeps track of objects that are to be changed. What one awaits of
    SQLAlchemy are its plain methods, each in a ``greenlet_spawn``; here one is enough for all.
    """

    def run() -> Rows:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(statement, values)]

    try:
        return await greenlet_spawn(run)
    except DBAPIError as error:
        # The server had hung up before it answered. Reading twice is harmless.
        if not error.connection_invalidated:
            raise
        return await greenlet_spawn(run)


async def insert_by_sqlalchemy(engine: Engine, statement: Insert, row: dict[str, Any]) -> Any:
    """Insert a row and commit; return its primary key, of one column."""

    def run() -> Any:
        with engine.begin() as connection:
            return connection.execute(statement, row).inserted_primary_key

    [key] = await greenlet_spawn(run)
    return key


class Asyncpg:
    """Both on PostgreSQL, where a statement is a transaction by itself unless one has begun.

    They raise what asyncpg raises, but IntegrityError if a row is refused.
    """

    def __init__(self, writer: Engine, reader: Engine) -> None:
        self.writer = writer
        self.reader = reader

    async def read(self, statement: Executable, values: dict[str, Any]) -> Rows:
        """Run one statement that reads, and return its rows."""
        if found := compiled(statement, self.reader.dialect):
            parameters = found.parameters(values)
            pool = cast(InOrderPool, self.reader.pool)
            if entry := await pool.borrow():
                connection: Any = entry.driver_connection
                try:
                    return found.rows(await fetch(pool, entry, found.sql, parameters))
                except (PostgresError, InterfaceError, InternalClientError, OSError) as error:
                    # If the server has hung up: reading twice is harmless, waiting twice is not.
                    if isinstance(error, TimeoutError) or not connection.is_closed():
                        raise
        return await read_by_sqlalchemy(self.reader, statement, values)

    async def insert(self, statement: Insert, row: dict[str, Any]) -> Any:
        """Insert a row; return its id. Once the row may have been sent, it is not sent again."""
        if found := compiled(statement, self.writer.dialect, tuple(row)):
            parameters = found.parameters(row)
            pool = cast(InOrderPool, self.writer.pool)
            if entry := await pool.borrow():
                try:
                    [[row_id]] = await fetch(pool, entry, found.sql, parameters)
                    return row_id
                except IntegrityConstraintViolationError as error:
                    raise IntegrityError(found.sql, None, error) from None
                except ReadOnlySQLTransactionError:
                    pass  # nothing was done, and SQLAlchemy's way leaves this server
        return await insert_by_sqlalchemy(self.writer, statement, row)


async def fetch(
    pool: InOrderPool, entry: ConnectionPoolEntry, sql: str, parameters: Sequence[Any]
) -> Rows:
    """Return a statement's rows, and give the connection back."""
    connection: Any = entry.driver_connection
    try:
        rows: Rows = await connection.fetch(sql, *parameters)
        return rows
    except asyncio.CancelledError:
        await greenlet_spawn(entry.invalidate)  # the server stops, too
        raise
    except TimeoutError:
        connection.terminate()  # a server that does not answer does not say good-bye
        raise
    finally:
        pool.give_back(entry)

"""Statements as a driver takes them, compiled once: SQLAlchemy's text and conversions of values.

Its own steps between them take several times as long as a small statement. What is unusual goes
SQLAlchemy's way: a statement that is finished for each run, a connection that must be opened.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

from sqlalchemy import URL, Dialect, Engine, Executable, Insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from engine.errors import DEMOTED, REJECTED, codes, wrapped
from engine.pool import InOrderPool, is_closed

Rows = Sequence[Sequence[Any]]
Values = dict[str, Any]


class Compiled(NamedTuple):
    sql: str
    bind: list[tuple[str, Callable[[Any], Any] | None]]  # names of parameters, and conversions
    constants: Values  # the values of those that the statement brings
    result: dict[int, Callable[[Any], Any]]  # column to value, by the column's position

    def parameters(self, values: Values) -> list[Any]:
        values = self.constants | values
        return [convert(values[name]) if convert else values[name] for name, convert in self.bind]

    def rows(self, rows: Rows) -> Rows:
        if not (self.result and rows):
            return rows
        columns: list[Any] = [*zip(*rows, strict=True)]
        for position, convert in self.result.items():
            columns[position] = map(convert, columns[position])
        return [*zip(*columns, strict=True)]


@lru_cache(maxsize=256)
def compiled(
    statement: Executable, dialect: Dialect, columns: tuple[str, ...] | None = None
) -> Compiled | None:
    """Return a statement as the driver takes it (an INSERT: of these columns), None if it can't.

    The cache finds it by identity, so a statement that is built for each request gains nothing.
    """
    found = cast(Any, statement).compile(dialect=dialect, column_keys=columns)
    if found.post_compile_params or found.literal_execute_params:  # a list, for example
        return None
    if isinstance(statement, Insert):
        # The database has to number the row, and Python makes no default.
        table: Any = statement.table
        number = table.autoincrement_column
        numbered = number is not None and number.key not in (columns or ())
        if not numbered or len(table.primary_key) > 1 or found.insert_prefetch:
            return None
    names = found.positiontup or []
    types = [found.binds[name].type.dialect_impl(dialect) for name in names]
    bind = [*zip(names, (each.bind_processor(dialect) for each in types), strict=True)]
    constants = {name: found.params[name] for name in names if not found.binds[name].required}
    types = [column.type.dialect_impl(dialect) for column in found._result_columns]
    try:
        result = dict(enumerate(each.result_processor(dialect, None) for each in types))
    except TypeError:  # a type that asks for the database's name of it
        return None
    return Compiled(found.string, bind, constants, {i: it for i, it in result.items() if it})


# A statement as a transaction by itself: its rows, of an INSERT the new primary key. None:
# SQLAlchemy has to run it.
Direct = Callable[[Compiled, Values], Awaitable[Rows | None]]
# The engines for changes and for reads, and the direct ways of a read and of an INSERT.
Server = tuple[AsyncEngine, AsyncEngine, Direct | None, Direct | None]
# A statement on a driver's connection, with its parameters.
Send = Callable[[Any, str, list[Any]], Awaitable[Rows]]


async def execute(
    engine: Engine, direct: Direct | None, statement: Executable, values: Values
) -> Rows:
    """Run a statement as a transaction by itself; return its rows, or an INSERT's primary key."""
    inserts = isinstance(statement, Insert)
    columns = tuple(values) if inserts else None
    if direct and (found := compiled(statement, engine.dialect, columns)):
        rows = await direct(found, values)
        if rows is not None:
            return found.rows(rows)

    def work() -> Rows:
        with engine.connect() as connection:
            result: Any = connection.execute(statement, values)
            if not inserts:
                return result.all()  # type: ignore[no-any-return]
            connection.commit()
            return [result.inserted_primary_key]

    # SQLAlchemy's asyncio methods each start a greenlet; here one is enough for all of them.
    try:
        return await greenlet_spawn(work)
    except DBAPIError as error:
        # The server closed the connection before it answered. Reading twice is harmless.
        if inserts or not error.connection_invalidated:
            raise
        return await greenlet_spawn(work)


def connect_to_server(
    make: Callable[..., AsyncEngine], url: URL, replica: URL, size: int, send: Any, **options: Any
) -> Server:
    """Return a server's two pools; two fifths of the connections are for changes."""
    options |= {"poolclass": InOrderPool, "pool_recycle": 1800}
    changes = round(size * 2 / 5) or 1  # an app changes less than it reads
    writer = make(url, reading=False, pool_size=changes, **options)
    reader = make(replica, reading=True, pool_size=size - changes, **options)
    read = partial(run, reader.sync_engine, send, True) if send else None
    insert = partial(run, writer.sync_engine, send, False) if send else None
    return writer, reader, read, insert


async def run(engine: Engine, send: Send, reads: bool, found: Compiled, values: Values) -> Any:
    """Run a statement on a borrowed connection: a ``Direct``, whose errors are SQLAlchemy's."""
    parameters = found.parameters(values)
    pool = cast(InOrderPool, engine.pool)
    entry = await pool.borrow()
    if entry is None:
        return None
    try:
        return await send(entry.driver_connection, found.sql, parameters)
    except BaseException as raised:
        adapter: Any = entry.dbapi_connection
        error = wrapped(raised, engine.dialect, adapter)
        said = {*codes(error)}
        gone = is_closed(entry) or "disconnected" in said
        answered = isinstance(getattr(error, "orig", None), engine.dialect.loaded_dbapi.Error)
        if isinstance(raised, asyncio.CancelledError):
            await greenlet_spawn(adapter.terminate)  # and let the server stop
            raise
        if not answered or REJECTED in said:
            adapter.terminate()
        if gone if reads else DEMOTED & said:
            return None
        raise error from raised
    finally:
        pool.give_back(entry)

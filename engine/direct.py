"""Statements as a driver takes them, compiled once.

SQLAlchemy writes the text of a statement and converts its values. Left out are its own steps from
one to the other, which take several times as long as a small statement. What is unusual goes
SQLAlchemy's way: a statement that is finished for each run, a connection that must be opened.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

from sqlalchemy import URL, Dialect, Engine, Executable, Insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from engine.pool import InOrderPool

Rows = Sequence[Sequence[Any]]
# A statement that reads is a transaction by itself: there is nothing to begin and to end.
AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True}


class Server(NamedTuple):
    """Engines for changes and for reads, and one statement of each kind without a session."""

    writer: AsyncEngine
    reader: AsyncEngine  # its connections cannot change anything
    read: Callable[[Executable, dict[str, Any]], Awaitable[Rows]]
    insert: Callable[[Insert, dict[str, Any]], Awaitable[Any]]


def connect_to_server(
    make_engine: Callable[..., AsyncEngine], url: URL, replica: URL, size: int, **options: Any
) -> Server:
    """Return a server's two pools; two fifths of the connections are for changes."""
    options |= {"poolclass": InOrderPool, "pool_recycle": 1800}
    changes = round(size * 2 / 5) or 1  # an app changes less than it reads
    writer = make_engine(url, reading=False, pool_size=changes, **options)
    reads = options | AUTOCOMMIT | {"pool_size": size - changes}
    reader = make_engine(replica, reading=True, **reads)
    read = partial(read_by_sqlalchemy, reader.sync_engine)
    return Server(writer, reader, read, partial(insert_by_sqlalchemy, writer.sync_engine))


class Compiled(NamedTuple):
    """A statement as a driver takes it."""

    sql: str
    names: Sequence[str]  # of its parameters, in their order
    constants: dict[str, Any]  # the values of those that the statement brings
    bind: Sequence[Callable[[Any], Any] | None]  # value to parameter, for each of them
    result: dict[int, Callable[[Any], Any]]  # column to value, by the column's position

    def parameters(self, values: dict[str, Any]) -> list[Any]:
        """Return the values in their order."""
        if self.constants:
            values = self.constants | values
        return [
            convert(values[name]) if convert else values[name]
            for name, convert in zip(self.names, self.bind, strict=False)
        ]

    def rows(self, rows: Rows) -> Rows:
        """Return rows from the driver with their values converted."""
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
            for column in found._result_columns  # selected_columns leaves text() out
        ]
    except TypeError:  # a type that asks for the database's name of it
        return None
    constants = {name: found.params[name] for name in names if not found.binds[name].required}
    converted = {position: convert for position, convert in enumerate(result) if convert}
    return Compiled(found.string, names, constants, bind, converted)


async def read_by_sqlalchemy(engine: Engine, statement: Executable, values: dict[str, Any]) -> Rows:
    """Run a statement that reads, and return its rows.

    SQLAlchemy's asyncio methods each start a greenlet; here one is enough for all of them.
    """

    def run() -> Rows:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(statement, values)]

    try:
        return await greenlet_spawn(run)
    except DBAPIError as error:
        # The server closed the connection before it answered. Reading twice is harmless.
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

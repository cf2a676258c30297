"""Statements as a driver takes them, compiled once, and a pool that lends connections to them."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

from sqlalchemy import URL, Dialect, Engine, Insert, exc
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.util import await_, greenlet_spawn

from engine.errors import DEMOTED, REJECTED, codes, lost_connection, wrapped

WAIT_MAX = 5  # seconds for a connection
# A pool prints a traceback for a connection that died while it was out; its task met the error.
logging.getLogger("engine").setLevel(logging.CRITICAL)

Rows = Sequence[Sequence[Any]]
Values = dict[str, Any]
# A statement as a transaction by itself. None: SQLAlchemy has to run it.
Direct = Callable[["Compiled", Values], Awaitable[Rows | None]]
# The engines for changes and for reads, and the direct ways of a read and of an INSERT.
Server = tuple[AsyncEngine, AsyncEngine, Direct | None, Direct | None]


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
def compiled(statement: Any, dialect: Dialect, columns: tuple[str, ...] | None) -> Compiled | None:
    """Return a statement as the driver takes it (an INSERT: of these columns), None if it can't."""
    found = statement.compile(dialect=dialect, column_keys=columns)
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


async def execute(engine: Engine, direct: Direct | None, statement: Any, values: Values) -> Rows:
    """Run a statement as a transaction by itself; return its rows, or an INSERT's primary key."""
    inserts = isinstance(statement, Insert)
    columns = tuple(values) if inserts else None
    if direct and (found := compiled(statement, engine.dialect, columns)):
        rows = await direct(found, values)
        if rows is not None:
            return found.rows(rows)

    def work() -> Rows:
        with engine.begin() if inserts else engine.connect() as connection:
            result: Any = connection.execute(statement, values)
            return cast(Rows, [result.inserted_primary_key] if inserts else result.all())

    # SQLAlchemy's asyncio methods each start a greenlet; here one is enough for all of them.
    try:
        return await greenlet_spawn(work)
    except exc.DBAPIError as error:
        # The server closed the connection before it answered. Reading twice is harmless.
        if inserts or not error.connection_invalidated:
            raise
        return await greenlet_spawn(work)


class InOrderPool(AsyncAdaptedQueuePool):
    """A pool with a slot for each connection, which asyncio hands out in order."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "use_lifo": True})
        self.slots = asyncio.Semaphore(self.size())

    async def wait_for_slot(self) -> None:
        if not self.slots.locked():
            await self.slots.acquire()  # without the cost of a timer
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self.slots.acquire()
        except TimeoutError:
            raise exc.TimeoutError(f"no connection in {self._timeout} seconds") from None

    def connect(self) -> Any:
        try:
            return super().connect()
        except Exception as error:
            # While a new connection is set up, SQLAlchemy passes these on as they are.
            lost = lost_connection(error)
            if lost or type(error).__module__.startswith("asyncpg."):
                raise exc.OperationalError(
                    None, None, error, connection_invalidated=lost
                ) from error
            raise

    def _do_get(self) -> ConnectionPoolEntry:
        await_(self.wait_for_slot())
        try:
            entry = super()._do_get()
            if is_closed(entry):  # to ask the server, too, would cost a round trip
                entry.invalidate()
        except BaseException:
            self.slots.release()
            raise
        return entry

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)
        self.slots.release()

    async def borrow(self) -> ConnectionPoolEntry | None:
        """Wait for a connection and return its entry. None: SQLAlchemy has to open one."""
        await self.wait_for_slot()
        if self.checkedin():
            entry: Any = self._pool.get_nowait()
            old = -1 < self._recycle < time.time() - entry.starttime
            if not (old or entry._is_hard_or_soft_invalidated() or is_closed(entry)):
                return entry  # type: ignore[no-any-return]  # the queue is untyped
            self._pool.put_nowait(entry)  # the last one in is the first one that SQLAlchemy takes
        self.slots.release()
        return None


def is_closed(entry: ConnectionPoolEntry) -> bool:
    """Return whether the driver knows that the server has closed the connection."""
    connection: Any = entry.driver_connection
    is_closed = getattr(connection, "is_closed", None)  # asyncpg's; the other is asyncmy's
    return bool(is_closed() if is_closed else getattr(connection, "_stream_broken", False))


def open_pools(make: Any, url: URL, replica: URL, size: int, send: Any, **options: Any) -> Server:
    """Return a server's two pools; two fifths of the connections are for changes."""
    options |= {"poolclass": InOrderPool, "pool_recycle": 1800}
    changes = round(size * 2 / 5) or 1  # an app changes less than it reads
    writer = make(url, reading=False, pool_size=changes, **options)
    reader = make(replica, reading=True, pool_size=size - changes, **options)
    read = partial(run, reader.sync_engine, send, True) if send else None
    insert = partial(run, writer.sync_engine, send, False) if send else None
    return writer, reader, read, insert


async def run(engine: Engine, send: Any, reads: bool, found: Compiled, values: Values) -> Any:
    """Run a statement on a borrowed connection: a ``Direct``, whose errors are SQLAlchemy's."""
    parameters = found.parameters(values)
    pool = cast(InOrderPool, engine.pool)
    if not (entry := await pool.borrow()):
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
        pool._do_return_conn(entry)

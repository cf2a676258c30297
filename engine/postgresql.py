"""PostgreSQL on asyncpg."""

import asyncio
from typing import Any, cast

import asyncpg
from sqlalchemy import URL, Engine, Executable, Insert, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

from engine import direct
from engine.direct import Compiled, Rows, Server, compiled
from engine.errors import REJECTED, wrapped
from engine.pool import InOrderPool
from engine.url import hosts

# Whatever asyncpg raises; a RuntimeError comes from uvloop.
RAISED = (
    *(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
    *(OSError, RuntimeError),
)


def connect(url: URL, replica: URL, size: int, **options: Any) -> Server:
    several = {"target_session_attrs": "primary", **url.query}
    primary = url.set(query=several) if len(hosts(url)) > 1 else url
    replica = primary if replica is url else replica
    server = direct.connect_to_server(make_engine, primary, replica, size, **options)
    if behind_pgbouncer(url) or behind_pgbouncer(replica):
        return server
    plain = Direct(server.writer.sync_engine, server.reader.sync_engine)
    return server._replace(read=plain.read, insert=plain.insert)


def make_engine(url: URL, reading: bool, **options: Any) -> AsyncEngine:
    server = {"statement_timeout": "5000", "lock_timeout": "3000"}
    if name := url.query.get("application_name"):
        server["application_name"] = str(name)
        url = url.difference_update_query(["application_name"])
    if reading:
        server["default_transaction_read_only"] = "on"
        # With these two words of libpq's, asyncpg would take every server for a standby.
        role = url.query.get("target_session_attrs")
        if meant := {"read-write": "primary", "read-only": "standby"}.get(str(role)):
            url = url.update_query_dict({"target_session_attrs": meant})
    else:
        # A plan that PostgreSQL kept from when the table was small would read all of it later.
        server["plan_cache_mode"] = "force_custom_plan"
        # lock_timeout is for each lock, and a statement may have to wait for two.
        server["statement_timeout"] = "3500"
    connect_args: dict[str, Any] = {"timeout": 3, "command_timeout": 6, "server_settings": server}
    # asyncpg takes libpq's options for TLS (sslmode, sslrootcert, ...) only in a URL.
    tls = {name: it for name, it in url.query.items() if name.startswith("ssl") and name != "ssl"}
    if tls:
        url = url.difference_update_query(tls)
        connect_args["dsn"] = URL.create("postgresql", query=tls).render_as_string()
    if behind_pgbouncer(url):
        # Each transaction may have another connection to the server, where a statement that was
        # prepared before isn't known: asyncpg then sends its text and its values together.
        connect_args["statement_cache_size"] = 0
    connect_args["async_creator_fn"] = connect_to_one
    engine = create_async_engine(
        url.set(drivername="postgresql+asyncpg"), connect_args=connect_args, **options
    )

    @event.listens_for(engine.sync_engine, "checkout")
    def on_checkout(_: Any, record: Any, __: object) -> None:
        # asyncpg notices a closed connection by itself; asking would cost a round trip.
        if record.driver_connection.is_closed():
            raise DisconnectionError

    return engine


def behind_pgbouncer(url: URL) -> bool:
    """Return whether a URL says that the server keeps no prepared statements."""
    return url.query.get("prepared_statement_cache_size") == "0"


async def connect_to_one(**options: Any) -> Any:
    """Connect to the first of several hosts that has the right role. Raises errors of asyncpg.

    A machine that is gone refuses nothing, and the time limit is for all hosts together. When it
    passes, the other hosts come first, now and the next time.
    """
    host, port = options["host"], options.get("port")
    first = host[0]
    try:
        try:
            return await asyncpg.connect(**options)
        except TimeoutError:
            if not isinstance(host, list):
                raise
            if host[0] is first:
                host.append(host.pop(0))
                cast(list[int], port).append(cast(list[int], port).pop(0))
            return await asyncpg.connect(**options)
    except OSError as error:
        raise asyncpg.InterfaceError(type(error).__name__) from error


class Direct:
    """One statement without SQLAlchemy's steps: a transaction by itself."""

    def __init__(self, writer: Engine, reader: Engine) -> None:
        self.writer = writer.execution_options(isolation_level="AUTOCOMMIT")
        self.reader = reader

    async def read(self, statement: Executable, values: dict[str, Any]) -> Rows:
        """Run a statement that reads, and return its rows."""
        if found := compiled(statement, self.reader.dialect):
            rows = await run(self.reader, found, values, reads=True)
            if rows is not None:
                return found.rows(rows)
        return await direct.read_by_sqlalchemy(self.reader, statement, values)

    async def insert(self, statement: Insert, row: dict[str, Any]) -> Any:
        """Insert a row; return its id."""
        if found := compiled(statement, self.writer.dialect, tuple(row)):
            rows = await run(self.writer, found, row, reads=False)
            if rows is not None:
                return rows[0][0]
        return await direct.insert_by_sqlalchemy(self.writer, statement, row)


async def run(engine: Engine, found: Compiled, values: dict[str, Any], reads: bool) -> Rows | None:
    """Run a statement on a connection of its own. None: SQLAlchemy has to do it.

    Either it has to open the connection, or nothing was done and a retry is harmless. Raises
    SQLAlchemy's errors.
    """
    parameters = found.parameters(values)
    pool = cast(InOrderPool, engine.pool)
    entry = await pool.borrow()
    if entry is None:
        return None
    connection: Any = entry.driver_connection
    adapter: Any = entry.dbapi_connection
    try:
        rows: Rows = await connection.fetch(found.sql, *parameters)
        return rows
    except asyncio.CancelledError:
        await greenlet_spawn(entry.invalidate)  # the server stops, too
        raise
    except RAISED as error:
        if isinstance(error, TimeoutError):
            connection.terminate()  # a hung server never completes the close handshake
        elif reads and connection.is_closed():  # reading twice is harmless
            return None
        elif isinstance(error, asyncpg.ReadOnlySQLTransactionError) and not reads:
            return None  # SQLAlchemy's way leaves this server
        elif getattr(error, "sqlstate", None) == REJECTED:  # see engine.errors
            await greenlet_spawn(entry.invalidate)
        raise wrapped_by(adapter, error, engine) from error
    finally:
        pool.give_back(entry)


def wrapped_by(adapter: Any, error: Exception, engine: Engine) -> Exception:
    """Return an exception of asyncpg's as SQLAlchemy raises it."""
    try:
        adapter._handle_exception(error)
    except Exception as found:  # noqa: BLE001 (raising is how the adapter returns it)
        error = found
    return wrapped(error, engine.dialect)

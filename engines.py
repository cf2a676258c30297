"""``DATABASE_URL`` -> engines, for SQL: what each kind of server needs to be told, and its limits.

``db`` has what a handler uses. https://docs.sqlalchemy.org/en/21/core/engines.html says what an
engine is.
"""

import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import asyncpg
from sqlalchemy import URL, ExceptionContext, Executable, Insert, event, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import direct
import sqlite_async
from direct import Rows
from pool import WAIT_MAX, InOrderPool

# The pool prints a traceback for a connection that died while it was out, though whoever had it
# has met the error and says so. Each pool's logger has the name of its module.
for name in ("sqlalchemy.pool", "pool", "sqlite_async"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


def parse_url(setting: str, value: str) -> URL:
    """Return a setting's URL in parts; leave with one line if it is not a URL."""
    try:
        url = make_url(hosts_as_options(value))
    except (ArgumentError, ValueError):
        sys.exit(f"{setting}: not a URL; an example: postgresql://user:password@host:5432/name")
    if url.host and "@" in f"{url.host}{url.database}":
        sys.exit(f"{setting}: write an @ in the user name or the password as %40, a / as %2F.")
    several = len(hosts(url)) > 1
    if several and not url.drivername.endswith(("postgresql", "postgres", "+asyncpg", "+sentinel")):
        sys.exit(f"{setting}: several hosts: only of PostgreSQL, MongoDB or Redis Sentinel.")
    if several and not all(host.rpartition(":")[2].isdecimal() for host in hosts(url)):
        sys.exit(f"{setting}: of several hosts, each needs its port: host1:5432,host2:5432")
    return url


def hosts_as_options(text: str) -> str:
    """Return a URL that SQLAlchemy takes: ``//h1:1,h2:2/x``, libpq's way, as options.

    https://docs.sqlalchemy.org/en/21/dialects/postgresql.html#asyncpg-multihost
    """
    scheme, _, rest = text.partition("://")
    authority, _, path = rest.partition("/")
    who, at, several = authority.rpartition("@")
    if "," not in several:
        return text
    path, _, query = path.partition("?")
    options = "&".join(f"host={host}" for host in several.split(","))
    return f"{scheme}://{who}{at}/{path}?{options}&{query}"


def kind(url: URL) -> str:
    """Return which SQL it is: sqlite, postgresql or mysql."""
    name = url.get_backend_name()
    return {"postgres": "postgresql", "mariadb": "mysql"}.get(name, name)


def hosts(url: URL) -> Sequence[str]:
    """Return the hosts of a URL, with their ports."""
    one = f"{url.host or 'its usual host'}:{url.port or 'its usual port'}"
    return url.normalized_query.get("host", [one])


class Engines(NamedTuple):
    """Two pools: one whose connections may change something, and one whose may only read.

    ``read`` runs one statement with these values, and ``insert`` stores one row and returns its id;
    each is a transaction of its own, without a session.
    """

    writer: AsyncEngine
    reader: AsyncEngine
    read: Callable[[Executable, dict[str, Any]], Awaitable[Rows]]
    insert: Callable[[Insert, dict[str, Any]], Awaitable[Any]]


# A pool has no overflow connections, which would be opened and closed under load all the time; a
# session that finds every connection taken waits for one, ``WAIT_MAX`` at most.
POOL: dict[str, Any] = {"max_overflow": 0, "pool_timeout": WAIT_MAX, "hide_parameters": True}
# A statement that reads is a transaction by itself: there is nothing to begin and to end.
AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True}


def make_engines(url: URL, size: int, replica: URL | None = None) -> Engines:
    """Return engines with ``size`` connections together, at most. Nothing is connected yet.

    What only reads goes to the replica, if there is one.
    """
    match kind(url):
        case "sqlite":
            writer, reader = sqlite_async.make_engines(url, **POOL)
            read = sqlite_async.DirectReader(reader.sync_engine).read
            return Engines(
                writer, reader, read, sqlite_async.GroupCommit(writer.sync_engine).insert
            )
        case "postgresql":
            make_engine = make_postgresql_engine
        case _:
            make_engine = make_mysql_engine
    options = {"poolclass": InOrderPool, "pool_recycle": 1800, **POOL}
    for_changes = round(size * 2 / 5) or 1  # less is changed than read
    writer = make_engine(url, reading=False, pool_size=for_changes, **options)
    options |= {"pool_size": size - for_changes, **AUTOCOMMIT}
    reader = make_engine(replica or url, reading=True, **options)
    event.listen(writer.sync_engine, "handle_error", leave_demoted_server)
    alone = writer.sync_engine
    if kind(url) == "postgresql":
        alone = alone.execution_options(isolation_level="AUTOCOMMIT")
        if not any(map(behind_pgbouncer, (url, replica or url))):
            asyncpg_itself = direct.Asyncpg(alone, reader.sync_engine)
            return Engines(writer, reader, asyncpg_itself.read, asyncpg_itself.insert)
    read = partial(direct.read_by_sqlalchemy, reader.sync_engine)
    return Engines(writer, reader, read, partial(direct.insert_by_sqlalchemy, alone))


def make_postgresql_engine(url: URL, reading: bool, **options: Any) -> AsyncEngine:
    """Return an engine on asyncpg."""
    server = {"statement_timeout": "5000", "lock_timeout": "3000"}
    if reading:
        server["default_transaction_read_only"] = "on"
        # By which asyncpg would think that every server is a standby.
        role = url.query.get("target_session_attrs")
        if meant := {"read-write": "primary", "read-only": "standby"}.get(str(role)):
            url = url.update_query_dict({"target_session_attrs": meant})
    else:
        # A plan that PostgreSQL kept from when the table was small would read all of it later.
        server["plan_cache_mode"] = "force_custom_plan"
        # lock_timeout is for each lock, and who waits for a row may have to wait for two.
        server["statement_timeout"] = "3500"
    connect_args: dict[str, Any] = {"timeout": 3, "command_timeout": 6, "server_settings": server}
    # libpq's options for TLS (sslmode, sslrootcert, ...) asyncpg takes only in a URL.
    tls = {name: it for name, it in url.query.items() if name.startswith("ssl") and name != "ssl"}
    if tls:
        url = url.difference_update_query(tls)
        connect_args["dsn"] = URL.create("postgresql", query=tls).render_as_string()
    if len(hosts(url)) > 1:
        connect_args["async_creator_fn"] = connect_to_one
    if behind_pgbouncer(url):
        # It gives each transaction another connection to the server: asyncpg then sends a
        # statement's text each time, in one transaction with its values.
        connect_args["statement_cache_size"] = 0
    engine = create_async_engine(
        url.set(drivername="postgresql+asyncpg"), connect_args=connect_args, **options
    )

    @event.listens_for(engine.sync_engine, "checkout")
    def on_checkout(_: Any, record: Any, __: object) -> None:
        # asyncpg knows that a server hung up, without a question that would cost a round trip.
        if record.driver_connection.is_closed():
            raise DisconnectionError

    return engine


def behind_pgbouncer(url: URL) -> bool:
    """Return whether a URL says that no prepared statements are kept."""
    return url.query.get("prepared_statement_cache_size") == "0"


async def connect_to_one(*, host: list[str], port: list[int], **options: Any) -> Any:
    """Return a connection of asyncpg's to the first of several hosts that is of the right kind.

    A machine that is gone refuses nobody, and the limit of time is for all hosts together: if it
    passes, the others come first, the next time as well.
    """
    first = host[0], port[0]
    try:
        return await asyncpg.connect(host=host, port=port, **options)
    except TimeoutError:
        if (host[0], port[0]) == first:
            host.append(host.pop(0))
            port.append(port.pop(0))
        return await asyncpg.connect(host=host, port=port, **options)


def make_mysql_engine(url: URL, reading: bool, **options: Any) -> AsyncEngine:
    """Return an engine on asyncmy."""
    settings = (
        "innodb_lock_wait_timeout=3, lock_wait_timeout=3"  # rows, tables
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
            "read_timeout": 6,
            "init_command": f"SET SESSION {settings}",
        },
        **options,
    )


# PostgreSQL's and MySQL's codes for: only reading, now. The last two are of a node of Galera that
# has lost most others.
DEMOTED = ("25006", 1290, 1792, 1836, 1047, 1180)


def leave_demoted_server(context: ExceptionContext) -> None:
    """Close the connections to a server that takes no changes any more: another one may.

    https://docs.sqlalchemy.org/en/21/core/events.html#sqlalchemy.events.DialectEvents.handle_error
    """
    error: Any = context.original_exception
    if getattr(error, "sqlstate", None) in DEMOTED or (error.args[:1] and error.args[0] in DEMOTED):
        context.is_disconnect = True

"""PostgreSQL on asyncpg."""

from typing import Any

import asyncpg
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from engine.direct import Rows, Server, connect_to_server
from engine.url import hosts

NOT_PREPARED = ("prepared_statement_cache_size", "0")  # as behind PgBouncer


def connect(url: URL, replica: URL, size: int, **options: Any) -> Server:
    several = {"target_session_attrs": "primary", **url.query}
    primary = url.set(query=several) if len(hosts(url)) > 1 else url
    replica = primary if replica is url else replica
    # Without a transaction, PgBouncer may send the parts of a statement to several connections.
    pgbouncer = NOT_PREPARED in (*url.query.items(), *replica.query.items())
    direct = None if pgbouncer else send
    return connect_to_server(make_engine, primary, replica, size, direct, **options)


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
    if NOT_PREPARED in url.query.items():
        # Each transaction may have another connection to the server, where a statement that was
        # prepared before isn't known: asyncpg then sends its text and its values together.
        connect_args["statement_cache_size"] = 0
    connect_args["async_creator_fn"] = connect_to_one
    url = url.set(drivername="postgresql+asyncpg")
    return create_async_engine(url, connect_args=connect_args, **options)


async def connect_to_one(**options: Any) -> Any:
    """Connect to the first of several hosts that has the right role. Raises errors of asyncpg.

    A machine that is gone refuses nothing, and the time limit is for all hosts together. When it
    passes, the other hosts come first, now and the next time.
    """
    host = options["host"]
    first = host[0]
    try:
        try:
            return await asyncpg.connect(**options)
        except TimeoutError:
            if not isinstance(host, list):
                raise
            if host[0] is first:
                for each in (host, options["port"]):
                    each.append(each.pop(0))
            return await asyncpg.connect(**options)
    except OSError as error:
        raise asyncpg.InterfaceError(type(error).__name__) from error


async def send(connection: Any, sql: str, parameters: list[Any]) -> Rows:
    rows: Rows = await connection.fetch(sql, *parameters)
    return rows

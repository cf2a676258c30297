"""PostgreSQL on asyncpg."""

import asyncio
from contextlib import suppress
from typing import Any

import asyncpg
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from engine.direct import Server, open_pools
from engine.url import hosts

ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
NOT_PREPARED = ("prepared_statement_cache_size", "0")  # as behind PgBouncer


def connect(url: URL, replica: URL, size: int, **options: Any) -> Server:
    several = {"target_session_attrs": "primary", **url.query}
    primary = url.set(query=several) if len(hosts(url)) > 1 else url
    replica = primary if replica is url else replica
    # Without a transaction, PgBouncer may send the parts of a statement to several connections.
    pgbouncer = NOT_PREPARED in (*url.query.items(), *replica.query.items())
    return open_pools(make_engine, primary, replica, size, None if pgbouncer else send, **options)


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
        # asyncpg then sends a statement's text and its values together.
        connect_args["statement_cache_size"] = 0
    url = url.set(drivername="postgresql+asyncpg")
    connect_args["async_creator_fn"] = connect_to_one
    return create_async_engine(url, connect_args=connect_args, **options)


async def connect_to_one(**options: Any) -> Any:
    """Connect to the host that has the right role. Raises errors of asyncpg.

    While one of several hangs, the others are asked again: one may be promoted.
    """
    role, several = options.get("target_session_attrs"), isinstance(options.get("host"), list)
    if role == "prefer-standby":
        with suppress(*ERRORS):
            return await connect_to_one(**options | {"target_session_attrs": "standby"})
        options["target_session_attrs"] = "primary"
    hosts = [*zip(options["host"], options["port"], strict=True)] if several else []
    asked = [options | {"host": host, "port": port} for host, port in hosts] or [options]
    refused = set[int]()

    async def ask(number: int) -> Any:
        while True:
            try:
                return await asyncpg.connect(**asked[number])
            except ERRORS:
                refused.add(number)
                if len(refused) == len(asked):
                    raise
                await asyncio.sleep(0.5)

    tasks = [asyncio.create_task(ask(number)) for number in range(len(asked))]
    try:
        (first, *_), _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        tasks.remove(first)
        return first.result()
    except OSError as error:
        raise asyncpg.InterfaceError(type(error).__name__) from error
    finally:
        for task in tasks:
            task.cancel()
            task.add_done_callback(close)


def close(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and not task.exception():
        task.result().terminate()


async def send(connection: Any, sql: str, parameters: list[Any]) -> Any:
    return await connection.fetch(sql, *parameters)

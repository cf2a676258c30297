"""MySQL and MariaDB on asyncmy."""

from typing import Any

from sqlalchemy import URL, Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from engine.direct import Server, open_pools


def connect(url: URL, replica: URL, size: int, **options: Any) -> Server:
    return open_pools(make_engine, url, replica, size, send, **options)


def make_engine(url: URL, reading: bool, **options: Any) -> AsyncEngine:
    # At PostgreSQL's default isolation there are no locks on gaps, and so few deadlocks.
    isolation = "isolation='READ-COMMITTED'"
    settings = (
        "innodb_lock_wait_timeout=3, lock_wait_timeout=3"  # rows, tables
        ", sql_safe_updates=0"  # otherwise no table is emptied
        # MariaDB reads the first of these comments, MySQL the second.
        f" /*M!100100 , max_statement_time=5, tx_{isolation}, tx_read_only={reading:d} */"
        f" /*!50720 , max_execution_time=5000, transaction_{isolation},"
        f" transaction_read_only={reading:d} */"
    )
    connect_args = {
        "autocommit": True,  # outside a transaction, a statement is one by itself
        "charset": "utf8mb4",
        "connect_timeout": 3,
        "read_timeout": 6,
        "stmt_cache_size": 50,  # prepared statements: half as much work again without
        "init_command": f"SET SESSION {settings}",
    }
    url = url.set(drivername="mysql+asyncmy")
    engine = create_async_engine(url, connect_args=connect_args, **options)

    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, _: object) -> None:
        connection.driver_connection._bulk_supported = False  # it leaves gaps between ids

    @event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


async def send(connection: Any, sql: str, parameters: list[Any]) -> Any:
    async with connection.cursor() as cursor:
        await cursor.execute(sql, parameters)
        return await cursor.fetchall() if cursor.description else [(cursor.lastrowid,)]

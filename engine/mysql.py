"""MySQL and MariaDB on asyncmy."""

from typing import Any

import asyncmy  # noqa: F401 (if it isn't installed, this is the place that says so)
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from engine.direct import Server, connect_to_server


def connect(url: URL, replica: URL, size: int, **options: Any) -> Server:
    return connect_to_server(make_engine, url, replica, size, **options)


def make_engine(url: URL, reading: bool, **options: Any) -> AsyncEngine:
    settings = (
        "innodb_lock_wait_timeout=3, lock_wait_timeout=3"  # rows, tables
        ", sql_safe_updates=0"  # otherwise no table is emptied
        # MariaDB reads the first of these comments, MySQL the second.
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

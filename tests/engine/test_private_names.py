"""The private names of SQLAlchemy that the engine uses: an upgrade that changes one fails here.

Each test says what the name has to do, by what breaks without it.
"""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from sqlalchemy import Integer, MetaData, Table, column, event, text
from sqlalchemy.dialects import postgresql as postgresql_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session as SyncSession
from sqlalchemy.pool import ConnectionPoolEntry

from engine import Database
from engine.direct import InOrderPool

postgresql: Any = postgresql_  # its classes are not typed

PINNED = {
    "_pool": "the queue of a pool, and the pool of a checked-out connection",
    "_timeout": "a pool's limit for waiting",
    "_recycle": "a pool's limit for the age of a connection",
    "_do_get": "a connection leaves its pool",
    "_do_return_conn": "a connection comes back to its pool",
    "_is_hard_or_soft_invalidated": "a connection is not to be used again",
    "_result_columns": "the columns of a compiled statement, text() included",
    "_bulk_supported": "asyncmy sends many rows in MariaDB's own way (test_direct pins it)",
    "_handle_exception": "asyncpg's exception becomes SQLAlchemy's",
    "_proxied": "the session below an AsyncSession",
    "_async_soft_close": "SQLAlchemy calls it when it has all rows of a cursor",
}


def test_list_is_complete() -> None:
    code = "".join(path.read_text() for path in (ROOT / "engine").glob("*.py"))
    ours = {"_replace"}  # NamedTuple's
    assert set(re.findall(r"(?:\.|def |^ +)(_[a-z]\w+)\b(?!_)", code, re.M)) - ours == {*PINNED}


def in_database(tmp_path: Path, test: Any) -> None:
    """Run a test's coroutine with a SQLite database that has one open connection of each kind."""

    async def run() -> None:
        database = Database(f"sqlite:///{tmp_path}/a.db")
        for engine in (database.writer, database.reader):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        try:
            await test(database)
        finally:
            await database.stop()

    asyncio.run(run())


def test_pool(tmp_path: Path) -> None:
    async def test(database: Database) -> None:
        pool: Any = database.writer.sync_engine.pool
        assert isinstance(pool, InOrderPool)
        assert (pool._timeout, pool._recycle) == (5, -1)
        assert (pool.checkedin(), pool.overflow()) == (1, 0)
        entry = pool._pool.get_nowait()
        assert isinstance(entry, ConnectionPoolEntry)
        pool._do_return_conn(entry)
        assert pool.checkedin() == 1
        async with database.writer.connect() as writing:
            fairy: Any = await writing.get_raw_connection()
            assert fairy._pool is pool
        entry = pool._pool.get_nowait()
        assert not entry._is_hard_or_soft_invalidated()
        entry.invalidate(soft=True)
        assert entry._is_hard_or_soft_invalidated()
        pool._do_return_conn(entry)

    in_database(tmp_path, test)


def test_compiled_statement() -> None:
    table = Table("t", MetaData())
    found: Any = text("SELECT 1").compile(dialect=postgresql.asyncpg.dialect())
    assert not getattr(found, "_result_columns", [])
    selected: Any = table.select().add_columns(column("a", Integer), text("'x'"))
    names = [one.keyname for one in selected.compile(dialect=postgresql.dialect())._result_columns]
    assert len(names) == 2


def test_exception_of_asyncpg() -> None:
    from asyncpg import UniqueViolationError

    dialect: Any = postgresql.asyncpg.dialect()
    dbapi = dialect.import_dbapi()
    adapter: Any = postgresql.asyncpg.AsyncAdapt_asyncpg_connection.__new__(
        postgresql.asyncpg.AsyncAdapt_asyncpg_connection
    )
    adapter.dbapi = dbapi

    class Open:
        def is_closed(self) -> bool:
            return False

    adapter._connection = Open()
    with pytest.raises(dbapi.IntegrityError):
        adapter._handle_exception(UniqueViolationError("twice"))


def test_session(tmp_path: Path) -> None:
    session: Any = AsyncSession()
    assert session._proxied is session.sync_session
    assert isinstance(session._proxied, SyncSession)

    async def test(database: Database) -> None:
        ours: Any = database.session()
        assert "_proxied" not in vars(ours)
        assert ours._proxied is ours.sync_session
        await ours.close()

    in_database(tmp_path, test)


def test_cursor_is_told_when_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.sqlite import Cursor

    closed: list[object] = []

    async def soft_close(cursor: Cursor) -> None:
        closed.append(cursor)

    monkeypatch.setattr(Cursor, "_async_soft_close", soft_close)

    async def test(database: Database) -> None:
        seen: list[object] = []
        event.listen(
            database.reader.sync_engine, "after_cursor_execute", lambda _, c, *__: seen.append(c)
        )
        async with database.reader.connect() as reading:
            await reading.execute(text("SELECT 1"))
        assert seen
        assert {*map(id, seen)} <= {*map(id, closed)}

    in_database(tmp_path, test)

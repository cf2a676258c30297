"""What goes round SQLAlchemy gives the same answers, and leaves no connection in disorder."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from databases import Database
from sqlalchemy import (
    Column,
    DateTime,
    Executable,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    bindparam,
    event,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from engine import Database as Engines
from engine import UTCMillis, codes
from engine.direct import Rows, execute

T = Table(
    "t",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("name", String(100), unique=True),
    Column("at", UTCMillis),
    Column("plain", DateTime),
    Column("default", String(100), default="Python's"),
    Column("price", Numeric(8, 2)),
)
NAMED = Table("named", T.metadata, Column("name", String(100), primary_key=True))
ONE = select(T.c.id, T.c.name, T.c.at, T.c.plain).where(T.c.id == bindparam("id"))
ONE_TIME = select(T.c.at, T.c.at.label("text")).where(T.c.name == bindparam("name"))
THEN = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
Test = Callable[[Engines], Awaitable[None]]


def run(url: str, test: Test) -> None:
    """Run a test's coroutine with the engines of a database, which has the table."""

    async def with_engines() -> None:
        engines = Engines(url, size=2)
        try:
            async with engines.writer.begin() as writing:
                await writing.run_sync(T.metadata.drop_all)
                await writing.run_sync(T.metadata.create_all)
            await asyncio.wait_for(test(engines), 30)
        finally:
            async with engines.writer.begin() as writing:
                await writing.run_sync(T.metadata.drop_all)
            for engine in (engines.writer, engines.reader):
                await engine.dispose()

    asyncio.run(with_engines())


on_each = pytest.mark.parametrize("database", ["sqlite", "postgresql", "mysql"], indirect=True)
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@on_each
def test_rows_are_those_of_sqlalchemy(database: Database) -> None:
    async def test(engines: Engines) -> None:
        row: dict[str, Any] = {"at": THEN, "plain": datetime(2026, 1, 2, 3, 4, 5)}
        row |= {"default": "", "price": Decimal("1.50")}
        for number in (1, 2):  # the first one opens the connection
            assert await engines.insert(insert(T), {"name": f"{number}", **row}) == number
        empty = {"name": None, "at": None, "plain": None}
        assert await engines.insert(insert(T), empty) == 3
        for statement, values in (
            (ONE, {"id": 2}),
            (ONE, {"id": 9}),
            (select(T).order_by(T.c.id), {}),
            (select(text("'x'"), T.c.at, func.count()).group_by(T.c.at).order_by(T.c.at), {}),
            (select(T.c.id).where(T.c.id.in_([1, 3])).order_by(T.c.id), {}),
            (select(T.c.id).where(T.c.id.in_(bindparam("ids", expanding=True))), {"ids": [2]}),
            (select(T.c.at).where(T.c.name == "1").limit(1), {}),
            (text("SELECT name FROM t WHERE id = :id"), {"id": 2}),
        ):
            expected = await by_sqlalchemy(engines, statement, values)
            for _ in range(2):
                assert same(await engines.read(statement, values), expected)
        assert tuple((await engines.read(ONE, {"id": 2}))[0])[2] == THEN
        for _ in range(5):  # more than there are connections
            price = await engines.read(select(T.c.price).where(T.c.id == 1), {})
            assert same(price, [(Decimal("1.5"),)])

    run(database.url, test)


@on_each
def test_time_is_the_same_when_read_as_text(database: Database) -> None:
    async def test(engines: Engines) -> None:
        if engines.writer.dialect.name == "postgresql":
            name = engines.writer.url.database
            async with engines.writer.begin() as writing:
                await writing.execute(text(f"ALTER DATABASE {name} SET timezone = 'Asia/Kolkata'"))
                await writing.execute(text(f"ALTER DATABASE {name} SET datestyle = 'German'"))
        for at in (THEN, THEN.replace(microsecond=0), None):
            await engines.insert(insert(T), {"name": f"{at}", "at": at, "default": ""})
            rows = await engines.read(ONE_TIME, {"name": f"{at}"})
            assert same(rows, [(at, at)])
            rows = await by_sqlalchemy(engines, ONE_TIME, {"name": f"{at}"})
            assert same(rows, [(at, at)])

    with database.new() as url:
        run(url, test)


async def by_sqlalchemy(engines: Engines, statement: Executable, values: dict[str, Any]) -> Rows:
    """Return what SQLAlchemy alone reads."""
    return await execute(engines.reader.sync_engine, None, statement, values)


def same(rows: Rows, others: Rows) -> bool:
    """Return whether they are equal, as rows of whatever kind."""
    return [tuple(row) for row in rows] == [tuple(row) for row in others]


@on_each
def test_row_that_the_database_does_not_number(database: Database) -> None:
    async def test(engines: Engines) -> None:
        for number in (70, 80):
            row = {"id": number, "name": f"{number}", "default": ""}
            assert await engines.insert(insert(T), row) == number
        for name in ("a", "b"):
            assert await engines.insert(insert(NAMED), {"name": name}) == name

    run(database.url, test)


@on_each
def test_many_rows_have_ids_without_gaps(database: Database) -> None:
    async def test(engines: Engines) -> None:
        for first in (0, 100, 200):
            rows = [{"name": f"{first + i}", "default": ""} for i in range(100)]
            async with engines.writer.begin() as writing:
                await writing.execute(insert(T), rows)
        numbered = await engines.read(select(func.max(T.c.id)), {})
        assert same(numbered, [(300,)])

    run(database.url, test)


@on_each
def test_default_that_python_makes(database: Database) -> None:
    async def test(engines: Engines) -> None:
        for name in ("a", "b"):
            await engines.insert(insert(T), {"name": name})
        for _ in range(2):
            found = await engines.read(select(T.c.default), {})
            assert same(found, [("Python's",)] * 2)

    run(database.url, test)


@on_each
def test_row_that_is_refused_is_an_integrity_error(database: Database) -> None:
    async def test(engines: Engines) -> None:
        await engines.insert(insert(T), {"name": "a"})
        for _ in range(2):
            with pytest.raises(IntegrityError):
                await engines.insert(insert(T), {"name": "a"})
        await engines.insert(insert(T), {"name": "b"})

    run(database.url, test)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_sqlalchemy_runs_no_statement_once_there_is_a_connection(database: Database) -> None:
    async def test(engines: Engines) -> None:
        seen: list[Any] = []
        plain = {"default": ""}  # a value in its place
        await engines.insert(insert(T), {"name": "a", **plain})
        await engines.read(ONE, {"id": 1})
        for engine in (engines.writer, engines.reader):
            event.listen(engine.sync_engine, "before_cursor_execute", lambda *s: seen.append(s))
        assert await engines.insert(insert(T), {"name": "b", **plain}) == 2
        assert len(await engines.read(ONE, {"id": 2})) == 1
        assert seen == []

    run(database.url, test)


async def pid(engines: Engines) -> int:
    """Return the number of the server's process that a read is done by."""
    statement = text("SELECT pg_backend_pid()")
    await engines.read(statement, {})
    [[found]] = await engines.read(statement, {})
    return int(found)


@on_postgresql
def test_reader_who_is_cancelled_stops_the_server_too(database: Database) -> None:
    async def test(engines: Engines) -> None:
        before = await pid(engines)
        reading = asyncio.ensure_future(engines.read(text("SELECT pg_sleep(3)"), {}))
        await asyncio.sleep(0.2)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await pid(engines) != before
        busy = text("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3)'")
        assert same(await engines.read(busy, {}), [(0,)])

    run(database.url, test)


@on_postgresql
def test_statement_that_the_server_refuses_is_no_reason_to_leave(database: Database) -> None:
    async def test(engines: Engines) -> None:
        before = await pid(engines)
        with pytest.raises(DBAPIError, match="division by zero"):
            await engines.read(text("SELECT 1 / 0"), {})
        assert await pid(engines) == before

    run(database.url, test)


@on_postgresql
def test_reader_whose_connection_is_killed_reads_again(database: Database) -> None:
    async def test(engines: Engines) -> None:
        before = await pid(engines)
        seen: list[Any] = []
        event.listen(engines.reader.sync_engine, "before_cursor_execute", lambda *s: seen.append(s))
        # The first time, the server ends the process that should answer.
        once = text("SELECT pg_terminate_backend(pid), pg_sleep(0.1) FROM killed")
        async with engines.writer.begin() as writing:
            await writing.execute(text("DROP TABLE IF EXISTS killed"))
            await writing.execute(text(f"CREATE TABLE killed AS SELECT {before} AS pid"))
        await engines.read(once, {})
        assert await pid(engines) != before
        for _ in range(10):
            await pid(engines)
        assert len(seen) == 1, "it was not found again that the connection was dead"
        async with engines.writer.begin() as writing:
            await writing.execute(text("DROP TABLE killed"))

    run(database.url, test)


@on_postgresql
def test_row_on_a_connection_that_dies_is_not_sent_again(database: Database) -> None:
    async def test(engines: Engines) -> None:
        await engines.insert(insert(T), {"name": "a", "default": ""})
        async with engines.reader.connect() as outside:
            kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE :query"
            slow = insert(T).values(name=text("pg_sleep(2)::text"))
            sending = asyncio.ensure_future(engines.insert(slow, {"default": ""}))
            await asyncio.sleep(0.2)
            await outside.execute(text(kill), {"query": "INSERT INTO t %"})
            with pytest.raises(DBAPIError):
                await sending
        await engines.insert(insert(T), {"name": "b"})

    run(database.url, test)


def test_statement_with_values_of_its_own(tmp_path: Path) -> None:
    async def test(engines: Engines) -> None:
        for name in ("a", "b"):
            await engines.insert(insert(T).values(name=name), {"default": ""})
        named = select(T.c.id).where(T.c.name == bindparam("name", "a"))
        for _ in range(2):
            assert same(await engines.read(named, {}), [(1,)])
            assert same(await engines.read(named, {"name": "b"}), [(2,)])
            assert same(await engines.read(select(bindparam("nothing", None)), {}), [(None,)])

    run(f"sqlite:///{tmp_path}/a.db", test)


@on_postgresql
def test_connection_that_ends_while_it_is_set_up_is_an_error_of_sqlalchemy(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def end(_: Any, connection: Any) -> None:
        raise asyncpg.InterfaceError("connection is closed")

    async def test(engines: Engines) -> None:
        monkeypatch.setattr(PGDialect_asyncpg, "setup_asyncpg_json_codec", end)
        with pytest.raises(OperationalError) as raised:
            await engines.read(ONE, {"id": 1})
        assert "InterfaceError" in codes(raised.value)
        monkeypatch.undo()
        assert await engines.read(ONE, {"id": 1}) == []

    run(database.url, test)

"""A database and its sessions: what the engine promises about them."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, full
from databases import Database as Backend
from sqlalchemy import Connection, String, func, insert, inspect, select, text, union_all
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

from engine import (
    Database,
    Session,
    SettingsError,
    UTCMillis,
    codes,
    contains,
    fetch,
    insert_row,
)

THEN = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
on_each = pytest.mark.parametrize("database", ["sqlite", "postgresql", "mysql"], indirect=True)


class Base(SQLModel, registry=registry()):
    """Keeps this table out of those of the app, which other tests compare."""


class Thing(Base, table=True):
    __tablename__ = "things"

    id: int = Field(default=None, primary_key=True)
    name: str = Field(
        unique=True,
        sa_type=String(100).with_variant(String(100, collation="utf8mb4_bin"), "mysql"),
    )
    at: datetime | None = Field(default=None, sa_type=UTCMillis)


THINGS = Base.metadata.tables["things"]
ALL = select(THINGS.c.id, THINGS.c.name, THINGS.c.at).order_by(THINGS.c.id)
ADD = insert(THINGS)


def run(url: str, test: Callable[[Database], Awaitable[None]]) -> None:
    """Run a test's coroutine with a database that has the table."""

    async def with_database() -> None:
        database = Database(url, size=2)
        try:
            async with database.writer.begin() as writing:
                await writing.run_sync(THINGS.drop, checkfirst=True)
                await writing.run_sync(THINGS.create)
            await asyncio.wait_for(test(database), 60)
        finally:
            async with database.writer.begin() as writing:
                await writing.run_sync(THINGS.drop)
            await database.stop()

    asyncio.run(with_database())


async def names(database: Database) -> list[str]:
    """Return the names in the table, as another session reads them."""
    async with database.session(read_only=True) as session:
        return [row[1] for row in await fetch(session, ALL)]


def test_url_without_a_host_takes_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", "1")  # nothing listens there

    async def test() -> None:
        database = Database("postgresql:///name")
        with pytest.raises(DBAPIError, match="ConnectionRefusedError"):
            await database.read(text("SELECT 1"), {})
        await database.stop()

    asyncio.run(test())


@pytest.mark.parametrize("database", ["postgresql", "mysql"], indirect=True)
def test_start_retries_if_another_process_was_faster(database: Backend) -> None:
    def make(connection: Connection) -> None:
        tries.append(1)
        if not inspect(connection).has_table("rival") or len(tries) == 2:
            connection.execute(text("CREATE TABLE rival (id INTEGER)"))

    async def test() -> None:
        engine = Database(url)
        await engine.start(make)
        await engine.start(make)  # which makes it again, as if it had not been there a moment ago
        await engine.stop()

    tries = list[int]()
    with database.new() as url:
        asyncio.run(test())
    assert len(tries) == 3


@on_each
def test_session_commits_when_its_block_ends_well_and_rolls_back_otherwise(
    database: Backend,
) -> None:
    async def test(database: Database) -> None:
        async with database.session() as session:
            session.add(Thing(name="a"))

        async def fail() -> None:
            async with database.session() as session:
                session.add(Thing(name="b"))
                await session.flush()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert await names(database) == ["a"]

    run(database.url, test)


@on_each
def test_session_that_is_not_used_touches_nothing(database: Backend) -> None:
    async def test(_: Database) -> None:
        other = Database("postgresql://nobody@127.0.0.1:1/nothing")
        for read_only in (True, False):
            async with other.session(read_only):
                pass

    run(database.url, test)


@on_each
def test_session_says_no_after_its_block(database: Backend) -> None:
    async def test(database: Database) -> None:
        for used in (True, False):
            for read_only in (True, False):
                async with database.session(read_only) as session:
                    if used:
                        await session.exec(select(1))  # type: ignore[call-overload]  # not SQLModel's select  # SQLAlchemy's
                for use in (
                    lambda: session.exec(select(1)),  # type: ignore[call-overload]  # not SQLModel's select
                    lambda: session.get(Thing, 1),
                    lambda: session.commit(),
                    lambda: fetch(session, ALL),
                    lambda: insert_row(session, ADD, {"name": "a"}),
                ):
                    with pytest.raises(InvalidRequestError, match="open_session"):
                        await use()
                with pytest.raises(InvalidRequestError, match="open_session"):
                    session.add(Thing(name="a"))
        assert await names(database) == []

    run(database.url, test)


@on_each
def test_session_for_reading_says_no_to_a_change(database: Backend) -> None:
    async def test(database: Database) -> None:
        async def add(session: AsyncSession) -> None:
            session.add(Thing(name="b"))

        async def add_and_commit(session: AsyncSession) -> None:
            session.add(Thing(name="b"))
            await session.commit()

        async def change(session: AsyncSession) -> None:
            (await session.get_one(Thing, 1)).name = "b"

        async def delete(session: AsyncSession) -> None:
            await session.delete(await session.get_one(Thing, 1))

        async def write(session: AsyncSession) -> None:
            await (await session.connection()).execute(ADD, {"name": "b"})

        async with database.session() as session:
            session.add(Thing(name="a"))
        for use in (add, add_and_commit, change, delete, write):
            with pytest.raises(InvalidRequestError, match="This session is for reading"):
                async with database.session(read_only=True) as session:
                    await use(session)
        assert await names(database) == ["a"]

    run(database.url, test)


@on_each
def test_fetch_and_insert_row_go_through_a_session_in_a_transaction(database: Backend) -> None:
    async def test(database: Database) -> None:
        async with database.session() as session:
            session.add(Thing(name="a"))
            await session.flush()
            session.add(Thing(name="b"))
            assert [row[1] for row in await fetch(session, ALL)] == ["a", "b"]
            assert await names(database) == []
            assert await insert_row(session, ADD, {"name": "c", "at": THEN}) == 3
        assert await names(database) == ["a", "b", "c"]

    run(database.url, test)


def test_fetch_and_insert_row_use_a_session_of_another_kind(tmp_path: Path) -> None:
    async def test() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/a.db")
        async with engine.begin() as connection:
            await connection.run_sync(THINGS.create)
        async with AsyncSession(engine) as session:
            assert await insert_row(session, ADD, {"name": "a", "at": THEN}) == 1
            assert [tuple(row) for row in await fetch(session, ALL)] == [(1, "a", THEN)]
            with pytest.raises(IntegrityError):
                await insert_row(session, ADD, {"name": "a"})
        await engine.dispose()

    asyncio.run(test())


@on_each
def test_contains_takes_wildcards_for_text(database: Backend) -> None:
    texts = [
        "50%",
        "500",
        "a_b",
        "acb",
        "a\\b",
        "O'Neill",
        "o'neill",
        "élan",
        "elan",
        "日本",
        "x y",
    ]
    parts = ["0%", "a_", "\\", "'", "/", "é", "本", "l", "x ", " ", "zz"]
    condition = contains(THINGS.c.name, "part")

    async def test(database: Database) -> None:
        async with database.session() as session:
            session.add_all([Thing(name=text) for text in texts])
        for part in parts:
            async with database.session(read_only=True) as session:
                found = await fetch(session, ALL.where(condition), {"part": part})
            assert [row[1] for row in found] == [text for text in texts if part in text]

    run(database.url, test)


@on_each
def test_times_are_the_same_in_each_idiom(database: Backend) -> None:
    async def test(database: Database) -> None:
        for name, at in (("a", THEN), ("b", THEN.replace(microsecond=0)), ("c", None)):
            async with database.session() as session:
                await insert_row(session, ADD, {"name": name, "at": at})
        times = [THEN, THEN.replace(microsecond=0), None]
        column: Any = THINGS.c.at
        later = column >= THEN
        for read_only in (True, False):
            async with database.session(read_only) as session:
                assert [row[2] for row in await fetch(session, ALL)] == times
                things = await session.exec(select(Thing).order_by(THINGS.c.id))  # type: ignore[call-overload]  # not SQLModel's select
                assert [thing.at for (thing,) in things] == times
                assert await fetch(session, select(func.max(column))) == [(THEN,)]
                assert [*await fetch(session, select(THINGS.c.name).where(later))] == [("a",)]
                both = union_all(select(column).where(later), select(column).where(later))
                assert [*await fetch(session, both)] == [(THEN,), (THEN,)]
                inner = select(column.label("then")).where(later).subquery()
                assert [*await fetch(session, select(inner.c.then))] == [(THEN,)]
                grouped = select(column, func.count()).where(later).group_by(column)
                assert [*await fetch(session, grouped)] == [(THEN, 1)]
                plain = text("SELECT at FROM things WHERE id = 1").columns(at=UTCMillis())
                assert [*await fetch(session, plain)] == [(THEN,)]
        if database.product != "MySQL":
            async with database.session() as session:
                returning = ADD.returning(THINGS.c.at)
                connection = await session.connection()
                row = (await connection.execute(returning, {"name": "d", "at": THEN})).one()
                assert row == (THEN,)

    run(database.url, test)


@pytest.mark.parametrize("url", ["postgresql://a@127.0.0.1:1/x", "mysql://a@127.0.0.1:1/x"])
def test_whatever_a_driver_raises_is_an_error_of_sqlalchemy(url: str) -> None:
    async def test() -> None:
        database = Database(url)
        for use in (
            lambda session: fetch(session, ALL),
            lambda session: insert_row(session, ADD, {"name": "a"}),
            lambda session: session.connection(),
        ):
            for read_only in (True, False):
                with pytest.raises(DBAPIError) as caught:
                    async with database.session(read_only) as session:
                        await use(session)
                assert {"ConnectionRefusedError", "2003"} & {*codes(caught.value)}
        await database.stop()

    asyncio.run(test())


@on_each
def test_value_that_a_driver_rejects_is_an_error_of_sqlalchemy(database: Backend) -> None:
    async def test(database: Database) -> None:
        where = select(THINGS.c.id).where(text("id = :id"))
        for value in (10**23, "\ud800"):
            for read_only in (True, False):
                with pytest.raises(DBAPIError):
                    async with database.session(read_only) as session:
                        await fetch(session, where, {"id": value})

    run(database.url, test)  # which drops the table: no connection still holds a lock of it


def loaded(code: str, url: str) -> set[str]:
    """Return the modules that are loaded after some code has run."""
    code = f"import sys\n{code}\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stdout.split())


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("sqlite:///roster.db", "sqlite3"),
        ("postgresql://a@localhost/b", "asyncpg"),
        pytest.param("mysql://a@localhost/b", "asyncmy", marks=full),
        pytest.param("mongodb://localhost/b", "pymongo", marks=full),
        ("redis://localhost/0", "redis"),
    ],
)
def test_only_the_driver_in_use_is_imported(url: str, driver: str) -> None:
    drivers = {"asyncpg", "asyncmy", "pymongo", "redis", "cryptography"}
    code = "import app, edge, cli, db\ndb.get_backend()"
    assert loaded(code, url) & drivers - {"cryptography"} == {driver} & drivers
    assert not loaded("import app, cli", url) & drivers


def test_replica_of_another_kind_is_a_wrong_setting() -> None:
    for url in ("mysql://a@localhost/b", "oracle://a@localhost/b"):
        with pytest.raises(SettingsError, match="READ_DATABASE_URL: only for"):
            Database("postgresql://a@localhost/b", url)


def test_type_of_a_session(tmp_path: Path) -> None:
    session: Any = Database(f"sqlite:///{tmp_path}/a.db").session()
    assert isinstance(session, Session)
    assert isinstance(session, AsyncSession)

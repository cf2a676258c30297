"""The recipe for SQLite: each line of it, by what goes wrong without it."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

import db
from engine import Database
from export import read_pages
from faults_sql import retry_if_busy
from lifespan import open_store
from models import User
from store import Fault
from store_sql import SQLUserStore


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Point db at a new file, and forget it afterwards."""
    file = tmp_path / "roster.db"
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{file}")
    db.get_settings.cache_clear()
    db.get_backend.cache_clear()
    yield file
    db.get_settings.cache_clear()
    db.get_backend.cache_clear()


@asynccontextmanager
async def tables() -> AsyncIterator[None]:
    """Make the tables; close all connections afterwards."""
    engines = database()
    async with engines.writer.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    try:
        yield
    finally:
        await engines.writer.dispose()
        await engines.reader.dispose()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine on empty tables."""

    async def on_tables() -> None:
        async with tables():
            await test()

    asyncio.run(on_tables())


def user(i: int, domain: str = "example.com") -> User:
    """Return a new user."""
    return User(name="0", email=f"{i}@{domain}")


def database() -> Database:
    """Return the database of the settings."""
    backend = db.get_backend()
    assert isinstance(backend, Database)
    return backend


def test_connections_have_their_pragmas(file: Path) -> None:
    async def test() -> None:
        async def value(name: str, *, reading: bool) -> Any:
            async with db.open_session(reading) as session:
                return await (await session.connection()).scalar(text(f"PRAGMA {name}"))

        assert await value("journal_mode", reading=False) == "wal"
        assert await value("synchronous", reading=False) == 2  # FULL
        assert await value("foreign_keys", reading=False) == 1
        assert await value("busy_timeout", reading=False) == 0
        assert await value("query_only", reading=True) == 1
        assert await value("wal_autocheckpoint", reading=True) == 0

    run(test)


def test_reading_session_cannot_write(file: Path) -> None:
    async def write() -> None:
        async with db.open_session(read_only=True) as session:
            session.add(user(1))
            await session.flush()

    with pytest.raises(InvalidRequestError, match="This session is for reading"):
        run(write)


def test_200_read_modify_writes_are_all_kept(file: Path) -> None:
    async def test() -> None:
        async with db.open_session() as session:
            session.add(user(1))

        async def count_up() -> None:
            async with db.open_session() as session:
                row = await session.get_one(User, 1)
                await asyncio.sleep(0)
                row.name = str(int(row.name) + 1)

        await asyncio.gather(*(count_up() for _ in range(200)))
        async with db.open_session(read_only=True) as session:
            row = await session.get_one(User, 1)
            assert (row.name, row.version) == ("200", 201)

    run(test)


def test_cancelled_writes_leave_no_lock_and_no_rows(file: Path) -> None:
    async def test() -> None:
        async def write(i: int) -> None:
            async with db.open_session() as session:
                session.add(user(i))
                await session.flush()
                session.add(user(i, "example.org"))
                await session.flush()

        for i in range(100):
            task = asyncio.create_task(write(i))
            await asyncio.sleep(i / 20_000)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        began = time.monotonic()
        await write(5000)
        assert time.monotonic() - began < 1

    run(test)
    with sqlite3.connect(file) as connection:
        emails = [row[0] for row in connection.execute("select email from users")]
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()
    halves = [
        {email.partition("@")[0] for email in emails if email.endswith(d)} for d in ("com", "org")
    ]
    assert halves[0] == halves[1]
    assert len(halves[0]) < 100, "no write was cancelled"


def test_readers_do_not_wait_for_an_open_writer(file: Path) -> None:
    async def test() -> None:
        async with db.open_session() as writing:
            writing.add(user(1))
            await writing.flush()
            async with asyncio.timeout(1), db.open_session(read_only=True) as reading:
                assert await reading.get(User, 1) is None

    run(test)


def test_lock_held_outside_refuses_writers_and_not_readers(file: Path) -> None:
    async def test() -> None:
        async with db.open_session() as session:
            session.add(user(1))
        outside = sqlite3.connect(file, isolation_level=None)
        outside.execute("begin immediate")
        began = time.monotonic()

        async def write(i: int) -> float:
            with pytest.raises((OperationalError, PoolTimeout)):
                async with db.open_session() as session:
                    session.add(user(i))
            return time.monotonic() - began

        async def read() -> float:
            start = time.monotonic()
            async with db.open_session(read_only=True) as session:
                assert await session.get(User, 1)
            return time.monotonic() - start

        writers = asyncio.gather(*(write(i) for i in range(2, 22)))
        slowest = 0.0
        while not writers.done():
            slowest = max(slowest, await read())
            await asyncio.sleep(0.05)
        assert max(await writers) < 6
        assert slowest < 0.5
        outside.execute("rollback")
        outside.close()

    run(test)


def test_two_writers_of_two_processes_wait_for_each_other(file: Path) -> None:
    async def test() -> None:
        async with db.open_session() as session:
            session.add(user(1))
        # The pool of another process would be another pool: here are both in one.
        other = Database(f"sqlite:///{file}").writer

        async def count_up(engine: AsyncEngine) -> None:
            for _ in range(20):
                async with AsyncSession(engine) as session:
                    row = await session.get_one(User, 1)
                    await asyncio.sleep(0.001)
                    row.name = str(int(row.name) + 1)
                    await session.commit()

        await asyncio.gather(count_up(database().writer), count_up(other))
        await other.dispose()
        async with db.open_session(read_only=True) as session:
            assert (await session.get_one(User, 1)).name == "40"

    run(test)


def test_write_cancelled_in_a_statement_leaves_no_lock(file: Path) -> None:
    async def test() -> None:
        insert = text(
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000000)"
            " insert into users"
            " (name, email, created_at, updated_at, version, name_key, email_key)"
            " select 'x', i, 0, 0, 1, 'x', 'k' || i from n returning id"
        )
        for _ in range(5):

            async def write() -> None:
                async with db.open_session() as session:
                    await (await session.connection()).stream(insert)
                    pytest.fail("it took less than a tenth of a second")

            task = asyncio.create_task(write())
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        outside = sqlite3.connect(file, timeout=0, isolation_level=None)
        began = time.monotonic()
        while True:
            try:
                outside.execute("begin immediate")
                break
            except sqlite3.OperationalError:
                assert time.monotonic() - began < 3, "the lock is held"
                await asyncio.sleep(0.05)
        assert outside.execute("select count(*) from users").fetchone() == (0,)
        outside.close()

    run(test)


def test_export_holds_no_connection_between_two_pages(file: Path) -> None:
    async def test() -> None:
        async with db.open_session() as session:
            session.add_all(user(i) for i in range(450))
        sizes = []
        async with open_store(database(), read_only=True) as store:
            async for users in read_pages(store):
                sizes.append(len(users))
                assert database().reader.pool.checkedout() == 0  # type: ignore[attr-defined]  # QueuePool
        assert sizes == [200, 200, 50]

    run(test)


def in_process(test: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]) -> None:
    """Run a test with a client of the app in this process, so that it can get at the engine."""
    from app import app

    async def with_client() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await test(client)

    run(with_client)


def test_full_disk_is_507_and_reading_goes_on(file: Path) -> None:
    async def limit_pages(pages: int) -> None:
        async with db.open_session() as session:
            await (await session.connection()).exec_driver_sql(f"pragma max_page_count = {pages}")

    async def test(client: httpx.AsyncClient) -> None:
        await limit_pages(10)
        statuses, i = [], 0
        while 507 not in statuses and i < 500:
            new = {"name": "x" * 100, "email": f"{i}@example.com"}
            statuses.append((await client.post("/users/", json=new)).status_code)
            i += 1
        assert set(statuses) == {201, 507}
        page = (await client.get("/users/?total=true")).json()
        assert page["total"] == statuses.count(201)
        await limit_pages(1000)
        assert (await client.post("/users/", json=new)).status_code == 201

    in_process(test)


def test_commit_that_fails_is_never_a_201(file: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        # A foreign key that is checked at the COMMIT, and broken by every insert.
        with sqlite3.connect(file) as connection:
            connection.execute(
                "create table child (id integer references users deferrable initially deferred)"
            )
            connection.execute(
                "create trigger broken after insert on users"
                " begin insert into child values (-1); end"
            )
        new = {"name": "Ada", "email": "ada@example.com"}
        for _ in range(3):
            assert (await client.post("/users/", json=new)).status_code == 409
        assert (await client.get("/users/")).json()["items"] == []
        connection.execute("drop trigger broken")
        connection.close()
        assert (await client.post("/users/", json=new)).status_code == 201

    in_process(test)


def test_version_that_is_no_number_becomes_no_header(file: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        new = {"name": "Ada", "email": "ada@example.com"}
        assert (await client.post("/users/", json=new)).headers["etag"] == '"1"'
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("UPDATE users SET version = 'x' || char(13, 10) || 'y: z'")
        with pytest.raises(ValueError, match="format code"):
            await client.get("/users/1")

    in_process(test)


def test_verb_is_not_retried_without_what_its_session_did_before(file: Path) -> None:
    """A rollback undoes that, too, and the request would succeed without it."""
    tries: list[bool] = []
    busy = sqlite3.OperationalError("database is locked")
    busy.sqlite_errorname = "SQLITE_BUSY"

    class Store(SQLUserStore):
        @retry_if_busy
        async def fail(self) -> None:
            tries.append(True)
            await self.session.connection()
            raise OperationalError(None, None, busy)

    async def test() -> None:
        for before, expected in ((False, 3), (True, 1)):
            tries.clear()
            async with db.open_session() as session:
                if before:
                    session.add(user(1))
                    await session.flush()
                with pytest.raises(Fault):
                    await Store(session).fail()
            assert len(tries) == expected
            async with db.open_session(read_only=True) as session:
                assert (await session.exec(select(User))).all() == []

    run(test)

"""Who waits for a connection is served in the order of asking, and no connection is lost."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from databases import Database
from sqlalchemy.engine import make_url
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_, greenlet_spawn

import db
import pool
import sqlite_async  # registers sqlite+loop
from engines import make_engines
from models import UserCreate, UserQuery, UserRow, utc_now
from pool import InOrderPool, in_turn
from start import start
from store import UserStore, choose_backend


def run(file: Path, test: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    """Run a test's coroutine with an engine that has one connection."""
    assert sqlite_async.Dialect.driver == "loop"

    async def with_engine() -> None:
        engine = create_async_engine(
            f"sqlite+loop:///{file}",
            poolclass=InOrderPool,
            pool_size=1,
            max_overflow=0,
            pool_timeout=0.5,
            connect_args={"writes": True},
        )
        try:
            await asyncio.wait_for(test(engine), 10)
        finally:
            await engine.dispose()

    asyncio.run(with_engine())


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
@pytest.mark.parametrize(
    ("size", "changes", "reads"), [(2, 1, 1), (4, 2, 2), (5, 2, 3), (15, 6, 9)]
)
def test_more_connections_are_for_reading(scheme: str, size: int, changes: int, reads: int) -> None:
    engines = make_engines(make_url(f"{scheme}://localhost/roster"), size)
    pools: list[Any] = [engines.writer.pool, engines.reader.pool]
    assert [each.size() for each in pools] == [changes, reads]


def test_nobody_is_overtaken(tmp_path: Path) -> None:
    served: list[int] = []

    async def test(engine: AsyncEngine) -> None:
        def ask(i: int) -> None:
            for _ in range(10):  # to ask again, it need not wait as "async with" would have to
                with engine.sync_engine.connect():
                    served.append(i)
                    await_(asyncio.sleep(0.001))

        await asyncio.gather(*(greenlet_spawn(ask, i) for i in range(5)))

    run(tmp_path / "a.db", test)
    assert served == [0, 1, 2, 3, 4] * 10


def test_who_borrows_waits_in_the_same_queue(tmp_path: Path) -> None:
    served: list[int] = []

    async def test(engine: AsyncEngine) -> None:
        pool = engine.sync_engine.pool
        assert isinstance(pool, InOrderPool)

        def ask(i: int) -> None:
            for _ in range(10):
                with engine.sync_engine.connect():
                    served.append(i)
                    await_(asyncio.sleep(0.001))

        async def borrow(i: int) -> None:
            for _ in range(10):
                entry = await pool.borrow()
                assert entry
                served.append(i)
                await asyncio.sleep(0.001)
                pool.give_back(entry)

        assert await pool.borrow() is None, "there was no connection yet"
        async with engine.connect():
            pass
        tasks = [greenlet_spawn(ask, 0), borrow(1), greenlet_spawn(ask, 2), borrow(3)]
        await asyncio.gather(*tasks)

    run(tmp_path / "a.db", test)
    assert served == [0, 1, 2, 3] * 10


def test_who_borrows_is_told_after_a_while(tmp_path: Path) -> None:
    async def test(engine: AsyncEngine) -> None:
        pool: Any = engine.sync_engine.pool
        async with engine.connect():
            with pytest.raises(NoConnection):
                await pool.borrow()
        pool.give_back(await pool.borrow())

    run(tmp_path / "a.db", test)


@pytest.mark.parametrize("why", ["old", "invalid", "all invalid", "closed"])
def test_who_borrows_gets_no_connection_that_is_of_no_use(tmp_path: Path, why: str) -> None:
    async def test(engine: AsyncEngine) -> None:
        pool: Any = engine.sync_engine.pool
        async with engine.connect() as connection:
            if why == "invalid":
                await connection.invalidate()
        match why:
            case "old":
                pool._recycle = 0.01
                await asyncio.sleep(0.02)
            case "all invalid":
                pool._invalidate_time = time.time()
            case "closed":
                entry = await pool.borrow()
                entry.driver_connection.is_closed = lambda: True
                pool.give_back(entry)
        assert await pool.borrow() is None
        pool._recycle = -1
        assert (pool.checkedin(), pool.checkedout()) == (0, 0), "its place is not free"
        async with engine.connect():
            pass
        entry = await pool.borrow()
        assert entry, "there is a new one"
        pool.give_back(entry)

    run(tmp_path / "a.db", test)


def test_who_waits_too_long_is_told_and_the_next_one_is_served(tmp_path: Path) -> None:
    async def test(engine: AsyncEngine) -> None:
        async with engine.connect():
            with pytest.raises(NoConnection):
                async with engine.connect():
                    pass
        async with engine.connect():
            pass

    run(tmp_path / "a.db", test)


@pytest.mark.parametrize("handed_over", [True, False])
def test_who_is_cancelled_keeps_no_connection(tmp_path: Path, handed_over: bool) -> None:
    async def test(engine: AsyncEngine) -> None:
        async def ask() -> None:
            async with engine.connect():
                pass

        holder = await engine.connect()
        waiting = asyncio.create_task(ask())
        await asyncio.sleep(0.01)
        if handed_over:  # it has the connection, but has not run since
            await holder.close()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await holder.close()
        await ask()

    run(tmp_path / "a.db", test)


class Place:
    """Something of which one at a time may make use."""

    def __init__(self) -> None:
        self.turn = asyncio.Semaphore(1)
        self.served: list[int] = []

    @in_turn
    async def use(self, i: int) -> None:
        """Note who does."""
        self.served.append(i)
        await asyncio.sleep(0.001)


def test_who_leaves_or_waits_too_long_takes_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "WAIT_MAX", 0.05)
    place = Place()

    async def test() -> None:
        async with place.turn:
            with pytest.raises(TimeoutError):
                await place.use(0)
            leaving = asyncio.create_task(place.use(1))
            await asyncio.sleep(0.001)
            leaving.cancel()
            staying = asyncio.create_task(place.use(2))
        await staying
        with pytest.raises(asyncio.CancelledError):
            await leaving
        leaving = asyncio.create_task(place.use(3))
        await asyncio.sleep(0)
        leaving.cancel()  # in the middle
        await place.use(4)

    asyncio.run(test())
    assert place.served == [2, 3, 4]


on_servers = pytest.mark.parametrize("database", ["mongodb", "redis"], indirect=True)


@pytest.fixture
def backend(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a backend that has two connections to an empty database."""
    monkeypatch.setenv("POOL_SIZE", "2")
    with database.new() as url:
        monkeypatch.setenv("DATABASE_URL", url)
        db.get_settings.cache_clear()
        backend: Any = choose_backend(url)
        backend.make_store.cache_clear()
        yield backend
        backend.make_store.cache_clear()
    db.get_settings.cache_clear()


@on_servers
def test_nobody_is_overtaken_on_the_way_to_a_server(backend: Any) -> None:
    done = dict.fromkeys(range(20), 0)

    async def test() -> None:
        await start(backend)
        store = await backend.get_store()
        user = await store.add(UserCreate(name="Ada", email="ada@example.com"))

        async def ask(i: int) -> None:
            while max(done.values()) < 20:
                await store.get(user.id)
                done[i] += 1

        await asyncio.gather(*(ask(i) for i in done))
        await backend.stop()

    asyncio.run(asyncio.wait_for(test(), 30))
    assert min(done.values()) >= 10  # a server may be slow to answer one; overtaken, it is 1


@on_servers
def test_every_verb_waits_its_turn(backend: Any) -> None:
    verbs = {name for name, verb in vars(UserStore).items() if inspect.iscoroutinefunction(verb)}
    assert len(verbs) == 11
    others = {
        name for name in verbs if not hasattr(getattr(backend.make_store(), name), "__wrapped__")
    }
    # These call another one.
    assert others == ({"add", "ping"} if backend.__name__ == "store_redis" else set())


# PyMongo's own pool would wait.
@pytest.mark.parametrize("database", ["redis"], indirect=True)
def test_start_waits_its_turn_when_the_app_serves_already(backend: Any) -> None:
    async def test() -> None:
        await start(backend)
        store = await backend.get_store()

        started = asyncio.Event()

        async def ask() -> None:
            while not started.is_set():
                await store.page(UserQuery(), 5)

        serving = asyncio.gather(*(ask() for _ in range(10)))
        try:
            for _ in range(5):  # as after an outage
                await start(backend)
            new: dict[str, Any] = {"name": "Ada", "email": "ada@example.com", "version": 1}
            now = utc_now()
            await store.restore([UserRow(id=1, **new, created_at=now, updated_at=now)])
            await store.set_last_id(1)
        finally:
            started.set()
            await serving
        await backend.stop()

    asyncio.run(asyncio.wait_for(test(), 30))

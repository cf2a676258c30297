"""Who waits for a connection is served in the order of asking, and no connection is lost."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_, greenlet_spawn

from engine import Database, sqlite  # sqlite registers sqlite+loop
from engine.direct import InOrderPool


def run(file: Path, test: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    """Run a test's coroutine with an engine that has one connection."""
    assert sqlite.Dialect.driver == "loop"

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
    engines = Database(f"{scheme}://localhost/roster", size=size)
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
                pool._do_return_conn(entry)

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
        pool._do_return_conn(await pool.borrow())

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
                pool._do_return_conn(entry)
        assert await pool.borrow() is None
        pool._recycle = -1
        assert not pool.slots.locked(), "its slot is not free"
        assert pool.checkedout() == 0
        async with engine.connect():
            pass
        entry = await pool.borrow()
        assert entry, "there is a new one"
        pool._do_return_conn(entry)

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

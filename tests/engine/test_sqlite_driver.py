"""What ``engine/sqlite.py`` promises, number by number.

Nothing here measures how fast SQLite is: what is slow is made much slower than a busy machine is.
"""

import asyncio
import gc
import itertools
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from sqlalchemy import Column, Integer, MetaData, Table, func, text
from sqlalchemy import insert as insert_into
from sqlalchemy.exc import (
    ArgumentError,
    IntegrityError,
    InvalidRequestError,
    MissingGreenlet,
    OperationalError,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.util import greenlet_spawn

from engine import Database
from engine import sqlite as driver_module

Test = Callable[[AsyncEngine, AsyncEngine], Awaitable[None]]
TestOfAll = Callable[[Database], Awaitable[None]]

# Counts to :n, a quarter of a second for each million, and calls tick() once, when it begins.
COUNT = (
    "(WITH RECURSIVE n(i) AS (SELECT tick() UNION ALL SELECT i + 1 FROM n WHERE i < :n)"
    " SELECT i FROM n)"
)
READ = text(f"SELECT max(i) FROM {COUNT}")  # noqa: S608 (it is the text above)
WRITE = text(f"INSERT INTO t SELECT i FROM {COUNT}")  # noqa: S608 (it is the text above)
T = Table("t", MetaData(), Column("rowid", Integer, primary_key=True), Column("i", Integer))
LONG = {"n": 2_000_000}
ENDLESS = {"n": 30_000_000}  # ten seconds


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return where the database will be."""
    return tmp_path / "a.db"


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the threads in which tick() was called: where statements ran."""
    names: list[str] = []

    def tick() -> int:
        names.append(threading.current_thread().name.partition("_")[0])
        return 1

    set_up = driver_module.Connection.set_up

    def set_up_with_tick(connection: Any, *args: Any) -> None:
        set_up(connection, *args)
        connection.create_function("tick", 0, tick)

    monkeypatch.setattr(driver_module.Connection, "set_up", set_up_with_tick)
    monkeypatch.setattr(driver_module, "slow", set())
    return names


def run(file: Path, test: Test) -> None:
    """Run a test's coroutine with the writer and the reader of a new file."""
    run_with_all(file, lambda engines: test(engines.writer, engines.reader))


def run_with_all(file: Path, test: TestOfAll) -> None:
    """Run a test's coroutine with the engines of a new file, which has a table ``t``.

    What the loop calls without anybody who waits for it must not raise either.
    """
    unheard: list[dict[str, Any]] = []

    async def with_engines() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: unheard.append(what))
        engines: Database = Database(f"sqlite:///{file}", size=1)
        try:
            async with engines.writer.begin() as writing:
                await writing.execute(text("CREATE TABLE t (i)"))
            await asyncio.wait_for(test(engines), 30)
        finally:
            for engine in (engines.writer, engines.reader):
                await engine.dispose()

    asyncio.run(with_engines())
    assert not unheard


def rows(file: Path) -> list[int]:
    """Return what is in the table, as somebody else sees it."""
    connection = sqlite3.connect(file)
    try:
        return [row[0] for row in connection.execute("SELECT i FROM t ORDER BY i LIMIT 50")]
    finally:
        connection.close()


def insert_outside(file: Path) -> None:
    """Insert a row as another process does."""
    connection = sqlite3.connect(file)
    with connection:
        connection.execute("INSERT INTO t VALUES (1)")
    connection.close()


async def stall(work: Awaitable[Any]) -> float:
    """Wait for something; return the longest part of that time in which the loop did nothing else.

    A part, not seconds: on a busy machine everything takes longer.
    """
    longest = 0.0
    began = last = time.monotonic()
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait([task], timeout=0.005)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    await task
    return longest / (last - began)


async def until_in_thread(ticks: list[str], statements: int = 1) -> None:
    """Wait until some statements have begun to run in threads."""
    while ticks.count("sqlite") < statements:  # noqa: ASYNC110 (it is the thread that says so)
        await asyncio.sleep(0.01)


async def insert(engine: AsyncEngine, i: int) -> None:
    """Store a number."""
    async with engine.begin() as writing:
        await writing.execute(text("INSERT INTO t VALUES (:i)"), {"i": i})


async def driver(connection: AsyncConnection) -> driver_module.Connection:
    """Return the connection below SQLAlchemy's."""
    found = (await connection.get_raw_connection()).driver_connection
    assert isinstance(found, driver_module.Connection)
    return found


async def cancel(task: asyncio.Task[Any]) -> float:
    """Cancel a task; return how long it took to end."""
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return time.monotonic() - began


def test_1_loop_does_not_wait_for_a_lock(file: Path) -> None:
    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        outside = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        outside.execute("BEGIN IMMEDIATE")
        threading.Timer(1, lambda: outside.execute("ROLLBACK")).start()
        assert await stall(insert(writer, 1)) < 0.5
        outside.close()

    run(file, test)
    assert rows(file) == [1]


def test_1_patience_ends_for_all_who_wait_for_one_lock(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "PATIENCE", 1)

    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        outside = sqlite3.connect(file, isolation_level=None)
        outside.execute("BEGIN IMMEDIATE")

        async def refused(after: float) -> float:
            await asyncio.sleep(after)
            with pytest.raises(OperationalError) as caught:
                await insert(writer, 1)
            assert getattr(caught.value.orig, "sqlite_errorname", "") == "SQLITE_BUSY"
            return time.monotonic()

        began = time.monotonic()
        first, second = await asyncio.gather(refused(0), refused(0.7))
        assert first - began >= 1
        assert second - first < 0.5, "the second waited all over again"
        outside.execute("ROLLBACK")
        outside.close()
        await insert(writer, 2)

    run(file, test)
    assert rows(file) == [2]


@pytest.fixture
def slow_commit(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let every COMMIT take half a second, as on a slow disk; return the threads of those done."""
    threads: list[str] = []
    send = driver_module.Connection.send

    def slow_send(connection: Any, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql == "COMMIT":
            time.sleep(0.5)
        cursor = send(connection, sql, *parameters)
        if sql == "COMMIT":
            threads.append(threading.current_thread().name)
        return cursor

    monkeypatch.setattr(driver_module.Connection, "send", slow_send)
    return threads


def test_2_loop_does_not_wait_for_a_commit(file: Path, slow_commit: list[str]) -> None:
    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        assert await stall(insert(writer, 1)) < 0.5

    run(file, test)
    assert rows(file) == [1]


def test_3_loop_does_not_wait_for_a_long_query(file: Path, ticks: list[str]) -> None:
    async def test(_: AsyncEngine, reader: AsyncEngine) -> None:
        async def read() -> None:
            async with reader.connect() as reading:
                assert await reading.scalar(READ, LONG) == LONG["n"]

        assert await stall(read()) < 0.5
        assert ticks == ["MainThread", "sqlite"]

    run(file, test)


def test_3_loop_does_not_wait_for_a_long_query_without_a_session(
    file: Path, ticks: list[str]
) -> None:
    async def test(engines: Database) -> None:
        async def read(n: int) -> None:
            assert await engines.read(READ, {"n": n}) == [(n,)]

        await read(1)  # opens the connection
        ticks.clear()
        assert await stall(read(LONG["n"])) < 0.5
        for n in (10**6, 1, 1):
            await read(n)
        assert ticks == ["MainThread", "sqlite", "sqlite", "sqlite", "MainThread"]

    run_with_all(file, test)


def test_3_long_query_is_answered_when_too_many_are_remembered(
    file: Path, ticks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(_: AsyncEngine, reader: AsyncEngine) -> None:
        monkeypatch.setattr(driver_module, "slow", {f"{i}" for i in range(1000)})
        async with reader.connect() as reading:
            assert await reading.scalar(READ, LONG) == LONG["n"]
        assert len(driver_module.slow) == 1000

    run(file, test)


def test_3_loop_does_not_wait_for_a_long_write(file: Path, ticks: list[str]) -> None:
    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        async def write() -> None:
            async with writer.begin() as writing:
                await writing.execute(WRITE, LONG)
                assert await writing.scalar(text("SELECT count(*) FROM t")) == LONG["n"]

        assert await stall(write()) < 0.5
        assert ticks == ["sqlite"]

    run(file, test)
    assert rows(file) == list(range(1, 51))


def test_3_what_was_written_before_a_long_write_is_kept(file: Path, ticks: list[str]) -> None:
    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        async with writer.begin() as writing:
            await writing.execute(text("INSERT INTO t VALUES (-1)"))
            await writing.execute(WRITE, LONG)

    run(file, test)
    assert rows(file) == [-1, *range(1, 50)]


def test_3_long_query_in_a_transaction_leaves_it_as_it_is(file: Path, ticks: list[str]) -> None:
    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        async with writer.begin() as writing:
            await writing.execute(text("INSERT INTO t VALUES (-1)"))
            await writing.execute(READ, LONG)
            await writing.execute(text("INSERT INTO t VALUES (-2)"))

    run(file, test)
    assert rows(file) == [-2, -1]


def test_3_write_interrupted_at_any_step_is_done_once(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "STEPS", 1)
    looks = 0

    def monotonic() -> float:
        nonlocal looks
        looks += 1
        return 1.0 if looks == until_late else 0.0

    clock = SimpleNamespace(monotonic=monotonic, thread_time=time.thread_time)
    monkeypatch.setattr(driver_module, "time", clock)
    until_late = 0

    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        nonlocal looks, until_late
        for until_late in range(40):
            looks = 0
            await insert(writer, until_late)

    run(file, test)
    assert rows(file) == list(range(40))


def test_4_transactions_begin_and_end_without_a_budget(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "STEPS", 1)  # SQLite looks at the clock all the time

    async def test(writer: AsyncEngine, reader: AsyncEngine) -> None:
        for i in range(5):
            async with writer.connect() as writing:
                await writing.execute(text("INSERT INTO t VALUES (:i)"), {"i": i})
                time.sleep(2 * driver_module.BUDGET)  # noqa: ASYNC251 (the statement is over)
                await (writing.rollback() if i % 2 else writing.commit())
            async with reader.connect() as reading:
                await reading.execute(text("SELECT * FROM t"))
                time.sleep(2 * driver_module.BUDGET)  # noqa: ASYNC251 (the statement is over)

    run(file, test)
    assert rows(file) == [0, 2, 4]


def test_4_quick_reader_begins_without_a_budget(
    file: Path, ticks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "STEPS", 1)

    def slow_disk(_: object) -> None:
        time.sleep(2 * driver_module.BUDGET)

    async def test(engines: Database) -> None:
        await engines.read(text("SELECT * FROM t"), {})
        monkeypatch.setattr(driver_module, "check_files", slow_disk)
        await engines.read(text("SELECT tick()"), {})
        assert ticks == ["MainThread"]
        assert not driver_module.slow

    run_with_all(file, test)


def test_5_transaction_that_sqlite_has_undone_is_over(file: Path) -> None:
    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        async with writer.begin() as writing:
            await writing.execute(text("CREATE UNIQUE INDEX one ON t (i)"))
        async with writer.connect() as writing:
            await writing.execute(text("INSERT INTO t VALUES (1)"))
            for sql in ("INSERT OR ROLLBACK INTO t VALUES (1)", "INSERT INTO t VALUES (2)"):
                with pytest.raises(IntegrityError, match="UNIQUE"):
                    await writing.execute(text(sql))
            with pytest.raises(IntegrityError, match="UNIQUE"):
                await writing.commit()
        await insert(writer, 3)

    run(file, test)
    assert rows(file) == [3]


@pytest.mark.parametrize("sql", [READ, WRITE])
def test_6_cancelled_statement_stops_and_is_waited_for(
    file: Path, ticks: list[str], monkeypatch: pytest.MonkeyPatch, sql: Any
) -> None:
    ended: list[bool] = []
    timed = driver_module.timed

    def timed_to_the_end(work: Any) -> Any:
        try:
            return timed(work)
        finally:
            time.sleep(0.2)
            ended.append(True)

    monkeypatch.setattr(driver_module, "timed", timed_to_the_end)

    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        async def write() -> None:
            async with writer.begin() as writing:
                await writing.execute(text("INSERT INTO t VALUES (-1)"))
                ended.clear()
                await writing.execute(sql, ENDLESS)

        task = asyncio.create_task(write())
        await until_in_thread(ticks)
        assert await cancel(task) < 3
        assert ended == [True], "the thread was still at work"
        await insert(writer, 1)

    run(file, test)
    assert rows(file) == [1]


def test_6_cancelled_commit_is_done_all_the_same(
    file: Path, slow_commit: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "STEPS", 1)  # SQLite looks all the time if it is to stop

    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        done = len(slow_commit)
        task = asyncio.create_task(insert(writer, 1))
        await asyncio.sleep(0.2)
        for _tries in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
        assert not task.done()
        await cancel(task)
        assert len(slow_commit) == done + 1
        assert rows(file) == [1]
        await insert(writer, 2)

    run(file, test)
    assert rows(file) == [1, 2]


def test_6_two_tasks_on_one_connection_take_turns(file: Path, ticks: list[str]) -> None:
    async def test(_: AsyncEngine, reader: AsyncEngine) -> None:
        async with reader.connect() as reading:

            async def read_later() -> None:
                await until_in_thread(ticks)
                assert await reading.scalar(text("SELECT 7")) == 7

            both = asyncio.gather(reading.scalar(READ, LONG), read_later())
            assert await stall(both) < 0.5
            assert (await both)[0] == LONG["n"]

    run(file, test)


def test_6_connection_is_not_closed_while_its_thread_is_at_work(
    file: Path, ticks: list[str]
) -> None:
    async def test(_: AsyncEngine, reader: AsyncEngine) -> None:
        reading = await reader.connect()
        task = asyncio.create_task(reading.execute(READ, LONG))
        await until_in_thread(ticks)
        below = await driver(reading)
        closed: list[bool] = []

        async def close() -> None:
            await reading.invalidate()
            closed.append(True)

        closing = asyncio.create_task(close())
        await asyncio.sleep(0.1)
        assert not closed
        await asyncio.gather(task, closing)
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            below.send("SELECT 1")
        await reading.close()

    run(file, test)


def test_7_cursor_left_behind_holds_no_lock(file: Path) -> None:
    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        await insert(writer, 1)
        await insert(writer, 2)
        async with writer.connect() as writing:
            await writing.execute(text("INSERT INTO t VALUES (3)"))
            left_behind = sqlite3.Cursor(await driver(writing)).execute("SELECT * FROM t")
            await writing.invalidate()
        outside = sqlite3.connect(file, timeout=0, isolation_level=None)
        outside.execute("BEGIN IMMEDIATE")
        outside.close()
        del left_behind

    run(file, test)
    assert rows(file) == [1, 2]


def test_8_writers_queue_for_one_connection(file: Path) -> None:
    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        async with writer.connect():
            waiting = asyncio.create_task(insert(writer, 1), context=Context())
            await asyncio.sleep(0.1)
            assert not waiting.done()
        await waiting

    run(file, test)


def test_8_writer_opens_first(file: Path) -> None:
    async def test() -> None:
        engines = Database(f"sqlite:///{file}", size=1)
        async with engines.reader.connect() as reading:
            assert await reading.scalar(text("PRAGMA journal_mode")) == "wal"
        for engine in (engines.writer, engines.reader):
            await engine.dispose()

    asyncio.run(test())


def test_8_slow_statement_goes_to_the_thread_until_it_is_quick(
    file: Path, ticks: list[str]
) -> None:
    async def test(_: AsyncEngine, reader: AsyncEngine) -> None:
        async with reader.connect() as reading:
            for n in (10**6, 10**6, 1, 1):
                assert await reading.scalar(READ, {"n": n}) == n
        assert ticks == ["MainThread", "sqlite", "sqlite", "sqlite", "MainThread"]

    run(file, test)


def test_8_quick_reader_waits_for_no_slow_one(file: Path, ticks: list[str]) -> None:
    async def test(engines: Database) -> None:
        await engines.read(text("SELECT * FROM t"), {})  # opens the connection, and keeps it

        async def read_in_a_session() -> Any:
            async with engines.reader.connect() as session:
                return await session.execute(READ, ENDLESS)

        slow = [asyncio.ensure_future(read_in_a_session()) for _ in range(4)]
        slow += [asyncio.ensure_future(engines.read(READ, ENDLESS)) for _ in range(2)]
        await until_in_thread(ticks, 4)
        async with asyncio.timeout(2):
            await engines.read(text("SELECT * FROM t"), {})
        assert not any(task.done() for task in slow)
        for task in slow:
            task.cancel()
        await asyncio.wait(slow)

    run_with_all(file, test)


def test_8_cancelled_reader_leaves_no_connection_to_share(file: Path, ticks: list[str]) -> None:
    async def test(engines: Database) -> None:
        first = asyncio.ensure_future(engines.read(READ, ENDLESS))
        await until_in_thread(ticks, 1)
        first.cancel()
        await asyncio.wait([first])
        await insert(engines.writer, 1)
        assert [*await engines.read(text("SELECT * FROM t"), {})] == [(1,)]

    run_with_all(file, test)


def test_8_who_has_read_in_a_session_reads_nothing_older(file: Path) -> None:
    async def test(engines: Database) -> None:
        count = text("SELECT count(*) FROM t")
        for before, engine in enumerate((engines.writer, engines.reader)):
            await engines.read(count, {})
            await asyncio.sleep(0.01)  # another round
            assert [*await engines.read(count, {})] == [(before,)]
            insert_outside(file)
            session = AsyncSession(engine)
            assert await session.scalar(count) == before + 1
            await session.close()  # "async with" would take another round
            assert [*await engines.read(count, {})] == [(before + 1,)]

    run_with_all(file, test)


def test_9_python_begins_no_transactions(file: Path) -> None:
    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        async with writer.connect() as writing:
            connection = await driver(writing)
            connection.send("INSERT INTO t VALUES (1)")
            assert not connection.in_transaction
            if sys.version_info >= (3, 12):
                assert connection.autocommit is True
        async with writer.connect() as writing:
            with pytest.raises(ArgumentError):
                await writing.execution_options(isolation_level="AUTOCOMMIT")

    run(file, test)


@pytest.mark.parametrize("session", [True, False])
def test_10_readers_leave_loop_iterations_to_others(file: Path, session: bool) -> None:
    async def test(database: Database) -> None:
        loop = asyncio.get_running_loop()
        iterations = 0
        select_all = text("SELECT * FROM t")

        def count() -> None:
            nonlocal iterations
            iterations += 1
            loop.call_soon(count)

        def read_at_once() -> None:
            with database.reader.sync_engine.connect() as reading:
                reading.execute(select_all)

        async def read() -> int:
            before = iterations
            if session:
                await greenlet_spawn(read_at_once)
            else:
                await database.read(select_all, {})
            return iterations - before

        await read()  # opens the connection
        loop.call_soon(count)
        assert min(await asyncio.gather(*(read() for _ in range(24)))) >= 1
        async with database.writer.begin():
            assert min(await asyncio.gather(*(read() for _ in range(24)))) >= 3
        assert await read() < 3, "a reader gives way to a writer that is gone"

    run_with_all(file, test)


def test_11_rows_that_come_during_a_commit_share_the_next_one(
    file: Path, slow_commit: list[str]
) -> None:
    async def test(engines: Database) -> None:
        async def store(i: int) -> None:
            assert await engines.insert(insert_into(T), {"i": i}) == i + 1  # the rowid
            assert i in rows(file), "answered before it was on the disk"

        slow_commit.clear()
        first = asyncio.create_task(store(0))
        await asyncio.sleep(0.2)
        await asyncio.gather(first, *(store(i) for i in range(1, 20)))
        assert len(slow_commit) == 2

    run_with_all(file, test)
    assert rows(file) == [*range(20)]


def test_11_row_that_is_refused_leaves_the_others_alone(file: Path) -> None:
    async def test(engines: Database) -> None:
        async with engines.writer.begin() as writing:
            await writing.execute(text("CREATE UNIQUE INDEX one ON t (i)"))
        inserts = [engines.insert(insert_into(T), {"i": i}) for i in (1, 2**70, 2, 1, 3)]
        outcomes = await asyncio.gather(*inserts, return_exceptions=True)
        errors = [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)]
        assert errors == [OperationalError, IntegrityError]

    run_with_all(file, test)
    assert rows(file) == [1, 2, 3]


def test_11_transaction_that_fails_fails_for_all_who_share_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "PATIENCE", 0.3)

    async def test(engines: Database) -> None:
        async with engines.writer.begin() as writing:
            await writing.execute(text("CREATE UNIQUE INDEX one ON t (i)"))
        undo = insert_into(T).prefix_with("OR ROLLBACK")
        inserts = [engines.insert(undo, {"i": i}) for i in (1, 1, 2)]
        outcomes = await asyncio.gather(*inserts, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [IntegrityError] * 3
        assert rows(file) == []

        outside = sqlite3.connect(file, isolation_level=None)
        outside.execute("BEGIN IMMEDIATE")
        inserts = [engines.insert(insert_into(T), {"i": i}) for i in (3, 4)]
        outcomes = await asyncio.gather(*inserts, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [OperationalError] * 2
        outside.close()
        await engines.insert(insert_into(T), {"i": 5})

    run_with_all(file, test)
    assert rows(file) == [5]


def test_11_who_is_cancelled_leaves_the_others_alone(file: Path, slow_commit: list[str]) -> None:
    async def test(engines: Database) -> None:
        tasks = [asyncio.create_task(engines.insert(insert_into(T), {"i": i})) for i in range(6)]
        await asyncio.sleep(0.2)
        later = [asyncio.create_task(engines.insert(insert_into(T), {"i": i})) for i in range(6, 9)]
        await asyncio.sleep(0)
        for task in (tasks[0], tasks[3], later[0]):
            await cancel(task)
        await asyncio.gather(*tasks[1:3], *tasks[4:], *later[1:])

    run_with_all(file, test)
    # 6 was given up before its transaction began.
    assert rows(file) == [0, 1, 2, 3, 4, 5, 7, 8]


def test_11_rows_do_not_overtake_who_waits_for_the_writer(file: Path) -> None:
    async def test(engines: Database) -> None:
        numbers = itertools.count(10)
        waited = asyncio.Event()

        async def add_rows() -> None:
            while not waited.is_set():
                await asyncio.sleep(random.uniform(0, 0.02))  # so that some come during a commit
                await engines.insert(insert_into(T), {"i": next(numbers)})

        async def change() -> None:
            await asyncio.sleep(0.1)
            for i in range(5):
                before = next(numbers)
                await insert(engines.writer, i)
                # Not more than who had come before, and who came with the transaction under way.
                assert next(numbers) - before < 500
            waited.set()

        await asyncio.gather(change(), *(add_rows() for _ in range(100)))

    run_with_all(file, test)


def test_11_rows_are_stored_on_the_loop_which_does_not_wait_for_all_of_them(
    file: Path, ticks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(engines: Database) -> None:
        loop = asyncio.get_running_loop()
        rounds: list[int] = []

        def count() -> None:
            rounds.append(len(ticks))
            if len(ticks) < 20:  # or it would hold up the thread below
                loop.call_soon(count)

        loop.call_soon(count)
        ticked = insert_into(T).values(i=func.tick())
        await asyncio.gather(*(engines.insert(ticked, {}) for _ in range(20)))
        assert ticks == ["MainThread"] * 20
        assert {*range(20)} <= {*rounds}, "the loop had to wait for several rows"
        async with engines.writer.begin() as writing:
            await writing.execute(WRITE, LONG)
        assert ticks[-1] == "sqlite", "what is not a row is not quick"

    monkeypatch.setattr(driver_module, "BUDGET", -1)  # seconds; all rows take longer
    run_with_all(file, test)


@pytest.mark.parametrize("replaced", [True, False])
def test_12_file_that_is_gone_is_not_used_and_not_made_anew(file: Path, replaced: bool) -> None:
    async def test(engines: Database) -> None:
        writer, reader = (engines.writer, engines.reader)

        async def read() -> None:
            async with reader.connect() as reading:
                await reading.execute(text("SELECT * FROM t"))

        async def read_directly() -> None:
            await engines.read(text("SELECT * FROM t"), {})

        await insert(writer, 1)
        await read()
        away = file.rename(file.with_suffix(".away"))
        if replaced:
            file.write_text("another one")
        for anew in (False, True):
            if anew:
                for engine in (writer, reader):
                    await engine.dispose()
            row = engines.insert(insert_into(T), {"i": 3})
            for use in (insert(writer, 2), row, read(), read_directly()):
                with pytest.raises(
                    OperationalError, match=r"a\.db was deleted, moved away or repl"
                ):
                    await use
        assert (file.read_text() if file.exists() else "") == "another one" * replaced
        away.replace(file)
        await insert(writer, 4)
        await read()
        await read_directly()

    run_with_all(file, test)
    assert rows(file) == [1, 4]


def test_13_task_that_holds_the_writer_is_not_given_it_again(file: Path) -> None:
    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        async with writer.begin() as writing:
            await writing.execute(text("INSERT INTO t VALUES (1)"))
            for use in (insert(writer, 2), asyncio.create_task(insert(writer, 2))):
                with pytest.raises(InvalidRequestError, match="is writing already"):
                    await use
        await insert(writer, 3)
        another = Database(f"sqlite:///{file}.other")
        async with writer.begin(), another.writer.begin():
            pass
        await another.stop()

    run(file, test)
    assert rows(file) == [1, 3]


@pytest.mark.parametrize("session", [True, False])
def test_cursors_leave_nothing_behind(file: Path, session: bool) -> None:
    async def test(engines: Database) -> None:
        if session:
            async with engines.reader.connect() as reading:
                connection = await driver(reading)
                for _ in range(1000):
                    await reading.execute(text("SELECT * FROM t"))
        else:
            for _ in range(1000):
                await engines.read(text("SELECT * FROM t"), {})
            opened = [one for one in driver_module.Connection.opened if one.path == str(file)]
            [connection] = [one for one in opened if not one.writes]
        references = [one for one in gc.get_referents(connection) if isinstance(one, list)]
        assert references, "sqlite3 keeps its references elsewhere"
        assert max(map(len, references)) < 1000

    run_with_all(file, test)


def test_nothing_is_left_when_the_engines_are_disposed_of(file: Path, ticks: list[str]) -> None:
    async def test(engines: Database) -> None:
        await insert(engines.writer, 1)
        async with engines.reader.connect() as reading:
            await reading.execute(READ, LONG)
        await engines.read(text("SELECT * FROM t"), {})

    run_with_all(file, test)
    assert [path.name for path in file.parent.iterdir()] == [file.name], "the log is in use"
    deadline = time.monotonic() + 5
    while names := [t.name for t in threading.enumerate() if t.name.startswith("sqlite")]:
        assert time.monotonic() < deadline, names
        time.sleep(0.01)


def test_forgotten_connection_is_closed_by_the_garbage_collector(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one waits for it: closing the last connection deletes the log."""

    def set_files(connection: Any, files: Any) -> None:
        if not files:  # it was just closed, in its thread
            time.sleep(0.2)
        connection.found = files

    found = property(lambda connection: vars(connection).get("found", {}), set_files)
    monkeypatch.setattr(driver_module.Connection, "files", found)

    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        async def forget() -> None:
            writing = await writer.connect()
            await writing.execute(text("INSERT INTO t VALUES (1)"))

        await forget()
        with pytest.warns(Warning, match="garbage collector"):
            gc.collect()
        await insert(writer, 2)

    run(file, test)
    assert rows(file) == [2]


def test_statement_outside_a_greenlet_raises_and_blocks_no_other(file: Path) -> None:
    """As an attribute that is loaded lazily in async code."""

    async def test(writer: AsyncEngine, _: AsyncEngine) -> None:
        for sql in ("INSERT INTO t VALUES (1)", "SELECT * FROM t"):
            async with writer.connect() as connection:
                await connection.execute(text("INSERT INTO t VALUES (0)"))
                with pytest.raises(MissingGreenlet):
                    connection.sync_connection.execute(text(sql))  # type: ignore[union-attr]  # it is there
        await insert(writer, 2)

    run(file, test)
    assert rows(file) == [2]


def test_process_ends_though_nobody_closed_anything(file: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from sqlalchemy import text\n"
        "from engine import Database\n"
        "async def main():\n"
        "    engines = Database(f'sqlite:///{sys.argv[1]}')\n"
        "    async with engines.writer.begin() as connection:\n"
        "        await connection.execute(text('CREATE TABLE t (i)'))\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", code, str(file)]
    result = subprocess.run(
        command, cwd=file.parent, env={"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=120
    )
    assert (result.returncode, result.stderr) == (0, b"")


def test_14_readers_that_overlap_do_not_keep_the_log_from_being_emptied(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "PATIENCE", 60)  # seconds, for a machine that is busy

    async def test(writer: AsyncEngine, reader: AsyncEngine) -> None:
        sql = (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
            " SELECT count(*), (SELECT count(*) FROM t) FROM n"
        )
        sizes: list[int] = []
        under_way = 0
        overlapped = asyncio.Event()

        async def read() -> None:
            """Read again and again; each time, wait until another reader is in a statement."""
            nonlocal under_way
            while len(sizes) < 60:
                async with reader.connect() as reading:
                    under_way += 1
                    await reading.execute(text(sql))
                    under_way -= 1
                if under_way:
                    overlapped.set()

        readers = [asyncio.create_task(read()) for _ in range(3)]
        for _ in range(60):
            async with writer.begin() as writing:
                await writing.execute(text("INSERT INTO t VALUES (zeroblob(1000000))"))
            sizes.append(Path(f"{file}-wal").stat().st_size)
        await asyncio.gather(*readers)
        assert overlapped.is_set()
        assert driver_module.LOG_MAX < max(sizes) < driver_module.LOG_MAX + 4_000_000

    run(file, test)

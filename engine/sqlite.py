"""SQLite for SQLAlchemy's asyncio half: fast, and never a reason for other requests to wait.

A statement takes SQLite 5 to 50 microseconds, less than handing it to a thread. So what is quick
runs on the event loop, and what can take long in a thread. The promises, each with its tests;
``README.md`` says what they take:

1. The loop never waits for another process's lock; a task does, for 5 seconds.
2. The loop never waits for the disk: COMMIT runs in a thread.
3. The loop never waits for a long statement: it is interrupted, and runs again in a thread.
4. BEGIN, COMMIT and ROLLBACK are never interrupted.
5. A transaction that SQLite has undone by itself fails to its end, COMMIT included.
6. A cancelled task waits until the thread is done with its connection.
7. An open transaction is rolled back before its connection is closed.
8. There is one writer, and readers cannot write. Quick reads share a connection.
9. Transactions are ours alone: Python's own are switched off.
10. A statement leaves loop iterations to others first.
11. Rows that arrive during a commit share the next one; each is acknowledged on the disk.
12. A file that was deleted, moved or replaced is neither used nor made again.
13. A request that holds the writer and asks for it again gets an error at once.
"""

import asyncio
import math
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, ContextVar
from functools import partial
from itertools import islice
from typing import Any, ClassVar, NamedTuple, cast
from weakref import ref

from sqlalchemy import URL, Engine, Executable, Insert, event
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.exc import ArgumentError, InvalidRequestError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import Pool, PoolProxiedConnection
from sqlalchemy.util import await_, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from engine.direct import Rows, Server, compiled, read_by_sqlalchemy
from engine.errors import wrapped
from engine.pool import InOrderPool
from engine.url import SettingsError

# FULL: an acknowledged commit is on the disk.
WRITER = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
READER = ("query_only=ON", "wal_autocheckpoint=0")
BUDGET = 0.003  # seconds of a statement on the loop
STEPS = 1000  # of SQLite's machine, some 20 microseconds, after which it looks at the clock
NO_TRANSACTIONS_BY_PYTHON: dict[str, Any] = (
    {"autocommit": True} if sys.version_info >= (3, 12) else {"isolation_level": None}
)

slow: set[str] = set()  # statements that exceeded the budget when they last ran
# The writer's connection that this task, or one that started it, was given last.
HELD: ContextVar[Callable[[], Any]] = ContextVar("HELD", default=lambda: None)


def sqlite_error(name: str, text: str) -> sqlite3.OperationalError:
    """Return an error as SQLite makes it."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = getattr(sqlite3, name)
    error.sqlite_errorname = name
    return error


class File(NamedTuple):
    """A path, and the file that was there when the database was opened."""

    path: str
    found: os.stat_result

    def check(self) -> None:
        """Raise SQLite's own error for it if the file is gone, or another one is there."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path), self.found):
                return
        text = f"{self.path} was deleted, moved away or replaced"
        raise sqlite_error("SQLITE_READONLY_DBMOVED", text)


class Connection(sqlite3.Connection):
    """A connection whose methods block, as SQLAlchemy expects, but only their greenlet.

    ``await_`` lets the event loop continue until something is done.
    """

    writing: ClassVar["set[Connection]"] = set()  # their transaction is open

    writes: bool
    patience: float  # seconds
    file: File | None = None
    plain: sqlite3.Cursor
    thread: ThreadPoolExecutor

    deadline = math.inf  # after it, a statement is interrupted
    running: asyncio.Future[Any] | None = None  # in the thread
    first_busy = last_busy = 0.0
    begun = False  # SQLAlchemy believes that a writer's transaction is open
    wrote = False  # and has changed something
    quick = False  # it consists of single rows
    failure: sqlite3.Error | None = None

    def set_up(self, writes: bool, patience: float) -> None:
        self.writes = writes
        self.patience = patience
        self.plain = super().cursor()
        self.thread = ThreadPoolExecutor(1, "sqlite")
        self.set_progress_handler(self.is_late, STEPS)

    def cursor(self, *_: Any) -> "Cursor":  # type: ignore[override]  # it makes no other kind
        # A cursor that sqlite3's own method did not make leaves a reference behind, for ever.
        return super().cursor(Cursor)

    def send(self, sql: str) -> sqlite3.Cursor:
        return super().cursor().execute(sql)

    def begin(self) -> None:
        # A writer takes the lock now, before it reads what it will change.
        if self.writes:
            self.check_file()
            self.run(lambda: self.send("BEGIN IMMEDIATE"))
            self.begun, self.wrote, self.quick, self.failure = True, False, False, None
            self.writing.add(self)

    def commit(self) -> None:
        if self.begun:
            self.check()
            try:
                self.run(lambda: self.send("COMMIT"), in_thread=True)
            finally:  # after a COMMIT that failed, SQLite is still in the transaction
                self.rollback()

    def rollback(self) -> None:
        self.begun = False
        self.writing.discard(self)
        if self.in_transaction:
            self.run(lambda: self.send("ROLLBACK"))

    def close(self) -> None:
        # In the thread, and so after everything that it does.
        def work() -> None:
            if self.in_transaction:
                self.send("ROLLBACK")
            super(Connection, self).close()

        self.writing.discard(self)
        closing = self.thread.submit(work)
        self.thread.shutdown(wait=False)
        if in_greenlet():  # otherwise the garbage collector calls
            await_(asyncio.wait([asyncio.wrap_future(closing)]))

    def check(self) -> None:
        """Raise an error if SQLite has undone the transaction."""
        if self.begun and not self.in_transaction:
            raise self.failure or sqlite3.OperationalError("the transaction is over")

    def check_file(self) -> None:
        if self.file:
            self.file.check()

    def attempt(self, sql: str, parameters: Sequence[Any]) -> list[Any] | None:
        """Return the rows of a SELECT, None if ``perform`` has to wait for a lock or a thread."""
        try:
            self.check_file()
            self.deadline = time.monotonic() + BUDGET
            return self.plain.execute(sql, parameters).fetchall()
        except (sqlite3.Error, OverflowError, UnicodeError) as error:  # perform meets it again
            if primary_code(error) == sqlite3.SQLITE_INTERRUPT:
                remember(sql, seconds=math.inf)
            return None
        finally:
            self.deadline = math.inf

    def perform(self, sql: str, work: Callable[[], Any]) -> Any:
        """Run a statement on the loop if it is quick and may be interrupted, else in the thread."""
        if not self.writes:
            self.check_file()
        self.check()
        reads = not self.writes or sql[:6].upper() == "SELECT"
        stoppable = reads or (self.begun and not self.wrote)
        self.wrote = self.wrote or not reads
        try:
            if self.quick:
                return self.run(work)
            version = self.run(self.version) if stoppable and not reads else 0
            if stoppable and sql not in slow:
                try:
                    result = self.run(work, budget=BUDGET)
                    await_(nothing())
                    return result
                except sqlite3.OperationalError as error:
                    if primary_code(error) != sqlite3.SQLITE_INTERRUPT:
                        raise
                if not reads:  # undone, unless it was complete when SQLite looked at the clock
                    self.rollback()
                    self.begin()
                    self.wrote = True
                    if self.version() != version:
                        raise sqlite_error("SQLITE_BUSY_SNAPSHOT", "another process has written")
            result, seconds = self.run(lambda: self.timed(work), in_thread=True, stoppable=True)
        except sqlite3.Error as error:
            if not self.in_transaction:
                self.failure = error
            raise
        remember(sql, seconds)
        return result

    def version(self) -> int:
        """Return a number that changes when another process has committed something."""
        number: int = self.send("PRAGMA data_version").fetchone()[0]
        return number

    def timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """Return what some work in the thread returns, and the processor seconds that it took."""
        # For each look at the clock, the thread waits for its turn with a busy event loop.
        self.set_progress_handler(self.is_late, 100 * STEPS)
        try:
            began = time.thread_time()
            return work(), time.thread_time() - began
        finally:
            self.set_progress_handler(self.is_late, STEPS)

    def is_late(self) -> bool:
        return time.monotonic() > self.deadline

    def run(
        self,
        work: Callable[[], Any],
        budget: float = math.inf,
        in_thread: bool = False,
        stoppable: bool = False,
    ) -> Any:
        """Do something here or in the thread; while another process has the lock, retry."""
        while True:
            while self.running:  # for another task that shares this connection
                await_(asyncio.wait([self.running]))
            try:
                if in_thread:
                    result = await_(self.wait_for_thread(work, stoppable))
                else:
                    self.deadline = time.monotonic() + budget
                    result = work()
                self.last_busy = 0.0
                return result
            except sqlite3.OperationalError as error:
                if primary_code(error) != sqlite3.SQLITE_BUSY:
                    raise
                # After others have just given up, this one need not wait as long again.
                now = time.monotonic()
                if now - self.last_busy > self.patience:
                    self.first_busy = now
                self.last_busy = now
                if now - self.first_busy > self.patience:
                    raise
            finally:
                self.deadline = math.inf
            await_(asyncio.sleep(0.005))

    async def wait_for_thread(self, work: Callable[[], Any], stoppable: bool) -> Any:
        """Do something in the thread, and return when the thread is done, even if cancelled."""
        self.running = asyncio.get_running_loop().run_in_executor(self.thread, work)
        cancelled = None
        while not self.running.done():
            try:
                await asyncio.wait([self.running])
            except asyncio.CancelledError as error:
                cancelled = error
                if stoppable:
                    self.deadline = 0.0
        done, self.running = self.running, None
        if cancelled:
            done.exception()  # retrieved; being cancelled comes first
            raise cancelled
        return done.result()


class Cursor(sqlite3.Cursor):
    """A cursor that fetches all rows at once, where the statement runs."""

    connection: Connection
    rows: Iterator[Any] = iter(())

    def execute(self, sql: str, parameters: Any = ()) -> "Cursor":
        def work() -> list[Any]:
            super(Cursor, self).execute(sql, parameters)
            return super(Cursor, self).fetchall()

        self.rows = iter(self.connection.perform(sql, work))
        return self

    def executemany(self, sql: str, parameters: Any) -> "Cursor":
        work = super().executemany
        self.connection.perform(sql, lambda: work(sql, parameters))
        return self

    def __next__(self) -> Any:
        return next(self.rows)

    def fetchone(self) -> Any:
        return next(self.rows, None)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        return list(islice(self.rows, size or self.arraysize))

    def fetchall(self) -> list[Any]:
        return list(self.rows)

    async def _async_soft_close(self) -> None:
        """SQLAlchemy calls this when it has the rows, and the statement is over already."""


async def nothing() -> None:
    """SQLAlchemy insists that a statement awaits something."""


async def give_way() -> None:
    """Leave a loop iteration to others; three, while a transaction writes."""
    for _ in range(3 if Connection.writing else 1):
        await asyncio.sleep(0)


def primary_code(error: Exception) -> int:
    """Return SQLite's code for an error without the details, 0 if it is an error of Python's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def remember(sql: str, seconds: float) -> None:
    """Send a statement to the thread from now on if it was slow, and no longer if it was quick."""
    if seconds <= BUDGET:
        slow.discard(sql)
    elif len(slow) < 1000:
        slow.add(sql)


class SharingPool(InOrderPool):
    """A pool with one more connection, which quick reads share; it has left the pool."""

    shared: Connection | None = None

    def connect(self) -> PoolProxiedConnection:
        held = HELD.get()()
        if held and held.is_valid and held._pool is self:
            raise InvalidRequestError(
                "A session of this request is writing already, and SQLite has one writer: use that"
                " session, or end it first."
            )
        await_(give_way())
        connection = super().connect()
        if self.size() == 1:
            HELD.set(ref(connection))
        return connection

    async def read(self, engine: Engine, statement: Executable, values: dict[str, Any]) -> Rows:
        """Return the rows of a SELECT, run by ``sqlite3`` itself if it is quick."""
        found = compiled(statement, engine.dialect)
        if found and found.sql not in slow:
            parameters = found.parameters(values)
            await give_way()
            rows = self.shared.attempt(found.sql, parameters) if self.shared else None
            if rows is not None:
                return found.rows(rows)
        try:
            return await read_by_sqlalchemy(engine, statement, values)
        finally:
            if self.shared is None and not self._pool.empty():
                # None if it was closed when a statement was cancelled.
                self.shared = self._pool.get_nowait().driver_connection
                self._dec_overflow()  # another one may be opened in its place

    def dispose(self) -> None:
        super().dispose()
        shared, self.shared = self.shared, None
        if shared:
            shared.close()


class GroupCommit:
    """One transaction for all rows that arrive while the one before it is committed."""

    def __init__(self, writer: Engine) -> None:
        self.writer = writer
        self.waiting: list[tuple[Insert, dict[str, Any], asyncio.Future[Any]]] = []
        self.task: asyncio.Task[None] | None = None

    async def insert(self, statement: Insert, row: dict[str, Any]) -> Any:
        """Insert a row, and return its primary key, of one column, when it is on the disk.

        Raises IntegrityError if the row is rejected, and whatever made the transaction fail.
        """
        inserted = asyncio.get_running_loop().create_future()
        self.waiting.append((statement, row, inserted))
        if self.task is None:
            # In no caller's context: the writer that it holds is not that caller's.
            self.task = asyncio.create_task(self.commit_groups(), context=Context())
        return await inserted

    async def commit_groups(self) -> None:
        try:
            while self.waiting:
                await greenlet_spawn(self.commit_group)
        finally:
            self.task = None

    def commit_group(self) -> None:
        """Insert the rows that wait when the transaction begins, and tell their callers."""
        group = self.waiting
        outcomes: list[Any] = []
        try:
            with self.writer.begin() as connection:
                self.waiting = []
                group = [one for one in group if not one[2].cancelled()]
                below: Any = connection.connection.driver_connection
                below.quick = True
                rested = time.monotonic()
                for statement, row, _ in group:
                    try:
                        if found := compiled(statement, self.writer.dialect, tuple(row)):
                            cursor = below.cursor().execute(found.sql, found.parameters(row))
                            outcomes.append(cursor.lastrowid)
                        else:
                            key: Any = connection.execute(statement, row).inserted_primary_key
                            outcomes.append(key[0])
                    except Exception as error:  # noqa: BLE001 (the caller raises it)
                        outcomes.append(wrapped(error, self.writer.dialect))
                    if time.monotonic() - rested > BUDGET:
                        await_(asyncio.sleep(0))
                        rested = time.monotonic()
        except Exception as error:  # noqa: BLE001 (the callers raise it)
            if self.waiting is group:  # it did not even begin
                self.waiting = []
            outcomes = [error] * len(group)
        for (_, _, inserted), outcome in zip(group, outcomes, strict=True):
            if not inserted.cancelled():
                failed = isinstance(outcome, Exception)
                (inserted.set_exception if failed else inserted.set_result)(outcome)


class Dialect(SQLiteDialect_pysqlite):
    """SQLAlchemy's SQLite dialect with the connections of this module."""

    driver = "loop"
    supports_statement_cache = True
    is_async = True
    has_terminate = True
    file: File | None = None  # that the first connection has found

    @classmethod
    def get_pool_class(cls, url: URL) -> type[Pool]:
        return SharingPool

    def connect(self, *args: Any, writes: bool, timeout: float = 5, **options: Any) -> Any:
        if self.file:
            self.file.check()  # or SQLite might make the file again, after all
        options |= {"timeout": 0, "check_same_thread": False, **NO_TRANSACTIONS_BY_PYTHON}
        connection = sqlite3.connect(*args, factory=Connection, **options)
        connection.set_up(writes, timeout)
        try:
            for pragma in WRITER if writes else READER:
                connection.cursor().execute(f"PRAGMA {pragma}")
            path = connection.send("PRAGMA database_list").fetchone()[2]
            self.file = connection.file = self.file or File(path, os.stat(path))
        except BaseException:
            connection.close()
            raise
        return connection

    def do_begin(self, dbapi_connection: Any) -> None:
        dbapi_connection.begin()  # elsewhere, SQLAlchemy leaves it to the driver

    def set_isolation_level(self, dbapi_connection: Any, level: Any) -> None:
        # AUTOCOMMIT would otherwise be ignored.
        raise ArgumentError("SQLite has no other isolation levels here")


registry.register("sqlite.loop", __name__, "Dialect")


def connect(url: URL, _: URL, __: int, **options: Any) -> Server:
    """Return the engines of a file: one writer; four readers, and the shared one."""
    memory = url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"
    if url.host or memory:
        raise SettingsError("DATABASE_URL: SQLite needs a file, for example sqlite:///roster.db")
    url = url.set(drivername="sqlite+loop")
    writer = create_async_engine(url, pool_size=1, connect_args={"writes": True}, **options)
    reader = create_async_engine(url, pool_size=4, connect_args={"writes": False}, **options)

    @event.listens_for(reader.sync_engine, "do_connect")
    def open_the_writer_first(*_: Any) -> None:
        pool: Any = writer.pool
        if not pool.checkedin() and not pool.checkedout():
            writer.sync_engine.connect().close()

    pool = cast(SharingPool, reader.pool)
    return Server(
        *(writer, reader),
        read=partial(pool.read, reader.sync_engine),
        insert=GroupCommit(writer.sync_engine).insert,
    )

"""SQLite for SQLAlchemy's asyncio half: fast, and never a reason for the other requests to wait.

A statement takes SQLite 5 to 50 microseconds, less than it takes to hand it to a thread. So it runs
here, on the event loop, and only what can take long goes to a thread. ``db`` gets two engines from
``make_engines``; to everybody else they are engines like others. These are the promises, and
``tests/test_sqlite_async.py`` has a test for each:

1. The loop never waits for a lock of another process: SQLite is told not to wait (``timeout=0``),
   the task sleeps and tries again, 5 seconds long. A statement that met a lock has changed nothing.
2. The loop never waits for the disk to write: the writer's COMMIT runs in a thread.
3. The loop never waits for a long statement. One that runs over its budget is interrupted, and runs
   again in a thread. A write that is interrupted takes its whole transaction with it. So only a
   SELECT may be interrupted, or the first write of a transaction; that begins again, and goes on
   if nobody else has written meanwhile. A second write goes to the thread at once.
4. BEGIN, COMMIT and ROLLBACK have no budget, and are never interrupted.
5. A transaction that SQLite has undone by itself (disk full, a read error) is over: what comes
   after it, COMMIT too, fails with the same error. Else it would be done outside a transaction.
6. A cancelled task tells its statement to stop, and waits until the thread is done with it. The
   connection is never closed, or used by somebody else, while a thread is at work on it.
7. A transaction that is open when its connection is closed is rolled back first: a cursor that
   somebody still holds would keep the closed connection alive, and its lock.
8. There is one writer; the pool of one is the queue for it. Readers cannot write, and leave it to
   the writer to move the write-ahead log into the database. The writer opens first, for it makes
   the log. A reader's statement is a transaction by itself, as in PostgreSQL's autocommit.
   A statement that is known to be slow goes straight to the thread. Quick ones without a session
   share a connection that no slow one takes, and in a round of the loop a transaction. That ends
   with the round, before anybody hears of what is committed meanwhile, or when a session asks: who
   has read what is new reads nothing older.
9. Transactions are ours alone: Python's own, which begin without a lock, are switched off in the
   way that each version of Python has for it.
10. Readers take turns, eight in a round of the loop, while somebody writes one. Else all who have
    come meanwhile would read in each round, and the writer, who has to wait some rounds for its
    thread, would wait for them all; so would new clients, for uvloop accepts one in a round.
11. Rows that come one by one while a transaction is on its way to the disk go into the next one
    together (``GroupCommit``), and so wait for the thread and the disk once. Each is answered when
    it is on the disk; a row that is refused leaves the others alone.
12. A file that was deleted, moved away or replaced is not used any more, and not made anew: SQLite
    itself would go on in a file that nobody finds again. One look serves all who asked before it.
"""

import asyncio
import math
import os
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any, ClassVar, cast

from sqlalchemy import URL, Engine, Executable, Insert, event
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.exc import ArgumentError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import Pool, PoolProxiedConnection
from sqlalchemy.util import await_, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from direct import Rows, compiled, read_by_sqlalchemy
from pool import InOrderPool

# FULL: a commit that was answered is on the disk.
WRITER = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
READER = ("query_only=ON", "wal_autocheckpoint=0")
BUDGET = 0.003  # seconds of a statement on the loop
STEPS = 1000  # SQLite looks at the clock once in so many steps of its machine, some 20 microseconds
NO_TRANSACTIONS_BY_PYTHON: dict[str, Any] = (
    {"autocommit": True} if sys.version_info >= (3, 12) else {"isolation_level": None}
)

slow: set[str] = set()  # statements that took longer than the budget when they last ran


class Connection(sqlite3.Connection):
    """A connection whose methods look as if they waited, as SQLAlchemy wants it.

    They run in a greenlet; ``await_`` lets the loop go on until something is done.
    """

    writing: ClassVar["set[Connection]"] = set()  # those whose transaction is open
    shared: ClassVar["set[Connection]"] = set()  # those for what is done at once

    writes: bool
    patience: float
    plain: sqlite3.Cursor
    thread: ThreadPoolExecutor

    deadline = math.inf  # a statement is interrupted when this is past
    running: asyncio.Future[Any] | None = None  # what the thread is doing
    first_busy = last_busy = 0.0
    begun = False  # SQLAlchemy believes that a writer's transaction is open
    wrote = False  # and more was done in it than reading
    quick = False  # what is done in it takes no longer than a row takes
    failure: sqlite3.Error | None = None
    file: "File | None" = None

    def set_up(self, writes: bool, patience: float) -> None:
        """Make the thread, and the clock that SQLite looks at."""
        self.writes = writes
        self.patience = patience
        self.plain = super().cursor()
        self.thread = ThreadPoolExecutor(1, "sqlite")
        self.set_progress_handler(lambda: time.monotonic() > self.deadline, STEPS)

    def cursor(self, *_: Any) -> "Cursor":  # type: ignore[override]  # it makes no others
        """Return one of our cursors.

        One that is not made by ``sqlite3``'s own ``cursor`` leaves it a reference, for ever.
        """
        return super().cursor(Cursor)

    def send(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run a statement here and now."""
        return super().cursor().execute(sql, parameters)

    def begin(self) -> None:
        """Begin a transaction. A writer takes the lock now, not when it has read what it read."""
        if self.writes:
            self.check_file()
            self.run(lambda: self.send("BEGIN IMMEDIATE"))
            self.begun, self.wrote, self.quick, self.failure = True, False, False, None
            self.writing.add(self)

    def commit(self) -> None:
        """Commit. Once this has returned, the transaction is on the disk."""
        if self.begun:
            self.check()
            try:
                self.run(lambda: self.send("COMMIT"), in_thread=True)
            finally:  # after a COMMIT that failed, SQLite is still in the transaction
                self.rollback()

    def rollback(self) -> None:
        """Undo the transaction, if there is one."""
        self.begun = False
        self.writing.discard(self)
        if self.in_transaction:
            self.run(lambda: self.send("ROLLBACK"))

    def close(self) -> None:
        """Roll back and close, in the thread and so after all that it does."""

        def work() -> None:
            if self.in_transaction:
                self.send("ROLLBACK")
            super(Connection, self).close()

        self.writing.discard(self)
        self.shared.discard(self)
        closing = self.thread.submit(work)
        self.thread.shutdown(wait=False)
        if in_greenlet():  # else the garbage collector calls
            await_(asyncio.wait([asyncio.wrap_future(closing)]))

    def check(self) -> None:
        """Raise an error if SQLite has undone the transaction."""
        if self.begun and not self.in_transaction:
            raise self.failure or sqlite3.OperationalError("the transaction is over")

    def check_file(self) -> None:
        """Raise an error if the file is not where it was."""
        if self.file:
            self.file.check()

    def version(self) -> int:
        """Return a number that is another one when another process has committed something."""
        number: int = self.send("PRAGMA data_version").fetchone()[0]
        return number

    def attempt(self, sql: str, parameters: Sequence[Any]) -> list[Any] | None:
        """Return the rows of a statement that reads, None if it cannot be done here and now.

        Whoever gets None does it by ``perform``, which waits for a lock, or takes the thread. Those
        of one round share a transaction, as SQLite takes two locks for each.
        """
        try:
            self.check_file()
            if not self.in_transaction:
                self.plain.execute("BEGIN")
            self.deadline = time.monotonic() + BUDGET
            return self.plain.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:  # whatever it is, perform meets it again
            if primary_code(error) == sqlite3.SQLITE_INTERRUPT:
                remember_slow(sql)
            return None
        finally:
            self.deadline = math.inf

    def end_attempts(self) -> None:
        """End the transaction of a round's attempts."""
        if self.in_transaction:
            self.plain.execute("ROLLBACK")

    def perform(self, sql: str, work: Callable[[], Any]) -> Any:
        """Run a statement on the loop if it may be interrupted there and is quick, else not."""
        for connection in self.shared:
            connection.end_attempts()
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
                if not reads:
                    # It is undone, unless it was done already when SQLite looked at the clock.
                    self.rollback()
                    self.begin()
                    self.wrote = True
                    if self.version() != version:
                        raise changed_meanwhile()
            result, seconds = self.run(lambda: timed(work), in_thread=True, stoppable=True)
        except sqlite3.Error as error:
            if not self.in_transaction:
                self.failure = error
            raise
        if seconds <= BUDGET:
            slow.discard(sql)
        else:
            remember_slow(sql)
        return result

    def run(
        self,
        work: Callable[[], Any],
        budget: float = math.inf,
        in_thread: bool = False,
        stoppable: bool = False,
    ) -> Any:
        """Do something here or in the thread; while another process has the lock, try again."""
        while True:
            while self.running:  # for another task, which shares this connection
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
                # If others have waited in vain just now, this one need not wait as long again.
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
        """Do something in the thread; whatever happens, return when the thread is done."""
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
            done.exception()  # whatever it was, being cancelled comes first
            raise cancelled
        return done.result()


class File:
    """Which file was at a path when it was opened."""

    checked = False  # a moment ago

    def __init__(self, connection: Connection) -> None:
        row = connection.send("PRAGMA database_list").fetchone()
        self.path: str = row[2]
        self.found = os.stat(self.path)

    def check(self) -> None:
        """Raise SQLite's own error for it if another file is there now, or none.

        One look is for all whose turn had come before it, in a round of the event loop: it takes a
        third as long as a statement.
        """
        if self.checked:
            return
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path), self.found):
                asyncio.get_running_loop().call_soon(self.forget)
                self.checked = True
                return
        error = sqlite3.OperationalError(f"{self.path} was deleted, moved away or replaced")
        error.sqlite_errorcode = sqlite3.SQLITE_READONLY_DBMOVED
        error.sqlite_errorname = "SQLITE_READONLY_DBMOVED"
        raise error

    def forget(self) -> None:
        """Look again: a new round begins."""
        self.checked = False


class Cursor(sqlite3.Cursor):
    """A cursor that fetches all rows at once: they are read where the statement runs."""

    connection: Connection
    rows: Iterator[Any] = iter(())

    def execute(self, sql: str, parameters: Any = ()) -> "Cursor":
        """Run a statement and fetch its rows."""

        def work() -> list[Any]:
            super(Cursor, self).execute(sql, parameters)
            return super(Cursor, self).fetchall()

        self.rows = iter(self.connection.perform(sql, work))
        return self

    def executemany(self, sql: str, parameters: Any) -> "Cursor":
        """Run a statement for each set of parameters."""
        work = super().executemany
        self.connection.perform(sql, lambda: work(sql, parameters))
        return self

    def __next__(self) -> Any:
        """Return the next row."""
        return next(self.rows)

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        return next(self.rows, None)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """Return the next rows."""
        return list(islice(self.rows, size or self.arraysize))

    def fetchall(self) -> list[Any]:
        """Return all rows that are left."""
        return list(self.rows)

    async def _async_soft_close(self) -> None:
        """Do nothing: SQLAlchemy calls this when it has the rows, and the statement is over."""


async def nothing() -> None:
    """Do nothing: SQLAlchemy insists that a statement awaits something."""


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's code for an error, without the details; 0 if it is Python's own error."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def remember_slow(sql: str) -> None:
    """Let a statement go straight to the thread from now on."""
    if len(slow) < 1000:
        slow.add(sql)


def changed_meanwhile() -> sqlite3.OperationalError:
    """Return SQLite's own error for a transaction whose reads are out of date."""
    error = sqlite3.OperationalError("another process has changed the database meanwhile")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY_SNAPSHOT
    error.sqlite_errorname = "SQLITE_BUSY_SNAPSHOT"
    return error


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what some work returns, and the seconds of the processor that it took."""
    began = time.thread_time()
    return work(), time.thread_time() - began


class InTurn(InOrderPool):
    """A pool that gives out few connections in a round of the event loop, in the order of asking.

    Each round costs time, too: with eight in a round, more are served than with one.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.given = 0  # turns, in this round
        self.woken = False  # those who have waited for them come first
        self.asking: deque[asyncio.Future[None]] = deque()
        self.kept: Connection | None = None

    async def wait_for_turn(self) -> None:
        """Wait for a turn, if this round has no more."""
        loop = asyncio.get_running_loop()
        if self.asking or self.woken or self.given >= self.turns():
            turn = loop.create_future()
            self.asking.append(turn)
            await turn
        else:
            if not self.given:
                loop.call_soon(self.begin_round)
            self.given += 1

    def begin_round(self) -> None:
        """Give new turns to those who have waited longest; what they read is new, too."""
        self.given = 0
        while self.asking and self.given < self.turns():
            turn = self.asking.popleft()
            if not turn.done():  # else who waited has left
                turn.set_result(None)
                self.given += 1
        self.woken = self.given > 0
        if self.woken:
            asyncio.get_running_loop().call_soon(self.begin_round)
        if self.kept:
            self.kept.end_attempts()

    def turns(self) -> int:
        """Return how many a round has."""
        return 1 if Connection.writing else 8

    def connect(self) -> PoolProxiedConnection:
        """Wait for a turn, and for a connection."""
        await_(self.wait_for_turn())
        return super().connect()

    def keep_one(self) -> Connection | None:
        """Return the connection for what is done at once, None as long as there is none.

        It leaves the pool. All who read share it, and await nothing while they do.
        """
        if self.kept is None and not self._pool.empty():
            kept: Connection | None = self._pool.get_nowait().driver_connection
            self._dec_overflow()  # another one may be opened in its place
            if kept:  # else it was closed when a statement was cancelled
                self.kept = kept
                Connection.shared.add(kept)
        return self.kept

    def dispose(self) -> None:
        """Close all connections that nobody uses."""
        super().dispose()
        kept, self.kept = self.kept, None
        if kept:
            kept.close()


class DirectReader:
    """Statements that read, run by ``sqlite3`` itself (``direct`` says why)."""

    def __init__(self, reader: Engine) -> None:
        self.reader = reader

    async def read(self, statement: Executable, values: dict[str, Any]) -> Rows:
        """Run one statement, and return its rows."""
        pool = cast(InTurn, self.reader.pool)
        found = compiled(statement, self.reader.dialect)
        if found and found.sql not in slow:
            parameters = found.parameters(values)
            await pool.wait_for_turn()
            if connection := pool.keep_one():
                rows = connection.attempt(found.sql, parameters)
                if rows is not None:
                    return found.rows(rows)
        try:
            return await read_by_sqlalchemy(self.reader, statement, values)
        finally:
            pool.keep_one()  # the first statement has opened it; those after it may all be slow


class GroupCommit:
    """One transaction for the rows of all who come while the one before it is committed."""

    def __init__(self, writer: Engine) -> None:
        self.writer = writer
        self.waiting: list[tuple[Insert, dict[str, Any], asyncio.Future[Any]]] = []
        self.task: asyncio.Task[None] | None = None

    async def insert(self, statement: Insert, row: dict[str, Any]) -> Any:
        """Insert a row, and return its primary key, of one column, when it is on the disk.

        Raises IntegrityError if the row is refused, and whatever made the transaction fail.
        """
        inserted = asyncio.get_running_loop().create_future()
        self.waiting.append((statement, row, inserted))
        if self.task is None:
            self.task = asyncio.create_task(self.commit_groups())
        return await inserted

    async def commit_groups(self) -> None:
        """Do one transaction after the other, until nobody waits."""
        try:
            while self.waiting:
                await greenlet_spawn(self.commit_group)
        finally:
            self.task = None

    def commit_group(self) -> None:
        """Insert the rows of all who wait when the transaction begins, and tell them."""
        group = self.waiting
        outcomes: list[Any] = []
        try:
            with self.writer.begin() as connection:
                self.waiting = []
                group = [one for one in group if not one[2].cancelled()]
                driver_connection: Any = connection.connection.driver_connection
                driver_connection.quick = True
                rested = time.monotonic()
                for statement, row, _ in group:
                    try:
                        if found := compiled(statement, self.writer.dialect, tuple(row)):
                            cursor = driver_connection.cursor()
                            cursor.execute(found.sql, found.parameters(row))
                            outcomes.append(cursor.lastrowid)
                        else:
                            key: Any = connection.execute(statement, row).inserted_primary_key
                            outcomes.append(key[0])
                    except sqlite3.IntegrityError as error:
                        outcomes.append(IntegrityError(None, None, error))
                    except Exception as error:  # noqa: BLE001 (who sent the row raises it)
                        outcomes.append(error)
                    if time.monotonic() - rested > BUDGET:
                        await_(asyncio.sleep(0))
                        rested = time.monotonic()
        except Exception as error:  # noqa: BLE001 (those who wait raise it)
            if self.waiting is group:  # it did not even begin
                self.waiting = []
            outcomes = [error] * len(group)
        for (_, _, inserted), outcome in zip(group, outcomes, strict=True):
            if inserted.cancelled():
                continue
            if isinstance(outcome, Exception):
                inserted.set_exception(outcome)
            else:
                inserted.set_result(outcome)


class Dialect(SQLiteDialect_pysqlite):
    """SQLAlchemy's SQLite with the connections of this module."""

    driver = "loop"
    supports_statement_cache = True
    is_async = True
    has_terminate = True
    file: File | None = None

    @classmethod
    def get_pool_class(cls, url: URL) -> type[Pool]:
        """Return our pool."""
        return InTurn

    def connect(self, *args: Any, writes: bool, timeout: float = 5, **options: Any) -> Any:
        """Open the file (https://docs.python.org/3/library/sqlite3.html#sqlite3.connect)."""
        if self.file:
            self.file.forget()  # or SQLite might make the file anew, after all
            self.file.check()
        options |= {"timeout": 0, "check_same_thread": False, **NO_TRANSACTIONS_BY_PYTHON}
        connection = sqlite3.connect(*args, factory=Connection, **options)
        connection.set_up(writes, timeout)
        try:
            for pragma in WRITER if writes else READER:
                connection.cursor().execute(f"PRAGMA {pragma}")
            self.file = self.file or File(connection)
            connection.file = self.file
        except BaseException:
            connection.close()
            raise
        return connection

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin a transaction; SQLAlchemy leaves it to the driver elsewhere."""
        dbapi_connection.begin()

    def set_isolation_level(self, dbapi_connection: Any, level: Any) -> None:
        """Refuse: there is one level. AUTOCOMMIT would otherwise be ignored."""
        raise ArgumentError("SQLite has no other isolation levels here")


registry.register("sqlite.loop", __name__, "Dialect")


def make_engines(url: URL, **options: Any) -> tuple[AsyncEngine, AsyncEngine]:
    """Return engines for a file: one with the writer, one with four readers and the one for all."""
    url = url.set(drivername="sqlite+loop")
    writer = create_async_engine(url, pool_size=1, connect_args={"writes": True}, **options)
    reader = create_async_engine(url, pool_size=4, connect_args={"writes": False}, **options)

    @event.listens_for(reader.sync_engine, "do_connect")
    def open_the_writer_first(*_: Any) -> None:
        pool: Any = writer.pool
        if not pool.checkedin() and not pool.checkedout():
            writer.sync_engine.connect().close()

    return writer, reader

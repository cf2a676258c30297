"""SQLite for SQLAlchemy's asyncio half. Numbers in comments are those of README.md's promises."""

import asyncio
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, ContextVar
from functools import partial
from itertools import islice
from typing import Any, ClassVar
from weakref import WeakSet, ref

from sqlalchemy import URL, Engine, event
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.base import SQLiteExecutionContext
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.exc import ArgumentError, InvalidRequestError, MissingGreenlet
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from engine.direct import Compiled, InOrderPool, Server, Values
from engine.errors import codes, wrapped

WRITER = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")  # FULL: a commit is on disk
READER = ("journal_mode=WAL", "query_only=ON", "wal_autocheckpoint=0")
BUDGET = 0.003  # seconds of a statement on the loop
STEPS = 1000  # of SQLite's machine, some 20 microseconds, after which it looks at the clock
PATIENCE = 5  # seconds for a lock of another process
LOG_MAX = 2**24  # bytes of the write-ahead log
registry.register("sqlite.loop", __name__, "Dialect")
OPTIONS: dict[str, Any] = {"timeout": 0}
# Python begins no transactions (9).
OPTIONS |= {"autocommit": True} if sys.version_info >= (3, 12) else {"isolation_level": None}

slow: set[str] = set()  # SELECT statements that exceeded the budget when they last ran
# The writer's connection that this task, or one that started it, was given last.
HELD: ContextVar[Callable[[], Any]] = ContextVar("HELD", default=lambda: None)


class Connection(sqlite3.Connection):
    """A connection whose methods block, as SQLAlchemy expects, but only their greenlet."""

    writing: ClassVar["set[Connection]"] = set()  # SQLAlchemy believes that a transaction is open
    opened: ClassVar["WeakSet[Connection]"] = WeakSet()
    files: Mapping[str, os.stat_result] = {}
    running: asyncio.Future[Any] | None = None  # in the thread
    closing: Future[None] | None = None
    first_busy = last_busy = 0.0
    log_max = LOG_MAX  # beyond which this writer waits for readers
    failure: sqlite3.Error | None = None  # that undid the transaction

    def set_up(self, path: str, writes: bool) -> None:
        self.path, self.writes = path, writes
        self.thread = ThreadPoolExecutor(1, "sqlite")

    def cursor(self, *_: Any) -> "Cursor":  # type: ignore[override]  # it makes no other kind
        # A cursor that sqlite3's own method did not make leaves a reference behind, for ever.
        return super().cursor(Cursor)

    def send(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        return super().cursor().execute(sql, parameters)

    def begin(self) -> None:
        if self.writes:  # it takes the lock before it reads what it will change (8)
            self.look()
            self.reset_log()
            self.retry(lambda: self.send("BEGIN IMMEDIATE"))
            self.failure = None
            self.writing.add(self)

    def commit(self) -> None:
        if self in self.writing:
            self.check()
            try:
                self.retry(lambda: self.in_thread(lambda: self.send("COMMIT")))
            finally:  # after a COMMIT that failed, SQLite is still in the transaction
                self.rollback()
            self.look()  # what is acknowledged is in a log that a crash leaves

    def rollback(self) -> None:
        self.writing.discard(self)
        if self.in_transaction:
            self.retry(lambda: self.send("ROLLBACK"))

    def close(self) -> None:
        # In the thread, and so after everything that it does (6).
        def work() -> None:
            if self.in_transaction:
                self.send("ROLLBACK")  # (7)
            super(Connection, self).close()
            self.files = {}

        self.writing.discard(self)
        self.closing = self.thread.submit(work)
        self.thread.shutdown(wait=False)
        if in_greenlet():  # otherwise the garbage collector calls
            await_(asyncio.wait([asyncio.wrap_future(self.closing)]))

    def look(self) -> None:
        """Raise an error if a file is gone; save what only a deleted log has (12)."""
        try:
            check_files(self.files)
        except sqlite3.Error:
            if in_greenlet() and not all(map(os.path.exists, self.files)):
                self.in_thread(lambda: self.send("PRAGMA wal_checkpoint"))
            raise

    def reset_log(self) -> None:
        """Wait until no reader uses a log that is too long, and empty it (14)."""
        log = [file for file in self.files if file.endswith("-wal")]
        deadline = time.monotonic() + PATIENCE
        while (size := sum(map(os.path.getsize, log))) > self.log_max:
            self.in_thread(lambda: self.send("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
            await_(asyncio.sleep(0.01))
            if time.monotonic() > deadline:  # another program reads: leave it alone for some time
                self.log_max = size + LOG_MAX
        if size <= LOG_MAX:
            self.log_max = LOG_MAX

    def check(self) -> None:
        """Raise an error if a file is gone, or SQLite has undone the transaction (5)."""
        if self not in self.writing:
            self.look()
        elif not self.in_transaction:
            raise self.failure or sqlite3.OperationalError("the transaction is over")

    def perform(self, sql: str, work: Callable[[], Any]) -> Any:
        """Run a statement on the loop if it is a quick SELECT, else in the thread (3)."""
        self.check()
        quick = (not self.writes or sql[:6].upper() == "SELECT") and sql not in slow
        if quick and (found := self.retry(lambda: self.on_loop(sql, work))) is not None:
            return found
        result, processor = self.retry(lambda: self.in_thread(lambda: timed(work), stoppable=True))
        if processor <= BUDGET:
            slow.discard(sql)
        return result

    def retry(self, work: Callable[[], Any]) -> Any:
        """Do something, and again while another process has the lock (1)."""
        while True:
            while self.running:  # for another task that shares this connection
                await_(asyncio.wait([self.running]))
            try:
                result = work()
                self.last_busy = 0.0
                return result
            except sqlite3.Error as error:
                if not self.in_transaction:
                    self.failure = error
                # After others have just given up, this one need not wait as long again.
                now = time.monotonic()
                if now - self.last_busy > PATIENCE:
                    self.first_busy = now
                self.last_busy = now
                if "SQLITE_BUSY" not in codes(error) or now - self.first_busy > PATIENCE:
                    raise
            await_(asyncio.sleep(0.005))

    def on_loop(self, sql: str, work: Callable[[], Any]) -> Any:
        """Run a SELECT here; None: the budget is spent, and the SELECT slow."""
        deadline = time.monotonic() + BUDGET
        self.set_progress_handler(lambda: time.monotonic() > deadline, STEPS)
        try:
            return work()
        except sqlite3.OperationalError as error:
            if "SQLITE_INTERRUPT" not in codes(error):
                raise
            if len(slow) < 1000:
                slow.add(sql)
            return None
        finally:
            self.set_progress_handler(None, STEPS)

    def in_thread(self, work: Callable[[], Any], stoppable: bool = False) -> Any:
        """Do something in the thread; return when the thread is done, even if cancelled (6)."""
        if not in_greenlet():
            said = "SQLite was used outside an awaited call, for example by a lazy load"
            raise MissingGreenlet(f"{said}: await the call, or load it with selectinload().")
        running = self.running = asyncio.get_running_loop().run_in_executor(self.thread, work)
        cancelled = None
        while not running.done():
            try:
                await_(asyncio.wait([running], timeout=0.01 if cancelled else None))
            except asyncio.CancelledError as error:
                cancelled = error
            if cancelled and stoppable:
                self.interrupt()
        self.running = None
        if cancelled:
            running.exception()  # retrieved; being cancelled comes first
            raise cancelled
        return running.result()


def check_files(files: Mapping[str, os.stat_result]) -> None:
    """Raise SQLite's own error for it if a file is gone, or another one is there (12)."""
    for path, opened in files.items():
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), opened):
                continue
        error = sqlite3.OperationalError(f"{path} was deleted, moved away or replaced")
        error.sqlite_errorname = "SQLITE_READONLY_DBMOVED"
        raise error


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.thread_time()
    return work(), time.thread_time() - began


class Cursor(sqlite3.Cursor):
    """A cursor that fetches all rows at once, where the statement runs."""

    connection: Connection
    rows: Iterator[Any] = iter(())

    def execute(self, sql: str, parameters: Any = ()) -> "Cursor":
        work = super().execute
        self.rows = iter(self.connection.perform(sql, lambda: [*work(sql, parameters)]))
        await_(self._async_soft_close())  # SQLAlchemy insists that a statement awaits something
        return self

    def executemany(self, sql: str, parameters: Any) -> "Cursor":
        self.connection.perform(sql, partial(super().executemany, sql, parameters))
        return self

    def fetchone(self) -> Any:
        return next(self.rows, None)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        return list(islice(self.rows, size or self.arraysize))

    def fetchall(self) -> list[Any]:
        return list(self.rows)

    async def _async_soft_close(self) -> None:
        """Do nothing when SQLAlchemy has the rows: the statement is over already."""


async def give_way() -> None:
    """Leave a loop iteration to others; three, while a transaction writes (10)."""
    for _ in range(3 if Connection.writing else 1):
        await asyncio.sleep(0)


class FairPool(InOrderPool):
    def connect(self) -> Any:
        held = HELD.get()()
        if held and held.is_valid and held._pool is self:
            said = "A session of this request is writing already, and SQLite has one writer"
            raise InvalidRequestError(f"{said}: use that session, or end it first.")
        await_(give_way())
        connection = super().connect()
        if self.size() == 1:
            HELD.set(ref(connection))
        return connection


class QuickReads:
    """Reads without a session, on a connection that no slow one takes (8)."""

    def __init__(self, reader: Engine) -> None:
        self.reader = reader
        self.shared: Any = None
        event.listen(reader, "engine_disposed", self.close)

    async def read(self, found: Compiled, values: Values) -> Any:
        """Return the rows of a SELECT; None if it is slow, or has to wait for a lock."""
        if found.sql in slow:
            return None
        await give_way()
        shared = self.shared or await greenlet_spawn(self.open)
        parameters = found.parameters(values)
        # Whatever else is wrong, SQLAlchemy's way meets it again.
        with suppress(sqlite3.Error, OverflowError, UnicodeError):
            shared.check()
            return shared.on_loop(found.sql, lambda: shared.send(found.sql, parameters).fetchall())
        return None

    def open(self) -> Any:
        try:
            connection = self.reader.raw_connection()
        except sqlite3.Error as error:
            raise wrapped(error, self.reader.dialect) from error
        if self.shared:  # by another task
            connection.close()
        else:
            connection.detach()  # the pool may open another one in its place
            self.shared = connection.dbapi_connection
        return self.shared

    def close(self, _: Engine) -> None:
        if self.shared:
            self.shared.close()
            self.shared = None


class GroupCommit:
    """One transaction for all rows that arrive while the one before it is committed (11)."""

    def __init__(self, writer: Engine) -> None:
        self.writer = writer
        self.task: asyncio.Task[None] | None = None
        self.waiting: list[tuple[str, list[Any], asyncio.Future[Any]]] = []

    async def insert(self, found: Compiled, row: Values) -> Any:
        """Insert a row, and return its id when it is on the disk."""
        inserted = asyncio.Future[Any]()
        self.waiting.append((found.sql, found.parameters(row), inserted))
        if not self.task or self.task.done():
            # In no caller's context: the writer that it holds is not that caller's.
            self.task = asyncio.create_task(greenlet_spawn(self.commit), context=Context())
        return await inserted

    def commit(self) -> None:
        while self.waiting:
            self.commit_group()

    def commit_group(self) -> None:
        """Insert the rows that wait when the transaction begins, and tell their callers."""
        group, outcomes = self.waiting, list[Any]()
        try:
            with self.writer.begin() as connection:
                self.waiting = []
                group = [one for one in group if not one[2].cancelled()]
                below: Any = connection.connection.driver_connection
                rested = time.monotonic()
                for sql, parameters, _ in group:
                    try:
                        below.check()
                        cursor = below.retry(partial(below.send, sql, parameters))
                        outcomes.append([(cursor.lastrowid,)])
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


class StreamContext(SQLiteExecutionContext):
    create_server_side_cursor = SQLiteExecutionContext.create_default_cursor


class Dialect(SQLiteDialect_pysqlite):
    driver = "loop"
    execution_ctx_cls = StreamContext
    supports_server_side_cursors = True  # AsyncConnection.stream() asks for it
    supports_statement_cache = True
    is_async = True
    has_terminate = True
    files: Mapping[str, os.stat_result] = {}  # the database, as the first connection found it

    def connect(self, path: str, writes: bool, **options: Any) -> Any:
        # The last connection that closes deletes the log, so wait before the files are compared.
        ours = [each for each in Connection.opened if each.path == path]
        while any(each.closing and not each.closing.done() for each in ours):
            await_(asyncio.sleep(0.001))
        # Or SQLite might make a file again, after all, and then use two logs.
        for files in (self.files, *(each.files for each in ours)):
            check_files(files)
        with suppress(OSError):  # a new database is its owner's alone
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(path, factory=Connection, **(options | OPTIONS))
        connection.set_up(path, writes)
        try:
            for pragma in WRITER if writes else READER:
                connection.cursor().execute(f"PRAGMA {pragma}")
            connection.send("PRAGMA schema_version").fetchone()  # which opens all of the files
            file = connection.send("PRAGMA database_list").fetchone()[2]
            self.files = self.files or {file: os.stat(file)}
            found = filter(os.path.exists, (file, f"{file}-wal", f"{file}-shm"))
            connection.files = {each: os.stat(each) for each in found}
            connection.opened.add(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def do_begin(self, dbapi_connection: Any) -> None:
        dbapi_connection.begin()  # elsewhere, SQLAlchemy leaves it to the driver

    def set_isolation_level(self, dbapi_connection: Any, level: Any) -> None:
        raise ArgumentError("SQLite has no other isolation levels here")  # AUTOCOMMIT included


def connect(url: URL, _: URL, __: int, **options: Any) -> Server:
    url = url.set(drivername="sqlite+loop")
    options["poolclass"] = FairPool
    writer: Any = create_async_engine(url, pool_size=1, connect_args={"writes": True}, **options)
    reader = create_async_engine(url, pool_size=4, connect_args={"writes": False}, **options)
    read, insert = QuickReads(reader.sync_engine).read, GroupCommit(writer.sync_engine).insert
    return writer, reader, read, insert

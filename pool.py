"""Connections in turn: those who wait for one are served in the order in which they came.

In the pools of SQLAlchemy, PyMongo and redis-py, whoever asks at the right moment overtakes those
who wait, and who was overtaken goes to the end of the queue: under load, some wait many times as
long as the others.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.util import await_, greenlet_spawn
from sqlalchemy.util.queue import AsyncAdaptedQueue, Empty

WAIT_MAX = 5  # seconds for a connection


class InOrder(AsyncAdaptedQueue[Any]):
    """A queue that hands an item to who has waited longest."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.waiting: deque[asyncio.Future[Any]] = deque()

    def put_nowait(self, item: Any) -> None:
        """Give an item to somebody who waits, or keep it. Raises Full."""
        while self.waiting:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(item)
                return
        super().put_nowait(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return an item; wait for it, if ``block``, ``timeout`` seconds at most. Raises Empty."""
        if not block or not self.empty():
            return self.get_nowait()
        return await_(self.wait(timeout))

    async def wait(self, seconds: float | None) -> Any:
        """Wait for an item. Raises Empty."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self.waiting.append(turn)

        def give_up() -> None:
            if not turn.done():
                turn.set_result(None)

        # asyncio.timeout does the same, and takes several times as long.
        timer = None if seconds is None else loop.call_later(seconds, give_up)
        try:
            item = await turn
        except BaseException:
            if not (turn.cancel() or turn.cancelled()) and turn.result() is not None:
                self.put_nowait(turn.result())  # it came at the last moment
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if item is None:
            raise Empty
        return item


class InOrderPool(AsyncAdaptedQueuePool):
    """SQLAlchemy's pool with this queue, which also lends connections without SQLAlchemy's care."""

    _queue_class = InOrder

    async def borrow(self) -> ConnectionPoolEntry | None:
        """Wait for a connection; return its entry. None: SQLAlchemy has to open one.

        Whoever gets it has to give it back, outside a transaction and soon. Raises TimeoutError of
        SQLAlchemy's as ``connect`` does.
        """
        queue: Any = self._pool
        entry: Any
        if not queue.empty():
            entry = queue.get_nowait()
        elif self.overflow() < 0:
            return None
        else:
            try:
                entry = await queue.wait(self._timeout)
            except Empty:
                raise PoolTimeoutError(f"no connection in {self._timeout} seconds") from None
        old = -1 < self._recycle < time.time() - entry.starttime
        if old or entry._is_hard_or_soft_invalidated() or is_closed(entry.driver_connection):
            try:
                # A server that stands still has two seconds to say good-bye; entry.close gives six.
                await greenlet_spawn(entry.invalidate)
            except BaseException:
                self.give_back(entry)  # empty: whoever waits opens another one
                raise
            # Not back into the queue: whoever finds it may open another one in its place, at once.
            self._dec_overflow()
            return None
        return cast(ConnectionPoolEntry, entry)

    def give_back(self, entry: ConnectionPoolEntry) -> None:
        """Give a borrowed connection to whoever waits for one."""
        self._do_return_conn(entry)


def is_closed(driver_connection: Any) -> bool:
    """Return whether the driver knows that the server has hung up; asyncpg does."""
    return hasattr(driver_connection, "is_closed") and driver_connection.is_closed()


class Turned(Protocol):
    """A store with as many turns as its pool has connections; asyncio gives them out in order."""

    turn: asyncio.Semaphore


P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=Turned)


def in_turn(
    verb: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Let a store's verb wait for a turn first, ``WAIT_MAX`` at most: it then finds a connection.

    Every verb that asks the server has to, and none may call another one, for which it might wait
    for ever. Raises TimeoutError, and what the verb raises.
    """

    @wraps(verb)
    async def wait(store: S, /, *args: P.args, **options: P.kwargs) -> T:
        if store.turn.locked():
            async with asyncio.timeout(WAIT_MAX):
                await store.turn.acquire()
        else:
            await store.turn.acquire()  # at once
        try:
            return await verb(store, *args, **options)
        finally:
            store.turn.release()

    return wait

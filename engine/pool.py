"""A queue for connections: callers are served in the order of asking.

In SQLAlchemy's pool a caller that asks at the right moment overtakes those that wait, and the one
that is overtaken goes to the end: under load, some wait many times as long as others.
"""

import asyncio
import logging
import time
from collections import deque
from typing import Any, cast

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.util import await_, greenlet_spawn
from sqlalchemy.util.queue import AsyncAdaptedQueue, Empty

WAIT_MAX = 5  # seconds for a connection
# A pool prints a traceback for a connection that died while it was out; whichever task had it has
# met the error. Each pool's logger has the name of its module.
for name in ("sqlalchemy.pool", "engine.pool", "engine.sqlite"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


class InOrder(AsyncAdaptedQueue[Any]):
    """A queue that hands an item to the caller that has waited longest."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.waiting: deque[asyncio.Future[Any]] = deque()

    def put_nowait(self, item: Any) -> None:
        while self.waiting:
            slot = self.waiting.popleft()
            if not slot.done():
                slot.set_result(item)
                return
        super().put_nowait(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not block or not self.empty():
            return self.get_nowait()
        return await_(self.wait(timeout))

    async def wait(self, seconds: float | None) -> Any:
        """Wait for an item, ``seconds`` at most. Raises Empty."""
        slot = asyncio.get_running_loop().create_future()
        self.waiting.append(slot)
        try:
            async with asyncio.timeout(seconds):
                return await slot
        except BaseException as error:
            if not (slot.cancel() or slot.cancelled()):
                self.put_nowait(slot.result())  # it came at the last moment
            if isinstance(error, TimeoutError):
                raise Empty from None
            raise


class InOrderPool(AsyncAdaptedQueuePool):
    """SQLAlchemy's pool with this queue; it also lends connections without SQLAlchemy's wrapper."""

    _queue_class = InOrder

    async def borrow(self) -> ConnectionPoolEntry | None:
        """Wait for a connection and return its entry. None: SQLAlchemy has to open one.

        The borrower gives it back soon, and outside a transaction. Raises SQLAlchemy's
        TimeoutError, as ``connect`` does.
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
                # It gives a hung server two seconds to close; entry.close would give six.
                await greenlet_spawn(entry.invalidate)
            except BaseException:
                self.give_back(entry)  # empty: the next caller opens another one
                raise
            # Not back into the queue: the caller may open another one in its place at once.
            self._dec_overflow()
            return None
        return cast(ConnectionPoolEntry, entry)

    def give_back(self, entry: ConnectionPoolEntry) -> None:
        """Return a borrowed connection."""
        self._do_return_conn(entry)


def is_closed(driver_connection: Any) -> bool:
    """Return whether the driver knows that the server has closed the connection; asyncpg does."""
    return hasattr(driver_connection, "is_closed") and driver_connection.is_closed()

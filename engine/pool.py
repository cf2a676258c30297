"""Connections in the order of asking.

In SQLAlchemy's pool a caller that asks at the right moment overtakes those that wait, and the one
that is overtaken goes to the end: under load, some wait many times as long as others.
"""

import asyncio
import logging
import time
from typing import Any

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.util import await_

WAIT_MAX = 5  # seconds for a connection
# A pool prints a traceback for a connection that died while it was out; whichever task had it has
# met the error. Each pool's logger has the name of its module.
for name in ("sqlalchemy.pool", "engine.pool", "engine.sqlite"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


class InOrderPool(AsyncAdaptedQueuePool):
    """SQLAlchemy's pool with a slot for each connection, which asyncio hands out in order."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "use_lifo": True})
        self.slots = asyncio.Semaphore(self.size())

    async def wait_for_slot(self) -> None:
        if not self.slots.locked():
            await self.slots.acquire()  # without the cost of a timer
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self.slots.acquire()
        except TimeoutError:
            raise PoolTimeoutError(f"no connection in {self._timeout} seconds") from None

    def _do_get(self) -> ConnectionPoolEntry:
        await_(self.wait_for_slot())
        try:
            entry = super()._do_get()
            if is_closed(entry):  # to ask the server, too, would cost a round trip
                entry.invalidate()
        except BaseException:
            self.slots.release()
            raise
        return entry

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)
        self.slots.release()

    give_back = _do_return_conn

    async def borrow(self) -> ConnectionPoolEntry | None:
        """Wait for a connection and return its entry. None: SQLAlchemy has to open one.

        The borrower gives it back soon, and outside a transaction.
        """
        await self.wait_for_slot()
        if self.checkedin():
            entry: Any = self._pool.get_nowait()
            old = -1 < self._recycle < time.time() - entry.starttime
            if not (old or entry._is_hard_or_soft_invalidated() or is_closed(entry)):
                return entry  # type: ignore[no-any-return]
            self._pool.put_nowait(entry)  # the last one in is the first one that SQLAlchemy takes
        self.slots.release()
        return None


def is_closed(entry: ConnectionPoolEntry) -> bool:
    """Return whether the driver knows that the server has closed the connection."""
    connection: Any = entry.driver_connection
    is_closed = getattr(connection, "is_closed", None)  # asyncpg's; the other is asyncmy's
    return bool(is_closed() if is_closed else getattr(connection, "_stream_broken", False))

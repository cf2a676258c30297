"""A pool of connections that serves those who wait in the order in which they came.

In asyncio's queue, and so in SQLAlchemy's pool, whoever asks at the right moment overtakes those
who wait, and who was overtaken goes to the end of the queue: under load, some wait many times as
long as the others.
"""

import asyncio
from collections import deque
from typing import Any

from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util import await_
from sqlalchemy.util.queue import AsyncAdaptedQueue, Empty


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
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            async with asyncio.timeout(seconds):
                return await turn
        except BaseException as error:
            if not turn.cancel() and not turn.cancelled():  # it came at the last moment
                self.put_nowait(turn.result())
            if isinstance(error, TimeoutError):
                raise Empty from None
            raise


class InOrderPool(AsyncAdaptedQueuePool):
    """SQLAlchemy's pool with this queue."""

    _queue_class = InOrder

"""The app as the tests serve it, with two paths more: to look at its connections, and to empty it.

It is told from the app itself by nothing else.
"""

from typing import Any

from sqlalchemy import delete
from sqlmodel import SQLModel
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

import app as served
from db import get_backend, open_session

roster = served.app


def checked_out() -> int:
    """Return how many connections are in use."""
    backend: Any = get_backend()
    match type(backend).__name__:
        case "MongoUserStore":
            servers = backend.client._topology._servers.values()
            return sum(server.pool.active_sockets for server in servers)
        case "RedisUserStore":
            return len(backend.redis.connection_pool._in_use_connections)
    return sum(engine.pool.checkedout() for engine in (backend.writer, backend.reader))


async def wipe() -> None:
    """Delete all rows; the ids go on."""
    backend: Any = get_backend()
    match type(backend).__name__:
        case "MongoUserStore":
            await backend.users.delete_many({})
        case "RedisUserStore":
            async with backend.slots:
                keys = {key async for key in backend.redis.scan_iter("roster:*", count=1000)}
                await backend.redis.delete("roster:none", *(keys - {"roster:last_id"}))
        case _:
            async with open_session() as session:
                for table in reversed(SQLModel.metadata.sorted_tables):
                    await session.exec(delete(table))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer /-/checked-out and /-/wipe here, and everything else as Roster."""
    path = scope.get("path")
    if path == "/-/checked-out":
        await JSONResponse(checked_out())(scope, receive, send)
    elif path == "/-/wipe":
        await wipe()
        await JSONResponse("empty")(scope, receive, send)
    else:
        await roster(scope, receive, send)

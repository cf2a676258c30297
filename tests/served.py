"""The app as the tests serve it, with two paths more: to look at its connections, and to empty it.

It is told from the app itself by nothing else.
"""

from typing import Any

from sqlalchemy import delete
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

import app as served
from db import get_engines, open_session
from models import User

roster = served.app
backend: Any = served.backend


def checked_out() -> int:
    """Return how many connections are in use."""
    match backend.__name__:
        case "store_mongo":
            servers = backend.make_store().client._topology._servers.values()
            return sum(server.pool.active_sockets for server in servers)
        case "store_redis":
            return len(backend.make_store().redis.connection_pool._in_use_connections)
    pools = {engine.pool for engine in get_engines()[:2]}
    return sum(pool.checkedout() for pool in pools)  # type: ignore[attr-defined]  # QueuePool


async def wipe() -> None:
    """Delete all users; the ids go on."""
    match backend.__name__:
        case "store_mongo":
            await (await backend.get_store()).users.delete_many({})
        case "store_redis":
            store = backend.make_store()
            async with store.turn:
                ids = await store.redis.zrange("roster:by_id", 0, -1)
                keys = ("emails", "by_id", "by_name", *(f"user:{user_id}" for user_id in ids))
                await store.redis.delete(*(f"roster:{key}" for key in keys))
        case _:
            async with open_session() as session:
                await session.exec(delete(User))


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

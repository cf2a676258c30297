"""The app as the tests serve it, with two paths more: to look at its connections, and to empty it.

It is told from the app itself by nothing else.
"""

from sqlalchemy import delete
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from app import app as roster
from app import backend
from db import get_engines, open_session
from models import User

MONGODB = backend.place().startswith("MongoDB")


async def checked_out() -> int:
    """Return how many connections somebody uses."""
    if MONGODB:
        import store_mongo  # with another database's URL, it would end the app

        servers = store_mongo.get_client()._topology._servers.values()
        return sum(server.pool.active_sockets for server in servers)
    pools = {engine.pool for engine in get_engines()}
    return sum(pool.checkedout() for pool in pools)  # type: ignore[attr-defined]  # QueuePool


async def wipe() -> None:
    """Delete all users."""
    if MONGODB:
        import store_mongo

        await (await store_mongo.get_store()).users.delete_many({})
    else:
        async with open_session() as session:
            await session.exec(delete(User))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer /-/checked-out and /-/wipe here, and everything else as Roster."""
    path = scope.get("path")
    if path == "/-/checked-out":
        await JSONResponse(await checked_out())(scope, receive, send)
    elif path == "/-/wipe":
        await wipe()
        await JSONResponse("empty")(scope, receive, send)
    else:
        await roster(scope, receive, send)

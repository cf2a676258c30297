"""The app as the tests serve it, with two paths more: to look at its connections, and to empty it.

It is told from the app itself by nothing else.
"""

from sqlalchemy import delete
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from app import app as roster
from db import get_engines, open_session
from models import User


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer /-/checked-out and /-/wipe here, and everything else as Roster."""
    path = scope.get("path")
    if path == "/-/checked-out":
        pools = {engine.pool for engine in get_engines()}
        count = sum(pool.checkedout() for pool in pools)  # type: ignore[attr-defined]  # QueuePool
        await JSONResponse(count)(scope, receive, send)
    elif path == "/-/wipe":
        async with open_session() as session:
            await session.exec(delete(User))
        await JSONResponse("empty")(scope, receive, send)
    else:
        await roster(scope, receive, send)

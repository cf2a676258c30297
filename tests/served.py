"""The app as the tests serve it, with one path more: how many connections are checked out."""

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from app import app as roster
from db import get_engines


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer /-/checked-out here, and everything else as Roster."""
    if scope["type"] == "http" and scope["path"] == "/-/checked-out":
        pools = {engine.pool for engine in get_engines()}
        count = sum(pool.checkedout() for pool in pools)  # type: ignore[attr-defined]  # QueuePool
        await JSONResponse(count)(scope, receive, send)
    else:
        await roster(scope, receive, send)

"""Requests that FastAPI would take, and Roster does not: too large, too slow, ambiguous ...

https://fastapi.tiangolo.com/how-to/custom-request-and-route/ explains how they are caught.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response, status
from fastapi.routing import APIRoute
from starlette.convertors import StringConvertor, register_url_convertor

BODY_MAX = 2**20
TIME_MAX = 10  # seconds, of a request; with what the drivers need to give up, some more


def read_json(text: str | bytes) -> Any:
    """Return the value that a text means.

    Raises:
        JSONDecodeError: it is no JSON by RFC 8259, or an object has a key twice (section 4 leaves
            open which of them counts), or it is nested too deeply.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("an object has the same key twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError:
        raise json.JSONDecodeError("not valid UTF-8", "", 0) from None
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from None
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None


class StrictRequest(Request):
    """A request whose body is at most 1 MiB, and JSON that means one thing only."""

    arrived = False  # the whole body has been read

    async def stream(self) -> AsyncGenerator[bytes]:
        """Yield the body in pieces; raise HTTPException (413) as soon as it is too large.

        FastAPI's ``max_body_size`` would do it too, but answers in plain text if the request says
        its length. The connection is closed: what a client goes on sending is not worth reading.
        """
        too_large = HTTPException(
            status.HTTP_413_CONTENT_TOO_LARGE,
            f"The body is over {BODY_MAX} bytes.",
            {"Connection": "close"},
        )
        if int(self.headers.get("content-length", 0)) > BODY_MAX:
            raise too_large
        size = 0
        async for piece in super().stream():
            size += len(piece)
            if size > BODY_MAX:
                raise too_large
            yield piece
        self.arrived = True

    async def json(self) -> Any:
        """Return the body's value. Raises JSONDecodeError as ``read_json`` does."""
        return read_json(await self.body())


class StrictRoute(APIRoute):
    """A route that reads its body as a ``StrictRequest``, and is given up after ``TIME_MAX``.

    The parts have limits of their own (a connection, a statement, a lock), but one after the other
    they would add up. What is streamed after the answer has begun is not limited.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler with the request exchanged."""
        handle = super().get_route_handler()
        has_body = bool(self.body_field)

        async def handle_strictly(plain: Request) -> Response:
            request = StrictRequest(plain.scope, plain.receive) if has_body else plain
            task: Any = asyncio.current_task()
            cancelled, late = task.cancelling(), False

            def give_up() -> None:
                nonlocal late
                late = True
                task.cancel()

            # asyncio.timeout does the same, and takes as long as a query.
            timer = asyncio.get_running_loop().call_later(TIME_MAX, give_up)
            try:
                return await handle(request)
            except asyncio.CancelledError:
                if not late or task.cancelling() > cancelled + 1:  # somebody else has, too
                    raise
                if not isinstance(request, StrictRequest) or request.arrived:
                    raise TimeoutError from None
                raise HTTPException(
                    status.HTTP_408_REQUEST_TIMEOUT,
                    f"The body took over {TIME_MAX} seconds.",
                    {"Connection": "close"},
                ) from None
            finally:
                timer.cancel()
                if late:
                    task.uncancel()

        return handle_strictly


class UserIdConvertor(StringConvertor):
    """``{id:user}`` in a path: anything but the words that are paths of their own.

    Otherwise PATCH /users/bulk would be a wrong id (422), not a method that is not there (405).
    """

    regex = "(?!(?:bulk|export)$)[^/]+"


register_url_convertor("user", UserIdConvertor())

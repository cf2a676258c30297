"""Routes that reject what FastAPI would accept, and that answer with rows: ``Route``.

https://fastapi.tiangolo.com/how-to/custom-request-and-route/ explains how a route class works.
"""

import asyncio
import inspect
import json
import re
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from functools import wraps
from typing import Annotated, Any

import msgspec
from fastapi import Depends, Header, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from starlette.convertors import StringConvertor, register_url_convertor

BODY_MAX = 2**20
TIME_MAX = 10  # seconds for a request; with what the drivers need to give up, a few more


def read_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises JSONDecodeError.

    An object that has a key twice is rejected: RFC 8259, section 4, leaves open which one counts.
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
    except (ValueError, RecursionError) as error:
        reasons = {UnicodeDecodeError: "not valid UTF-8", RecursionError: "nested too deeply"}
        raise json.JSONDecodeError(reasons.get(type(error), str(error)), "", 0) from None


class StrictRequest(Request):
    """A request whose body is at most 1 MiB, and JSON with one meaning only."""

    arrived = False  # the whole body has been read

    async def stream(self) -> AsyncGenerator[bytes]:
        """Yield the body in pieces; raise HTTPException (413) as soon as it is too large.

        FastAPI's ``max_body_size`` answers in plain text if the request states its length. The
        connection is closed: the rest of the body isn't worth reading.
        """
        reason = f"The body is over {BODY_MAX} bytes."
        too_large = HTTPException(413, reason, {"Connection": "close"})
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
        return read_json(await self.body())


async def read_if_match(
    request: Request,
    if_match: Annotated[
        str | None, Header(description='An ETag, like `"3"`: only if it still fits.')
    ] = None,
) -> Collection[int] | None:
    """Return the versions that an If-Match allows, None if any (RFC 9110, section 13.1.1)."""
    if if_match is None or if_match.strip() == "*":
        return None
    return {int(tag) for tag in re.findall(r'(?<!W/)"([1-9][0-9]{0,17})"', if_match)}


IfMatch = Annotated[Collection[int] | None, Depends(read_if_match)]
# In the document only. As a parameter of a handler, a header costs FastAPI as much time as the row
# costs SQLite, so the route reads it.
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The ETags that you have.",
    "schema": {"type": "string"},
}


def answering(handler: Callable[..., Any], status_code: int) -> Callable[..., Any]:
    """Return a handler whose rows are a response already, and that sets the ETag.

    FastAPI would validate what comes from the database. The ETag is the version of whatever has
    one (RFC 9110, section 8.8.3). FastAPI passes the headers on that handlers and dependencies set.
    """
    if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
        return handler
    signature = inspect.signature(handler, eval_str=True)
    named = [name for name, part in signature.parameters.items() if part.annotation is Response]
    headers = named[0] if named else "route_response"

    @wraps(handler)
    async def answer(**values: Any) -> Any:
        response: Response = values[headers] if named else values.pop(headers)
        if inspect.iscoroutinefunction(handler):
            value = await handler(**values)
        else:
            value = await run_in_threadpool(handler, **values)
        if (version := getattr(value, "version", None)) is not None:
            response.headers["ETag"] = f'"{version:d}"'  # d: a corrupt version raises
        if isinstance(value, msgspec.Struct):
            body = msgspec.json.encode(value)
            code = response.status_code or status_code
            return Response(body, code, response.headers, "application/json")
        return value

    if not named:
        part = inspect.Parameter(headers, inspect.Parameter.KEYWORD_ONLY, annotation=Response)
        signature = signature.replace(parameters=[*signature.parameters.values(), part])
    answer.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it (PEP 362)
    return answer


class Route(APIRoute):
    """A route with limits, rows, ETags and 304; ``APIRouter(route_class=Route)`` has them all.

    A request is given up after ``TIME_MAX``. Its parts have limits of their own (a connection, a
    statement, a lock), which would add up. What is streamed after the response has begun is not
    limited.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if 304 in (options.get("responses") or {}):
            options["openapi_extra"] = {"parameters": [IF_NONE_MATCH]}
        endpoint = answering(endpoint, options.get("status_code") or 200)
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        has_body = bool(self.body_field)

        async def handle_strictly(plain: Request) -> Response:
            request = StrictRequest(plain.scope, plain.receive) if has_body else plain
            try:
                async with asyncio.timeout(TIME_MAX) as limit:
                    response = await handle(request)
            except TimeoutError:
                if not limit.expired():
                    raise  # the handler's own
                if isinstance(request, StrictRequest) and not request.arrived:
                    reason = f"The body took over {TIME_MAX} seconds."
                    raise HTTPException(408, reason, {"Connection": "close"}) from None
                reason = f"The request took over {TIME_MAX} seconds. Retry."
                raise HTTPException(503, reason, {"Retry-After": "1"}) from None
            etag, have = response.headers.get("ETag"), plain.headers.get("If-None-Match")
            if etag and have and plain.method == "GET" and (have == "*" or etag in have):
                return Response(None, 304, {"ETag": etag})
            return response

        return handle_strictly


class IdConvertor(StringConvertor):
    """``{user_id:id}`` in a path: anything but the words that are paths of their own.

    Otherwise PATCH /users/bulk would be a wrong id (422), not a method that isn't there (405).
    """

    regex = "(?!(?:bulk|export)$)[^/]+"


register_url_convertor("id", IdConvertor())

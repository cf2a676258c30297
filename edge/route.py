"""``Route``: the class of every route, with limits, rows, ETags and 304.

https://fastapi.tiangolo.com/how-to/custom-request-and-route/ explains how a route class works.
"""

import asyncio
import inspect
import re
from collections.abc import Callable, Collection, Coroutine
from functools import lru_cache, wraps
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import Match
from starlette.types import Scope

from edge import limits
from edge.headers import path_of
from edge.limits import StrictRequest

TAG = re.compile(r'(W/)?"([^"]*)"')  # an entity tag (RFC 9110, section 8.8.3)
VERSION = re.compile("[1-9][0-9]{0,17}").fullmatch


async def read_if_match(
    request: Request,
    if_match: Annotated[
        str | None, Header(description='The ETag that you have, with its quotes, like `"3"`.')
    ] = None,
) -> Collection[int] | None:
    """Return the versions that an If-Match allows, None if any (RFC 9110, section 13.1.1).

    It may be a list, in several lines. A version of another table is one that does not fit.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    tags = TAG.findall(",".join(request.headers.getlist("if-match")))
    versions = {int(tag) for weak, tag in tags if not weak and VERSION(tag)}
    if not versions:
        request.state.why_412 = (
            'If-Match needs the ETag that a GET returned, with its quotes: "3", not W/"3" or 3'
        )
    return versions


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


@lru_cache
def literal_paths(app: FastAPI, _: int) -> set[str]:
    """Return the paths without parameters of an app that has so many routes."""
    paths = (route.path for route in iter_route_contexts(app.routes))  # included routers' too
    return {path for path in paths if path and "{" not in path}


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

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Leave a path like /users/bulk to the route that has it literally, wherever it is."""
        match, found = super().matches(scope)
        if found.get("path_params"):
            app = scope["app"]
            if path_of(scope) in literal_paths(app, len(app.routes)):
                return Match.NONE, {}
        return match, found

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        has_body = bool(self.body_field)

        async def handle_strictly(plain: Request) -> Response:
            strict = has_body or b"&" in plain.scope["query_string"]
            request = StrictRequest(plain.scope, plain.receive) if strict else plain
            try:
                async with asyncio.timeout(limits.TIME_MAX) as limit:
                    response = await handle(request)
            except TimeoutError:
                if not limit.expired():
                    raise  # the handler's own
                if has_body and not getattr(request, "arrived", True):
                    raise HTTPException(
                        408, f"The body took over {limits.TIME_MAX} seconds."
                    ) from None
                reason = f"The request took over {limits.TIME_MAX} seconds. Retry."
                raise HTTPException(503, reason, {"Retry-After": "1"}) from None
            location = response.headers.get("Location", "")
            if location.startswith("/"):
                response.headers["Location"] = plain.scope.get("root_path", "") + location
            if plain.method == "GET" and "If-None-Match" in plain.headers:
                have, etag = plain.headers.getlist("If-None-Match"), response.headers.get("ETag")
                tags = [tag for _, tag in TAG.findall(",".join(have))]
                if etag and (have == ["*"] or etag.strip('"') in tags):
                    return Response(None, 304, {"ETag": etag})
            return response

        return handle_strictly

"""What is too large, too slow or ambiguous, and routes that answer with rows: ``Route``.

https://fastapi.tiangolo.com/how-to/custom-request-and-route/ explains how a route class works.
"""

import asyncio
import inspect
import json
import re
import time
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from functools import cached_property, lru_cache, wraps
from http import HTTPStatus
from itertools import count
from typing import Annotated, Any

import msgspec
from fastapi import Body, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel, SkipValidation, ValidationError
from starlette.datastructures import QueryParams
from starlette.routing import Match
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fields import BULK_MAX

BODY_MAX = 2**20
KEYS_MAX, OBJECTS_MAX = 1000, 20_000
PIECE = 0.01  # seconds for which the checks of a list hold the event loop
HEAD_MAX = 2**16  # bytes of a request line and headers, if they do not arrive at once
HEADERS_MAX = 100
PIPELINE_MAX = 20  # requests of a connection that wait for the one before them
TIME_MAX = 10  # seconds for a request; with what the drivers need to give up, a few more
REST_MAX, REST_TIME = 2**24, 5  # bytes and seconds of a body whose request is answered already


class Parser(HttpToolsProtocol):
    """uvicorn's parser in C, with limits; h11, which takes twice as long, has the same.

    Without them, endless headers of one connection took 3.3 GB, and pipelining on 30 took 3.1 GB.
    """

    url = b""
    head = 0  # bytes since the last headers or the last piece of a body
    refused = False

    def data_received(self, data: bytes) -> None:
        self.head += len(data)
        if self.refused:  # a client that still sends would not see why
            if self.head > REST_MAX:
                self.transport.abort()
            return
        super().data_received(data)
        if self.head > HEAD_MAX:
            self.send_400_response("")

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) == HEADERS_MAX:
            raise ValueError("too many")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request. What is raised here is answered by 400."""
        self.head = 0
        hosts = [value for name, value in self.headers if name == b"host"]
        absolute = not self.url.startswith((b"/", b"*"))  # RFC 9112, sections 3.2 and 3.2.2
        if len(hosts) > 1 or (absolute and self.url.split(b"/")[2:3] != hosts):
            raise ValueError("two hosts")
        if len(self.pipeline) >= PIPELINE_MAX:
            raise ValueError("too many requests wait")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.head = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Answer, and close the connection when the client has had time to read that."""
        self.refused = True
        if self.cycle and not self.cycle.response_complete:
            self.transport.abort()
            return
        status = 400
        if len(self.url) > HEAD_MAX // 2:
            status, msg = 414, "The URL is too long."
        elif self.head > HEAD_MAX or len(self.headers) == HEADERS_MAX:
            status, msg = 431, f"The headers are over {HEAD_MAX} bytes, or {HEADERS_MAX} lines."
        body = json.dumps({"detail": msg})
        start = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nconnection: close\r\n"
        start += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self.transport.write((start + body).encode())
        self.loop.call_later(REST_TIME, self.transport.close)


PARSERS = {HttpToolsProtocol: Parser}
# uvicorn chooses its class before it imports the app, so the class has to make these instead.
HttpToolsProtocol.__new__ = lambda cls, *_, **__: object.__new__(PARSERS.get(cls, cls))  # type: ignore[method-assign]  # see above


def read_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises JSONDecodeError.

    An object that has a key twice is rejected: RFC 8259, section 4, leaves open which one counts.
    """
    objects = count()

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("an object has the same key twice")
        if len(found) > KEYS_MAX:  # each unknown one would be a problem to describe
            raise ValueError(f"an object has over {KEYS_MAX} keys")
        if next(objects) == OBJECTS_MAX:  # each costs a call; a body of empty ones took 0.3 seconds
            raise ValueError(f"there are over {OBJECTS_MAX} objects")
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


def each(model: type[BaseModel]) -> Any:
    """Return a dependency: a list of a model in the body, whose checks leave room for others.

    An address can take ten milliseconds, and FastAPI would check a thousand in one go.
    """

    async def check(rows: Any) -> list[Any]:
        checked, problems, began = [], [], time.monotonic()
        for number, row in enumerate(rows):
            try:
                checked.append(model.model_validate(row))
            except ValidationError as error:
                found = error.errors(include_url=False, include_input=False)
                problems += [{**one, "loc": ("body", number, *one["loc"])} for one in found]
            if len(problems) > BULK_MAX:
                break
            if time.monotonic() - began > PIECE:
                await asyncio.sleep(0)
                began = time.monotonic()
        if problems:
            raise RequestValidationError(problems)
        return checked

    body = Body(title=f"{model.__name__}s", min_length=1, max_length=BULK_MAX)
    unchecked: Any = Annotated[model, SkipValidation()]  # type: ignore[type-arg]  # pydantic's example
    check.__annotations__["rows"] = Annotated[list[unchecked], body]
    return Depends(check)


class OnceEach(QueryParams):
    """Query parameters of which none was given twice, except for lists."""

    def get(self, key: Any, default: Any = None) -> Any:
        if len(self.getlist(key)) > 1:
            problem = {"type": "repeated", "loc": ("query", key), "msg": "Given more than once"}
            raise RequestValidationError([problem])
        return super().get(key, default)


class StrictRequest(Request):
    """A request whose body is at most 1 MiB, and whose JSON and query have one meaning only."""

    arrived = False  # the whole body has been read

    @cached_property
    def query_params(self) -> QueryParams:
        return OnceEach(self.scope["query_string"])

    async def stream(self) -> AsyncGenerator[bytes]:
        """Yield the body in pieces; raise HTTPException (413) as soon as it is too large.

        FastAPI's ``max_body_size`` answers in plain text if the request states its length.
        """
        too_large = HTTPException(413, f"The body is over {BODY_MAX} bytes.")
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
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path in literal_paths(app, len(app.routes)):
                return Match.NONE, {}
        return match, found

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        has_body = bool(self.body_field)

        async def handle_strictly(plain: Request) -> Response:
            strict = has_body or b"&" in plain.scope["query_string"]
            request = StrictRequest(plain.scope, plain.receive) if strict else plain
            try:
                async with asyncio.timeout(TIME_MAX) as limit:
                    response = await handle(request)
            except TimeoutError:
                if not limit.expired():
                    raise  # the handler's own
                if has_body and not getattr(request, "arrived", True):
                    raise HTTPException(408, f"The body took over {TIME_MAX} seconds.") from None
                reason = f"The request took over {TIME_MAX} seconds. Retry."
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

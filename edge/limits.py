"""Limits of a connection, a request and its body. An ambiguous request is rejected."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from functools import cached_property
from http import HTTPStatus
from itertools import count
from typing import Annotated, Any

from fastapi import Body, Depends, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, SkipValidation, ValidationError
from starlette.datastructures import QueryParams
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
        """Start the request. uvicorn answers 400 to an error raised here."""
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

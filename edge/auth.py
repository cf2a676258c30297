"""Access by token or from this machine only, fair shares, and the log of changes.

Without tokens Roster serves its own machine only (local mode). With tokens, every path that isn't
in ``headers.OPEN`` needs one (RFC 6750), unknown paths too. There are no cookies, which a browser
would send along with another site's request; what pages of other sites write is rejected all the
same.
"""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from hashlib import sha256
from random import getrandbits
from typing import Any, NamedTuple, cast
from urllib.parse import quote

from fastapi import FastAPI, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from db import Settings, get_settings
from edge import limits
from edge.headers import API_HEADERS, BY_PATH, OPEN, path_of
from engine import SettingsError
from errors import BUG, answer
from store import logger

SAFE = ("GET", "HEAD", "OPTIONS")  # they change nothing (RFC 9110, section 9.2.1)

# The characters of a token are those of RFC 6750, section 2.1.
ENTRY = re.compile(r"([A-Za-z0-9._-]{1,64}):([A-Za-z0-9._~+/-]{24,}=*)")
LOOPBACK = re.compile(r"(::ffff:)?127\.[0-9.]+|::1").fullmatch
LOCAL_HOST = re.compile(rb"(localhost|127(\.[0-9]+){3}|\[::1\])(:[0-9]*)?", re.I).fullmatch
# A proxy adds headers like these: then the peer on loopback is the proxy, not the caller. It must
# send Via (RFC 9110, section 7.6.3); most name the client in another of these instead.
FORWARDING = re.compile(
    rb"^(via|cdn-loop|cf-.*|x-(original|envoy)-.*|.*forwarded.*"
    rb"|(.*-)?(client|connecting|real|remote|user|originating|source|socket|peer)-?(ip|addr.*))$",
    re.M,
)
came_through_a_proxy = lru_cache(FORWARDING.search)  # a client sends the same names each time
GUESS_TIME = 0.25  # seconds until a wrong token is answered


class Sparing(logging.Filter):
    """Lets two lines of a kind through a second and counts the rest: nothing may fill a disk.

    A request that succeeded has no kind, since its line says which caller changed what.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[object, tuple[float, int]] = {}  # its second, and how many came in it

    def filter(self, record: logging.LogRecord) -> bool:
        failed = record.levelno >= logging.WARNING
        kind: Any = failed and (record.msg, (record.exc_info or [None])[0])
        if record.name == "uvicorn.access":
            kind = cast(Any, record.args)[-1] >= 400 and cast(Any, record.args)[-1]
        if not (kind := getattr(record, "kind", kind)):
            return True
        now = time.monotonic()  # the clock may be set back
        since, count = self.kinds.get(kind, (now, 0))
        over = now - since >= 1
        self.kinds[kind] = (now, 1) if over else (since, count + 1)
        if over and count > 2:
            record.msg = f"{record.msg} ({count - 2} more were left out)"
        return over or count < 2


for name in ("uvicorn.error", "uvicorn.access", "asyncio"):
    logging.getLogger(name).addFilter(Sparing())


class Caller(NamedTuple):
    """The name of a caller in the log, and whether it may change anything."""

    name: str
    writes: bool


Callers = Mapping[bytes, Caller]
LOCAL = Caller("local", writes=True)
ANYONE = Caller("anyone", writes=False)
UNKNOWN = Caller("unknown", writes=False)  # all wrong tokens


@cache
def get_callers() -> Callers:
    return read_tokens(get_settings())


def read_tokens(settings: Settings) -> Callers:
    """Return callers by the hash of their token. Raises SettingsError.

    A look-up by hash takes a time that says nothing about the tokens.
    """
    callers: dict[bytes, Caller] = {}
    names = {LOCAL.name, ANYONE.name, UNKNOWN.name}
    for setting in ("api_tokens", "api_read_tokens"):
        text = getattr(settings, setting).get_secret_value().strip()
        for number, entry in enumerate(text.split(",") if text else [], start=1):
            place = f"{setting.upper()}: entry {number}"
            if not (match := ENTRY.fullmatch(entry.strip())):
                raise SettingsError(
                    f'{place} must be name:token, the name at most 64 letters, digits and "._-",'
                    " the token at least 24 (openssl rand -hex 32 makes one)."
                )
            name, token = match.groups()
            digest = sha256(token.encode()).digest()
            if name in names or digest in callers:
                raise SettingsError(f"{place} has a name or a token that is taken.")
            names.add(name)
            callers[digest] = Caller(name, writes=setting == "api_tokens")
    return callers


def why_foreign(scope: Scope, headers: Mapping[bytes, bytes]) -> str | None:
    """Return why a request doesn't count as this machine's own, None if it does.

    A Unix socket has no peer: an app that listens on one is behind a proxy. A page whose name was
    made to lead to this machine (DNS rebinding) gives itself away by the Host that it asks for.
    """
    if came_through_a_proxy(b"\n".join(headers)):
        return "came through a proxy"
    if not (scope.get("client") and LOOPBACK(scope["client"][0])):
        return "came from another address than 127.0.0.1 or ::1"
    if not LOCAL_HOST(headers.get(b"host", b"")):
        return "asked for a Host that is not localhost, 127.0.0.1 or [::1]"
    return None


def from_other_site(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a browser sends this for a page that isn't Roster's own.

    Programs send neither header. The scheme isn't compared, because a proxy changes it.
    """
    if site := headers.get(b"sec-fetch-site"):
        return site not in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2] != headers.get(b"host")


def unauthorized(status: int, detail: str, error: str = "") -> Response:
    """Return the response to a token that is missing, wrong or too weak (RFC 6750, section 3)."""
    response = answer(status, detail)
    response.headers["WWW-Authenticate"] = 'Bearer realm="Roster"' + error
    return response


async def throw_away(receive: Receive) -> None:
    """Read the rest of a body: a client that still sends would not see why it was rejected."""
    size, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(limits.REST_TIME):
            while more and size < limits.REST_MAX:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)


class Access:
    """ASGI middleware: admits or rejects a request, logs changes and failures.

    Every response has the headers of its path (``headers.BY_PATH``), and an id: never a client's,
    which could give one to many requests.
    """

    def __init__(self, app: ASGIApp, callers: Callable[[], Callers] = get_callers) -> None:
        self.app = app
        self.callers = callers
        self.under_way: Counter[str] = Counter()

    def check(self, scope: Scope, headers: Mapping[bytes, bytes]) -> tuple[Caller, Response | None]:
        """Return the caller, and the response if the request is rejected."""
        method = scope.get("method")  # a WebSocket has none, and counts as a change
        is_open = path_of(scope) in OPEN
        callers = self.callers()
        if callers:
            if is_open and method in ("GET", "HEAD"):
                return ANYONE, None
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer":
                return ANYONE, unauthorized(401, "This needs a token: Authorization: Bearer ...")
            caller = callers.get(sha256(token.strip()).digest(), UNKNOWN)
            if self.under_way[caller.name] >= get_settings().requests_per_caller:
                return caller, answer(429, "Too many requests of this token are under way. Retry.")
            if caller is UNKNOWN:
                unknown = "This token is not known. Check it, or ask the operator for one."
                return caller, unauthorized(401, unknown, ', error="invalid_token"')
        else:
            caller = LOCAL
            if why := why_foreign(scope, headers):
                only = "Until API_TOKENS is set, Roster serves only the machine that it runs on."
                return ANYONE, answer(403, f"This request {why}. {only}")
        if method not in SAFE and not caller.writes:
            only = "This token may only read. Use one that may write."
            return caller, unauthorized(403, only, ', error="insufficient_scope"')
        # Without tokens, a page of another site could have expensive lists read.
        if (method not in SAFE or not (callers or is_open)) and from_other_site(headers):
            return caller, answer(403, "A page of another site may not ask for this.")
        return caller, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers: dict[bytes, bytes] = dict(scope["headers"])
        caller, rejection = self.check(scope, headers)
        request_id = f"{getrandbits(64):016x}"  # not a secret
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, caller=caller.name, reason="")
        status = 0
        unread = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"

        async def receive_on() -> Message:
            nonlocal unread
            message = await receive()
            unread = message.get("more_body", False)
            return message

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                access = "write" if caller.writes else "read"  # the page offers what it allows
                added = [
                    *BY_PATH.get(path_of(scope), API_HEADERS),
                    (b"x-caller", f"{caller.name};access={access}".encode()),
                    (b"x-request-id", request_id.encode()),
                ]
                if (unread or status == BUG[0]) and scope["http_version"] < "2":
                    added.append((b"connection", b"close"))
                message["headers"] = [*message.get("headers", ()), *added]
            elif unread and not message.get("more_body"):
                await send({**message, "more_body": True})
                await throw_away(receive)
                message = {"type": message["type"]}
            await send(message)

        # Every GET has its HEAD (RFC 9110, section 9.1): the server leaves the body out.
        inner = {**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope
        self.under_way[caller.name] += 1
        try:
            if "app_root_path" in scope and not hasattr(scope["app"].state, "started"):
                raise RuntimeError(
                    "Roster has not started. An app that mounts it has to run its lifespan, too:"
                    " async with roster.router.lifespan_context(roster)"
                )
            if caller is UNKNOWN and rejection and rejection.status_code == 401:
                await asyncio.sleep(GUESS_TIME)
            await (rejection or self.app)(inner, receive_on, send_on)
        except ClientDisconnect:
            state["reason"] = "the client has left"
        except Exception as error:
            state["reason"] = type(error).__name__
            if not status and scope["type"] == "http":
                await answer(*BUG)(scope, receive_on, send_on)
            raise  # uvicorn logs the traceback
        finally:
            self.under_way[caller.name] -= 1
            method, reason = scope.get("method", "WebSocket"), state["reason"]
            bad = reason or status >= 500 or status == 429
            if bad or method not in SAFE or caller is UNKNOWN:
                # A fault reads "KIND (code), place". In one outage, its codes vary.
                kind = status, caller.name, reason.partition(" (")[0]
                logger.log(
                    logging.ERROR if status == BUG[0] else logging.WARNING if bad else logging.INFO,
                    "%s %s %s by %s, request %s%s",
                    *(method, quote(scope["path"][:200]), status, caller.name, request_id),
                    f": {reason}" if reason else "",
                    extra={"kind": (bad or status >= 400) and kind},
                )


def install(app: FastAPI) -> None:
    """Guard an app, and describe the tokens in its OpenAPI document, whether there are any or not.

    FastAPI's own way, a dependency of every route, would take several times as long, and leave
    paths open that are no routes.
    """
    app.add_middleware(Access)
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        for path in OPEN & document["paths"].keys():
            for operation in document["paths"][path].values():
                operation["security"] = []
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way

"""Who may call, from where; and the log of who changed what.

Without tokens Roster serves its own machine only (local mode). With tokens, whatever is not in
``OPEN`` needs one (RFC 6750), a path that is not there too. There are no cookies, which a browser
would send along with another site's request; what other sites' pages write is refused all the same.
The body of a refused request is not read.
"""

import re
import sys
from collections.abc import Mapping
from hashlib import sha256
from logging import ERROR, INFO, WARNING
from random import getrandbits
from typing import Any, NamedTuple
from urllib.parse import quote

from fastapi import FastAPI, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from db import Settings
from errors import Fault, answer, logger
from headers import DOCS_FILES, PAGE_FILES

# What anybody may get: health, the API's description, and the page's own files.
OPEN = PAGE_FILES | DOCS_FILES
OPEN |= {"/livez", "/readyz", "/openapi.json", "/docs", "/docs/oauth2-redirect"}
SAFE = ("GET", "HEAD", "OPTIONS")  # they change nothing (RFC 9110, section 9.2.1)

# The characters of a token are those of RFC 6750, section 2.1.
ENTRY = re.compile(r"([A-Za-z0-9._-]{1,64}):([A-Za-z0-9._~+/-]{24,}=*)")
RULE = (
    'must be name:token, the name at most 64 letters, digits and "._-", the token at least 24'
    " (openssl rand -hex 32 makes one)"
)

LOOPBACK = re.compile(r"(::ffff:)?127\.[0-9.]+|::1").fullmatch
LOCAL_HOST = re.compile(rb"(localhost|127(\.[0-9]+){3}|\[::1\])(:[0-9]*)?", re.I).fullmatch
# What proxies add: then the peer on loopback is the proxy, and who asks is somebody else. Proxies
# must send Via (RFC 9110, section 7.6.3); most send another of these instead.
FORWARDING = re.compile(rb"^(x-forwarded-.*|forwarded|x-real-ip|via)$", re.M).search


class Caller(NamedTuple):
    """The name that the log has for who asks, and whether they may change anything."""

    name: str
    writes: bool


LOCAL = Caller("local", writes=True)
NOBODY = Caller("nobody", writes=False)


def read_tokens(settings: Settings) -> dict[bytes, Caller]:
    """Return who has which token, by the token's hash; leave with one line if a setting is wrong.

    A look-up by hash takes a time that says nothing about the tokens.
    """
    callers: dict[bytes, Caller] = {}
    names = {LOCAL.name, NOBODY.name}
    for setting, secret, writes in (
        ("API_TOKENS", settings.api_tokens, True),
        ("API_READ_TOKENS", settings.api_read_tokens, False),
    ):
        text = secret.get_secret_value().strip()
        for number, entry in enumerate(text.split(",") if text else [], start=1):
            if not (match := ENTRY.fullmatch(entry.strip())):
                sys.exit(f"{setting}: entry {number} {RULE}.")
            name, token = match.groups()
            digest = sha256(token.encode()).digest()
            if name in names or digest in callers:
                sys.exit(f"{setting}: entry {number} has a name or a token that is taken.")
            names.add(name)
            callers[digest] = Caller(name, writes)
    return callers


def why_foreign(scope: Scope, headers: Mapping[bytes, bytes]) -> str | None:
    """Return why a request does not count as this machine's own, None if it does.

    A Unix socket has no peer: who listens on one has a proxy before it. A page whose name was made
    to lead to this machine (DNS rebinding) is told by the Host that it asks for.
    """
    if FORWARDING(b"\n".join(headers)):
        return "came through a proxy"
    if not (scope.get("client") and LOOPBACK(scope["client"][0])):
        return "came from another address than 127.0.0.1 or ::1"
    if not LOCAL_HOST(headers.get(b"host", b"")):
        return "asked for a Host that is not localhost, 127.0.0.1 or [::1]"
    return None


def from_other_site(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a browser sends this for a page that is not Roster's own.

    Programs send neither header. Not compared is the scheme, which a proxy before Roster changes.
    """
    if site := headers.get(b"sec-fetch-site"):
        return site not in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2] != headers.get(b"host")


def unauthorized(status: int, detail: str, error: str = "") -> Response:
    """Return the answer to a token that is missing, wrong or too weak (RFC 6750, section 3)."""
    response = answer(status, detail)
    error = f', error="{error}"' if error else ""
    response.headers["WWW-Authenticate"] = f'Bearer realm="Roster"{error}'
    return response


class Access:
    """ASGI middleware: lets a request in or refuses it, gives it an id, logs who changed what.

    The id is made here and never taken from a client, who could give one to many requests.
    """

    def __init__(self, app: ASGIApp, callers: Mapping[bytes, Caller]) -> None:
        self.app = app
        self.callers = callers

    def check(self, scope: Scope) -> tuple[Caller, Response | None]:
        """Return who asks; and the answer, if it is no."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        method = scope.get("method")  # a WebSocket has none, and counts as a change
        if self.callers:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path in OPEN and method in ("GET", "HEAD"):
                return NOBODY, None
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer":
                return NOBODY, unauthorized(401, "This needs a token: Authorization: Bearer ...")
            caller = self.callers.get(sha256(token.strip()).digest(), NOBODY)
            if caller is NOBODY:
                return NOBODY, unauthorized(401, "This token is not known.", "invalid_token")
        else:
            caller = LOCAL
            if why := why_foreign(scope, headers):
                return NOBODY, answer(
                    403,
                    f"This request {why}. As long as API_TOKENS is not set, Roster serves only the"
                    " machine that it runs on.",
                )
        if method not in SAFE:
            if not caller.writes:
                return caller, unauthorized(403, "This token only reads.", "insufficient_scope")
            if from_other_site(headers):
                return caller, answer(403, "A page of another site cannot change anything here.")
        return caller, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        caller, refusal = self.check(scope)
        request_id = f"{getrandbits(64):016x}"  # no secret, and faster than one
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, caller=caller.name, reason="")
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                header = (b"x-request-id", request_id.encode())
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        try:
            await (refusal or self.app)(scope, receive, send_with_id)
        except Exception as error:
            state["reason"] = type(error).__name__
            if not status:
                bug = answer(Fault.BUG.status, Fault.BUG.detail)
                await bug(scope, receive, send_with_id)
            raise  # uvicorn logs the traceback
        finally:
            method, reason = scope.get("method", "WebSocket"), state["reason"]
            bad = reason or status >= 500
            level = ERROR if status == Fault.BUG.status else WARNING if bad else INFO
            if bad or method not in SAFE:
                logger.log(
                    level,
                    "%s %s %s by %s, request %s%s",
                    *(method, quote(scope["path"][:200]), status, caller.name, request_id),
                    f": {reason}" if reason else "",
                )


def install(app: FastAPI, settings: Settings) -> None:
    """Guard an app, and describe the tokens in its OpenAPI document, whether there are any or not.

    FastAPI's own way, a dependency in every route, would take several times as long, and leave the
    paths open that are no routes.
    """
    app.add_middleware(Access, callers=read_tokens(settings))
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

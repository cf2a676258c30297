"""The headers by which a browser knows what it may do with an answer.

https://developer.mozilla.org/en-US/docs/Web/HTTP/Guides/CSP explains the policy: scripts, styles
and all else come from the app itself, and no other site can put the page in a frame.
"""

from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

WEB = Path(__file__).parent / "web"

Headers = list[tuple[bytes, bytes]]


def headers(policy: str, cache: str) -> Headers:
    """Return the headers of an answer with this Content-Security-Policy and Cache-Control."""
    found = {
        "content-security-policy": policy,
        "cache-control": cache,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    return [(name.encode(), value.encode()) for name, value in found.items()]


STRICT = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    # A script that would make HTML of a text is stopped, too.
    " require-trusted-types-for 'script'"
)
# FastAPI's page for /docs has a script in it, and Swagger UI styles.
DOCS = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; frame-ancestors 'none'"
)
DOCS_FILES = frozenset(
    f"/static-offline-docs/{name}"
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
)
API_HEADERS = headers(STRICT, "no-store")  # it is about people
# The browser asks each time whether they are new, so that a page is never half old.
PAGE_HEADERS = headers(STRICT, "no-cache")
PAGE_FILES = frozenset({"/", *(f"/{file.name}" for file in WEB.iterdir())})
BY_PATH = {
    **dict.fromkeys(PAGE_FILES | DOCS_FILES, PAGE_HEADERS),
    "/docs": headers(DOCS, "no-store"),
}


class SafeHeaders:
    """ASGI middleware that adds the headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"].removeprefix(scope.get("root_path", ""))
                more = BY_PATH.get(path, API_HEADERS)
                message["headers"] = [*message["headers"], *more]
            await send(message)

        return await self.app(scope, receive, send_with_headers)

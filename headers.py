"""The headers that tell a browser what it may do with a response.

https://developer.mozilla.org/en-US/docs/Web/HTTP/Guides/CSP explains the policy: scripts, styles
and all else come from the app itself, and no other site can put the page in a frame.
"""

from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

WEB = Path(__file__).parent / "web"
STRICT = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    # A script that would make HTML of a text is stopped, too.
    " require-trusted-types-for 'script'"
)
# FastAPI's page for /docs contains a script, and Swagger UI styles.
DOCS = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; frame-ancestors 'none'"
)


def headers(policy: str, cache: str) -> list[tuple[bytes, bytes]]:
    """Return the headers of a response with this Content-Security-Policy and Cache-Control."""
    return [
        (b"content-security-policy", policy.encode()),
        (b"cache-control", cache.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]


DOCS_FILES = frozenset(
    f"/static-offline-docs/{name}"
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
)
PAGE_FILES = frozenset({"/", *(f"/{file.name}" for file in WEB.iterdir())})
API_HEADERS = headers(STRICT, "no-store")  # responses are about people
# With no-cache, the browser asks each time whether a file is new, so no page is ever half old.
BY_PATH = dict.fromkeys(PAGE_FILES | DOCS_FILES, headers(STRICT, "no-cache"))
BY_PATH["/docs"] = headers(DOCS, "no-store")


class SafeHeaders:
    """ASGI middleware that adds the headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"].removeprefix(scope.get("root_path", ""))
                state = scope["state"]  # auth.py made it
                who = f"{state['caller']};access={'write' if state['writes'] else 'read'}".encode()
                added = [(b"x-caller", who), *BY_PATH.get(path, API_HEADERS)]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self.app(scope, receive, send_with_headers)

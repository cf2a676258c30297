"""The headers of each path's response, and the paths that need no token."""

from pathlib import Path

from starlette.types import Scope

WEB = Path(__file__).parent.parent / "web"
# https://developer.mozilla.org/en-US/docs/Web/HTTP/Guides/CSP explains these policies. What a page
# loads comes from the app itself, and no other site can put the page in a frame.
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


def path_of(scope: Scope) -> str:
    """Return the path without the prefix under which a proxy or another app serves Roster."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path


# Needs no token: health, the API's description, and the page's own files.
OPEN = PAGE_FILES | DOCS_FILES
OPEN |= {"/livez", "/readyz", "/openapi.json", "/docs", "/docs/oauth2-redirect"}

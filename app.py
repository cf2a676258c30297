"""Roster's HTTP API. Read ``models.py`` before this, ``db.py`` and a store after it."""

import gc
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

gc.disable()  # or the garbage collector looks, many times, through all that is imported here
import msgspec
from fastapi import Body, Depends, FastAPI, Header, Path, Query, Request, Response, status
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi_offline import FastAPIOffline

import auth
import errors
from db import get_settings
from export import MEDIA_TYPES, Format, stream_users
from headers import WEB, SafeHeaders
from models import (
    BULK_MAX,
    BulkResult,
    UserCreate,
    UserId,
    UserPage,
    UserQuery,
    UserRead,
    UserRow,
    UserUpdate,
)
from start import running, telemetry
from store import UserStore, choose_backend, read_page
from strict import StrictRoute

backend = choose_backend(get_settings().database_url.get_secret_value())
gc.freeze()  # nor is it to look there later
gc.enable()
# A store has nothing to end, but FastAPI would find out its scope anew for each request.
StoreDep = Annotated[UserStore, Depends(backend.get_store, scope="function")]
# For verbs that take several statements: these share a session, and are done all or not at all.
SessionStoreDep = Annotated[UserStore, Depends(backend.get_session_store, scope="function")]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Start the database's side; close its connections at the end."""
    async with running(backend):
        yield


app = FastAPIOffline(  # FastAPI, but /docs needs no other site
    title="Roster",
    summary="A small user directory on the database of your choice.",
    description="The page for people is at [/](/). To read the code, begin with `docs/tour.md`.",
    version="1.0.0",
    lifespan=lifespan,
    redoc_url=None,  # one page of documentation is enough: /docs
    telemetry=telemetry(),  # OpenTelemetry, if it is asked for
)
app.router.route_class = StrictRoute
errors.install(app, backend)
auth.install(app, get_settings())
app.frontend("/", directory=WEB, fallback=None)  # what no route has is looked for in web/
app.add_middleware(SafeHeaders)  # the last is around all others: their answers have them too


class RowResponse(JSONResponse):
    """JSON of rows: FastAPI's own way, by pydantic, takes longer than the query.

    Handlers that write go FastAPI's way: they return a ``UserRead``, and are called less often.
    """

    def render(self, content: Any) -> bytes:
        """Return the body (https://fastapi.tiangolo.com/advanced/custom-response/)."""
        return msgspec.json.encode(content)


IdPath = Annotated[UserId, Path(alias="id", openapi_examples={"one": {"value": 1}})]
IfMatch = Annotated[str | None, Header(description='An ETag, like `"3"`: only if it still fits.')]
# The handler takes it from the request: among its parameters, a header costs FastAPI as much
# time as the user costs SQLite.
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The ETags that you have.",
    "schema": {"type": "string"},
}


def etag(user: UserRead | UserRow) -> dict[str, str]:
    """Return the header that names a user's version (RFC 9110, section 8.8.3)."""
    return {"ETag": f'"{user.version:d}"'}  # d: a damaged version raises, and is in no header


def versions(if_match: str | None) -> set[int] | None:
    """Return the versions that an If-Match allows, None if any (RFC 9110, section 13.1.1)."""
    if if_match is None or if_match.strip() == "*":
        return None
    return {int(tag) for tag in re.findall(r'(?<!W/)"([1-9][0-9]{0,17})"', if_match)}


# Reading first: a request is compared with one route after the other.
@app.get("/users/", tags=["users"], response_model=UserPage, responses=errors.READING)
async def read_users(query: Annotated[UserQuery, Query()], store: StoreDep) -> RowResponse:
    """List users, page by page: send `next` as `cursor` until it is null.

    Users who are there all the time come exactly once, whoever else comes and goes meanwhile. When
    sorted by name, somebody who is renamed meanwhile moves in the list.
    """
    return RowResponse(await read_page(store, query))


@app.get(
    "/users/{id:user}",
    tags=["users"],
    response_model=UserRead,
    responses=errors.READING | errors.MISSED | {304: {"description": "You have this version."}},
    openapi_extra={"parameters": [IF_NONE_MATCH]},
)
async def read_user(user_id: IdPath, store: StoreDep, request: Request) -> Response:
    """Return a user; `ETag` says which version."""
    user = await store.get(user_id)
    headers = etag(user)
    have = request.headers.get("If-None-Match", "")
    if have == "*" or headers["ETag"] in have:
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    return RowResponse(user, headers=headers)


@app.get(
    "/users/export",
    tags=["users"],
    response_class=StreamingResponse,
    responses=errors.READING
    | {200: {"content": {kind.split(";")[0]: {} for kind in MEDIA_TYPES.values()}}},
)
async def export_users(store: StoreDep, format: Format = "jsonl") -> StreamingResponse:
    """Download every user, by id."""
    return await stream_users(store, format)


@app.post(
    "/users/",
    tags=["users"],
    status_code=status.HTTP_201_CREATED,
    responses=errors.SENDING | errors.TAKEN,
)
async def create_user(user: UserCreate, store: StoreDep, response: Response) -> UserRead:
    """Add a user. `Location` says where it is, `ETag` which version it has."""
    created = await store.add(user)
    response.headers.update({"Location": f"/users/{created.id}", **etag(created)})
    return created


@app.post(
    "/users/bulk",
    tags=["users"],
    status_code=status.HTTP_201_CREATED,
    responses=errors.SENDING | errors.TAKEN,
)
async def create_users(
    users: Annotated[list[UserCreate], Body(min_length=1, max_length=BULK_MAX)],
    store: SessionStoreDep,
    on_conflict: Annotated[Literal["fail", "skip"], Query()] = "fail",
) -> BulkResult:
    """Add up to 1000 users (and 1 MiB), all or none; `on_conflict=skip`: those who are new."""
    items, skipped = await store.add_many(users, skip_taken=on_conflict == "skip")
    return BulkResult(items=items, skipped=skipped)


@app.patch(
    "/users/{id:user}",
    tags=["users"],
    responses=errors.SENDING | errors.MISSED | errors.TAKEN | errors.STALE,
)
async def update_user(
    user_id: IdPath,
    update: UserUpdate,
    store: SessionStoreDep,
    response: Response,
    if_match: IfMatch = None,
) -> UserRead:
    """Change the fields that are sent. With `If-Match`, only if nobody else did meanwhile."""
    user = await store.change(user_id, update, versions(if_match))
    response.headers.update(etag(user))
    return user


@app.delete(
    "/users/{id:user}",
    tags=["users"],
    status_code=status.HTTP_204_NO_CONTENT,
    responses=errors.WRITING | errors.MISSED | errors.STALE,
)
async def delete_user(user_id: IdPath, store: SessionStoreDep, if_match: IfMatch = None) -> None:
    """Delete a user. With `If-Match`, only if nobody changed it meanwhile."""
    await store.remove(user_id, versions(if_match))


@app.get("/livez", tags=["health"], responses=errors.LIVE)
async def live() -> dict[str, str]:
    """Say that the process serves. No database is asked."""
    return {"status": "ok"}


@app.get("/readyz", tags=["health"], responses=errors.LIVE | errors.AWAY)
async def ready(store: StoreDep) -> dict[str, str]:
    """Say that the database answers."""
    await store.ping()
    return {"status": "ok"}

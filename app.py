"""Roster's HTTP API. Read ``models.py`` before this, and ``db.py`` after it."""

from typing import Annotated, Literal

from fastapi import Query, Request, Response, status
from fastapi_offline import FastAPIOffline

import edge
from db import StoreDep
from edge import IfMatch, Route, each
from errors import (  # HANDLERS of exceptions, and the errors of each request for OpenAPI
    HANDLERS,
    LIVE,
    NOT_FOUND,
    NOT_MODIFIED,
    READ,
    SEND,
    STALE,
    TAKEN,
    UNREACHABLE,
    WRITE,
)
from export import EXPORT, Format, StreamStoreDep, WholeResponse, read_pages
from fields import UserId, Words
from lifespan import lifespan, telemetry
from models import FIELDS, BulkOfRows, BulkResult, UserCreate, UserPage, UserRead, UserUpdate
from paging import UserQuery
from store import read_page

app = FastAPIOffline(  # FastAPI, except that /docs loads nothing from other sites
    title="Roster",
    summary="A small user directory on the database of your choice.",
    description="[The page](./) is for people. To read the code, begin with `docs/tour.md`.",
    version="1.0.0",
    lifespan=lifespan,
    exception_handlers=HANDLERS,
    redoc_url=None,
    telemetry=telemetry(),  # OpenTelemetry, if an OTEL_ variable is set
    generate_unique_id_function=lambda route: route.name,  # operations are named like handlers
)
app.router.route_class = Route  # of all routes below: rows unvalidated, ETag, 304, limits
edge.install(app)  # middleware: access, security headers, the log of changes
app.frontend("/", directory=edge.WEB, fallback=None)  # serve unmatched paths from web/


@app.post("/users/", tags=["users"], status_code=status.HTTP_201_CREATED, responses=SEND | TAKEN)
async def create_user(user: UserCreate, store: StoreDep, response: Response) -> UserRead:
    """Add a user. `Location` is its path, `ETag` its version."""
    created = await store.add(user)
    response.headers["Location"] = f"/users/{created.id}"
    return created


@app.post(
    "/users/bulk", tags=["users"], status_code=status.HTTP_201_CREATED, responses=SEND | TAKEN
)
async def create_users(
    users: Annotated[list[UserCreate], each(UserCreate)],  # checked in slices: others run, too
    store: StoreDep,
    on_conflict: Annotated[Literal["fail", "skip"], Query()] = "fail",
) -> BulkResult:
    """Add up to 1000 users, all or none. `on_conflict=skip` skips those whose address is taken."""
    return BulkOfRows(*await store.add_many(users, skip_taken=on_conflict == "skip"))


@app.get("/users/", tags=["users"], responses=READ)
async def read_users(query: Annotated[UserQuery, Query()], store: StoreDep) -> UserPage:
    """List users, page by page: send `next` as `cursor` until it is null.

    A user that matches from the first page to the last appears exactly once. If the list is sorted
    by name, a user that is renamed between two pages may appear twice or not at all.
    """
    return await read_page(store, query)


@app.get("/users/export", tags=["users"], response_class=WholeResponse, responses=READ | EXPORT)
async def export_users(
    request: Request, store: StreamStoreDep, format: Format = "jsonl", q: Words = ""
) -> WholeResponse:
    """Download every user, or those that `q` finds, sorted by id."""
    # The session lasts until all is sent. The length is stated, so a client notices a cut.
    return WholeResponse(request, read_pages(store, q), FIELDS, "users", format)


@app.get("/users/{user_id}", tags=["users"], responses=READ | NOT_FOUND | NOT_MODIFIED)
async def read_user(user_id: UserId, store: StoreDep) -> UserRead:
    """Return a user. `ETag` is its version."""
    return await store.get(user_id)


@app.patch("/users/{user_id}", tags=["users"], responses=SEND | NOT_FOUND | TAKEN | STALE)
async def update_user(
    user_id: UserId,
    update: UserUpdate,
    store: StoreDep,
    if_match: IfMatch,  # the versions that the header names; None: any
) -> UserRead:
    """Change the fields that are sent. With `If-Match`, only if the user still has that version."""
    return await store.change(user_id, update, if_match)


@app.delete(
    "/users/{user_id}",
    tags=["users"],
    status_code=status.HTTP_204_NO_CONTENT,
    responses=WRITE | NOT_FOUND | STALE | TAKEN,  # TAKEN: another table refers to the user
)
async def delete_user(user_id: UserId, store: StoreDep, if_match: IfMatch) -> None:
    """Delete a user. With `If-Match`, only if the user still has that version."""
    await store.remove(user_id, if_match)


@app.get("/livez", tags=["health"], responses=LIVE)
async def live() -> dict[str, str]:
    """Return 200 while the process serves. It does not ask the database."""
    return {"status": "ok"}


@app.get("/readyz", tags=["health"], responses=LIVE | UNREACHABLE)
async def ready(store: StoreDep) -> dict[str, str]:
    """Return 200 if the database answers."""
    await store.ping()
    return {"status": "ok"}

"""Roster with one more table, served by hand: what the page has to draw from openapi.json alone.

Projects are kept in memory, and keep the contract of DESIGN's own tables. None of their fields is
named in ``web/``.
"""

from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from itertools import count
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Header, HTTPException, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Receive, Scope, Send

from errors import FieldProblems
from tests.served import app as users_app
from tests.served import roster


class State(StrEnum):
    """A choice."""

    IDEA = "idea"
    RUNNING = "running"
    DONE = "done"


class ProjectCreate(BaseModel):
    """A field of each kind."""

    model_config = ConfigDict(extra="forbid")

    title: Annotated[str, Field(min_length=1, max_length=100)]
    note: Annotated[str, Field(max_length=2000)] = ""
    owner_id: Annotated[int | None, Field(json_schema_extra={"x-references": "/users/"})] = None
    state: State = State.IDEA
    budget: Annotated[Decimal, Field(ge=0, decimal_places=2)] | None = None
    hours: Annotated[int, Field(ge=0)] | None = None
    due: date | None = None
    starts_at: datetime | None = None
    public: bool = False
    agreed: bool | None = None
    tags: list[str] = []


class ProjectUpdate(ProjectCreate):
    """The same fields, none of which has to be there."""

    title: Annotated[str, Field(min_length=1, max_length=100)] = ""


class ProjectRead(ProjectCreate):
    """A project as clients see it."""

    id: int
    created_at: datetime
    updated_at: datetime
    version: int


class ProjectPage(BaseModel):
    """A page of projects."""

    items: list[ProjectRead]
    next: str | None
    total: int | None = None


Sort = Literal["id", "-id", "title", "-title", "due", "-due"]
router = APIRouter(prefix="/projects", responses={422: {"model": FieldProblems}})
projects: dict[int, ProjectRead] = {}
ids = count(1)


def get(project_id: int, if_match: str | None = None) -> ProjectRead:
    """Return a project; raise 404 or 412."""
    if project_id not in projects:
        raise HTTPException(404, "There is no such project.")
    project = projects[project_id]
    if if_match not in (None, f'"{project.version}"'):
        raise HTTPException(412, "The project has changed since you read it.")
    return project


def check(new: ProjectCreate, but: int = 0, *at: int) -> list[dict[str, Any]]:
    """Return what is wrong with a title that is taken."""
    same = [one for one in projects.values() if one.title == new.title and one.id != but]
    return [{"type": "taken", "loc": ["body", *at, "title"], "msg": "is taken"}] if same else []


def store(new: ProjectCreate) -> ProjectRead:
    """Store a project."""
    now = datetime.now(UTC)
    own = {"id": next(ids), "created_at": now, "updated_at": now, "version": 1}
    project = ProjectRead(**new.model_dump(), **own)
    projects[project.id] = project
    return project


def found(q: str, sort: str = "id") -> list[ProjectRead]:
    """Return the projects with these words, in order."""
    words = q.casefold().split()
    those = [one for one in projects.values() if all(w in one.title.casefold() for w in words)]
    field = sort.removeprefix("-")
    those.sort(key=lambda one: (str(getattr(one, field) or ""), one.id), reverse=sort[0] == "-")
    return those


@router.get("/")
async def read_projects(
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: str = "0",
    q: str = "",
    sort: Sort = "id",
    total: bool = False,
) -> ProjectPage:
    """List projects."""
    those = found(q, sort)
    page = those[int(cursor) : int(cursor) + limit]
    after = int(cursor) + limit
    following = str(after) if after < len(those) else None
    return ProjectPage(items=page, next=following, total=len(those) if total else None)


@router.get("/export")
async def export_projects(format: Literal["csv", "jsonl"], q: str = "") -> PlainTextResponse:
    """Export projects, as JSON Lines only: this is about the page."""
    return PlainTextResponse("".join(one.model_dump_json() + "\n" for one in found(q)))


@router.get("/{project_id}")
async def read_project(project_id: int) -> ProjectRead:
    """Return a project."""
    return get(project_id)


@router.post("/", status_code=201)
async def create_project(new: ProjectCreate) -> ProjectRead:
    """Add a project."""
    if problems := check(new):
        raise HTTPException(409, problems)
    return store(new)


@router.post("/bulk", status_code=201)
async def create_projects(new: Annotated[list[ProjectCreate], Body()]) -> dict[str, Any]:
    """Add all or none."""
    problems = [problem for at, one in enumerate(new) for problem in check(one, 0, at)]
    if problems:
        raise HTTPException(409, problems)
    return {"items": [store(one) for one in new], "skipped": []}


@router.patch("/{project_id}")
async def update_project(
    project_id: int, update: ProjectUpdate, if_match: Annotated[str | None, Header()] = None
) -> ProjectRead:
    """Change the fields that are sent."""
    old = get(project_id, if_match)
    changes = update.model_dump(exclude_unset=True)
    if "title" in changes and (problems := check(update, project_id)):
        raise HTTPException(409, problems)
    now = {"updated_at": datetime.now(UTC), "version": old.version + 1}
    projects[project_id] = old.model_copy(update={**changes, **now})
    return projects[project_id]


@router.delete("/{project_id}", status_code=204)
async def delete_project(
    project_id: int, if_match: Annotated[str | None, Header()] = None
) -> Response:
    """Delete a project."""
    get(project_id, if_match)
    del projects[project_id]
    return Response(status_code=204)


@roster.post("/-/wipe-projects", include_in_schema=False)
async def wipe_projects(request: Request) -> str:
    """Delete all projects."""
    projects.clear()
    return "empty"


roster.include_router(router)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve all of it."""
    await users_app(scope, receive, send)

"""Roster with one more table, which has a field of each kind. The page draws it from openapi.json.

None of its fields is named in ``web/``.
"""

from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime
from pydantic import Field as Limits
from served import app, roster
from sqlalchemy import JSON, UniqueConstraint
from sqlmodel import Field, SQLModel

from engine import UTCMillis
from fields import NAME_MAX, Name, UserId
from rows import TABLE, RowId, Versioned, key_of, partial
from tables import resource

__all__ = ["app"]


class State(StrEnum):
    """A choice."""

    IDEA = "idea"
    RUNNING = "running"
    DONE = "done"


class ProjectBase(SQLModel):
    """A field of each kind."""

    title: Name = Field(max_length=NAME_MAX)
    note: str = Field(default="", max_length=2000)
    owner_id: UserId | None = Field(
        default=None, foreign_key="users.id", ondelete="SET NULL", index=True, sa_type=RowId
    )
    state: State = State.IDEA
    budget: Annotated[Decimal, Limits(ge=0)] | None = Field(
        default=None, max_digits=12, decimal_places=2
    )
    hours: int | None = Field(default=None, ge=0)
    due: date | None = None
    starts_at: AwareDatetime | None = Field(default=None, sa_type=UTCMillis)
    public: bool = False
    agreed: bool | None = None
    tags: list[str] = Field(default=[], sa_type=JSON)


class Project(Versioned, ProjectBase, table=True):
    """The table."""

    __tablename__ = "projects"
    __table_args__ = (UniqueConstraint("title_key", name="uq_projects_title"), TABLE)

    id: int = Field(default=None, primary_key=True, sa_type=RowId)
    title_key: str = key_of("title")


class ProjectCreate(ProjectBase):
    """What a client sends to add a project."""

    model_config = {"extra": "forbid"}


@partial
class ProjectUpdate(ProjectCreate):
    """What a client sends to change a project."""


class ProjectRead(ProjectBase):
    """A project as clients see it."""

    id: UserId
    created_at: datetime
    updated_at: datetime
    version: int


projects = resource(
    Project, ProjectCreate, ProjectUpdate, ProjectRead, sort=["title", "due"], q=["title"]
)
roster.include_router(projects)

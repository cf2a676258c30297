"""Roster with a second resource, for Schemathesis.

It has no Decimal: pydantic's schema of one allows any text.
"""

from datetime import datetime
from enum import StrEnum

from pydantic import StrictBool
from served import app, roster
from sqlalchemy import UniqueConstraint
from sqlmodel import Field, SQLModel

from engine import UTCMillis
from fields import NAME_MAX, Name, UserId
from rows import TABLE, Day, Moment, RowId, Versioned, choice, key_of, partial
from tables import resource

__all__ = ["Task", "TaskCreate", "app"]


class State(StrEnum):
    OPEN = "open"
    DONE = "done"


class TaskBase(SQLModel):
    title: Name = Field(max_length=NAME_MAX)
    state: State = Field(default=State.OPEN, sa_type=choice(State))
    due: Day | None = None
    starts_at: Moment | None = Field(default=None, sa_type=UTCMillis)
    urgent: StrictBool = False
    owner_id: UserId | None = Field(default=None, foreign_key="users.id", sa_type=RowId)


class Task(Versioned, TaskBase, table=True):
    __tablename__ = "tasks"
    __table_args__ = (UniqueConstraint("title_key", name="uq_tasks_title_key"), TABLE)

    id: int = Field(default=None, primary_key=True, sa_type=RowId)
    title_key: str = key_of("title")


class TaskCreate(TaskBase):
    model_config = {"extra": "forbid"}


@partial
class TaskUpdate(TaskCreate):
    pass


class TaskRead(TaskBase):
    id: UserId
    created_at: datetime
    updated_at: datetime
    version: int


tasks = resource(Task, TaskCreate, TaskUpdate, TaskRead, sort=["title", "due"], q=["title"])
roster.include_router(tasks)

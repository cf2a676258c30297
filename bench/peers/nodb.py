"""FastAPI alone: the same requests checked, the same answers made and sent, and no database."""

from datetime import UTC, datetime
from itertools import count
from typing import Annotated

from fastapi import FastAPI, Query
from pydantic import BaseModel, EmailStr, StringConstraints

LAST = 10_000
THEN = datetime(2026, 1, 1, tzinfo=UTC)
ids = count(LAST + 1)


class UserCreate(BaseModel):
    """What comes in."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    email: Annotated[EmailStr, StringConstraints(max_length=254)]


class UserRead(BaseModel):
    """What goes out."""

    id: int
    name: str
    email: str
    created_at: datetime
    updated_at: datetime
    version: int


class UserPage(BaseModel):
    """A page of users."""

    items: list[UserRead]
    next: str | None


app = FastAPI()


def make_user(user_id: int) -> UserRead:
    """Return the user whom the databases have under this id."""
    return UserRead(
        id=user_id,
        name=f"User {user_id}",
        email=f"user{user_id}@example.com",
        created_at=THEN,
        updated_at=THEN,
        version=1,
    )


@app.post("/users/", status_code=201)
async def create_user(user: UserCreate) -> UserRead:
    """Answer as if the user were stored."""
    now = datetime.now(UTC)
    return UserRead(id=next(ids), **user.model_dump(), created_at=now, updated_at=now, version=1)


@app.get("/users/")
async def read_users(cursor: int = 0, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> UserPage:
    """Return as many users as the databases have after the cursor."""
    last = min(cursor + limit, LAST)
    users = [make_user(user_id) for user_id in range(cursor + 1, last + 1)]
    return UserPage(items=users, next=str(last) if last < LAST else None)


@app.get("/users/{user_id}")
async def read_user(user_id: int) -> UserRead:
    """Return a user."""
    return make_user(user_id)

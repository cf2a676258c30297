"""FastAPI alone: the same requests checked, the same answers sent, of users made at the start."""

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


# Those whom the databases have.
USERS = [
    UserRead(
        id=user_id,
        name=f"User {user_id}",
        email=f"user{user_id}@example.com",
        created_at=THEN,
        updated_at=THEN,
        version=1,
    )
    for user_id in range(1, LAST + 1)
]


@app.post("/users/", status_code=201)
async def create_user(user: UserCreate) -> UserRead:
    """Answer as if the user were stored."""
    now = datetime.now(UTC)
    return UserRead(id=next(ids), **user.model_dump(), created_at=now, updated_at=now, version=1)


@app.get("/users/")
async def read_users(cursor: int = 0, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> UserPage:
    """Return as many users as the databases have after the cursor."""
    last = cursor + limit
    return UserPage(items=USERS[cursor:last], next=str(last) if last < LAST else None)


@app.get("/users/{user_id}")
async def read_user(user_id: int) -> UserRead:
    """Return a user."""
    return USERS[user_id - 1]
